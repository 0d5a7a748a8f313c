"""The safetensors container (https://github.com/huggingface/safetensors, README "Format"), read lazily and written in a stream.

A file is: the header's length as 8 bytes, little-endian; the header, JSON {name: {dtype, shape, data_offsets}, "__metadata__": {…}}; the
values, little-endian and without gaps. A model in several files has NAME.safetensors.index.json {metadata: {total_size}, weight_map}.
"""
import contextlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.convert import tensors
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.core.files import parse_json, read_object

MAX_HEADER = 32 * 2**20      # bytes; a model of 100,000 tensors has 12 MB
SHARD_BYTES = 5 * 10**9      # of one file, as transformers and diffusers split


def parse(header: bytes, data_bytes: int) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int]], dict[str, str]]:
  """({name: (dtype, shape, start)}, metadata) of a header whose file has `data_bytes` bytes of values.

  Raises ValueError that says what is wrong: not JSON, a name twice, an unknown dtype, a shape that does not fit its bytes, gaps.
  """
  found = parse_json(header.decode("utf-8"))
  if not isinstance(found, dict):
    raise ValueError(f"the header is a {type(found).__name__}, expected an object of tensors")
  metadata = found.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
    raise ValueError("__metadata__ is not an object of texts")
  entries, spans = {}, []
  for name, about in found.items():
    dtype, shape, start, stop = _entry(name, about)
    if tensors.size(shape) * dtype.itemsize != stop - start:
      raise ValueError(f"{name!r}: {list(shape)} of {dtype} are {tensors.size(shape) * dtype.itemsize} bytes, found {stop - start}")
    entries[name] = (dtype, shape, start)
    spans.append((start, stop, name))
  end = 0
  for start, stop, name in sorted(spans):
    if start != end:
      raise ValueError(f"{name!r} starts at byte {start}, expected {end}: tensors overlap or leave gaps")
    end = stop
  if end != data_bytes:
    raise ValueError(f"the tensors take {end} bytes, the file holds {data_bytes}: it is cut off or has extra data")
  return entries, metadata


def _entry(name: str, about: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
  if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
    raise ValueError(f"{name!r}: expected dtype, shape and data_offsets, found {str(about):.80}")
  if not isinstance(about["dtype"], str) or about["dtype"] not in tensors.DTYPES:
    raise ValueError(f"{name!r}: unknown dtype {str(about['dtype']):.40} (known: {', '.join(tensors.DTYPES)})")
  shape, offsets = about["shape"], about["data_offsets"]
  if not (_naturals(shape) and len(shape) <= 32):
    raise ValueError(f"{name!r}: a shape is a list of at most 32 whole numbers, found {str(shape):.80}")
  if not (_naturals(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
    raise ValueError(f"{name!r}: data_offsets are [start, stop], found {str(offsets):.80}")
  return tensors.DTYPES[about["dtype"]], tuple(shape), offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
  return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
  """(tensors, metadata) of one file. Raises DataError that names the file."""
  buffer = tensors.mapped(path)
  try:
    if buffer.size < 8:
      raise ValueError(f"a file of {buffer.size} bytes has no header")
    length, = struct.unpack("<Q", buffer[:8].tobytes())
    if length > min(MAX_HEADER, buffer.size - 8):
      raise ValueError(f"the header claims {length} bytes of a file of {buffer.size} (at most {MAX_HEADER})")
    entries, metadata = parse(buffer[8:8 + length].tobytes(), buffer.size - 8 - length)
  except ValueError as error:
    raise DataError(f"{path}: not a safetensors file: {error}") from None
  return {name: tensors.view(buffer, 8 + length + start, shape, dtype) for name, (dtype, shape, start) in entries.items()}, metadata


def listed(index: str | os.PathLike) -> dict[str, str]:
  """{tensor: file} of an `….index.json`, every file of which stands beside it. Raises DataError."""
  index = Path(index)
  try:
    weights = read_object(index)["weight_map"]
    files = dict(weights.items())
    if odd := [name for name, file in files.items() if not isinstance(file, str)]:
      raise ValueError(f"{odd[0]!r:.80} is not in a file, but in {files[odd[0]]!r:.80}")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f"{index}: not an index of tensors: {type(error).__name__}: {error}") from None
  for file in sorted(set(files.values())):
    if Path(file).name != file:
      raise DataError(f"{index}: {file!r} is not a file beside it; an index names files of its own folder only")
    if not (index.parent / file).is_file():
      raise DataError(f"{index}: {file} is missing; fetch all {len(set(files.values()))} files")
  return files


def read_sharded(index: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
  """(tensors, metadata) of all files that an index lists. Raises DataError for a file or tensor that is not there."""
  files = listed(index)
  found: dict[str, Tensor] = {}
  metadata: dict[str, str] = {}
  for file in sorted(set(files.values())):
    part, metadata = read(Path(index).parent / file)
    found |= part
  check_listed(index, files, found)
  return found, metadata


def check_listed(index: str | os.PathLike, files: Mapping[str, str], found: Mapping[str, Tensor]) -> None:
  """Raises DataError unless every tensor of the index was found."""
  lacking = sorted(set(files) - set(found))
  if lacking:
    raise DataError(f"{index}: lists {len(lacking)} tensors that its files do not have: {', '.join(lacking[:5])}")


def write(path: str | os.PathLike, named: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
  """Writes a file whole or not at all, one tensor in memory at a time. Raises CannotWrite."""
  path = Path(path)
  order = sorted(named, key=lambda name: (-named[name].dtype.itemsize, name))       # so that every tensor is aligned
  header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
  start = 0
  for name in order:
    dtype = named[name].dtype
    if dtype not in tensors.NAMES:
      raise DataError(f"{name}: safetensors has no {dtype} (it has {', '.join(tensors.DTYPES)})")
    header[name] = dict(dtype=tensors.NAMES[dtype], shape=list(named[name].shape), data_offsets=[start, start + named[name].nbytes])
    start += named[name].nbytes
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
  text += b" " * (-len(text) % 8)
  part = path.with_name(path.name + ".part")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "wb") as file:
      file.write(struct.pack("<Q", len(text)) + text)
      for name in order:
        file.write(np.ascontiguousarray(named[name].read()).reshape(-1).view(np.uint8).data)
    os.replace(part, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      part.unlink()
    raise CannotWrite(f"cannot write {path}: {error}") from error


def write_sharded(folder: str | os.PathLike, stem: str, named: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES,
                  metadata: Mapping[str, str] | None = None) -> list[str]:
  """Writes STEM.safetensors, or beyond `shard_bytes` STEM-00001-of-0000N.safetensors and their index; the names of the files."""
  folder, shards = Path(folder), list(_split(named, shard_bytes))
  if len(shards) < 2:
    write(folder / f"{stem}.safetensors", named, metadata)
    return [f"{stem}.safetensors"]
  files, weights = [], {}
  for i, names in enumerate(shards, 1):
    files.append(f"{stem}-{i:05}-of-{len(shards):05}.safetensors")
    write(folder / files[-1], {name: named[name] for name in names}, metadata)
    weights |= dict.fromkeys(names, files[-1])
  index = dict(metadata=dict(total_size=sum(tensor.nbytes for tensor in named.values())), weight_map=weights)
  files.append(f"{stem}.safetensors.index.json")
  (folder / files[-1]).write_text(json.dumps(index, indent=2), encoding="utf-8")
  return files


def _split(named: Mapping[str, Tensor], most: int) -> Iterable[list[str]]:
  names: list[str] = []
  total = 0
  for name, tensor in named.items():
    if names and total + tensor.nbytes > most:
      yield names
      names, total = [], 0
    names.append(name)
    total += tensor.nbytes
  yield names
