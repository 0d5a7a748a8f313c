"""Score a trained model, or compare two results.

  mmdiff evaluate --workdir=runs/clip                                                        all that its config.evals says
  mmdiff evaluate --workdir=runs/clip --task=retrieval --task.source.name=scenes --task.source.split=val_iid --task.caption=long
  mmdiff evaluate --model=runs/t2i@1600 --task=judge --task.prompts=64 --out=judge.json     the config's own entry, changed
  mmdiff evaluate --scorer=runs/clip --task=clipscore --images=out                           what `mmdiff sample --out=out` drew
  mmdiff evaluate --model=CLIP-ViT-B-32 --task=retrieval --data=pictures                     public weights on one's own pictures
  mmdiff evaluate --compare=a.json,b.json                                                    an exact test on their prompts

A task is an evaluator (loss, retrieval, collapse, zeroshot, clipscore, alignment, samples, reconstruction, scenes_judge, hard_negatives,
captions; `mmdiff list evaluators` says what each is) or the name of an entry of the run's `config.evals`. Its options come
from that entry, or from the run's first entry of that evaluator, and --task.KEY=VALUE replaces them.
--model also takes public weights: a CLIP, SigLIP or CoCa, or a Stable Diffusion, whole or an autoencoder. They have no config, so that all
options of a task are given, --data among them. Of data that a run was trained on, --data scores the share that was held out.

The scores are printed, and written with the options, versions and fingerprints to --out, by default eval/evaluate_TASK_STEP.json in the
run directory, of public weights evaluate_TASK_NAME.json here; pictures go beside it.

Two results are compared if what they depend on is alike: task, options, records, prompts, size of the pictures, protocol; --unlike names
what may differ.
"""
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.convert import names
from mmdiff.core import compilation, consistency, ranges, schema
from mmdiff.core.build import lookup
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import read_object, write_json
from mmdiff.core.progress import Progress
from mmdiff.core.provenance import made_by
from mmdiff.core.spelling import nearest
from mmdiff.core.terminal import table

FLAGS = {
  "workdir": dict(type="model", apart=("compare",), help="run directory; DIR@STEP for one of its steps"),
  "model": dict(type="model", apart=("compare",), help="the same as --workdir, or public weights"),
  "scorer": dict(type="model", apart=("compare",), help="the same as --workdir, of a clipscore"),
  "task": dict(type="str", apart=("compare",), help="evaluator, or entry of the run's config.evals; --task.KEY=VALUE sets its options"),
  "data": dict(type="source", apart=("compare",), help="the task's source: pictures with captions, tars, parquet, … as in docs/data.md"),
  "images": dict(type="dir", apart=("compare",), help="folder of pictures with captions, as the task's source"),
  "params": dict(type="str", apart=("compare",),
                 help="raw, or an average of config.ema; by default the entry's own, else eval where there is one"),
  "variant": dict(type="str", default="", apart=("compare",), help="of public weights: fp16 for NAME.fp16.safetensors, …"),
  "tokenizer": dict(type="path", apart=("compare",), help="of public weights without one: tokenizer.json, or a folder with the files"),
  "batch_size": dict(type="int", apart=("compare",), help="rows of a batch; by default the run's, at most 256"),
  "fsdp": dict(type="int", default=1, apart=("compare",), help="devices that the parameters are spread over"),
  "out": dict(type="file", help="result file, FILE.json"),
  "compare": dict(type="file,", help="two result files of one task, A.json,B.json"),
  "unlike": dict(type="str,", default=(), needs=dict(compare=True),
                 help="of --compare: what may differ between the two, e.g. guidance,image_size"),
  "table": dict(type="str", default="prompts", needs=dict(compare=True), help="of --compare: the table whose rows are paired"),
}
NO_CONFIG: Mapping[str, Any] = dict(evals={}, ema={})          # of public weights
BLOCK = schema.Block(table="mmdiff.evaluators:EVALUATORS")


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  words, overrides = split(argv)
  given = flags.parse(words, FLAGS)
  if given["compare"]:
    if overrides:
      raise ConfigError("\n".join(f"--task.{key}: says nothing beside --compare; leave one of them out" for key, _ in overrides))
    return compare(given, argv)
  given = flags.located(given, FLAGS)
  paths = [given[name] for name in ("workdir", "model", "scorer") if given[name]]
  if len(paths) != 1:
    raise ConfigError("give one of --workdir, --model, --scorer; or --compare=A.json,B.json")
  if not given["task"]:
    unread = [name for name in ("images", "out") if given[name]] + [f"task.{key}" for key, _ in overrides]
    if unread:
      raise ConfigError("\n".join(f"--{name}: says nothing without --task, of which it is an option" for name in unread))
  from mmdiff.convert import public
  from mmdiff.train import run_directory
  told = {name: given[name] for name in ("variant", "tokenizer") if given[name]}
  if public.is_public(paths[0]):
    if given["params"]:
      raise ConfigError("--params: public weights have one set of parameters; leave it out")
    workdir, config = Path(paths[0]), NO_CONFIG
  else:
    if told:
      raise ConfigError("\n".join(f"--{name}: {paths[0]} is a run, which has its own; leave it out" for name in told))
    workdir, step = run_directory.locate(paths[0])
    config, told = run_directory.read_config(workdir), dict(step=step)
  if given["images"] and given["data"]:
    raise ConfigError("--images: says nothing beside --data; leave one of them out")
  tasks = [given["task"]] if given["task"] else list(config["evals"])
  if not tasks:
    raise ConfigError(f"--task: {without_entries(workdir, config, told)}")
  of = lambda task: task_options(task, config, overrides, images=given["images"], params=given["params"], data=given["data"])
  for task, options in [(task, of(task)) for task in tasks]:
    run(workdir, {**given, "task": task}, options, told, argv=["evaluate", *argv])
  return 0


def without_entries(workdir: Path, config: Mapping, told: Mapping) -> str:
  """What a model without entries of its own can be scored by."""
  if "objective" in config:
    return f"{workdir} has no entries in config.evals to run; name an evaluator: {', '.join(schema.table(BLOCK.table))}"
  import mmdiff.model
  compilation.prepare()
  able = ", ".join(served(mmdiff.model.load(workdir, **told))) or "no evaluator"
  return f"{workdir} is public weights, which can be scored by {able}; name one, and its data with --data=PATH"


def served(model) -> list[str]:
  """The evaluators that a loaded model serves."""
  from mmdiff.evaluators import NEEDS
  return [task for task, needs in NEEDS.items() if all(need in model.services.predict for need in needs)]


def split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
  """(flags, [(dotted key, text)] of the `--task.KEY=VALUE` among them)."""
  words, overrides, rest = [], [], list(argv)
  while rest:
    name, equals, text = rest[0].lstrip("-").partition("=")
    word = rest.pop(0)
    if word.startswith("--") and name.startswith(("task.", "notask.")):
      value = text if equals else "false" if name.startswith("no") else rest.pop(0) if rest and not rest[0].startswith("--") else None
      overrides.append((name.partition("task.")[2], value))
    else:
      words.append(word)
  return words, overrides


def task_options(task: str, config: Mapping, overrides: Sequence[tuple[str, str | None]], *, images: str | None = None,
                 params: str | None = None, data: Mapping | None = None) -> dict[str, Any]:
  """The checked options of a task, `name` among them. Raises ConfigError with every mistake."""
  from mmdiff.commands import flags, own_data
  from mmdiff.train import run_directory
  evals, known = config["evals"], schema.table(BLOCK.table)
  entry = evals.get(task) or next((options for options in evals.values() if options["name"] == task), None)
  if entry is None and task not in known:
    guess = nearest(task, [*known, *evals])
    raise ConfigError(f"--task={task}: unknown task" + (f"; did you mean {guess}?" if guess else "")
                      + f" (evaluators: {', '.join(known)}; entries of its config: {', '.join(evals) or 'none'})")
  options = dict(entry or dict(name=task, params=run_directory.average(config, None))) | dict(every_steps=1)
  if images:
    options["source"] = dict(name="folder", path=images)
  if data:
    options |= own_data.asked_of(data, options, config, said=[key for key, _ in overrides])
  if params is not None:
    options["params"] = run_directory.average(config, params)
  options, problems = flags.override(options, overrides, BLOCK)
  problems += [problem for problem in schema.check(options, BLOCK) if problem.path not in {p.path for p in problems}]
  if not problems:
    options = schema.complete(options, BLOCK)
    start = f"evals.{task}."
    whole = {**config, "evals": {task: options}}
    found = consistency.check(whole) if "objective" in config else [schema.Problem(*one) for one in ranges.problems(whole)]
    problems = [schema.Problem(problem.path.removeprefix(start), problem.message) for problem in found if problem.path.startswith(start)]
    if "objective" not in config and options.get("params"):
      problems.append(schema.Problem("params", f"public weights have no averages, found {options['params']!r}"))
  if problems:
    raise ConfigError("\n".join(problem.text("--task.") for problem in problems))
  return options


def run(workdir: Path, given: Mapping, options: Mapping, told: Mapping, *, argv: list[str]):
  """Evaluates and writes; returns the result. told: further options of `mmdiff.load`."""
  import jax

  import mmdiff.model
  from mmdiff.commands import results
  from mmdiff.evaluators import EVALUATORS, likeness
  from mmdiff.train import distributed, run_directory, sums
  distributed.initialize()
  compilation.prepare()
  chief, task = jax.process_index() == 0, given["task"]
  run_of_ours = "step" in told
  model = mmdiff.model.load(workdir, mesh=dict(fsdp=given["fsdp"]), **told,
                            **(dict(params=options.get("params") or run_directory.RAW) if run_of_ours else {}))
  if not run_of_ours:
    check_served(model, options["name"])
  size = given["batch_size"] or model.services.batch_size
  ways = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
  if size % ways or size < 1:
    raise ConfigError(f"--batch_size: expected a multiple of the {ways} devices, found {size}")
  services, opened, records = likeness.recording(model.services)
  progress = Progress(task, active=chief)
  services = services._replace(batch_size=size, progress=progress)
  at = model.report["step"]
  with jax.set_mesh(model.mesh):
    evaluator = lookup(EVALUATORS, options["name"])(services, **{key: value for key, value in options.items() if key != "name"})
    result = evaluator.run(model.params, at, extra=model.extra)
  progress.close()
  if chief:
    own = workdir / "eval" / f"evaluate_{task}_{at:08}.json" if run_of_ours else f"evaluate_{task}_{names.title(workdir)}.json"
    out = Path(given["out"] or own)
    pictures = {key: out.with_name(out.stem + (f"_{key}" if key else "") + ".png") for key in result.images}
    save = write_json if given["out"] or not run_of_ours else lambda file, found: sums.write_json(workdir, f"eval/{file.name}", found)
    save(out, dict(name=f"evaluate_{task}", step=at, evaluator=options, scalars=result.scalars, tables=result.tables,
                               images=[file.name for file in pictures.values()], argv=argv, model=results.model_facts(model),
                               config=model.config, **made_by(), data=opened, records=records))
    for key, file in pictures.items():
      results.write_png(file, result.images[key])
    print(f"{task} of {workdir}" + (f" at step {at} ({model.report['params']} parameters)" if run_of_ours else ""))
    print(table([dict(score=name, value=float(value)) for name, value in result.scalars.items()]))
    print(f"written to {out}", file=sys.stderr)
  return result


def check_served(model, name: str) -> None:
  """Raises ConfigError for an evaluator that public weights do not serve; says what they do."""
  from mmdiff.evaluators import NEEDS
  lacking = [need for need in NEEDS[name] if need not in model.services.predict]
  if lacking:
    hint = f"; {model.report['hint']}" if model.report.get("hint") else ""
    raise ConfigError(f"--task={name}: {model.report['path']} is public weights of kind {model.report['objective']}, whose tasks are "
                      f"{', '.join(served(model)) or 'none'}{hint}")
  if model.tokenizer is None and name != "reconstruction":
    raise DataError(f"{model.report['path']}: there is no tokenizer beside the weights: put tokenizer.json, or vocab.json and merges.txt, "
                    "there, or give --tokenizer=FOLDER")


def compare(given: Mapping, argv: Sequence[str]) -> int:
  """Prints the scores of two result files side by side and, where both have the table, the exact test on its prompts. Raises DataError
  for results that are not alike."""
  from mmdiff.commands import results
  from mmdiff.evaluators import likeness, statistics
  if len(given["compare"]) != 2:
    raise ConfigError(f"--compare: expected two files, A.json,B.json, found {len(given['compare'])}")
  first, second = map(Path, given["compare"])
  try:
    a, b = (read_object(file, nan=True) for file in (first, second))
    differences = likeness.unlike(likeness.facts(a), likeness.facts(b))
    scores = [dict(score=name, first=float(a["scalars"][name]), second=float(b["scalars"][name]),
                   difference=float(b["scalars"][name] - a["scalars"][name])) for name in a["scalars"] if name in b["scalars"]]
    lacking = [str(file) for file, found in ((first, a), (second, b)) if given["table"] not in found.get("tables", {})]
    if len(lacking) == 1 or lacking and given["table"] != FLAGS["table"]["default"]:
      raise ValueError(f"no table {given['table']} in {', '.join(lacking)}")
    if not scores and lacking:
      raise ValueError(f"{first} and {second} have no score in common")
    tests = {} if lacking else statistics.compare(first, second, table=given["table"])
  except (OSError, ValueError, LookupError, ArithmeticError, RecursionError, TypeError, AttributeError) as error:
    what = error if isinstance(error, (OSError, ValueError)) else f"of another form ({error})"
    raise DataError(f"--compare: {first} or {second}: {what}; expected two result files of `mmdiff evaluate` of one task") from None
  if refused := {name: pair for name, pair in differences.items() if name not in given["unlike"]}:
    raise DataError(f"--compare: {first} and {second} are not alike in {likeness.said(refused)}")
  if idle := [name for name in given["unlike"] if name not in differences]:
    print(f"--unlike={','.join(idle)}: the two are alike in that; they differ in {', '.join(differences) or 'nothing that counts'}",
          file=sys.stderr)
  print(table(scores))
  rows = [dict(category=name, **found._asdict()) for name, found in tests.items()]
  if rows:
    print(f"\nexact test on the prompts of {given['table']}: how many each of the two did better on")
    print(table(rows))
  if given["out"]:
    write_json(Path(given["out"]), dict(argv=["evaluate", *argv], files={str(file): results.digest(file) for file in (first, second)},
                                              scores=scores, prompts=rows, unlike=differences, **made_by()))
  return 0
