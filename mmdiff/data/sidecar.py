"""Side-car captions: a JSONL file of {"key": …, kind: caption, …} that joins any source by record key, never a rewrite of its images."""
import hashlib
import os
from pathlib import Path

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.data.captions import parse_line


def _hash(key: str) -> int:
  return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class _Descriptor:
  """An open file that is closed with its last owner."""

  def __init__(self, path: str):
    self.number = None
    self.number = os.open(path, os.O_RDONLY)

  def __del__(self, close=os.close):
    if self.number is not None:
      close(self.number)


class Sidecar:
  """Random access by key. Twenty-four bytes of memory a line; the text stays on disk.

  Every line is checked once, at the start. When a key appears again the later line wins, as in a file that a resumed captioner appended
  to; `duplicates` counts the lines that lost. Threads and pickled copies share nothing but the file.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = str(path)
    self._descriptor = None
    if not Path(path).is_file():
      raise DataError(f"data.sidecar: no file {self.path}; it should be JSON lines of {{\"key\": …, kind: caption, …}}")
    hashes, offsets, lengths, offset, content = [], [], [], 0, hashlib.blake2b(digest_size=16)
    seen: dict[str, int] = {}
    with open(path, "rb") as file:
      for number, line in enumerate(file, 1):
        content.update(line)
        if line.strip():
          key, entry = parse_line(line, f"{self.path}, line {number}")
          for kind in entry:
            seen[kind] = seen.get(kind, 0) + 1
          hashes.append(_hash(key))
          offsets.append(offset)
          lengths.append(len(line))
        offset += len(line)
    if not hashes:
      raise DataError(f"data.sidecar: {self.path} holds no captions")
    order = np.lexsort((offsets, np.array(hashes, np.uint64)))
    self._hashes = np.array(hashes, np.uint64)[order]
    self._offsets, self._lengths = np.array(offsets, np.int64)[order], np.array(lengths, np.int64)[order]
    self.kinds = seen                                    # kind -> lines that have it
    self.duplicates = len(hashes) - len(np.unique(self._hashes))
    self._content = content.hexdigest()

  def __len__(self) -> int:
    return len(self._hashes) - self.duplicates

  def get(self, key: str) -> dict:
    """The captions of a record by kind, {} if it has none here."""
    hashed = np.uint64(_hash(key))
    for at in range(int(np.searchsorted(self._hashes, hashed, side="right")) - 1, -1, -1):
      if self._hashes[at] != hashed:
        break
      line_key, captions = parse_line(self._read(int(self._offsets[at]), int(self._lengths[at])), self.path)
      if line_key == key:
        return captions
    return {}

  def _read(self, offset: int, length: int) -> bytes:
    descriptor = self._descriptor                        # held here too: another thread may put its own in place
    if descriptor is None:
      descriptor = self._descriptor = _Descriptor(self.path)
    return os.pread(descriptor.number, length, offset)   # no shared position, so threads need no lock

  def fingerprint(self) -> str:
    return self._content

  def __getstate__(self):
    return self.__dict__ | {"_descriptor": None}


class Joined:
  """A source whose records also have the captions of a side-car; a side-car's kind replaces the record's own of that name."""

  def __init__(self, source, sidecar: Sidecar):
    self.source, self.sidecar = source, sidecar

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    record = self.source[index]
    more = self.sidecar.get(record["key"]) if isinstance(record, dict) and isinstance(record.get("key"), str) else {}
    return record | {"captions": dict(record.get("captions") or {}) | more} if more else record

  @property
  def allow_empty_captions(self) -> bool:
    return getattr(self.source, "allow_empty_captions", False)

  def fingerprint(self) -> str:
    return hashlib.blake2b(f"{self.source.fingerprint()} {self.sidecar.fingerprint()}".encode(), digest_size=16).hexdigest()


def join(source, path: str):
  """`source` with the side-car at `path`; the source itself when `path` is empty."""
  return Joined(source, Sidecar(path)) if path else source
