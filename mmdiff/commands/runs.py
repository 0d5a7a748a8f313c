"""The runs below a folder, a row each: whether it is running, how far it is, its newest score, and in what the runs differ.

  mmdiff runs                         those below runs/
  mmdiff runs /shared/experiments
  mmdiff runs runs --json=runs.json

A run is running while a process of this machine holds its folder. AGE is that of its last line in metrics.jsonl. The columns behind the
score are the keys of the config in which these runs differ, as many as fit; --json has them all. `mmdiff info RUN` says more of one.
"""
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core import locks
from mmdiff.core.errors import DataError
from mmdiff.core.files import write_json
from mmdiff.core.terminal import table

POSITIONAL = ("folder",)
FLAGS = {
  "json": dict(type="file", help="also write the rows, with all differences, to this file"),
}
ROOT = "runs"
APART = ("checkpoints", "eval", "samples")           # folders of a run, in which there are no others
WIDEST = 28                                          # letters of a value of a config


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS, positional=POSITIONAL)
  folder = Path(given["folder"] or ROOT)
  if not folder.is_dir():
    raise DataError(f"{folder}: no such folder; `mmdiff runs DIR` lists the runs below DIR")
  rows, different = summary(list(find(folder)), folder)
  if not rows:
    raise DataError(f"{folder}: no run below it (a run directory has config.json and metrics.jsonl)")
  print(table(shown(rows, different, shutil.get_terminal_size((140, 24)).columns)))
  if given["json"]:
    write_json(Path(given["json"]), dict(argv=["runs", *argv], runs=[row | dict(differs=one) for row, one in zip(rows, different)]))
  return 0


def find(folder: Path) -> Iterator[Path]:
  """The run directories from a folder down, in the order of their names."""
  for where, below, files in os.walk(folder):
    below[:] = sorted(name for name in below if name not in APART and not name.startswith("."))
    if "config.json" in files and ("metrics.jsonl" in files or locks.LOCK in files):
      yield Path(where)


def summary(runs: Sequence[Path], root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """(a row for each run, for each the keys of its config in which the runs differ)."""
  from mmdiff.report import numbers, reading
  read = [reading.read_run(path, str(path.relative_to(root))) for path in runs]
  configs = [numbers.flat(one.config) for one in read]
  keys = dict.fromkeys(key for config in configs for key in config)
  differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
  rows = []
  for run in read:
    log = run.folder / "metrics.jsonl"
    age = time.time() - log.stat().st_mtime if log.exists() else None
    rows.append(dict(run=run.name, alive=run.going, step=run.step, steps=run.steps, state=run.state(), score=newest(run), age=age))
  return rows, [{key: config.get(key) for key in differing} for config in configs]


def ago(seconds: float | None) -> str:
  """90 -> "1 min"."""
  if seconds is None:
    return ""
  return next((f"{int(seconds // size)} {unit}" for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")) if seconds >= size),
              f"{int(seconds)} s")


def newest(run) -> str:
  """The headline of the evaluator that ran last, with its name."""
  from mmdiff.report import reading
  found = {name: made for name in run.evals if (made := reading.score(run, name))}
  name = max(found, key=lambda name: found[name].newest_step, default=None)
  return f"{name}: {found[name].newest.said()}" if name is not None else ""


def shown(rows: Sequence[Mapping], different: Sequence[Mapping], width: int) -> list[dict[str, Any]]:
  """The rows as they are printed, with as many differences as the terminal is wide."""
  made = [dict(run=row["run"], state=row["state"], age=ago(row["age"]), score=row["score"]) for row in rows]
  wide = lambda key, lines: max(len(key), *(len(str(line[key])) for line in lines)) + 2
  room = width - sum(wide(key, made) for key in made[0])
  for key in different[0]:
    column = [{key: str(one[key]) if len(str(one[key])) <= WIDEST else f"{str(one[key])[:WIDEST - 1]}…"} for one in different]
    room -= wide(key, column)
    if room < 0:
      break
    made = [line | cell for line, cell in zip(made, column)]
  return made
