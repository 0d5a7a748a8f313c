"""mmdiff: models between images and text, as objectives of one sharded train step.

  model = mmdiff.load("runs/clip")                                # a trained model, of ours or in a public format
  model.classify("cat.png", ["cat", "dog"])                       # repr(model) says what else it can be asked
  mmdiff.save(model, "clip-hf", format="hf-clip")
  mmdiff.train("configs/clip.py:tiny", "runs/clip", steps=200)    # as `mmdiff train` does
  mmdiff.Run("runs/clip").metrics["loss"]
"""
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mmdiff.train as _train

if TYPE_CHECKING:
  from mmdiff.model import Model, load, save
  from mmdiff.runs.run import Run
  from mmdiff.runs.start import train

__version__ = "0.1.0"
__all__ = ["Model", "Run", "load", "save", "train"]
# Where each is defined; imported when it is first asked for, since JAX takes a second.
_HOMES = {"load": "mmdiff.model", "save": "mmdiff.model", "Model": "mmdiff.model", "Run": "mmdiff.runs.run"}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module 'mmdiff' has no attribute {name!r}")
  from importlib import import_module
  value = globals()[name] = getattr(import_module(_HOMES[name]), name)
  return value


def __dir__() -> list[str]:
  return [*__all__, "__version__"]


class _Train(ModuleType):
  """The package `mmdiff.train`, which can be called."""

  def __call__(self, config: Any, workdir: Any, **overrides: Any) -> "Run":
    """Trains what a config describes, or goes on with it, as `mmdiff train` does; see `mmdiff.runs.start.train`."""
    from mmdiff.runs.start import train
    return train(config, workdir, **overrides)


sys.modules[_train.__name__].__class__ = _Train
