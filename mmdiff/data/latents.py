"""Precomputed features: what frozen encoders made of every record, joined by record key when a batch is made.

`mmdiff data precompute` writes them, a job in units (see `jobs`). A unit has one table for each picture size and one for texts, each a set
of .npy files of one row an entry that can be mapped into memory:

    00000.512x512.latent_mean.npy   float [n h w C]      00000.text.text_states.npy   float [n L D]
    00000.512x512.latent_std.npy    float [n h w C]      00000.text.text_pooled.npy   float [n D], if the encoder pools
    00000.512x512.size.npy          int32 [n 6]          00000.text.keys.npy          uint64 [n 2]
    00000.512x512.keys.npy          uint64 [n 2]

Latents are found by record key. Texts are found by record key, kind and the text itself, so that a caption that has changed since is
missed, never mistaken. Mean and standard deviation are stored, not a draw, so that training draws anew at every step.

Whoever opens them holds every file's header and size to its unit's manifest, and its sha256 once for each state of the file (`digests`).
"""
import collections
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.spelling import shown
from mmdiff.data import indexes, jobs, key_index
from mmdiff.data.quarantine import BadRecord

LATENTS = ("latent_mean", "latent_std", "size")
TEXTS = ("text_states", "text_pooled")
TEXT = "text"                        # the table of texts; the others are named by their picture size
HEADER = 192                         # bytes of a .npy file's, filled with spaces: the number of rows is known at the end only
DTYPES = {"float32": np.float32, "float16": np.float16}


class Column(NamedTuple):
  """Where a table's values of one name lie."""
  file: int
  start: int                         # of the first row, in bytes
  stride: int                        # bytes of a row
  dtype: np.dtype
  shape: tuple[int, ...]             # of a row


def image_digest(key: str) -> tuple[int, int]:
  return _digest("image", key)


def text_digest(key: str, kind: str, text: str) -> tuple[int, int]:
  return _digest("text", key, kind, text)


def _digest(*parts: str) -> tuple[int, int]:
  data = json.dumps(parts).encode()
  made = hashlib.blake2b(data, digest_size=16).digest()
  return int.from_bytes(made[:8], "little"), int.from_bytes(made[8:], "little")


def header_of(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
  """The header of a .npy file, version 1.0 of the format."""
  told = repr({"descr": dtype.str, "fortran_order": False, "shape": shape}).encode("latin1")
  return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + told.ljust(HEADER - 11) + b"\n"


class Tables:
  """The tables of one unit while they are written, row by row, so that a unit's size is bounded by the disk alone."""
  def __init__(self, output: jobs.Output):
    self._output, self._stack = output, contextlib.ExitStack()
    self._columns: dict[str, dict[str, tuple[BinaryIO, np.dtype, tuple[int, ...]]]] = {}
    self._rows: dict[str, int] = {}

  def __enter__(self) -> "Tables":
    return self

  def add(self, table: str, digests: Sequence[tuple[int, int]], columns: Mapping[str, np.ndarray]) -> None:
    """Appends rows: the digests of their keys, and values [n …]."""
    values = {"keys": np.array(digests, np.uint64).reshape(len(digests), 2)} | dict(columns)
    held = self._columns.setdefault(table, {})
    for name, rows in values.items():
      if name not in held:
        file = self._stack.enter_context(self._output.open(f"{table}.{name}.npy"))
        file.write(bytes(HEADER))
        held[name] = file, rows.dtype, rows.shape[1:]
      file, dtype, shape = held[name]
      if (rows.dtype, rows.shape[1:]) != (dtype, shape) or len(rows) != len(digests):
        raise ValueError(f"{table}.{name}: rows of {dtype} {shape} so far, now {len(rows)} of {rows.dtype} {rows.shape[1:]}")
      file.write(np.ascontiguousarray(rows).tobytes())
    self._rows[table] = self._rows.get(table, 0) + len(digests)

  def __exit__(self, kind, *rest) -> None:
    if kind is None:
      for table, columns in self._columns.items():
        for file, dtype, shape in columns.values():
          file.seek(0)
          file.write(header_of(dtype, (self._rows[table], *shape)))
    self._stack.__exit__(kind, *rest)

  def facts(self) -> dict[str, Any]:
    """What the unit's manifest says of its tables."""
    return {table: {"rows": self._rows[table], "columns": {name: {"dtype": dtype.str, "shape": list(shape)}
                                                           for name, (_, dtype, shape) in sorted(columns.items())}}
            for table, columns in sorted(self._columns.items())}


def summary(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What manifest.json says: the entries by kind of table, bad records, and a digest of all files."""
  bad: collections.Counter[str] = collections.Counter()
  count = {"latents": 0, "texts": 0}
  for entry in entries:
    bad.update(entry["bad"])
    for table, facts in entry["tables"].items():
      count["texts" if table == TEXT else "latents"] += facts["rows"]
  files = [[entry["unit"], suffix, facts["sha256"]] for entry in entries for suffix, facts in sorted(entry["files"].items())]
  return {**count, "bad": dict(sorted(bad.items())), "bytes": sum(facts["bytes"] for entry in entries for facts in entry["files"].values()),
          "content": hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest()}


def columns_of(folder: Path, entry: Mapping[str, Any]) -> dict[str, dict[str, Column]]:
  """The columns of a unit's tables, their files numbered in the order of `entry["files"]`. Every file's header is held to the manifest, and
  its size to both. Raises DataError for a unit that was not written so."""
  file = folder / f"{entry['unit']}.json"
  try:
    numbers = {suffix: number for number, suffix in enumerate(entry["files"])}
    told = {f"{table}.{name}.npy": (table, name, (facts["rows"], *column["shape"]), np.dtype(column["dtype"]))
            for table, facts in entry["tables"].items() for name, column in facts["columns"].items()}
    summary([entry])
  except jobs.FAULTS as error:
    raise DataError(f"{file}: not the manifest of precomputed features: {type(error).__name__}: {error}; {jobs.REDO}") from None
  tables: dict[str, dict[str, Column]] = {table: {} for table in entry["tables"]}
  if numbers.keys() != told.keys() or any(f"{table}.keys.npy" not in told for table in tables):
    raise DataError(f"{file}: its tables have other columns than its files, or no keys: {sorted(told)}, {sorted(numbers)}; {jobs.REDO}")
  for suffix, (table, name, shape, dtype) in told.items():
    path = folder / f"{entry['unit']}.{suffix}"
    with open(path, "rb") as opened:
      header = opened.read(HEADER)
    if dtype.kind not in "fiu" or header != header_of(dtype, shape) or name == "keys" and (shape[1:], dtype) != ((2,), np.uint64):
      raise DataError(f"{path}: its header is {shown(header[:10])} {shown(header[10:].strip())}, its manifest says {dtype} {list(shape)}; "
                      f"{jobs.REDO}")
    stride = dtype.itemsize * math.prod(shape[1:])
    if HEADER + stride * shape[0] != os.path.getsize(path):
      raise DataError(f"{path}: {os.path.getsize(path):,} bytes, its header says {HEADER + stride * shape[0]:,}; {jobs.REDO}")
    tables[table][name] = Column(numbers[suffix], HEADER, stride, dtype, shape[1:])
  return tables


class Features:
  """Random access by key to the folder of a finished `mmdiff data precompute`. Picklable and safe to use from several threads.

  `identity` says what was computed: `picture` (sizes and resampling), `text` (kinds, tokenizer, length), `encoders` (their digests).
  """

  def __init__(self, path: str | os.PathLike):
    self.path = str(path)
    folder = Path(path)
    entries = jobs.finished_units(folder)
    manifest = jobs.manifest_of(folder)
    self.identity: dict[str, Any] = manifest["identity"]
    if self.identity.get("task") != "precompute":
      raise DataError(f"data.features: {path} is the folder of `mmdiff {self.identity.get('task')}`, not of `mmdiff data precompute`")
    self.probe: dict[str, list[float]] = manifest.get("probe", {})        # what the encoders made of a fixed picture and text
    names: list[str] = []
    self._tables: list[dict[str, Column]] = []
    self._keys: list[tuple[int, str]] = []               # (number of the table, its file of keys)
    with ThreadPoolExecutor(jobs.THREADS) as pool:
      for entry, tables in zip(entries, pool.map(lambda entry: columns_of(folder, entry), entries)):
        for _, columns in sorted(tables.items()):
          placed = {name: column._replace(file=column.file + len(names)) for name, column in columns.items()}
          self._keys.append((len(self._tables), str(folder / list(jobs.files_of(entry))[columns["keys"].file])))
          self._tables.append(placed)
        names += [str(folder / name) for name in jobs.files_of(entry)]
    self._content = summary(entries)["content"]
    self._files = indexes.Files(names)
    self._index = key_index.cached(folder / ("features" + indexes.SUFFIX), self._content, self._make)
    self.has_latents, self.has_texts, self.has_sizes = (any(name in table for table in self._tables) for name in (
      LATENTS[0], TEXTS[0], LATENTS[2]))
    self._check_manifest(manifest, folder / "manifest.json")

  def _check_manifest(self, manifest: Mapping[str, Any], file: Path) -> None:
    parts = ["encoders"] + ["picture"] * self.has_latents + ["text"] * self.has_texts
    probed = isinstance(self.probe, Mapping) and all(
      isinstance(values, list) and all(isinstance(value, float) for value in values) for values in self.probe.values())
    wrong = [("content", manifest.get("content"), repr(self._content))] if manifest.get("content") != self._content else []
    wrong += [(f"identity.{part}", held, "an object") for part in parts if not isinstance(held := self.identity.get(part), Mapping)]
    wrong += [] if probed else [("probe", self.probe, "lists of numbers by name")]
    for key, found, expected in wrong:
      raise DataError(f"{file}: `{key}` is {shown(found)}, expected {expected}; run the command that made this folder again, or compute "
                      "the features anew in another")

  def _make(self, builder: key_index.Builder) -> dict:
    pictures = []
    for table, name in self._keys:
      keys = np.load(name, allow_pickle=False)
      pictures += [keys] if LATENTS[0] in self._tables[table] else []
      builder.extend(keys[:, 0], np.uint64(table) << np.uint64(32) | np.arange(len(keys), dtype=np.uint64), keys[:, 1])
    found = np.concatenate(pictures) if pictures else np.zeros((0, 2), np.uint64)
    _, count = np.unique(found[:, 0], return_counts=True)
    if (count > 1).any() and (again := len(found) - len(np.unique(found, axis=0))):
      raise DataError(f"data.features: {self.path} has {again} latents whose record has the key of another one, so that it can't be told "
                      "which are whose; give the records keys of their own (`mmdiff data validate` names those that repeat)")
    return {}

  def __len__(self) -> int:
    return len(self._index)

  def fingerprint(self) -> str:
    return self._content

  def of(self, key: str, kind: str, text: str) -> dict[str, np.ndarray]:
    """What there is for a record and its caption: latent_mean, latent_std float32 [h w C] and, where computed, size int32 [6]; text_states
    float32 [L D] and perhaps text_pooled float32 [D]. BadRecord: "missing_key" when it was not computed, "unreadable" for what is cut
    short or not finite."""
    made = {}
    if self.has_latents:
      made |= self._row(image_digest(key), LATENTS, key, "latents of this record")
    if self.has_texts:
      made |= self._row(text_digest(key, kind, text), TEXTS, key, f"states of its {kind} caption {text[:60]!r}")
    return made

  def _row(self, digest: tuple[int, int], names: Sequence[str], key: str, what: str) -> dict[str, np.ndarray]:
    for where, check in self._index.find(digest[0]):
      if check == digest[1]:
        table, row = self._tables[where >> 32], where & 0xFFFFFFFF
        return {name: self._value(table[name], row, key, name) for name in names if name in table}
    raise BadRecord("missing_key", f"no {what} in {self.path}", key)

  def _value(self, column: Column, row: int, key: str, name: str) -> np.ndarray:
    data = self._files.read(column.file, column.start + row * column.stride, column.stride)
    if len(data) != column.stride:
      raise BadRecord("unreadable", f"{name} in {self.path} ends early", key)
    value = np.frombuffer(data, column.dtype).reshape(column.shape)
    if value.dtype.kind != "f":
      return value
    if not np.isfinite(value).all():
      raise BadRecord("unreadable", f"{name} in {self.path} is not finite; compute the features anew", key)
    return value.astype(np.float32)

  def check(self, *, picture: Mapping[str, Any], tokenizer: Any, text_len: int) -> None:
    """Raises ConfigError with every way in which the features are not those that a run with these settings would compute."""
    wanted: dict[str, Any] = {"picture": dict(picture)} if self.has_latents else {}
    if self.has_texts:
      wanted["text"] = {"tokenizer": tokenizer.fingerprint(), "text_len": text_len}
    held = {part: {name: self.identity[part].get(name) for name in values} for part, values in wanted.items()}
    wanted = json.loads(json.dumps(wanted))
    lines = [f"{name}: there {before!r}, in this run {now!r}" for name, before, now in jobs.differences(held, wanted)]
    if lines:
      raise ConfigError(f"data.features: {self.path} was computed with other settings; compute it again with this config, or undo the "
                        "change\n" + "\n".join(lines))
