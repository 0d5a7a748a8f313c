"""A run directory in Python: what it was told, how it went, and the model that it made.

  run = mmdiff.Run("runs/clip")
  run.metrics["loss"]                       # an array, one value for each of run.metrics["step"]
  run.evals["retrieval"].frame()            # a pandas DataFrame, where pandas is installed
  run.load().embed_text(["a red circle"])
"""
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object
from mmdiff.train import run_directory
from mmdiff.train.writer import read_metrics

if TYPE_CHECKING:
  from mmdiff.model import Model


class Metrics(dict[str, np.ndarray]):
  """{name: array [steps]}: `step` int64, ascending, the others float64, NaN at steps that have no such number."""

  def __missing__(self, name: str):
    raise KeyError(f"{name}: not measured here; there are {', '.join(self) or 'none'}")

  def __repr__(self) -> str:
    steps = self["step"]
    span = f"steps {steps[0]:,} to {steps[-1]:,}" if len(steps) else "no steps"
    return f"<{len(steps):,} lines, {span}: {', '.join(self)}>"

  def frame(self) -> Any:
    """A pandas DataFrame with the steps as its index. Raises ImportError without pandas, which mmdiff does not install."""
    import pandas
    columns = {name: values for name, values in self.items() if name != "step"}
    return pandas.DataFrame(columns, index=pandas.Index(self["step"], name="step"))


class Run:
  """A run directory, read when it is asked: a run that goes on has more to tell the next time.

  path: `DIR`, or `DIR@STEP`, of which `load` gives that step. Raises DataError where there is no run.
  """

  def __init__(self, path: str | Path):
    self.path, self.step = run_directory.locate(path)

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    """Every key, resolved."""
    return run_directory.read_config(self.path)

  @property
  def metrics(self) -> Metrics:
    """What was logged: loss, images_per_second, … and the scores of evaluators as "retrieval/recall_at_1"."""
    file = self.path / "metrics.jsonl"
    return collected(read_metrics(file) if file.is_file() else ())

  @property
  def evals(self) -> dict[str, Metrics]:
    """The scores of each evaluator, by its name in `config.evals`; those of `mmdiff evaluate` as "evaluate_TASK"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((self.path / "eval").glob("*.json")):
      try:
        result = read_object(file, nan=True)
        found.setdefault(result["name"], []).append({"step": int(result["step"]), **result["scalars"]})
      except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: no result of an evaluator ({type(error).__name__}: {error}); `mmdiff info {self.path}` lists damage"
                        ) from None
    return {name: collected(lines) for name, lines in found.items()}

  @property
  def steps(self) -> list[int]:
    """Those with a checkpoint."""
    folder = self.path / "checkpoints"
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch("[0-9]{1,18}", entry.name)) if folder.is_dir() else []

  def load(self, step: int | None = None, **options: Any) -> "Model":
    """The model of a step, by default the newest good one; options as of `mmdiff.load`."""
    from mmdiff.model import load
    return load(self.path, step=self.step if step is None else step, **options)

  def __repr__(self) -> str:
    metrics, config = self.metrics, self.config
    at = f"step {metrics['step'][-1]:,} of {config['steps']:,}" if len(metrics["step"]) else f"no step of {config['steps']:,} yet"
    loss = metrics["loss"][~np.isnan(metrics["loss"])] if "loss" in metrics else ()
    return (f"<Run {self.path}: {config['objective']['name']}, {at}" + (f", loss {loss[-1]:.4g}" if len(loss) else "")
            + f"; checkpoints {', '.join(map(str, self.steps)) or 'none'}; evals {', '.join(self.evals) or 'none'}>")


def collected(lines: Iterable[Mapping[str, Any]]) -> Metrics:
  """Lines with `step` and numbers, several of a step or one, as arrays by name; of a number that a step has twice the last counts."""
  rows: dict[int, dict[str, Any]] = {}
  for line in lines:
    rows.setdefault(int(line["step"]), {}).update(line)
  steps = sorted(rows)
  number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
  names = dict.fromkeys(name for step in steps for name, value in rows[step].items() if name != "step" and number(value))
  value_of = lambda value: float(value) if number(value) else np.nan
  columns = {name: np.asarray([value_of(rows[step].get(name)) for step in steps], np.float64) for name in names}
  return Metrics({"step": np.asarray(steps, np.int64), **columns})
