"""`mmdiff.train`: what the command trains, from Python."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.commands import flags
from mmdiff.commands import train as command
from mmdiff.core.errors import ConfigError
from mmdiff.runs.run import Run


def train(config: str | Path | Mapping, workdir: str | Path, **overrides: Any) -> Run:
  """Trains what a config describes, or goes on where the run in `workdir` stopped, as `mmdiff train` does; returns the run.

    mmdiff.train("configs/clip.py:tiny", "runs/clip", steps=200, **{"optim.default.lr": 1e-3})

  Args:
    config: `FILE.py[:args]`, a run's config.json or the run's directory; or a dict or ConfigDict of such keys.
    workdir: the run directory.
    **overrides: values of keys, dotted ones as `**{"data.image_size": 64}`.

  Raises:
    ConfigError: with a line for every mistake.
    DataError, CannotWrite, and `train.loop`'s own, as the command ends with.
  """
  pairs = [(key, as_text(value)) for key, value in overrides.items()]
  made, problems = flags.read_config(config if isinstance(config, Mapping) or hasattr(config, "to_dict") else str(config), pairs)
  if made is None:
    raise ConfigError("\n".join(problems))
  argv = ["train", f"--config={config}" if isinstance(config, (str, Path)) else "--config=<of Python>", f"--workdir={workdir}",
          *(f"--config.{key}={text}" for key, text in pairs)]
  command.run(made, Path(workdir), argv=argv)
  return Run(workdir)


def as_text(value: Any) -> str:
  """A value as the command line spells it."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (list, tuple)) and not any(isinstance(item, (Mapping, list, tuple)) for item in value):
    return ",".join(map(as_text, value))
  return repr(dict(value)) if isinstance(value, Mapping) else str(value)
