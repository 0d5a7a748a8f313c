"""Train the arms of an ablation, every one with every seed, and compare them on one page.

  mmdiff ablate --config=configs/ablations/caption_mix.py:demo --workdir=runs/caption_mix
  mmdiff ablate --config=configs/ablations/caption_mix.py --workdir=DIR --plan             arms, seeds, steps, cost; trains nothing
  mmdiff ablate --config=configs/ablations/caption_mix.py --workdir=DIR --arm=long95 --seed=1      one run, for a scheduler
  mmdiff ablate --config=configs/ablations/caption_mix.py --workdir=DIR --report           the report of what is there

The config says `base`, an experiment; `arms`, what each changes in it; `seeds`; and `prepare`, command lines that come first. All arms of
a seed start from the same parameters and see the same records and noise in the same order, so that their differences are paired. Runs are
ordinary run directories, --workdir/ARM/SEED, and what is prepared lies in --workdir/prepare. Stopped half-way, the same command goes on:
what is finished is kept. Results: report.html and report.json.
"""
import contextlib
import importlib
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.core import consistency, locks, schema
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import read_object, write_json
from mmdiff.core.provenance import made_by
from mmdiff.core.spelling import nearest

FLAGS = {
  "config": dict(type="str", required=True, schema="mmdiff.core.ablation:Ablation", help="a config file of an ablation, with :arguments"),
  "workdir": dict(type="dir", required=True, help="where the runs and the report go"),
  "arm": dict(type="str,", default=(), apart=("plan", "report"), help="train only these arms; all by default"),
  "seed": dict(type="int,", default=(), apart=("plan", "report"), help="train only these seeds; all by default"),
  "plan": dict(type="bool", default=False, help="say what would be done, and what it costs"),
  "report": dict(type="bool", default=False, apart=("plan",), help="only write the report of what is there"),
  "unlike": dict(type="str,", default=(), help="what may differ between the runs that are compared, e.g. image_size"),
}
PREPARE = "prepare"
FIRST = ("train", "caption")    # the commands that prepare: what they have done they don't do again
WORKDIR = "{workdir}"           # in texts of the config: the directory of the ablation


class Run(NamedTuple):
  """One arm with one seed."""
  arm: str
  seed: int
  config: Mapping[str, Any]
  workdir: Path

  @property
  def finished(self) -> bool:
    """Whether its last step is saved and evaluated."""
    last = self.config["steps"]
    return (self.workdir / "checkpoints" / str(last) / "manifest.json").exists() and \
      all((self.workdir / "eval" / f"{name}_{last:08}.json").exists() for name in self.config["evals"])


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags, train
  given = flags.parse(argv, FLAGS)
  workdir, argv = Path(given["workdir"]), ["ablate", *argv]
  config = filled(given["config"], workdir)
  every = runs_of(config, workdir)
  lines = prepare_lines(config)
  mine = selected(every, arms=given["arm"], seeds=given["seed"])
  for run in every:
    train.check_drift(run.config, run.workdir)
  if given["plan"]:
    from mmdiff.commands import plan_ablation
    print("\n".join(plan_ablation.lines(config, every, workdir)))
    return 0
  if given["report"]:
    print("\n".join(report(config, every, workdir, argv, unlike=given["unlike"])))
    return 0
  import jax

  from mmdiff.train import distributed
  distributed.initialize()
  chief = jax.process_index() == 0
  prepare(lines, workdir, chief=chief)
  check_sidecar(config["base"])
  for number, run in enumerate(mine, 1):
    if not run.finished:
      if chief:
        print(f"ablate: {run.arm}, seed {run.seed} ({number} of {len(mine)})", flush=True)
      train.run(run.config, run.workdir, argv=argv)
      if chief and number < len(mine):
        report(config, every, workdir, argv, unlike=given["unlike"])
  if chief:
    print("\n".join(report(config, every, workdir, argv, unlike=given["unlike"])))
  return 0


# The config

def filled(value: Any, workdir: Path) -> Any:
  """The config with `{workdir}` in its texts replaced."""
  if isinstance(value, Mapping):
    return {key: filled(inner, workdir) for key, inner in value.items()}
  if isinstance(value, (tuple, list)):
    return tuple(filled(inner, workdir) for inner in value)
  return value.replace(WORKDIR, str(workdir)) if isinstance(value, str) else value


def runs_of(config: Mapping, workdir: Path) -> list[Run]:
  """Every run, seed by seed. Raises ConfigError with every mistake of the arms."""
  from mmdiff.commands import flags
  problems = [f"config.arms.{arm}: a name of letters, digits, dots, dashes and underscores, other than {PREPARE}, since it names a folder"
              for arm in config["arms"] if not re.fullmatch(r"\w[\w.-]*", arm) or arm == PREPARE]
  if not config["arms"]:
    problems.append("config.arms: expected at least one arm")
  if not config["seeds"] or len(set(config["seeds"])) < len(config["seeds"]):
    problems.append(f"config.seeds: expected different seeds, at least one, found {config['seeds']}")
  if config["reference"] not in config["arms"]:
    problems.append(f"config.reference: expected an arm ({', '.join(config['arms'])}), found {config['reference']!r}")
  if config["read"] not in config["base"]["evals"]:
    problems.append(f"config.read: expected an entry of base.evals ({', '.join(config['base']['evals']) or 'none'}), "
                    f"found {config['read']!r}")
  made: dict[str, dict] = {}
  for arm, overrides in config["arms"].items():
    pairs = [(key, text if equals else None) for key, equals, text in (line.partition("=") for line in overrides)]
    changed, wrong = flags.override(config["base"], pairs)
    wrong = wrong or schema.check(changed)
    if not wrong:
      made[arm] = schema.complete(changed)
      wrong = consistency.check(made[arm])
      if changed["steps"] != config["base"]["steps"] or changed["evals"] != config["base"]["evals"]:
        wrong = [*wrong, schema.Problem("steps", "arms differ in neither steps nor evals, or nothing could be compared")]
    problems += [f"config.arms.{arm}: {problem}" for problem in wrong]
  if problems:
    raise ConfigError("\n".join(dict.fromkeys(problems)))
  return [Run(arm, seed, made[arm] | dict(seed=seed), workdir / arm / str(seed)) for seed in config["seeds"] for arm in made]


def selected(runs: Sequence[Run], *, arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
  """The runs that --arm and --seed name. Raises ConfigError for unknown ones."""
  known, numbers = list(dict.fromkeys(run.arm for run in runs)), list(dict.fromkeys(run.seed for run in runs))
  problems = []
  for arm in arms:
    if arm not in known:
      guess = nearest(arm, known)
      problems.append(f"--arm={arm}: no such arm" + (f"; did you mean {guess}?" if guess else "") + f" (arms: {', '.join(known)})")
  problems += [f"--seed={seed}: the config's seeds are {', '.join(map(str, numbers))}" for seed in seeds if seed not in numbers]
  if problems:
    raise ConfigError("\n".join(problems))
  return [run for run in runs if run.arm in (arms or known) and run.seed in (seeds or numbers)]


def prepare_lines(config: Mapping) -> dict[str, list[str]]:
  """{name: command line} of what is prepared. Raises ConfigError for one that mmdiff would refuse."""
  from mmdiff.commands import flags
  problems = []
  for name, line in config[PREPARE].items():
    if not line or line[0] not in FIRST:
      problems.append(f"config.prepare.{name}: expected one of {', '.join(FIRST)} and its flags, found {' '.join(line)!r}")
      continue
    known = importlib.import_module(f"mmdiff.commands.{line[0]}").FLAGS
    try:         # what depends on a source is checked by the command itself
      flags.parse([word for word in line[1:] if not word.startswith("--data.")], known)
    except ConfigError as error:
      problems += [f"config.prepare.{name}: {problem}" for problem in str(error).splitlines()]
  if problems:
    raise ConfigError("\n".join(problems))
  return {name: list(line) for name, line in config[PREPARE].items()}


# What comes before the arms

def prepare(lines: Mapping[str, Sequence[str]], workdir: Path, *, chief: bool) -> None:
  """Runs the command lines that have not been run to their end, in order. Another ablation that does so already is waited for; of the
  processes of one, the first (`chief`) says what is left to do."""
  if not lines:
    return
  import jax
  from jax.experimental import multihost_utils

  several = jax.process_count() > 1
  folder = workdir / PREPARE
  busy = f"ablate: another process prepares {folder}; waiting for it"
  with locks.held(folder, busy=busy, wait=True) if chief else contextlib.nullcontext():
    for name, line in lines.items():
      marker = folder / f"{name}.json"
      done = read_object(marker) if marker.exists() else None
      undone = bool(multihost_utils.broadcast_one_to_all(done is None)) if several else done is None
      if done and done["argv"] != list(line):
        raise ConfigError(f"{marker} was made by another command line; undo the change or choose another --workdir\n"
                          f"then: mmdiff {shlex.join(done['argv'])}\nnow:  mmdiff {shlex.join(line)}")
      if undone:
        if chief:
          print(f"ablate: prepare {name}: mmdiff {shlex.join(line)}", flush=True)
        start = time.time()
        importlib.import_module(f"mmdiff.commands.{line[0]}").main(list(line[1:]))
        if chief:
          write_json(marker, dict(argv=list(line), seconds=round(time.time() - start, 1), **made_by()))


def check_sidecar(config: Mapping) -> None:
  """Raises DataError if some records have no caption in the side-car but one of that kind of their own: arms would mix the two."""
  if not config["data"]["sidecar"]:
    return
  from mmdiff.core.build import build
  from mmdiff.data import SOURCES, sidecar
  source = build(SOURCES, config["data"]["source"])
  kinds, joined = set(source[0].get("captions") or {}), sidecar.join(source, config["data"]["sidecar"])
  while isinstance(joined, sidecar.Joined):
    given, joined = joined.sidecar, joined.source
    own = kinds & set(given.kinds)
    if own and len(given) < len(source):
      raise DataError(f"data.sidecar: {given.path} has captions for {len(given):,} of {len(source):,} records; the others have captions of "
                      f"kind {', '.join(sorted(own))} by another hand. Caption all records, or give the kind another name")


def report(config: Mapping, runs: Sequence[Run], workdir: Path, argv: Sequence[str], *, unlike: Sequence[str] = ()) -> list[str]:
  """Writes report.json and report.html from the runs that have results; the report in a few lines."""
  from mmdiff.commands import comparison
  from mmdiff.report import ablation
  found = comparison.compare(config, runs, workdir, unlike=unlike)
  if found is None:
    return [f"ablate: no run in {workdir} has results yet"]
  write_json(workdir / "report.json", found | dict(argv=list(argv), config=config, **made_by()))
  ablation.write(found, config, runs, workdir, argv)
  return [*comparison.lines(found), f"report: {workdir / 'report.html'}"]
