"""The command line: `mmdiff COMMAND …`, also `python -m mmdiff COMMAND …`. Nothing here imports JAX; the commands do.

Exit codes: 0 done, 64 bad flags or config, 65 bad data or weights, 70 training gave up, 73 cannot write, 75 interrupted (run the same
command to go on).
"""
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmdiff import __version__
from mmdiff.commands.help import COMMANDS
from mmdiff.core import faults, signals
from mmdiff.core.errors import EXIT_CODES, ConfigError, Interrupted
from mmdiff.core.spelling import nearest

INTERRUPTED = EXIT_CODES[Interrupted]
COMPUTING = ("train", "evaluate", "sample", "edit", "ablate", "caption", "search", "bench", "demo")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def usage() -> str:
  listed = "\n".join(f"  {name:<12}{about}" for name, about in COMMANDS.items())
  return f"mmdiff {__version__}: models between images and text in JAX\n\nUsage: mmdiff COMMAND [--flag=value …]\n\n{listed}\n\n" \
         "`mmdiff COMMAND --help` lists a command's flags.\n"


def help_of(command: str, rest: Sequence[str] = ()) -> str:
  """A command's docstring and flags, read without importing it; of a command of commands, with the word for one, only the flags of that."""
  from mmdiff.commands import help
  known, takes = help.declared(command, "FLAGS"), help.declared(command, "TAKES")
  mine = next((names for word in rest if (names := takes.get(word))), None)
  return help.text(help.docstring(command) or COMMANDS[command],
                   {name: known[name] for name in mine if name in known} if mine else known)


def run(argv: Sequence[str]) -> int:
  if not argv or argv[0] in ("--help", "-h", "help") and len(argv) < 2:
    print(usage(), end="")
    return 0
  if argv[0] in ("--version", "-V"):
    print(__version__)
    return 0
  command, *rest = argv[1:] if argv[0] == "help" else argv
  if command not in COMMANDS:
    guess = nearest(command, COMMANDS)
    raise ConfigError(f"unknown command {command!r}" + (f"; did you mean {guess}?" if guess else "") + f" (known: {', '.join(COMMANDS)})")
  if argv[0] == "help" or "--help" in rest or "-h" in rest:
    print(help_of(command, rest), end="")
    return 0
  return importlib.import_module(f"mmdiff.commands.{command}").main(rest) or 0


def ask_for_huge_pages() -> None:
  """Starts this process anew with glibc's heap in huge pages, if Linux leaves that to programs and nobody has tuned the heap.

  XLA:CPU takes its buffers from the system at every step and gives them back after it; in small pages, a third of a small model's step
  is spent on page faults. glibc reads the setting before Python runs, hence the new start (of the same process, in milliseconds).
  """
  tunables = os.environ.get("GLIBC_TUNABLES", "")
  if sys.platform == "linux" and "hugetlb" not in tunables and HUGE_PAGES.exists() and "[madvise]" in HUGE_PAGES.read_text():
    setting = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(os.environ, GLIBC_TUNABLES=setting))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; the exit code. Errors that are the user's to mend come as lines on stderr, without a traceback.

  argv: None is the process's own, of the command line.
  """
  if argv is None:
    signals.hold()
    faults.hush()
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")      # on broken metadata: of no use in a training log
    if sys.argv[1:2] and sys.argv[1] in COMPUTING:
      ask_for_huge_pages()
    signals.LISTENER.listen(f"mmdiff {sys.argv[1]}" if sys.argv[1:2] and sys.argv[1] in COMMANDS else "mmdiff")
  own, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
  try:
    code = run(argv)
    sys.stdout.flush()                    # a full disk behind it is an error like any other
    return code
  except (*EXIT_CODES, KeyboardInterrupt) as error:
    code = fail(error, argv)
    if own and not isinstance(error, Interrupted):        # what is under way in other threads is not waited for, nor heard of
      signals.leave(code)
    return code
  except Exception as error:
    if peers := sys.modules.get("mmdiff.train.peers"):
      peers.explain(error)                # of several processes, when another one is lost
    if isinstance(error, BrokenPipeError):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())        # `mmdiff … | head`
      return 0
    if not (told := faults.told(error, argv[0] if argv else "")):
      raise
    if isinstance(error, OSError) and not error.filename:
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())        # Python would try to write the rest once more
    return fail(told, argv)


def fail(error: BaseException, argv: Sequence[str]) -> int:
  """Says on stderr what a person can mend; the exit code. MMDIFF_TRACEBACK=1 shows where it happened."""
  if os.environ.get("MMDIFF_TRACEBACK") == "1":
    raise error
  code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), INTERRUPTED)
  lines = str(error).splitlines() or ["interrupted; the same command goes on" if code == INTERRUPTED else type(error).__name__]
  name = f"mmdiff {argv[0]}" if argv and argv[0] in COMMANDS else "mmdiff"
  print("\n".join([f"{name}: {lines[0]}"] if len(lines) == 1 else [f"{name}: {len(lines)} problems", *("  " + line for line in lines)]),
        file=sys.stderr)
  if not isinstance(error, Interrupted) and (distributed := sys.modules.get("mmdiff.train.distributed")):
    distributed.abandon(code)             # one of several processes, failing alone, would wait for the others at JAX's shutdown
  return code


if __name__ == "__main__":
  sys.exit(main())
