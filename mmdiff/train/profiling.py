"""`config.profile`: a trace of a few steps, for TensorBoard's profile plugin, Perfetto or XProf."""
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mmdiff.core.errors import ConfigError

FOLDER = "profile"


class Trace:
  """Traces the steps `start`, … of a run; `wait` ends what is still under way before the trace is written."""

  def __init__(self, profile: Mapping[str, Any] | None, workdir: Path, *, total: int, say: Callable[[str], Any]):
    profile = profile or dict(start=0, steps=0)
    self.first, self.last = profile["start"], profile["start"] + profile["steps"] - 1
    if self.first and not (1 <= self.first <= total and profile["steps"] >= 1):
      raise ConfigError(f"profile: expected a start from 1 to {total:,} (0: none) and at least one step, found {dict(profile)}")
    self.folder, self.total, self.say, self.on = workdir / FOLDER, total, say, False

  def before(self, step: int) -> None:
    if step == self.first:
      jax.profiler.start_trace(str(self.folder))
      self.on = True

  def after(self, step: int, wait: Callable[[], Any]) -> None:
    if self.on and step >= min(self.last, self.total):
      wait()
      self.close()
      self.say(f"profile of the steps {self.first:,} to {step:,} in {self.folder}; `tensorboard --logdir={self.folder.parent}` shows it")

  def close(self) -> None:
    if self.on:
      self.on = False
      jax.profiler.stop_trace()
