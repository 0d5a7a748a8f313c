"""Checks a command line without running it: flags and config, every mistake at once, no JAX. Exit code 0, or 64 with the mistakes.

  python -m launch.check train --config=configs/clip.py:tiny --workdir=runs/clip
"""
import importlib
import sys
from collections.abc import Sequence

from mmdiff.__main__ import COMMANDS
from mmdiff.commands import flags
from mmdiff.core.errors import ConfigError, DataError


def check(argv: Sequence[str]) -> None:
  """Raises ConfigError for a command line that `mmdiff` would refuse."""
  if not argv or argv[0] not in COMMANDS:
    raise ConfigError(f"unknown command {argv[0] if argv else ''!r} (known: {', '.join(COMMANDS)})")
  command, rest = importlib.import_module(f"mmdiff.commands.{argv[0]}"), list(argv[1:])
  known, words = command.FLAGS, getattr(command, "POSITIONAL", ())
  if hasattr(command, "TAKES"):                     # a command of commands: each takes some of the flags
    if not rest or rest[0] not in command.TAKES:
      raise ConfigError(f"mmdiff {argv[0]}: unknown command {rest[0] if rest else ''!r} (known: {', '.join(command.TAKES)})")
    action = rest.pop(0)
    needed = getattr(command, "REQUIRED", {}).get(action, ())
    known = {name: known[name] | (dict(required=True) if name in needed else {}) for name in command.TAKES[action]}
    words = words[action] if words else ()
  # The keys of a task depend on what it names, as did those of a source under its old flag: the command itself checks them, as early.
  try:
    flags.parse([arg for arg in rest if not arg.startswith(("--source.", "--task."))], known, positional=words)
  except DataError as error:
    print(f"launch.check: not looked at, since it is not on this machine: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
  try:
    check(sys.argv[1:] if argv is None else argv)
  except ConfigError as error:
    print("\n".join(f"launch.check: {line}" for line in str(error).splitlines()), file=sys.stderr)
    return 64
  return 0


if __name__ == "__main__":
  sys.exit(main())
