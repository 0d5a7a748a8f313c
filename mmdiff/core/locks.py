"""A folder that one process works in at a time."""
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mmdiff.core.errors import CannotWrite

LOCK = ".lock"


@contextlib.contextmanager
def held(folder: Path, *, busy: str, wait: bool = False) -> Iterator[None]:
  """Holds a folder for this process, and makes it if need be; the system lets go when the process ends, however it ends. Work that fails
  before it has left a file in the folder leaves nothing else there that is new: neither the lock nor empty folders, nor the folder itself.

  busy: what to say when another process holds it. wait: for that one, rather than to raise an error.
  Raises CannotWrite.
  """
  try:
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    before = set(os.listdir(folder)) if folder.is_dir() else set()
  except OSError as error:
    raise CannotWrite(f"cannot write in {folder}: {error}") from error
  with _taken(folder / LOCK, busy, wait):
    try:
      yield
    except BaseException:
      with contextlib.suppress(OSError):                 # what is not empty stays
        for name in set(os.listdir(folder)) - before - {LOCK}:
          (folder / name).rmdir()
        if LOCK not in before:
          (folder / LOCK).unlink()
        for one in made:
          one.rmdir()
      raise


def _taken(path: Path, busy: str, wait: bool) -> IO[str]:
  """The file, locked: the one that has this name, and not one that another process, as `held` does, has removed meanwhile."""
  while True:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      file = open(path, "a")
    except OSError as error:
      raise CannotWrite(f"cannot write in {path.parent}: {error}") from error
    with contextlib.ExitStack() as stack:
      stack.enter_context(file)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if not wait:
          raise CannotWrite(busy) from None
        print(busy, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
          stack.pop_all()
          return file


def busy(folder: Path) -> bool:
  """Whether a process holds the folder; nothing is made or taken."""
  try:
    with open(folder / LOCK) as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  return False
