"""Tar shards in img2dataset's layout: KEY.jpg + KEY.txt + KEY.json, read at random places without extracting anything.

    webdataset(urls="/data/cc3m/{00000..00331}.tar")

Every shard is indexed once (see `tar_index`); the index is kept beside the shard, or in `index_dir`, or in memory where neither can be
written. `mmdiff data index` makes all of them ahead of a run.
"""
import bisect
import functools
import glob
import itertools
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.core.files import parse_json
from mmdiff.data import indexes, records, tar_index
from mmdiff.data.quarantine import BadRecord

LOG = logging.getLogger(__name__)
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 5_000_000
GAP = 1 << 20                        # members closer than this are read together,
SMALL_GAP = 1 << 14                  # and without their picture if it is no larger than this
MAX_LABEL = 200                      # characters of a class file


def expand(pattern: str) -> list[str]:
  """Paths that a pattern names: braces `{00000..00041}`, `{a,b}`, shell globs, a folder of tars. Braces needn't exist, globs do."""
  match = BRACES.search(pattern)
  if match:
    span = RANGE.fullmatch(match[1])
    if span:
      first, last = int(span[1]), int(span[2])
      if not 0 <= last - first < MAX_SHARDS:
        raise DataError(f"{pattern}: the range {{{match[1]}}} is empty or too long; write it as {{first..last}}, e.g. {{00000..00041}}")
      items = [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]
    else:
      items = match[1].split(",")
    paths = [expand(pattern[:match.start()] + item + pattern[match.end():]) for item in items]
    return list(itertools.chain.from_iterable(paths))
  path = os.path.expanduser(pattern)
  if os.path.isdir(path):
    return sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
  return sorted(glob.glob(path)) if glob.has_magic(path) else [path]


def shard_paths(urls: str | Sequence[str]) -> list[str]:
  """The existing shards that `urls` names, in order. DataError when there are none, some are missing, or one is remote."""
  patterns = [urls] if isinstance(urls, str) else list(urls)
  for pattern in patterns:
    if re.match(r"[a-z0-9]{2,}:", pattern):
      raise DataError(f"{pattern}: remote shards are not read directly; mount the bucket (gcsfuse, s3fs) or copy them, and give the path")
  paths = [path for pattern in patterns for path in expand(pattern)]
  missing = [path for path in paths if not os.path.isfile(path)]
  if missing:
    raise DataError(f"{len(missing)} of {len(paths)} shards of {', '.join(patterns)} are missing, first {missing[:3]}; "
                    f"copy them or correct the range (its folder holds {_folder_content(missing[0])})")
  if not paths:
    raise DataError(f"no shard matches {', '.join(patterns)!r} (its folder holds {_folder_content(patterns[0])}); "
                    "expected tar files, e.g. urls='/data/{00000..00041}.tar'")
  if len(set(paths)) < len(paths):
    raise DataError(f"{', '.join(patterns)} names a shard twice; name each once")
  return paths


def _folder_content(path: str) -> str:
  folder = os.path.dirname(os.path.expanduser(path)) or "."
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
  return "nothing, it does not exist" if names is None else f"{len(names)} files, first {names[:4]}" if names else "nothing"


class WebDataset:
  """Random access to the samples of tar shards. Picklable and safe to use from several threads."""

  def __init__(self, paths: Sequence[str], *, image: str = "", index_dir: str = "", shard_in_key: bool = False,
               captionless: bool = False):
    self.paths, self._image, self._shard_in_key = list(paths), image.lower().lstrip("."), shard_in_key
    self.captionless = captionless
    build = functools.partial(tar_index.build, image=self._image)
    self._tables = indexes.cached_all(self.paths, build, index_dir=index_dir, of=self._image)
    self._suffixes = [bytes(table["suffixes"]).decode().split("\n") for table in self._tables]
    self._ends = list(itertools.accumulate(len(table["key_ends"]) for table in self._tables))
    self._files = indexes.Files(self.paths)
    self.skipped: dict[str, int] = {}
    for table in self._tables:
      for reason, count in parse_json(bytes(table["skipped"])).items():
        self.skipped[reason] = self.skipped.get(reason, 0) + count
    refused = {reason: count for reason, count in self.skipped.items() if reason != "other_file"}
    if refused:
      LOG.warning("%s: members left out: second pictures or texts of a sample (other_picture, second_text), or what could lead outside "
                  "the shard: %s", self.paths[0], refused)
    self._check_layout(captionless)
    if not shard_in_key:
      self._check_keys()

  def _check_layout(self, captionless: bool):
    found = {suffix for suffixes in self._suffixes for suffix in suffixes if suffix}
    pictures = {suffix for suffix in found if suffix.rpartition(".")[2] in records.PICTURES}
    shards = f"{self.paths[0]}" + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")
    layout = f"found members named *.{{{','.join(sorted(found)[:8])}}}" if found else "found no usable member"
    if self._image and not pictures:
      raise DataError(f"{shards}: no member ends in .{self._image}; {layout}; correct `image` or leave it empty")
    if not len(self) or not pictures or (found <= pictures and not captionless):
      raise DataError(f"{shards}: no samples of a picture and a caption; {layout}, {self.skipped} left out; "
                      "expected KEY.jpg (or png, webp) with KEY.txt or KEY.json beside it, as img2dataset's webdataset output has; "
                      "set captionless=True for pictures alone")

  def _check_keys(self):
    hashes = np.concatenate([table["key_hash"] for table in self._tables])
    order = np.argsort(hashes, kind="stable")
    for place in np.nonzero(hashes[order][1:] == hashes[order][:-1])[0]:
      a, b = (int(order[place]), int(order[place + 1]))
      if self.key(a) == self.key(b):
        raise DataError(f"key {self.key(a)!r} is in {self.paths[self._locate(a)[0]]} and in {self.paths[self._locate(b)[0]]}; captions and "
                        "results are joined by key, so set shard_in_key=True (keys become FOLDER/SHARD/KEY) or rename the samples")

  def __len__(self) -> int:
    return self._ends[-1]

  def fingerprint(self) -> str:
    """A digest of shard names, keys and member sizes; the same wherever the shards lie."""
    parts = [(os.path.basename(path), bytes(table["key_hash"]), bytes(np.ascontiguousarray(table["size"])))
             for path, table in zip(self.paths, self._tables)]
    return records.fingerprint("webdataset", self._image, self._shard_in_key, *itertools.chain.from_iterable(parts))

  def shard_rows(self) -> list[tuple[str, range]]:
    """(file name, indices) of every shard."""
    starts = [0, *self._ends]
    return [(os.path.basename(path), range(start, end)) for path, start, end in zip(self.paths, starts, self._ends)]

  def _locate(self, i: int) -> tuple[int, int]:
    shard = bisect.bisect_right(self._ends, i)
    return shard, i - (self._ends[shard - 1] if shard else 0)

  def key(self, i: int) -> str:
    """The key of record `i`, without reading the record."""
    shard, row = self._locate(i)
    table = self._tables[shard]
    ends = table["key_ends"]
    name = bytes(table["keys"][ends[row - 1] if row else 0:ends[row]]).decode("utf-8", "replace")
    if not self._shard_in_key:
      return name
    folder, file = os.path.split(os.path.abspath(self.paths[shard]))
    return f"{os.path.basename(folder)}/{file.removesuffix('.tar')}/{name}"

  def members(self, i: int, *, pictures: bool = True) -> dict[str, bytes]:
    """The members of sample `i` by suffix; without `pictures` those are b"", unread. BadRecord: oversized, long_caption, unreadable."""
    shard, row = self._locate(i)
    table = self._tables[shard]
    ends = table["member_ends"]
    rows = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
    listed = list(zip((self._suffixes[shard][code] for code in table["suffix"][rows].tolist()), table["offset"][rows].tolist(),
                      table["size"][rows].tolist()))
    for suffix, _, size in listed:
      if size > (records.MAX_PICTURE_BYTES if is_picture(suffix) else records.MAX_TEXT_BYTES):
        raise BadRecord("oversized" if is_picture(suffix) else "long_caption", f"{suffix} has {size:,} bytes", self.key(i))
    if not pictures:
      told = [member for member in listed if not is_picture(member[0])]
      return {suffix: b"" for suffix, _, _ in listed} | (self._read(i, shard, told, gap=SMALL_GAP) if told else {})
    return self._read(i, shard, listed, gap=GAP)

  def _read(self, i: int, shard: int, listed: Sequence[tuple[str, int, int]], *, gap: int) -> dict[str, bytes]:
    """(suffix, offset, size) of members -> their bytes by suffix, in one read where less than `gap` lies between them."""
    suffixes, offsets, sizes = zip(*listed)
    start, end = offsets[0], offsets[-1] + sizes[-1]
    try:
      if end - start - sum(sizes) < gap:
        data = self._files.read(shard, start, end - start)
        found = {suffix: data[at - start:at - start + size] for suffix, at, size in zip(suffixes, offsets, sizes)}
      else:
        found = {suffix: self._files.read(shard, at, size) for suffix, at, size in zip(suffixes, offsets, sizes)}
    except OSError as error:
      raise BadRecord("unreadable", str(error), self.key(i)) from None
    if any(len(found[suffix]) != size for suffix, size in zip(suffixes, sizes)):
      raise BadRecord("unreadable", f"{self.paths[shard]} ends early", self.key(i))
    return found

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._record(int(i), pictures=True)

  def without_image(self, i: int) -> dict[str, Any]:
    """The same record, whose picture is b"" and was not read."""
    return self._record(int(i), pictures=False)

  def _record(self, i: int, *, pictures: bool) -> dict[str, Any]:
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    parts, key = self.members(i, pictures=pictures), self.key(i)
    shown = next((suffix for suffix in parts if is_picture(suffix)), None)
    if shown is None:
      raise BadRecord("missing_key", f"no picture among {sorted(parts)}", key)
    record: dict[str, Any] = {"key": key, "image": parts[shown]}
    captions: dict[str, Any] = {}
    if "json" in parts:
      row = _object(parts["json"], key)
      captions |= records.captions_of(row)
      record |= records.extras_of(row)
    for suffix, data in parts.items():
      if suffix == "txt":
        captions["original"] = records.text(data, what=f"{key}.txt")
      elif suffix.endswith(".txt"):
        captions[suffix.removesuffix(".txt")] = records.text(data, what=f"{key}.{suffix}")
    if "cls" in parts:
      record["label"] = _label(parts["cls"], key)
    return record | {"captions": captions}


def is_picture(suffix: str) -> bool:
  return suffix.rpartition(".")[2] in records.PICTURES


def _label(data: bytes, key: str) -> int | str:
  """A class file's index, or the name that it says. BadRecord("bad_type") for no class that there could be."""
  said = records.text(data, what=f"{key}.cls").strip()
  if not said or len(said) > MAX_LABEL:
    raise BadRecord("bad_type", f"{key}.cls: expected the index or the name of a class, found {len(said)} characters: {said[:20]!r}", key)
  return int(said) if said.isascii() and said.isdigit() else said


def _object(data: bytes, key: str) -> dict[str, Any]:
  try:
    row = parse_json(records.text(data, what=f"{key}.json"), nan=True)
  except ValueError as error:
    raise BadRecord("unreadable", f"{key}.json: {error}", key) from None
  if not isinstance(row, dict):
    raise BadRecord("bad_type", f"{key}.json: expected an object, found {type(row).__name__}", key)
  return row


def webdataset(*, urls: str | tuple[str, ...], image: str = "", index_dir: str = "", shard_in_key: bool = False,
               captionless: bool = False) -> WebDataset:
  """Tar shards as img2dataset writes them.

  Args:
    urls: path, brace range, glob or folder, or several of them.
    image: suffix of the member that is the picture where a sample has several, e.g. "target.png". "" takes KEY.png; of pictures that are
      all called KEY.WHAT.png it is an error not to say which.
    index_dir: where index files go; "" is beside each shard.
    shard_in_key: prefixes keys with FOLDER/SHARD, for sets whose keys repeat between shards.
    captionless: accepts pictures alone, for a side-car or a captioner to supply the captions. (A sample that lacks them among others
      that have some comes with `captions` {} in any case; the pipeline counts it.)
  Keys are file names without the picture's suffix, see `tar_index.assign`. Captions: KEY.txt and a JSON `caption` are `original`,
  KEY.KIND.txt and a JSON `captions: {KIND: text}` are KIND. KEY.cls is the `label`, an index or a class's name. These may go on from the
  picture's whole name as well, as KEY.jpg.txt does.
  Raises: DataError naming the shard; records raise BadRecord (missing_key, non_utf8_caption, unreadable, …).
  """
  return WebDataset(shard_paths(urls), image=image, index_dir=index_dir, shard_in_key=shard_in_key, captionless=captionless)
