"""Parquet files and what Hugging Face's `datasets` leaves on a disk: a folder of parquet files, or of Arrow files (`save_to_disk`).

A picture is a column of bytes, or `datasets`' struct {bytes, path}; captions are columns of texts or of lists of texts, or a class label's
name (from the features that `datasets` writes into the schema). Records are read by row group, of which a few stay in memory: in random
order one record costs its group's bytes. `mmdiff data shard` makes tars of it, which read one record at a time.
"""
import bisect
import collections
import glob
import itertools
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc
from pyarrow import parquet as pq

from mmdiff.core.errors import DataError
from mmdiff.core.files import parse_json, read_object
from mmdiff.core.ranges import wrong_text
from mmdiff.data import records, sight
from mmdiff.data.quarantine import BadRecord

SUFFIXES = (".parquet", ".arrow")
KEPT_BYTES = 256 * 2**20                 # of row groups in memory, per process; one group may be larger
MAX_GROUP_BYTES = 2**30
SPLITS = ("train", "validation", "valid", "val", "test", "dev")
FAULTS = (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError)


def files_under(path: str) -> list[str]:
  """The parquet or Arrow files that a file, a folder or a pattern names, in order."""
  found = os.path.expanduser(path)
  if os.path.isdir(found):
    names = [os.path.join(folder, name) for folder, folders, files in os.walk(found) for name in files
             if not name.startswith((".", "cache-")) and not _hidden(os.path.relpath(folder, found))]
    return sorted(name for name in names if name.endswith(SUFFIXES))
  return [found] if os.path.isfile(found) else sorted(glob.glob(found))


def _hidden(folder: str) -> bool:
  return any(part.startswith(".") and part != "." for part in folder.split(os.sep))


def splits(path: str) -> dict[str, list[str]]:
  """{split: its files}, as the folders and names of `datasets` tell them: train/…, data/train-00000-of-00002.parquet, test.parquet; {}
  where they tell none."""
  root, found = os.path.expanduser(path), collections.defaultdict[str, list[str]](list)
  listed = os.path.join(root, "dataset_dict.json")
  names = (*SPLITS, *(read_object(Path(listed)).get("splits") or ())) if os.path.isfile(listed) else SPLITS
  for file in files_under(path):
    name = os.path.relpath(file, root) if os.path.isdir(root) else os.path.basename(file)
    folder, base = os.path.split(name)
    said = [re.sub(r"(-\d+-of-\d+.*)?\.\w+$", "", base), *folder.split(os.sep)]
    found[next((part for part in said if part in names), "")].append(file)
  return {} if set(found) == {""} else dict(found)


def has_pictures(path: str) -> bool:
  """Whether a file has a column of bytes or of {bytes, path}. Raises DataError for a damaged one."""
  return bool(_picture_columns(_opened(path).schema))


def rows(path: str) -> list[dict[str, Any]]:
  """A small table's rows, without columns of bytes."""
  file = _opened(path)
  return file.table([name for name in file.schema.names if not _is_binary(file.schema.field(name).type)]).to_pylist()


class _Parquet:
  """A file by row group."""

  def __init__(self, path: str):
    with pq.ParquetFile(path) as file:
      self._meta, self.schema = file.metadata, file.schema_arrow
    self.path, self.groups = path, [self._meta.row_group(i).num_rows for i in range(self._meta.num_row_groups)]
    self.identity = (os.path.basename(path), os.path.getsize(path), self.groups, _footer(path))

  def group(self, number: int, columns: Sequence[str]) -> pyarrow.Table:
    stored = [self._meta.row_group(number).column(i) for i in range(self._meta.num_columns)]
    size = sum(column.total_uncompressed_size for column in stored if column.path_in_schema.split(".")[0] in columns)
    if size > MAX_GROUP_BYTES:
      raise DataError(f"{self.path}: row group {number} has {size:,} bytes, too many to read one record; write it anew with smaller row "
                      "groups (datasets: to_parquet(…, batch_size=100))")
    with pq.ParquetFile(self.path, metadata=self._meta) as file:
      return file.read_row_group(number, columns=list(columns), use_threads=False)

  def table(self, columns: Sequence[str]) -> pyarrow.Table:
    with pq.ParquetFile(self.path, metadata=self._meta) as file:
      return file.read(columns=list(columns))


class _Arrow:
  """A file of `save_to_disk`, mapped into memory: batches of an Arrow stream, or of an Arrow file."""

  def __init__(self, path: str):
    self.path, self._local = path, threading.local()
    self.schema, sizes = self._mapped().schema, [batch.num_rows for batch in self._mapped().to_batches()]
    self.groups = sizes
    self.identity = (os.path.basename(path), os.path.getsize(path), sizes, str(self.schema))

  def __getstate__(self):
    return self.path, self.schema, self.groups, self.identity

  def __setstate__(self, state):
    self.path, self.schema, self.groups, self.identity = state
    self._local = threading.local()

  def _mapped(self) -> pyarrow.Table:
    if not hasattr(self._local, "table"):
      mapped = pyarrow.memory_map(self.path)
      try:
        self._local.table = ipc.open_stream(mapped).read_all()
      except pyarrow.ArrowInvalid:
        self._local.table = ipc.open_file(mapped).read_all()
    return self._local.table

  def group(self, number: int, columns: Sequence[str]) -> pyarrow.Table:
    return pyarrow.Table.from_batches([self._mapped().to_batches()[number]]).select(list(columns))

  def table(self, columns: Sequence[str]) -> pyarrow.Table:
    return self._mapped().select(list(columns))


def _opened(path: str) -> Any:
  try:
    return _Arrow(path) if path.endswith(".arrow") else _Parquet(path)
  except FAULTS as error:
    raise DataError(f"{path}: cannot be read: {error}; it is damaged, or no {'Arrow' if path.endswith('.arrow') else 'parquet'} file: "
                    "get it again") from None


def _footer(path: str) -> str:
  """A digest of the bytes that hold the schema, and the place and statistics of every column: other data has another."""
  with open(path, "rb") as file:
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    return records.fingerprint(file.read(length))


class Parquet:
  """Random access to the rows of files. Safe for threads, picklable."""

  def __init__(self, files: Sequence[str], *, name: str, image: str, captions: Mapping[str, str], key: str,
               captionless: bool = False):
    self.captionless = captionless
    self._files = [_opened(path) for path in files]
    schema = self._files[0].schema
    for file in self._files[1:]:
      if file.schema.names != schema.names:
        raise DataError(f"{file.path}: its columns are {file.schema.names}, those of {self._files[0].path} {schema.names}; they are no "
                        "parts of one set: name the files that are")
    self._image, self._captions, self._key = _chosen(name, self._files[0], image, captions, key, captionless)
    self._names, labels = _labels(schema), next((found for found in _labels(schema).values()), ())
    self.labels = tuple(label.replace("_", " ") for label in labels)
    base = os.path.commonpath([os.path.dirname(os.path.abspath(file.path)) for file in self._files])
    self._prefixes = [os.path.splitext(os.path.relpath(os.path.abspath(file.path), base))[0] for file in self._files]
    self._label = next((column for column in self._names), "label" if "label" in schema.names else "")
    others = [column for column in records.EXTRAS if column in schema.names]
    self._columns = list(dict.fromkeys([self._image, *self._captions.values(), *filter(None, [self._key, self._label]), *others]))
    self._groups = [(number, group) for number, file in enumerate(self._files) for group in range(len(file.groups))]
    self._ends = list(itertools.accumulate(self._files[number].groups[group] for number, group in self._groups))
    if not len(self):
      raise DataError(f"{name}: no rows in {len(files)} files; correct `path` or `split`")
    self._read_keys(name, wanted=bool(key))
    self._kept: collections.OrderedDict[int, pyarrow.Table] = collections.OrderedDict()
    self._lock = threading.Lock()

  def _read_keys(self, name: str, *, wanted: bool) -> None:
    """The column of keys, if there is one that tells records apart."""
    self._keys = None
    if not self._key:
      return
    try:
      column = pyarrow.chunked_array([chunk for file in self._files
                                      for chunk in file.table([self._key])[self._key].cast("string").chunks])
    except FAULTS as error:
      raise DataError(f"{name}: the column of keys {self._key!r} cannot be read as text: {error}") from None
    if len(column.unique()) == len(column) and not column.null_count:
      self._keys = column
    elif wanted:
      lost = len(column) - len(column.unique()) + column.null_count
      raise DataError(f"{name}: the column {self._key!r} has {lost:,} keys that are empty or come twice; captions and results are "
                      "joined by key: name another column, or none")
    else:
      sight.say(f"{name}: the column {self._key!r} does not tell records apart; their keys are FILE/ROW")

  def __getstate__(self):
    return {key: value for key, value in self.__dict__.items() if key not in ("_kept", "_lock")}

  def __setstate__(self, state):
    self.__dict__.update(state, _kept=collections.OrderedDict(), _lock=threading.Lock())

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def fingerprint(self) -> str:
    """A digest of the files' names, sizes and footers and the columns taken; the same wherever they lie."""
    return records.fingerprint("parquet", [file.identity for file in self._files], self._image, sorted(self._captions.items()),
                               self._key if self._keys is not None else "")

  def _place(self, i: int) -> tuple[int, int]:
    """(group, row in it)."""
    group = bisect.bisect_right(self._ends, i)
    return group, i - (self._ends[group - 1] if group else 0)

  def key(self, i: int) -> str:
    """The key of record `i`, without reading its picture."""
    if self._keys is not None:
      return self._keys[i].as_py()
    group, row = self._place(i)
    number, inner = self._groups[group]
    return f"{self._prefixes[number]}/{sum(self._files[number].groups[:inner]) + row:09d}"

  def _group(self, group: int) -> pyarrow.Table:
    with self._lock:
      if group in self._kept:
        self._kept.move_to_end(group)
        return self._kept[group]
      number, inner = self._groups[group]
      table = self._files[number].group(inner, self._columns)
      self._kept[group] = table
      while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
        self._kept.popitem(last=False)
      return table

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = int(i)
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    (group, row), key = self._place(i), self.key(i)
    if wrong := wrong_text(key):
      raise BadRecord("unreadable", f"key: {wrong}, which no result could name")
    try:
      found = self._group(group).slice(row, 1).to_pylist()[0]
    except FAULTS as error:
      if isinstance(error, DataError):
        raise
      number, inner = self._groups[group]
      raise BadRecord("unreadable", f"{self._files[number].path} row group {inner}: {error}", key) from None
    record: dict[str, Any] = {"key": key, "image": _picture(found[self._image], key)} | records.extras_of(found)
    captions = {kind: self._caption(found, column, key) for kind, column in self._captions.items() if found.get(column) is not None}
    if self._label and found.get(self._label) is not None:
      record["label"] = found[self._label]
    return record | {"captions": {kind: value for kind, value in captions.items() if value != []}}

  def _caption(self, found: Mapping[str, Any], column: str, key: str) -> str | list[str]:
    names, value = self._names.get(column), found[column]
    if names is None:
      return records.caption(value, what=column)
    if not isinstance(value, int) or value >= len(names):
      raise BadRecord("bad_type", f"{column}: class {value!r} of {len(names)}", key)
    return names[value].replace("_", " ") if value >= 0 else []            # -1 where a label is withheld


def _picture(value: Any, key: str) -> bytes:
  data = value.get("bytes") if isinstance(value, dict) else value
  if not data:
    where = value.get("path") if isinstance(value, dict) else None
    raise BadRecord("missing_key", "no bytes of the picture" + (f", only its path {where!r}" if where else ""), key)
  if len(data) > records.MAX_PICTURE_BYTES:
    raise BadRecord("oversized", f"the picture has {len(data):,} bytes", key)
  return data


def _is_binary(kind: pyarrow.DataType) -> bool:
  types = pyarrow.types
  if types.is_struct(kind):
    return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
  return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _picture_columns(schema: pyarrow.Schema) -> list[str]:
  return [field.name for field in schema if _is_binary(field.type)]


def _labels(schema: pyarrow.Schema) -> dict[str, list[str]]:
  """{column: names of its classes}, from what `datasets` writes into the schema."""
  try:
    features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    return {name: list(map(str, feature["names"])) for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and name in schema.names}
  except (KeyError, TypeError, ValueError, AttributeError):
    return {}


def _chosen(name: str, file: Any, image: str, captions: Mapping[str, str], key: str,
            captionless: bool) -> tuple[str, dict[str, str], str]:
  """(column of the picture, {kind: column}, column of the keys or ""). Raises DataError that names the columns there are."""
  names, pictures = file.schema.names, _picture_columns(file.schema)
  if missing := [column for column in (image, *captions.values(), key) if column and column not in names]:
    raise sight.refused(name, f"no column {', '.join(missing)}", names, [("image", names[0]), ("captions.original", names[-1])])
  called = [column for column in pictures if set(sight.words(column)) & set(sight.PICTURE_WORDS)]
  found = image or (pictures[0] if len(pictures) == 1 else called[0] if len(called) == 1 else "")
  if not found:
    what = f"{', '.join(pictures)} could each be the pictures" if pictures else "no column of pictures (bytes, or {bytes, path})"
    raise sight.refused(name, what, names, [("image", pictures[0] if pictures else names[0])])
  texts = [column for column in names if not _is_binary(file.schema.field(column).type)]
  if not captions:
    captions = {kind: column for column in sorted(texts, key=_rank) if (kind := records.kind_of(column))}
    captions = captions or sight.caption_columns([column for column in texts if column not in sight.KEY_COLUMNS], _first(file, texts))
    captions = captions or dict(zip(["original"], _labels(file.schema)))
  if not captions and not captionless:
    raise sight.refused(name, "no column can be told to be the captions", names, [("captions.original", next(iter(texts), names[0]))])
  return found, dict(captions), key or next((column for column in ("key", "__key__", "id") if column in texts), "")


def _rank(column: str) -> int:
  """Of several columns of one kind the last by this counts."""
  return -records.ORIGINAL.index(column) if column in records.ORIGINAL else 1


def _first(file: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
  return file.group(0, columns).slice(0, sight.LOOKED_AT).to_pylist() if file.groups else []


def parquet(*, path: str, split: str = "", image: str = "", captions: Mapping[str, str] = {},  # noqa: B006
            key: str = "", captionless: bool = False) -> Parquet:
  """Parquet files, or a folder of Hugging Face's `datasets`.

  Args:
    path: a file, a folder of them, a pattern, or what `save_to_disk` wrote.
    split: of files that names or folders tell apart, e.g. "train"; "" is all, where they are of one split or tell none.
    image: column of the pictures, bytes or {bytes, path}; "" takes the only one, or the one whose name says so.
    captions: caption kind -> column; {} takes `caption`, `text`, `title`, `caption_KIND`, then columns whose names or contents say so,
      then a class label's names.
    key: column of the keys; "" takes `key`, `__key__` or `id` where it tells records apart, otherwise keys are FILE/ROW.
    captionless: accepts pictures alone, for a side-car or a captioner to supply the captions.
  Raises: DataError for no or damaged files, a missing column or split.
  """
  root = os.path.expanduser(path)
  files, known = files_under(path), splits(path)
  if not files:
    found = sorted(os.listdir(root))[:5] if os.path.isdir(root) else "nothing"
    raise DataError(f"{path}: no parquet or Arrow files, found {found}; correct `path`")
  if split and split not in known:
    there = f"it has {', '.join(sorted(known))}" if known else "its files tell none: leave it out"
    raise DataError(f"{path}: no split {split!r}; {there}")
  if len(known) > 1 and not split:
    raise DataError(f"{path}: files of several splits, {', '.join(sorted(known))}; say which: {sight.flag('split', sorted(known)[0])}")
  return Parquet(known[split] if split else files, name=path, image=image, captions=captions, key=key,
                 captionless=captionless)
