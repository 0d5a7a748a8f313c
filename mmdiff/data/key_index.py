"""Where the entries of many records lie, by key: a sorted table of hashes that is made once, kept in a file and mapped into memory.

Twenty-four bytes an entry on the disk, and no memory of one's own: all processes of a host share the pages. The table is kept only for
what takes long to make; where it can't be written it lives in memory.
"""
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.core.files import parse_json, write_atomically

LOG = logging.getLogger(__name__)
VERSION = 1
WORTH_KEEPING = 10_000               # entries


class Table:
  """uint64 [3 N]: hash of the key, and two numbers of the owner's choosing. Picklable: a kept table is mapped again."""

  def __init__(self, rows: np.ndarray, facts: Mapping[str, Any], path: Path | None = None):
    self.rows, self.facts, self.path = rows, facts, path

  def __len__(self) -> int:
    return self.rows.shape[1]

  def find(self, hashed: int) -> Iterator[tuple[int, int]]:
    """The numbers of every entry with this hash, the one that was added last first."""
    hashes = self.rows[0]
    for at in range(int(np.searchsorted(hashes, np.uint64(hashed), side="right")) - 1, -1, -1):
      if hashes[at] != hashed:
        return
      yield int(self.rows[1, at]), int(self.rows[2, at])

  def __getstate__(self):
    return self.__dict__ | ({"rows": None} if self.path else {})

  def __setstate__(self, state):
    self.__dict__.update(state)
    if self.path:
      self.rows = np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))


class Builder:
  """Entries in the order in which they were added; of equal keys the last one is found first."""

  def __init__(self):
    self._columns = array("Q"), array("Q"), array("Q")

  def add(self, hashed: int, first: int, second: int) -> None:
    for column, value in zip(self._columns, (hashed, first, second)):
      column.append(value)

  def extend(self, hashed: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Many at once: integers [n] each."""
    for column, values in zip(self._columns, (hashed, first, second)):
      column.frombytes(np.ascontiguousarray(values, np.uint64).tobytes())

  def rows(self) -> np.ndarray:
    columns = [np.frombuffer(column, np.uint64) for column in self._columns]
    order = np.argsort(columns[0], kind="stable")
    made = np.empty((3, len(order)), np.uint64)
    for row, column in zip(made, columns):
      row[:] = column[order]
    return made


def stamp(paths: list[str]) -> list[list]:
  """What changes when one of the files does: name, size, modification time in ns."""
  return [[os.path.basename(path), status.st_size, status.st_mtime_ns] for path in paths for status in (os.stat(path),)]


def cached(path: Path, stamped: Any, make: Callable[[Builder], Mapping[str, Any]]) -> Table:
  """The table kept at `path` if it carries this stamp, else made by `make(builder) -> facts` now, and kept if it is large.

  To the facts it adds `distinct`, the number of different hashes.
  """
  table = load(path, stamped)
  if table is None:
    builder = Builder()
    facts = dict(make(builder))
    rows = builder.rows()
    table = Table(rows, facts | {"distinct": int(np.count_nonzero(np.diff(rows[0]))) + bool(rows.shape[1])})
    if len(table) >= WORTH_KEEPING:
      save(path, table, stamped)
      table = load(path, stamped) or table
  return table


def save(path: Path, table: Table, stamped: Any) -> None:
  """The array as .npy, then the facts as JSON, then the length of those: one file, so that one move makes all of it."""
  def fill(file):
    np.save(file, table.rows, allow_pickle=False)
    facts = json.dumps({"version": VERSION, "stamp": stamped, "facts": table.facts}).encode()
    file.write(facts + len(facts).to_bytes(8, "little"))

  try:
    write_atomically(path, fill)
  except OSError as error:
    LOG.info("the index %s stays in memory: %s", path, error)


def load(path: Path, stamped: Any) -> Table | None:
  try:
    with open(path, "rb") as file:
      file.seek(-8, os.SEEK_END)
      length = int.from_bytes(file.read(8), "little")
      file.seek(-8 - length, os.SEEK_END)
      kept = parse_json(file.read(length))
    if kept["version"] != VERSION or kept["stamp"] != json.loads(json.dumps(stamped)):
      return None
    rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return Table(rows, kept["facts"], path) if rows.dtype == np.uint64 and rows.ndim == 2 and rows.shape[0] == 3 else None
  except (OSError, ValueError, KeyError, TypeError, OverflowError):
    return None
