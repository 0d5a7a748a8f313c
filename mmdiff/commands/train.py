"""Train what a config describes; the same command goes on after a stop.

  mmdiff train --config=configs/clip.py:tiny --workdir=runs/clip
  mmdiff train --config=configs/clip.py:tiny --data=pictures --workdir=runs/mine
  mmdiff train --config=configs/t2i_pixels.py --workdir=runs/t2i --config.batch_size=128 --config.optim.default.lr=1e-3

--data names other data than the config's (docs/data.md says how): the kinds of caption follow what they have, a share of them is held out
of training, and the evaluators score that share. --data.KEY=VALUE and --config.KEY=VALUE change what follows.

The run directory gets config.json, metrics.jsonl, TensorBoard events, checkpoints/, samples/, eval/, tokenizer.json and report.html.
"""
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.convert import names
from mmdiff.core import compilation, locks, schema, sizes
from mmdiff.core.build import build, lookup
from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.core.files import read_object
from mmdiff.core.provenance import made_by
from mmdiff.core.terminal import tell
from mmdiff.report import words
from mmdiff.report.numbers import flat
from mmdiff.train import sums

FLAGS = {
  "config": dict(type="str", required=True, help="a config file, with :arguments"),
  "data": dict(type="source", sets="data.source", help="one's own pictures, in place of the config's data: a folder, tars, parquet, …"),
  "workdir": dict(type="dir", required=True, help="the run directory; made if absent, resumed if not"),
  "dry_run": dict(type="bool", default=False, help="only check config, data, model and run directory, as `mmdiff doctor` does"),
  "resume": dict(type="bool", help="every start goes on where the last one stopped; with this, a run must be there, with --noresume none"),
}

# What may differ between the config that a run began with and the one that goes on with it.
MAY_CHANGE = ("init", "steps", "log_every_steps", "trackers", "profile", "max_bad_steps", "checkpoint", "evals", "mesh", "sharding",
              "accumulate", "data.threads", "data.workers", "data.max_bad_fraction")


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS)
  there = (Path(given["workdir"]) / "config.json").exists()
  if given["resume"] is not None and given["resume"] != there:
    raise ConfigError(f"--resume: {given['workdir']} holds no run to go on with; the same command without it begins one" if given["resume"]
                      else f"--noresume: {given['workdir']} holds a run, which the same command goes on with; choose another --workdir")
  if given["dry_run"]:
    from mmdiff.commands import doctor
    return doctor.tell_all(doctor.examine(given["config"], Path(given["workdir"]), step=False))[1]
  check_start(given["config"], Path(given["workdir"]))
  run(given["config"], Path(given["workdir"]), argv=["train", *argv])
  return 0


def drift(changed: Sequence[str], before: Mapping, now: Mapping) -> list[str]:
  """A line for every changed key of two flat configs; for a block of another name one for all its keys."""
  renamed = [key.removesuffix("name") for key in changed if key.endswith(".name")]
  within = lambda key: next((block for block in renamed if key.startswith(block)), None)
  inside = lambda config, block: {key.removeprefix(block): value for key, value in config.items() if key.startswith(block)}
  named = lambda config, block: words.source_name(inside(config, block))
  said = lambda config, key: f"{config[key]!r}" if key in config else "nothing"
  lines = {within(key) or key: f"--config.{key}: the run began with {said(before, key)}, now {said(now, key)}" for key in changed}
  return [f"--config.{key[:-1]}: the run began with {named(before, key)}, now {named(now, key)}" if key in renamed else line
          for key, line in lines.items()]


def check_drift(config: Mapping, workdir: Path) -> Mapping:
  """The config to go on with: `config`, but for what a run took over at its start, which stays as it was, with a line. Raises ConfigError
  with the differences if the run in `workdir` began with a config that this one cannot continue."""
  file = workdir / "config.json"
  if not file.exists():
    return config
  sums.check(workdir, "config.json", "tokenizer.json")
  # With defaults for the keys that this version has and the run's did not.
  complete = lambda one: one if schema.check(one) else schema.complete(one)
  kept = read_object(file)
  before, now = (flat(complete(one)) for one in (kept, json.loads(json.dumps(config))))
  may_change = lambda key: any(f"{key}.".startswith(f"{name}.") for name in MAY_CHANGE)
  changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key) and not may_change(key)]
  if changed:
    lines = drift(changed, before, now)
    raise ConfigError(f"{workdir} was begun with another config; undo the change or choose another --workdir\n" + "\n".join(lines))
  started = any((workdir / "checkpoints").glob("[0-9]*"))
  if started and kept.get("init") != json.loads(json.dumps(config.get("init"))):
    tell(f"init: {workdir} goes on from its own checkpoint; what --config.init says now is left out of it (choose another --workdir to "
         "start from there)")
    return dict(config, init=kept.get("init"))
  return config


def make_dataset(config: Mapping, workdir: Path):
  """The training data of a config, with the run's own tokenizer: once there is a `tokenizer.json`, it is read back from there; a run that
  starts from another one's weights starts with its tokenizer."""
  from mmdiff.data import SOURCES, TOKENIZERS, loader
  kept = workdir / "tokenizer.json"
  if kept.exists():
    tokenizer = build(TOKENIZERS, dict(name="file", path=str(kept)))
  else:
    tokenizer = given_tokenizer(config) or build(TOKENIZERS, config["data"]["tokenizer"])
  made = loader.dataset(build(SOURCES, config["data"]["source"]), tokenizer, seed=config["seed"], **data_options(config))
  for notice in getattr(made.tokenizer, "notices", ()):
    tell(f"data.tokenizer: {notice}")
  return made


def starts_from(config: Mapping) -> Mapping:
  """`config.init` of a run that starts from weights that exist, else {}."""
  init = config.get("init") or {}
  return init if init.get("path") or init.get("parts") else {}


def check_start(config: Mapping, workdir: Path) -> None:
  """Raises DataError for weights that a fresh run would start from and that are not there."""
  init = starts_from(config)
  for key, path in {"path": init.get("path"), **{f"parts.{part}": path for part, path in (init.get("parts") or {}).items()}}.items():
    if path and not (workdir / "config.json").exists():
      try:
        names.find(path)
      except DataError as error:
        raise DataError(f"--config.init.{key}: {error}") from None


def given_tokenizer(config: Mapping):
  """The tokenizer of the weights that the text tower starts from, if they have one; a line on stderr says so. Raises ConfigError for two
  that differ."""
  if not starts_from(config):
    return None
  from mmdiff.train import sources
  found = {path: made for path in sources.text_sources(config["init"]) if (made := sources.tokenizer_of(path))}
  if len({made.fingerprint() for made in found.values()}) > 1:
    raise ConfigError(f"init: {' and '.join(found)} read texts with different tokenizers, and a run has one")
  for path, made in found.items():
    tell(f"init: texts are read with the tokenizer of {path}, not with data.tokenizer")
    return made
  return None


def start_of(config: Mapping, objective, dataset):
  """What a fresh run takes over (`init.Start`), None for nothing; made before anything is compiled. Raises ConfigError and DataError."""
  source = config.get("init") or {}
  if not starts_from(config) and not config["freeze"]:
    return None
  import jax
  import numpy as np

  from mmdiff.core import tree
  from mmdiff.train import init, sources
  example, *_ = dataset.variants()
  blank = {name: np.zeros((2, *value.shape), value.dtype) for name, value in example.items() if name != "counts"}
  made = jax.eval_shape(objective.init, jax.random.key(config["seed"]), blank)
  try:
    _, frozen = tree.partition(made.params, config["freeze"])
  except ValueError as error:
    raise ConfigError(f"--config.freeze: {error}") from None
  init.say_what_stays_random(tree.paths(frozen), given=objective.given, **source)
  if not starts_from(config):
    return None
  return init.found(made.params, made.extra if objective.statistics else (), facts=sources.facts_of(config), **source)


def data_options(config: Mapping) -> dict[str, Any]:
  """`config.data` without the two keys that are built, and whether the denoiser is told the sizes of each picture."""
  from mmdiff.models.sizes import reads_sizes
  return {key: value for key, value in config["data"].items() if key not in ("source", "tokenizer")} | dict(sizes=reads_sizes(config))


def make_evaluators(config: Mapping, services, opened: dict[str, dict[str, str]] | None = None) -> dict[str, Any]:
  """The entries of config.evals; `opened` is told the records that each reads (`evaluators.likeness`)."""
  from mmdiff.evaluators import EVALUATORS, likeness
  made = {}
  for name, options in config["evals"].items():
    factory = lookup(EVALUATORS, options["name"], what="evaluator")
    noting, _, records = likeness.recording(services)
    if opened is not None:
      opened[name] = records
    made[name] = factory(noting, **{key: value for key, value in options.items() if key != "name"})
  return made


def elsewhere(config: Mapping) -> list[str]:
  """A line for each evaluator whose scores are of other data than those that are trained on."""
  own, lines = config["data"]["source"], []
  for name, options in config["evals"].items():
    if words.elsewhere(config, options):
      flag = f"--config.evals.{name}.source.name={own['name']} …" if options.get("source") else f"another evaluator than {options['name']}"
      lines.append(f"note: {name} is scored on {words.source_name(words.source_of(options) or {})}, training reads "
                   f"{words.source_name(own)}; for scores of those: {flag}")
  return lines


def check_vocabulary(params, tokenizer, config: Mapping) -> None:
  """Raises ConfigError when the text tower's table has fewer rows than the tokenizer has tokens."""
  import jax

  from mmdiff.core import tree
  tables = {path: block["vocab"] for path, block in sizes.blocks(config).items() if block.get("vocab")}
  flags = [f"--config.{path}.vocab={tokenizer.vocab_size}" for path, rows in tables.items() if rows < tokenizer.vocab_size]
  for path, leaf in zip(tree.paths(params), jax.tree.leaves(params)):
    if path.startswith("text/") and path.endswith("embedding") and leaf.shape[0] < tokenizer.vocab_size:
      raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} tokens and the text tower's table {path} has {leaf.shape[0]} rows; "
                        f"add {' '.join(flags) or 'a larger vocab of the text model'}")


def run(config: Mapping, workdir: Path, *, argv: list[str]):
  """Trains from a checked config; returns the final state."""
  started = time.perf_counter()
  config = check_drift(config, workdir)
  import jax

  from mmdiff.train import distributed
  distributed.initialize()
  busy = f"{workdir} is in use by another run; wait for it to end or choose another --workdir"
  with locks.held(workdir, busy=busy) if jax.process_index() == 0 else contextlib.nullcontext():
    return run_held(config, workdir, argv, started)


def run_held(config: Mapping, workdir: Path, argv: list[str], started: float):
  """`run`, in a run directory that is ours."""
  import jax
  compilation.prepare()                              # a restart compiles nothing twice
  import mmdiff.model
  from mmdiff import parallel
  from mmdiff.commands import precompute
  from mmdiff.core.precision import objective_of
  from mmdiff.evaluators.base import serve
  from mmdiff.objectives import OBJECTIVES
  from mmdiff.train import checkpoint, init, loop, starts
  from mmdiff.train.progress import say

  objective = objective_of(OBJECTIVES, config)
  dataset = make_dataset(config, workdir)
  held = f", without the {share:.3g} held out" if (share := config["data"]["held_out"]) else ""
  say(f"{len(dataset):,} records in {words.source_name(config['data']['source'])}{held}", active=jax.process_index() == 0)
  for line in elsewhere(config):
    say(line, active=jax.process_index() == 0)
  for name, rule in config["optim"].items():
    if rule.get("warmup_steps", 0) >= config["steps"]:
      say(f"note: optim.{name}.warmup_steps is {rule['warmup_steps']:,} of {config['steps']:,} steps: the rate stays below its peak",
          active=jax.process_index() == 0)
  opened: dict[str, dict[str, str]] = {}
  begun: list[str] = []
  services = serve(objective.predict, config, mesh=parallel.make_mesh(**config["mesh"]), tokenizer=dataset.tokenizer, workdir=workdir)
  evaluators = make_evaluators(config, services._replace(load=mmdiff.model.load), opened)

  def save_result(name: str, step: int, result) -> None:
    sums.write_json(workdir, f"eval/{name}_{step:08}.json", dict(
      name=name, step=step, evaluator=config["evals"][name], scalars=result.scalars, tables=result.tables,
      images=[f"{name}_{key}_{step:08}.png" if key else f"{name}_{step:08}.png" for key in result.images],
      argv=argv, config=config, data=dataset.fingerprint(), records=opened[name], **made_by()))

  def has_result(name: str, step: int) -> bool:
    return (workdir / "eval" / f"{name}_{step:08}.json").exists()

  def begin(setup) -> None:
    """The last that may refuse the run; then it says what it is."""
    params = setup.state.full()
    check_vocabulary(params, dataset.tokenizer, config)
    precompute.check_encoders(dataset.features, params, config, objective=objective, dataset=dataset, mesh=setup.mesh)
    if jax.process_index() == 0:
      sums.write_json(workdir, "config.json", config)
      if not (workdir / "tokenizer.json").exists():
        dataset.tokenizer.save(workdir / "tokenizer.json")
      sums.vouch(workdir, "tokenizer.json")
      begun.append(starts.begin(workdir, dict(argv=argv, devices=[str(d) for d in jax.devices()[:8]], device_count=jax.device_count(),
                                              data=dataset.fingerprint(), records=len(dataset), step=int(setup.state.step))))

  start = None if checkpoint.available_steps(workdir) else start_of(config, objective, dataset)
  try:
    return loop.train(config, workdir, objective=objective, dataset=dataset, evaluators=evaluators, save_result=save_result,
                      initialise=(lambda state: init.initialised(state, start)) if start else None,
                      has_result=has_result, on_start=begin, on_evaluated=lambda step: write_page(workdir), started=started)
  finally:
    if begun:                             # a start that is refused changes nothing of what those before it left
      with contextlib.suppress(CannotWrite):          # the run's own error says so
        starts.end(workdir, begun[0], time.perf_counter() - started)
      write_page(workdir)


def write_page(workdir: Path) -> None:
  """`report.html` as the run stands. Training does not end because a page could not be written: a line says so."""
  from mmdiff.report.run import write_report
  try:
    write_report(workdir)
  except Exception as error:
    tell(f"{workdir / 'report.html'}: not written: {type(error).__name__}: {error}; the run is not touched by that, and "
         f"`mmdiff report {workdir}` writes the page at any time")
