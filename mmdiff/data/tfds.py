"""Datasets that TensorFlow Datasets has prepared, read without TensorFlow.

ArrayRecord and Parquet go through `as_data_source`; TFRecord sets, which it refuses, through a small offset index (see `tfrecord`) and
the features' own `deserialize_example_np`. Pictures stay encoded. The dataset's Python code is not needed: its folder says it all.
"""
import bisect
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets import decode, features

from mmdiff.core.errors import DataError
from mmdiff.core.files import parse_object
from mmdiff.data import indexes, records, tfrecord
from mmdiff.data.quarantine import BadRecord

CAPTIONS = ("captions/text", "captions", "caption", "text", "label")     # where captions usually are, in this order


class TFRecords:
  """The examples of a split of a TFRecord set, by index. Picklable."""

  def __init__(self, described: Any, parts: Sequence[Any], tables: Mapping[str, indexes.Table], decoders: Any):
    self._features, self._decoders = described, decoders
    paths = list(tables)
    self._files = indexes.Files(paths)
    self._parts = []
    for part in parts:
      columns = tables[part.filename]
      self._parts.append((paths.index(part.filename),
                          *(columns[name][part.skip:part.skip + part.take] for name in ("offset", "size", "crc"))))
    self._ends = list(itertools.accumulate(len(offset) for _, offset, *_ in self._parts))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, i: int) -> Any:
    part = bisect.bisect_right(self._ends, i)
    file, offset, size, crc = self._parts[part]
    row = i - (self._ends[part - 1] if part else 0)
    data = self._files.read(file, int(offset[row]), int(size[row]))
    if tfrecord.masked_crc(data) != crc[row]:
      raise OSError(f"the checksum of record {row} in {self._files.paths[file]} is not that of its bytes; get the file again")
    return self._features.deserialize_example_np(data, decoders=self._decoders)


class Part(NamedTuple):
  """What a split takes of one file."""
  filename: str
  skip: int
  take: int
  held: int                          # records of the file, as dataset_info.json says


def _opened(folder: str, split: str) -> tuple[Any, list[Part]]:
  """(the builder of a prepared dataset, the parts of one of its splits). Raises DataError."""
  try:
    builder = tensorflow_datasets.builder_from_directory(folder)
    subset = builder.info.splits[split]
    parts = [Part(str(item.filename), item.skip, item.take, item.examples_in_shard) for item in subset.file_instructions]
    count = subset.num_examples
  except Exception as error:         # TFDS reads what strangers wrote, and what it raises for it is of many kinds
    raise DataError(f"{folder}: {type(error).__name__}: {_one_line(error)}; correct `split`, or prepare the dataset anew") from None
  if not count:
    raise DataError(f"{folder}: split {split!r} is empty; correct `split` (it has {', '.join(builder.info.splits)})")
  inside = os.path.abspath(folder) + os.sep
  if outside := next((part.filename for part in parts if not os.path.abspath(part.filename).startswith(inside)), ""):
    raise DataError(f"{folder}: dataset_info.json names the file {outside}, which lies outside; prepare the dataset anew")
  missing = [part.filename for part in parts if not os.path.isfile(part.filename)]
  if missing:
    raise DataError(f"{len(missing)} of {len(parts)} files of the split are missing, first {missing[0]}; copy them")
  return builder, parts


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())[:300]


def _array_records_of(path: str) -> int:
  """The records of an ArrayRecord file. Raises DataError for a cut or damaged one."""
  try:
    reader = ArrayRecordReader(path)
    count = reader.num_records()
    reader.close()                   # says what was wrong
    return count
  except (RuntimeError, ValueError) as error:
    raise DataError(f"{path}: no whole ArrayRecord file: {error or 'cut short'}; get it again") from None


def _check_counts(parts: Sequence[Part], held: Mapping[str, int]) -> None:
  """Raises DataError unless every file holds as many records as dataset_info.json says."""
  for part in parts:
    if held[part.filename] != part.held:
      raise DataError(f"{part.filename}: {held[part.filename]:,} records, dataset_info.json says {part.held:,}; get both again")


def find(dataset: str, data_dir: str) -> str:
  """The folder of a prepared dataset: `dataset` itself, or data_dir/NAME[/CONFIG]/VERSION, the newest version if none is named.

  Raises DataError that lists what `data_dir` holds.
  """
  if os.path.isfile(os.path.join(os.path.expanduser(dataset), "dataset_info.json")):
    return os.path.expanduser(dataset)
  root = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets"))
  name, _, version = dataset.partition(":")
  base = os.path.join(root, name)
  prepared = sorted(folder for folder, _, files in os.walk(base) if "dataset_info.json" in files)
  if version:
    prepared = [folder for folder in prepared if os.path.basename(folder) == version]
  if not prepared:
    held = sorted(os.listdir(root))[:8] if os.path.isdir(root) else "nothing, it does not exist"
    raise DataError(f"no prepared dataset {dataset!r} in {root} (it holds {held}); expected {base}/VERSION with dataset_info.json; "
                    "prepare it with TFDS, copy it there, or set data_dir")
  parents = {os.path.dirname(folder) for folder in prepared}
  if len(parents) > 1:
    raise DataError(f"{dataset!r} has several configs: {', '.join(os.path.relpath(parent, root) for parent in sorted(parents))}; name one")
  return max(prepared, key=lambda folder: [int(part) if part.isdigit() else -1 for part in os.path.basename(folder).split(".")])


def _steps(tree: Any, path: str) -> tuple[str, ...] | None:
  """The keys that lead to the feature at "a/b" (a key may itself hold a slash, as COCO's image/filename); None when there is none."""
  tree = tree.feature if isinstance(tree, features.Sequence) else tree
  if not hasattr(tree, "keys"):
    return None
  if path in tree.keys():
    return (path,)
  for at in (i for i, c in enumerate(path) if c == "/"):
    head, tail = path[:at], path[at + 1:]
    rest = _steps(tree[head], tail) if head in tree.keys() else None
    if rest is not None:
      return (head, *rest)
  return None


def _at(tree: Any, steps: tuple[str, ...]) -> Any:
  for step in steps:
    tree = tree.feature[step] if isinstance(tree, features.Sequence) else tree[step]
  return tree


def _plain(value: Any, what: str) -> Any:
  """Numpy and bytes as texts and lists, as captions are."""
  if isinstance(value, (bytes, np.bytes_)):
    return records.text(bytes(value), what=what)
  if isinstance(value, (list, tuple, np.ndarray)):
    texts = [_plain(item, what) for item in value]
    return texts[0] if len(texts) == 1 else texts
  return value.item() if isinstance(value, np.generic) else value


class Tfds:
  """Random access to the examples of one split. Picklable."""

  def __init__(self, folder: str, *, split: str, image: str, captions: Mapping[str, str], key: str, index_dir: str):
    builder, parts = _opened(folder, split)
    described = builder.info.features
    if not hasattr(described, "keys"):
      raise DataError(f"{folder}: features.json describes no record of named features; prepare the dataset anew")
    flat = _names(described)
    self._image, self._captions = image, dict(captions) or _guess(described)
    self._key = key or next((name for name in ("key", "image/filename", "image_id") if name in flat), "")
    paths = [image, *self._captions.values(), *([self._key] if self._key else [])]
    steps = {path: _steps(described, path) for path in paths}
    unknown = [path for path, found in steps.items() if found is None]
    if unknown or not self._captions:
      raise DataError(f"{folder}: no feature {', '.join(unknown) or ' or '.join(CAPTIONS)}; it has {', '.join(flat)}; "
                      "set image, captions.KIND and key to their names (nested ones as captions/text)")
    self._steps: dict[str, tuple[str, ...]] = {path: found for path, found in steps.items() if found is not None}
    self._name, self._split = f"{builder.info.name}/{builder.info.version}", split
    self._extras = "extras" in flat and isinstance(described["extras"], features.Text)
    found = {kind: _at(described, self._steps[path]) for kind, path in self._captions.items()}
    self._names = {kind: tuple(name.replace("_", " ") for name in feature.names)
                   for kind, feature in found.items() if isinstance(feature, features.ClassLabel)}
    self.labels = next(iter(self._names.values()), ())
    decoders: Any = None
    if isinstance(_at(described, self._steps[image]), features.Image):
      decoders = decode.SkipDecoding()
      for step in reversed(self._steps[image]):
        decoders = {step: decoders}
    paths, form = list(dict.fromkeys(part.filename for part in parts)), builder.info.file_format
    if form == tensorflow_datasets.core.FileFormat.TFRECORD:
      tables = dict(zip(paths, indexes.cached_all(paths, tfrecord.index, index_dir=index_dir)))
      contents = [records.fingerprint(*(table[name].tobytes() for name in ("size", "crc"))) for table in tables.values()]
      _check_counts(parts, {path: len(table["offset"]) for path, table in tables.items()})
      self._examples: Any = TFRecords(described, parts, tables, decoders)
    else:
      with ThreadPoolExecutor(16) as pool:
        if form == tensorflow_datasets.core.FileFormat.ARRAY_RECORD:
          _check_counts(parts, dict(zip(paths, pool.map(_array_records_of, paths))))
        contents = list(pool.map(indexes.sampled, paths))
      try:
        self._examples = builder.as_data_source(split=split, decoders=decoders)
      except (NotImplementedError, ValueError, OSError, ImportError) as error:
        raise DataError(f"{folder}: files of the format {form.value} can't be read here: {_one_line(error)}; prepare the dataset as "
                        "array_record") from None
      if len(self._examples) != (count := sum(part.take for part in parts)):
        raise DataError(f"{folder}: {len(self._examples):,} records in the files of split {split!r}, dataset_info.json says {count:,}; "
                        "take whole splits of this format, or prepare the dataset anew")
    self._identity = [(os.path.basename(part.filename), part.skip, part.take) for part in parts], contents

  def __len__(self) -> int:
    return len(self._examples)

  def fingerprint(self) -> str:
    """A digest of name, version, the features taken, and the files of the split: names, what is taken of them, and contents (all checksums
    of TFRecords; of other formats size and samples, see `indexes.sampled`)."""
    return records.fingerprint("tfds", self._name, self._identity, self._image, sorted(self._captions.items()), len(self))

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = int(i)
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    try:
      example = self._examples[i]
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, DecodeError) as error:
      if isinstance(error, DataError):
        raise
      raise BadRecord("unreadable", f"{self._name} {self._split} {i}: {error}") from None
    found = {kind: _at(example, self._steps[path]) for kind, path in self._captions.items()}
    record: dict[str, Any] = {"image": _at(example, self._steps[self._image])}
    for kind, names in self._names.items():
      label = int(found[kind])
      if label >= len(names):
        raise BadRecord("bad_type", f"{self._name} {self._split} {i}: class {label} of {len(names)}")
      found[kind] = names[label] if label >= 0 else []                    # TFDS writes -1 where a label is withheld
      record["label"] = label
    captions = {kind: _plain(value, kind) for kind, value in found.items()}
    record["key"] = str(_plain(_at(example, self._steps[self._key]), "key")) if self._key else f"{self._split}/{i:09d}"
    if self._extras:
      try:
        record = records.extras_of(parse_object(_plain(example["extras"], "extras") or "{}", nan=True)) | record
      except (ValueError, TypeError) as error:
        raise BadRecord("unreadable", f"{self._name} {self._split} {i}: extras: {error}", record["key"]) from None
    return record | {"captions": {kind: records.caption(value, what=kind) for kind, value in captions.items() if value != []}}


def _names(tree: Any, prefix: str = "") -> list[str]:
  tree = tree.feature if isinstance(tree, features.Sequence) else tree
  if not hasattr(tree, "keys"):
    return [prefix]
  return [name for key in tree.keys() for name in _names(tree[key], f"{prefix}/{key}" if prefix else key)]


def _guess(described: Any) -> dict[str, str]:
  several = described["captions"] if "captions" in described.keys() else None
  if hasattr(several, "keys") and not isinstance(several, features.Sequence):
    return {kind: f"captions/{kind}" for kind in several.keys()}
  found = next((name for name in CAPTIONS if _steps(described, name)), "")
  return {"original": found} if found else {}


def tfds(*, dataset: str, split: str, data_dir: str = "", image: str = "image", captions: Mapping[str, str] = {},  # noqa: B006
         key: str = "", index_dir: str = "") -> Tfds:
  """A prepared TFDS dataset, ArrayRecord or TFRecord.

  Args:
    dataset: NAME[/CONFIG][:VERSION] under `data_dir`, or the folder that holds dataset_info.json.
    split: TFDS's split language, e.g. "train", "train[:90%]", "train+restval".
    data_dir: "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    image, captions, key: feature paths, nested as "captions/text"; captions maps kind -> path, {} takes the usual names, and a class
      label's name as caption. Keys default to the features key, image/filename or image_id, else to SPLIT/INDEX.
    index_dir: where index files of TFRecords go; "" is beside them.
  Raises: DataError for a missing dataset, split, feature or file.
  """
  return Tfds(find(dataset, data_dir), split=split, image=image, captions=captions, key=key, index_dir=index_dir)
