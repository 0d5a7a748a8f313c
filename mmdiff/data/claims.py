"""Who works on what: exclusive claim files in a folder that processes on one or many hosts share.

A claim is a file NAME.GENERATION that was created exclusively and says which process holds it; its holder touches it now and then. A
claim whose holder is known to be dead, or whose file has not changed for `stale_seconds` by the watcher's own clock, is overtaken by
creating the next generation, which again only one process can do. No claim is ever renamed or deleted by anyone but the holder of
its newest generation, so there is no moment at which two can take one; and clocks of different hosts are never compared.

Claims save work, they don't keep results apart: a holder that was only slow may go on, and its output is the same (see `jobs`).
"""
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmdiff.core.errors import CannotWrite
from mmdiff.core.files import parse_json

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def create_exclusively(path: Path, data: bytes) -> bool:
  """Creates a file with its content in one move; False if there is one already. Raises OSError."""
  part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
  part.write_bytes(data)
  try:
    os.link(part, path)
    return True
  except FileExistsError:
    return False
  except OSError as error:                              # file systems without hard links: exclusive, then filled
    if error.errno not in NO_LINKS:
      raise
    try:
      with open(path, "xb") as file:
        file.write(data)
      return True
    except FileExistsError:
      return False
  finally:
    part.unlink(missing_ok=True)


def machine() -> str:
  """Where a process number means something: host, boot and process namespace."""
  parts = [socket.gethostname()]
  for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
    try:
      parts.append(read())
    except OSError:
      parts.append("")
  return " ".join(parts)


def born(pid: int) -> str | None:
  """When a process of this machine started, in its kernel's words; "" where that can't be known, None if there is no such process."""
  try:
    state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]          # a zombie does nothing any more
  except FileNotFoundError:
    if Path("/proc/self/stat").exists():
      return None
  except OSError:
    return ""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except OSError:
    pass
  return ""


class Claims:
  """The claims of one process in `folder`. A thread touches what is held every `beat_seconds`; `close` lets go of everything.

  beat_seconds, stale_seconds: with room between them for a network file system that shows changes a minute late.
  """

  def __init__(self, folder: str | os.PathLike, *, beat_seconds: float = 15.0, stale_seconds: float = 180.0):
    self.folder, self.stale_seconds = Path(folder), stale_seconds
    self._me = dict(machine=machine(), pid=os.getpid(), born=born(os.getpid()) or "", token=secrets.token_hex(8))
    self._held: dict[str, Path] = {}
    self._watched: dict[str, tuple[tuple[int, int], float]] = {}     # file name -> (its stamp, since when by our clock)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._beat, args=(beat_seconds,), name="claims", daemon=True)
    self._thread.start()

  def take(self, names: Iterable[str]) -> str | None:
    """Claims the first of `names` that is free or whose holder is gone; None when others work on all of them. Raises CannotWrite."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      newest = self._newest()
      for name in names:
        generation = newest.get(name, 0)
        if generation and not self._gone(f"{name}.{generation}"):
          continue
        path = self.folder / f"{name}.{generation + 1}"
        if create_exclusively(path, json.dumps(self._me).encode()):
          self._held[name] = path
          return name
    except FileNotFoundError:                             # the folder went: someone found the job done, as the next look will
      return None
    except OSError as error:
      raise CannotWrite(f"cannot write claims in {self.folder}: {error}") from error
    return None

  def release(self, name: str) -> None:
    """Lets go of a claim, and of the older ones that it overtook; if someone has overtaken it, theirs stays."""
    path = self._held.pop(name, None)
    if path is None:
      return
    mine = int(path.suffix[1:])
    if self._newest().get(name) != mine:
      return
    for generation in range(1, mine + 1):                 # the newest last: until it goes, the name is taken
      (self.folder / f"{name}.{generation}").unlink(missing_ok=True)

  def close(self) -> None:
    self._closed.set()
    for name in list(self._held):
      self.release(name)
    self._thread.join()

  def _newest(self) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in os.listdir(self.folder) if self.folder.exists() else ():
      head, _, generation = name.rpartition(".")
      if generation.isdigit() and not head.startswith("."):
        found[head] = max(found.get(head, 0), int(generation))
    return found

  def _gone(self, name: str) -> bool:
    """Whether the holder of a claim is dead, or has not been heard of for long."""
    path = self.folder / name
    try:
      status = path.stat()
      owner: Any = parse_json(path.read_bytes())
    except FileNotFoundError:                             # released just now: the next look sees it free
      return False
    except ValueError:
      owner = None
    if isinstance(owner, dict) and owner.get("machine") == self._me["machine"] and isinstance(owner.get("pid"), int):
      if born(owner["pid"]) != owner.get("born"):
        return True
    stamp, now = (status.st_mtime_ns, status.st_size), time.monotonic()
    if self._watched.get(name, (None, 0.0))[0] != stamp:
      self._watched[name] = (stamp, now)
    return now - self._watched[name][1] > self.stale_seconds

  def _beat(self, seconds: float) -> None:
    while not self._closed.wait(seconds):
      for path in list(self._held.values()):
        try:
          os.utime(path)
        except OSError:                                   # overtaken, or the file system is away: the work itself will tell
          continue
