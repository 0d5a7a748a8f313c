"""Index files: small tables of offsets beside a data file, made once, checked by the file's size and time, written atomically;
and positional reads from the files that they describe.
"""
import hashlib
import logging
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmdiff.core.errors import DataError

SUFFIX = ".mmdiff-index"
VERSION = 5
SAMPLES, SAMPLE_BYTES, END_BYTES = 16, 2 ** 13, 2 ** 17
LOG = logging.getLogger(__name__)
Table = Mapping[str, np.ndarray]


def place(path: str, *, index_dir: str = "", of: str = "") -> Path:
  """Where the index of `path` lives: beside it, or in `index_dir` under a name that tells folders apart. `of` tells indexes of one file
  apart."""
  suffix = (f".{of}" if of else "") + SUFFIX
  if not index_dir:
    return Path(path + suffix)
  return Path(index_dir) / (os.path.abspath(path).strip(os.sep).replace(os.sep, "__")[-200:] + suffix)


def stamp(path: str) -> np.ndarray:
  """int64 [3]: index version, size in bytes, modification time in ns."""
  status = os.stat(path)
  return np.array([VERSION, status.st_size, status.st_mtime_ns], np.int64)


def sampled(path: str) -> str:
  """A digest of a file's size, of blocks spread over it, and of its end, where formats keep their index: what can be known of a large file
  at every start. Another file has another digest; one that was changed in a place in between may have the same."""
  size = os.path.getsize(path)
  digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
  with open(path, "rb", buffering=0) as file:
    for n in range(SAMPLES):
      digest.update(os.pread(file.fileno(), SAMPLE_BYTES, n * size // SAMPLES))
    digest.update(os.pread(file.fileno(), END_BYTES, max(0, size - END_BYTES)))
  return digest.hexdigest()


def load(path: str, *, index_dir: str = "", of: str = "") -> Table | None:
  """The stored index of `path`, or None when there is none, it is damaged, or the file has changed since."""
  try:
    with open(place(path, index_dir=index_dir, of=of), "rb") as file, np.load(file, allow_pickle=False) as stored:
      table = {name: stored[name] for name in stored.files}
    return table if np.array_equal(table.pop("stamp"), stamp(path)) else None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def save(path: str, table: Table, *, stamped: np.ndarray, index_dir: str = "", of: str = "") -> bool:
  """Stores an index atomically; False when the place can't be written (the index then lives in memory only)."""
  target, temporary = place(path, index_dir=index_dir, of=of), None
  try:
    if index_dir:
      target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".")
    with os.fdopen(handle, "wb") as file:
      np.savez(file, stamp=stamped, **table)
    os.chmod(temporary, 0o644)
    os.replace(temporary, target)
    return True
  except OSError as error:
    LOG.info("the index of %s stays in memory: %s", path, error)
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)
    return False


def cached(path: str, make: Callable[[str], Table], *, index_dir: str = "", of: str = "") -> Table:
  """The index of `path`: stored, or made now and stored."""
  table = load(path, index_dir=index_dir, of=of)
  if table is None:
    stamped = stamp(path)
    table = make(path)
    save(path, table, stamped=stamped, index_dir=index_dir, of=of)
  return table


def cached_all(paths: Sequence[str], make: Callable[[str], Table], *, index_dir: str = "", of: str = "", threads: int = 8) -> list[Table]:
  """The indexes of many files, in order; says how far it is every ten seconds."""
  start = last = time.monotonic()
  tables = []
  with ThreadPoolExecutor(threads) as pool:
    for table in pool.map(lambda path: cached(path, make, index_dir=index_dir, of=of), paths):
      tables.append(table)
      now = time.monotonic()
      if now - last > 10:
        rate, last, left = len(tables) / (now - start), now, len(paths) - len(tables)
        LOG.warning("indexed %d of %d files, %.1f a second, %.0f s left", len(tables), len(paths), rate, left / rate)
  return tables


class Files:
  """Positional reads from many files; picklable and safe to use from several threads.

  The first `OPEN_FILES` files stay open; the others are opened for each read. A file that has changed since raises DataError.
  """
  OPEN_FILES = 256

  def __init__(self, paths: Sequence[str]):
    self.paths = list(paths)
    self._stamps = [stamp(path) for path in self.paths]
    self._handles: dict[int, int] = {}
    self._lock = threading.Lock()

  def __getstate__(self):
    return self.paths, self._stamps

  def __setstate__(self, state):
    self.paths, self._stamps = state
    self._handles, self._lock = {}, threading.Lock()

  def __del__(self, close=os.close):                                      # bound now: at exit the module may be gone first
    for handle in self.__dict__.get("_handles", {}).values():
      close(handle)

  def read(self, file: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes of file number `file` at `offset`; fewer only at its end. Raises OSError, DataError."""
    handle = self._handles.get(file)
    if handle is not None:
      return os.pread(handle, size, offset)
    handle, keep = os.open(self.paths[file], os.O_RDONLY), False
    try:
      status = os.fstat(handle)
      if (status.st_size, status.st_mtime_ns) != tuple(self._stamps[file][1:]):
        raise DataError(f"{self.paths[file]} changed while it was in use; start again, it will be indexed anew")
      with self._lock:
        keep = file not in self._handles and len(self._handles) < self.OPEN_FILES
        if keep:
          self._handles[file] = handle
      return os.pread(handle, size, offset)
    finally:
      if not keep:
        os.close(handle)
