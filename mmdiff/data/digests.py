"""What the files of a folder hold, by sha256, worked out once for each state of a file and kept beside them.

A file's state is its size, time of modification and inode, so that a file which was written, copied or moved since is read again, and a
terabyte that nobody touched is not. `digests.mmdiff-index` has a JSON line for each digest and is only ever appended to, by any number of
processes; a line that cannot be read is as good as none, and where nothing can be written the digests live in memory.
"""
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmdiff.core.files import parse_object
from mmdiff.data.indexes import SUFFIX

LOG = logging.getLogger(__name__)
THREADS = 8


def state(path: Path) -> list[int]:
  status = os.stat(path)
  return [status.st_size, status.st_mtime_ns, status.st_ino]


def digest(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
  """The digests of the files in one folder, by their names."""

  def __init__(self, folder: Path):
    self.folder, self._kept = folder, dict[str, tuple[list[int], str]]()
    try:
      lines = (folder / ("digests" + SUFFIX)).read_bytes().splitlines()
    except OSError:
      return
    for line in lines:
      try:
        told = parse_object(line)
        self._kept[told["name"]] = told["state"], told["sha256"]
      except (ValueError, KeyError, TypeError):
        continue

  def known(self, name: str) -> str | None:
    """The digest of a file in its present state, if it was worked out before."""
    kept, found = self._kept.get(name, ([], ""))
    try:
      return found if kept and kept == state(self.folder / name) else None
    except OSError:
      return None

  def keep(self, found: Mapping[str, tuple[list[int], str]]) -> None:
    """Notes the states and digests of files."""
    self._kept |= found
    lines = [json.dumps({"name": name, "state": kept, "sha256": sha256}) + "\n" for name, (kept, sha256) in found.items()]
    try:
      with open(self.folder / ("digests" + SUFFIX), "ab", buffering=0) as file:
        file.write("".join(lines).encode())
    except OSError as error:
      LOG.warning("the digests of the files in %s cannot be kept there, and are worked out at every start: %s", self.folder, error)

  def of(self, names: Sequence[str], *, again: bool = False) -> dict[str, str | None]:
    """The digest of each file, None for one that is not there; `again` reads those that are known too. Says how far it is every ten
    seconds. Raises OSError."""
    def one(name: str) -> tuple[list[int], str] | str | None:
      try:
        if not again and (found := self.known(name)):
          return found
        return state(self.folder / name), digest(self.folder / name)
      except FileNotFoundError:
        return None

    start = last = time.monotonic()
    fresh, found, size = dict[str, tuple[list[int], str]](), dict[str, str | None](), 0
    with ThreadPoolExecutor(THREADS) as pool:
      for name, made in zip(names, pool.map(one, names)):
        found[name] = made[1] if isinstance(made, tuple) else made
        if isinstance(made, tuple):
          fresh[name] = made
          size += made[0][0]
        if (now := time.monotonic()) - last > 10:
          LOG.warning("%s: checked %d of %d files, %.2f GB a second; this is done once", self.folder, len(found), len(names),
                      size / 1e9 / (now - start))
          last = now
    if fresh:
      self.keep(fresh)
    return found
