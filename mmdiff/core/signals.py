"""Signals that ask a process to end, heard from its first moment on: one line and exit code 75, whatever it is doing.

Python runs a handler between two bytecodes of the main thread, so that a handler waits for a compilation, minutes maybe, to return. A
thread, which the system wakes at once, ends the process when the main thread does not answer within `PATIENCE_SECONDS`; but for the first
signal while training saves what it has (`patient`).
"""
import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from mmdiff.core.errors import EXIT_CODES, Interrupted

INTERRUPTED = EXIT_CODES[Interrupted]
PATIENCE_SECONDS = 2.0
STOPPING = "stopping after this step, then saving; once more to leave without"
# A scheduler's, the keyboard's, and that of a terminal that was closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
  """A signal ended the command; no `except Exception` takes it for a fault of what was under way."""


def said(number: int) -> str:
  return f"stopped by {signal.Signals(number).name}; the same command goes on"


def hold() -> None:
  """Lets signals wait until `listen`, also over a new start of the process."""
  signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def handle(handler: Callable[[int, Any], None], *others: int) -> dict[int, Any]:
  """Sets the handler of all signals but the `others` and those that are ignored (`nohup`); the handlers before. {} outside the main
  thread."""
  before = {}
  for number in SIGNALS:
    if number in others or signal.getsignal(number) == signal.SIG_IGN:
      continue
    try:
      before[number] = signal.signal(number, handler)
    except ValueError:       # not the main thread: whoever runs there handles signals
      break
  return before


def importing(frame: types.FrameType | None) -> bool:
  """Whether a module is being imported: extension modules turn what is raised in them into an ImportError, and there is nothing to save."""
  while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
    frame = frame.f_back
  return frame is not None


def leave(code: int) -> None:
  """Ends the process without Python's clean-up, which waits for compilations and falls over threads that are still in one."""
  if multiprocessing := sys.modules.get("multiprocessing"):
    for child in multiprocessing.active_children():
      child.terminate()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


class Listener:
  """The one of this process. `patient`: the next signal will be answered when what it has is saved, however long that takes."""

  def __init__(self, leave: Callable[[int], Any] = leave):
    self.patient, self.command, self.leave = False, "mmdiff", leave
    self.answered, self.number = threading.Event(), 0

  def listen(self, command: str) -> None:
    """From now on a signal raises `Stopped` in the main thread, or ends the process with a line under the command's name."""
    self.command = command
    handle(self.stop)
    sys.unraisablehook = self.unraisable(sys.unraisablehook)
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    threading.Thread(target=self.watch, args=(ear,), name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

  def unraisable(self, otherwise: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Python drops what is raised in a callback of the garbage collector or in `__del__`, and tells this hook: a `Stopped` that fell there
    must end the process all the same."""
    def hook(dropped: Any) -> None:
      if isinstance(dropped.exc_value, Stopped):
        self.end(self.number)
      otherwise(dropped)
    return hook

  def stop(self, number: int, frame: Any) -> None:
    self.answered.set()
    self.number = number
    if importing(frame):
      self.end(number)
    raise Stopped(said(number))

  def end(self, number: int) -> None:
    print(f"{self.command}: {said(number)}", file=sys.stderr, flush=True)
    self.leave(INTERRUPTED)

  def watch(self, ear: int) -> None:
    """Reads the numbers of signals as they come, for ever."""
    while heard := os.read(ear, 1):
      if heard[0] not in SIGNALS:
        continue
      if self.patient:
        self.patient = False
        print(f"{self.command}: {signal.Signals(heard[0]).name}: {STOPPING}", file=sys.stderr, flush=True)
        continue
      if not self.answered.wait(PATIENCE_SECONDS):
        self.end(heard[0])
      self.answered.clear()


LISTENER = Listener()
