"""Side-car captions: JSON lines of {"key": …, kind: caption, …} that join any source by record key, never a rewrite of its images.

A side-car is one such file, a folder of them, or the folder of a finished `mmdiff caption`.
"""
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mmdiff.core.errors import DataError
from mmdiff.data import indexes, jobs, key_index, records
from mmdiff.data.captions import parse_line
from mmdiff.data.quarantine import BadRecord

LOG = logging.getLogger(__name__)
LOOKED_AT = 8                        # records that tell whether a side-car is that of a source


def _hash(key: str) -> int:
  return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Sidecar:
  """Random access by key; the text stays on disk, and of a large one the index too.

  Every line is checked once, when the index is made. When a key appears again a later line's kinds win, as in a file that a resumed
  captioner appended to, and kinds that it lacks stay; `duplicates` counts the lines that have a later one. Threads and pickled copies share
  nothing but the files.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = str(path)
    self._names = files_of(self.path)
    self._files = indexes.Files(self._names)
    index = Path(self.path) / ("captions" + indexes.SUFFIX) if os.path.isdir(self.path) else Path(self.path + indexes.SUFFIX)
    self._table = key_index.cached(index, key_index.stamp(self._names), self._make)
    self.kinds: dict[str, int] = dict(self._table.facts["kinds"])       # kind -> lines that have it
    self.duplicates: int = len(self._table) - self._table.facts["distinct"]
    if self.duplicates:
      LOG.warning("data.sidecar: %s: %d lines have the key of a later one, whose kinds replace theirs", self.path, self.duplicates)

  def _make(self, builder: key_index.Builder) -> dict:
    kinds: dict[str, int] = {}
    contents, lines = [], 0
    for number, name in enumerate(self._names):
      content, offset = hashlib.blake2b(digest_size=16), 0
      with open(name, "rb") as file:
        for at, line in enumerate(file, 1):
          content.update(line)
          if line.strip():
            key, entry = parse_line(line, f"{name}, line {at}")
            for kind in entry:
              kinds[kind] = kinds.get(kind, 0) + 1
            builder.add(_hash(key), offset, number << 32 | len(line))
            lines += 1
          offset += len(line)
      contents.append(content.hexdigest())
    if not lines:
      raise DataError(f"data.sidecar: {self.path} holds no captions")
    content = contents[0] if len(contents) == 1 else hashlib.blake2b(json.dumps(contents).encode(), digest_size=16).hexdigest()
    return {"kinds": kinds, "content": content}

  def __len__(self) -> int:
    return len(self._table) - self.duplicates

  def get(self, key: str) -> dict:
    """The captions of a record by kind, {} if it has none here."""
    captions: dict = {}
    for offset, where in self._table.find(_hash(key)):                  # the last line first
      file, length = where >> 32, where & 0xFFFFFFFF
      line_key, told = parse_line(self._files.read(file, offset, length), self._names[file])
      captions = told | captions if line_key == key else captions
    return captions

  def keys(self) -> Iterator[str]:
    """The keys in the order of the lines, those of lines that lost too. Reads everything."""
    for name in self._names:
      with open(name, "rb") as file:
        yield from (parse_line(line, name)[0] for line in file if line.strip())

  def fingerprint(self) -> str:
    return self._table.facts["content"]


def files_of(path: str) -> list[str]:
  """The files of a side-car, in order. Raises DataError if there are none, or for the folder of a job that is not finished."""
  expected = 'it should be JSON lines of {"key": …, kind: caption, …}, or a folder of such files'
  if os.path.isfile(path):
    return [path]
  if not os.path.isdir(path):
    raise DataError(f"data.sidecar: no file {path}; {expected}")
  if (Path(path) / "job.json").exists():
    names = [os.path.join(path, f"{entry['unit']}.jsonl") for entry in jobs.finished_units(path) if "jsonl" in entry["files"]]
  else:
    names = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".jsonl") and not name.startswith("."))
  if not names:
    raise DataError(f"data.sidecar: no file *.jsonl in {path}; {expected}")
  return names


class Joined:
  """A source whose records also have the captions of a side-car; a side-car's kind replaces the record's own of that name."""

  def __init__(self, source, sidecar: Sidecar):
    self.source, self.sidecar = source, sidecar

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    return self._joined(self.source[index])

  def without_image(self, index: int) -> dict:
    """The same record without reading its picture, where the source can."""
    return self._joined(records.without_image(self.source, index))

  def _joined(self, record: dict) -> dict:
    more = self.sidecar.get(record["key"]) if isinstance(record, dict) and isinstance(record.get("key"), str) else {}
    return record | {"captions": dict(record.get("captions") or {}) | more} if more else record

  @property
  def skipped(self) -> dict[str, int]:
    """What the source left out, and the side-car's lines that a later one replaced."""
    lost = {"sidecar_line_replaced": self.sidecar.duplicates} if self.sidecar.duplicates else {}
    return dict(getattr(self.source, "skipped", {})) | lost

  def __getattr__(self, name: str):
    if name.startswith("_") or name in ("source", "sidecar"):
      raise AttributeError(name)
    return getattr(self.source, name)                    # what else a source may say: allow_empty_captions, shard_rows, key, …

  def fingerprint(self) -> str:
    return hashlib.blake2b(f"{self.source.fingerprint()} {self.sidecar.fingerprint()}".encode(), digest_size=16).hexdigest()


def join(source, paths: str):
  """`source` with the side-car at `paths`, or with several between commas, of which a later one replaces an earlier one's kinds; "" is
  none."""
  for path in [paths] if os.path.exists(paths) else paths.split(","):
    if path:
      source = Joined(source, Sidecar(path))
      _look(source)
  return source


def _look(joined: Joined) -> None:
  """Says so when none of a few records, spread over the source, has a line in the side-car: their keys may be written otherwise."""
  count, found = min(LOOKED_AT, len(joined)), []
  for n in range(count):
    try:
      found.append(records.without_image(joined.source, n * len(joined) // count)["key"])
    except (BadRecord, KeyError, TypeError):
      continue
  if found and not any(isinstance(key, str) and joined.sidecar.get(key) for key in found):
    LOG.warning("data.sidecar: %s has no captions for any of the %d records looked at, such as %r; its keys are such as %r",
                joined.sidecar.path, len(found), found[0], next(joined.sidecar.keys(), ""))
