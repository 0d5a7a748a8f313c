"""What can go wrong, by the exit code that tells a scheduler what to do."""
from mmdiff.core.terminal import printable


class Told(Exception):
  """An error whose message people read; it may quote what strangers wrote, see `core.terminal`."""

  def __init__(self, message: str = ""):
    super().__init__(printable(message))


class ConfigError(Told, ValueError):
  """Bad flags or config: exit 64, before any device work."""


class OptionError(ConfigError):
  """An option that the caller gave, or must give, whatever the file says: never the file's fault."""


class DataError(Told, ValueError):
  """Bad data or weights (missing file, empty source, wrong layout): exit 65."""


class GaveUp(Told, RuntimeError):
  """Training can't go on (too many bad steps): exit 70."""


class CannotWrite(Told, OSError):
  """The run directory can't be written: exit 73."""


class Interrupted(Exception):
  """Stopped by a signal after saving: exit 75, the same command goes on."""


EXIT_CODES = {ConfigError: 64, DataError: 65, GaveUp: 70, CannotWrite: 73, Interrupted: 75}
