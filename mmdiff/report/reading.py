"""What a run directory says: config.json, run.json, metrics.jsonl, eval/*.json. What is missing or cut short is left out."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.core import locks
from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object
from mmdiff.train.headlines import LOWER_IS_BETTER, Headline, headline
from mmdiff.train.writer import read_metrics

UNSCORED = ("samples",)      # evaluators that show pictures: their number tells a collapse, and is no score


class Run(NamedTuple):
  """What a run directory says."""
  name: str
  folder: Path
  config: Mapping[str, Any]
  about: Mapping[str, Any]                               # run.json
  metrics: Sequence[Mapping[str, Any]]
  evals: Mapping[str, Sequence[Mapping[str, Any]]]       # evaluator -> results by step
  going: bool                                            # whether a process holds the directory

  @property
  def samples(self) -> Path:
    return self.folder / "samples"

  @property
  def step(self) -> int:
    return self.last("step", 0)

  @property
  def steps(self) -> int:
    return self.config.get("steps", 0)

  @property
  def starts(self) -> Sequence[Mapping[str, Any]]:
    return self.about.get("starts") or ([self.about] if self.about.get("at") else [])

  def last(self, key: str, default: Any = None) -> Any:
    return next((line[key] for line in reversed(self.metrics) if key in line), default)

  def series(self, key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in self.metrics if isinstance(line.get(key), (int, float))]

  def resumed(self) -> list[float]:
    """The first logged steps of later starts: the seconds since the start begin anew."""
    lines = [line for line in self.metrics if "seconds" in line]
    return [line["step"] for before, line in zip(lines, lines[1:]) if line["seconds"] < before["seconds"]]

  def refused(self) -> list[float]:
    """Logged steps by which the count of updates that were not finite had grown."""
    return [x for (_, before), (x, now) in zip([(0, 0), *self.series("skipped")], self.series("skipped")) if now > before]

  def seconds(self) -> tuple[float, bool]:
    """(wall time of all starts, whether it is all of it): what a start that was killed took is known up to its last line in the log."""
    total, whole, starts = 0.0, True, self.starts
    for i, start in enumerate(starts):
      if "seconds" in start:
        total += start["seconds"]
        continue
      end = starts[i + 1].get("step", 0) if i + 1 < len(starts) else float("inf")
      own = (line["seconds"] for line in self.metrics if "seconds" in line and start.get("step", 0) < line["step"] <= end)
      total += max(own, default=0.0)
      whole = whole and self.going and i + 1 == len(starts)
    return (total, whole) if starts else (self.last("seconds", 0.0), not self.resumed())

  def state(self) -> str:
    """How it stands, in words."""
    at = f"step {self.step:,} of {self.steps:,}" if self.steps else f"step {self.step:,}"
    if self.steps and self.step >= self.steps:
      return f"finished, {at}"
    if self.going:
      return f"running, {at}"
    if self.starts and "ended" not in self.starts[-1]:
      return f"{at}, and not running; killed?"
    return f"stopped at {at}" if self.starts else at


class Score(NamedTuple):
  """An evaluator's number over a run."""
  newest: Headline
  newest_step: int
  best: Headline
  best_step: int
  result: Mapping[str, Any]      # the newest


def kind_of(run: Run, name: str, result: Mapping[str, Any]) -> str:
  """The evaluator's name in the table of them, of an entry of config.evals."""
  return str((result.get("evaluator") or run.config.get("evals", {}).get(name) or {}).get("name", name))


def score(run: Run, name: str) -> Score | None:
  """Of the evaluator's results; None where they hold none."""
  kind = kind_of(run, name, run.evals[name][-1])
  found = [(result, made) for result in run.evals[name] if (made := headline(kind, result.get("scalars", {})))]
  if not found or kind in UNSCORED:
    return None
  newest, last = found[-1]
  same = [(result, made) for result, made in found if made.name == last.name]
  sign = -1 if kind in LOWER_IS_BETTER else 1
  best, highest = max(same, key=lambda one: (sign * one[1].value, one[0]["step"]))
  return Score(last, newest["step"], highest, best["step"], newest)


def read_json(file: Path) -> dict[str, Any]:
  """The object of a file, or {} if there is none or a crash cut it short."""
  try:
    return read_object(file, nan=True)
  except DataError:
    return {}


def read_run(folder: Path, name: str) -> Run:
  results: dict[str, list] = {}
  for file in sorted((folder / "eval").glob("*.json")):
    result = read_json(file)
    if isinstance(result.get("step"), int) and "name" in result:
      results.setdefault(str(result["name"]), []).append(result)
  for found in results.values():
    found.sort(key=lambda result: result["step"])
    for result in found[:-1]:
      result["tables"] = {}                              # only the newest are shown
  config = read_json(folder / "config.json")
  order = list(config.get("evals", {}))
  results = dict(sorted(results.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
  metrics = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
  return Run(name, folder, config, read_json(folder / "run.json"), metrics, results, locks.busy(folder))
