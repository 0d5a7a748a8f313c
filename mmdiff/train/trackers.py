"""Where a run is followed besides its own directory: `config.trackers`, each an optional package that is imported only when it is named.

A tracker never ends a run: what it raises after the start is told once, and it is left out from then on. TensorBoard's events are
`train.writer`'s own.
"""
import contextlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.core.terminal import tell

OWN = "tensorboard"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


class Tracker(NamedTuple):
  """The four things that a tracker is told; a picture is uint8 [H W 3] with the text beneath it."""
  scalars: Callable[[int, Mapping[str, float]], Any]
  picture: Callable[[int, str, np.ndarray, str], Any]
  close: Callable[[], Any]


def check(names: Sequence[str]) -> None:
  """Raises ConfigError for trackers whose package is not installed, before anything is computed."""
  absent = [PACKAGES[name] for name in names if name != OWN and importlib.util.find_spec(PACKAGES[name]) is None]
  if absent:
    raise ConfigError(f"trackers: {', '.join(absent)} not installed here: pip install {' '.join(absent)}, or leave them out of "
                      "--config.trackers")


def wandb(workdir: Path, config: Mapping) -> Tracker:
  """Weights & Biases; WANDB_MODE=offline keeps it on disk, below the run directory. A run that goes on goes on there, too."""
  import wandb as library
  file = workdir / "wandb_id"
  if not file.is_file():
    file.write_text(secrets.token_hex(8))
  run = library.init(project=os.environ.get("WANDB_PROJECT", "mmdiff"), name=workdir.absolute().name, id=file.read_text().strip(),
                     dir=str(workdir), config=dict(config), resume="allow")
  return Tracker(lambda step, values: run.log(dict(values), step=step),
                 lambda step, name, image, caption: run.log({name: library.Image(image, caption=caption)}, step=step), run.finish)


def mlflow(workdir: Path, config: Mapping) -> Tracker:
  """MLflow, at MLFLOW_TRACKING_URI, by default a SQLite file below the run directory."""
  import mlflow as library
  if not os.environ.get("MLFLOW_TRACKING_URI"):
    library.set_tracking_uri(f"sqlite:///{workdir.absolute() / 'mlflow.db'}")
  library.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "mmdiff"))
  file = workdir / "mlflow_id"
  run = library.start_run(run_id=file.read_text().strip() or None if file.is_file() else None, run_name=workdir.absolute().name)
  file.write_text(run.info.run_id)
  library.log_dict(dict(config), "config.json")
  named = lambda name: "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in name)
  return Tracker(lambda step, values: library.log_metrics({named(name): value for name, value in values.items()}, step=step),
                 lambda step, name, image, caption: (library.log_image(image, artifact_file=f"{named(name)}_{step:08}.png"),
                                                     caption and library.log_text(caption, f"{named(name)}_{step:08}.txt")),
                 library.end_run)


def trackio(workdir: Path, config: Mapping) -> Tracker:
  """Trackio, wandb's interface on the local disk (TRACKIO_DIR)."""
  import trackio as library
  library.init(project=os.environ.get("TRACKIO_PROJECT", "mmdiff"), name=workdir.absolute().name, config=dict(config), resume="allow")
  return Tracker(lambda step, values: library.log(dict(values), step=step),
                 lambda step, name, image, caption: library.log({name: library.Image(image, caption=caption)}, step=step), library.finish)


MOST_CAPTIONS = 16


def captions(tables: Mapping[str, Sequence[Mapping]]) -> str:
  """Of an evaluator's tables, the first prompts or captions, which belong to its pictures, a line each."""
  for rows in tables.values():
    for column in ("prompt", "caption", "text"):
      if rows and isinstance(rows[0].get(column), str):
        return "\n".join(str(row.get(column, "")) for row in rows[:MOST_CAPTIONS])
  return ""


TRACKERS = {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}


class Trackers:
  """All of a run's, told together; one that raises is told of on stderr and left out."""

  def __init__(self, names: Sequence[str], workdir: Path, config: Mapping, *, active: bool = True):
    self.on: dict[str, Tracker] = {}
    for name in dict.fromkeys(names) if active else ():
      if name != OWN:
        with self._left_out(name):
          self.on[name] = TRACKERS[name](workdir, config)

  @contextlib.contextmanager
  def _left_out(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:          # whatever a stranger's service raises
      self.on.pop(name, None)
      tell(f"trackers: {name} is left out from here on: {type(error).__name__}: {error}")

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Numbers of a step; what is none is not told."""
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float, np.number)) and np.isfinite(value)}
    for name, tracker in list(self.on.items()):
      with self._left_out(name):
        tracker.scalars(step, numbers)

  def picture(self, step: int, what: str, image: np.ndarray, caption: str) -> None:
    """image: uint8 [H W 3], under the name `what`."""
    for name, tracker in list(self.on.items()):
      with self._left_out(name):
        tracker.picture(step, what, image, caption)

  def close(self) -> None:
    for name, tracker in list(self.on.items()):
      with self._left_out(name):
        tracker.close()
