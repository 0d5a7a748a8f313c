"""Files of tensors other than safetensors: PyTorch's zip and older streams of pickles, NumPy's npz, Flax's msgpack."""
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.convert import pickles, tensors
from mmdiff.convert.pickles import Name, Reader, Storage
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import DataError, OptionError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_MEMBERS = 1_000_000
DEEPEST = 64
LONGEST_NAME = 1000
# Under these names a checkpoint keeps its weights beside an optimiser, counters and so on; the first that is there is read.
WRAPPERS = ("state_dict", "model", "module", "params", "params_ema", "ema", "state_dict_ema", "ema_state_dict")


def is_pytorch(buffer: np.ndarray) -> bool:
  """Whether the first bytes are those of a zip or of a pickle. The length of a safetensors header (8 bytes, the last four of them zero, and
  then a brace) may begin like either."""
  safe = buffer[4:9].tobytes() == b"\0\0\0\0{"
  return not safe and buffer[:2].tobytes() in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_pytorch(path: Path) -> Any:
  """The value of a `.pt`, `.pth`, `.ckpt` or `.bin`: containers of `Tensor`. Raises DataError that names the file."""
  buffer = tensors.mapped(path)
  try:
    return _read_zip(path, buffer) if buffer[:4].tobytes() == b"PK\x03\x04" else _read_stream(buffer)
  except DataError as error:
    raise type(error)(f"{path}: {error}") from None
  except (zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError, struct.error, NotImplementedError, OverflowError, OSError,
          RuntimeError, EOFError, UnicodeError) as error:
    raise DataError(f"{path}: the file is damaged: {type(error).__name__}: {str(error):.200}") from None


def _members(path: Path, buffer: np.ndarray) -> dict[str, tuple[int, int]]:
  """(start, bytes) in the file of the values of a zip; what else it holds, such as TorchScript's code, is not looked at."""
  found = {}
  with zipfile.ZipFile(path) as archive:
    listed = archive.infolist()
  if len(listed) > MOST_MEMBERS:
    raise DataError(f"an archive of {len(listed)} members")
  for member in listed:
    if not re.fullmatch(r"([^/]*/)?(data\.pkl|byteorder|data/[^/]*)", member.filename):
      continue
    head = buffer[member.header_offset:member.header_offset + 30].tobytes()
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
      raise DataError(f"the zip's directory points to no member for {member.filename!r:.80}: the file is damaged")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
      raise DataError(f"{member.filename!r:.80} is compressed or encrypted, which PyTorch never does; unpack it and pack it without "
                      "compression, or save the tensors as safetensors where the file was made")
    name, extra = struct.unpack("<HH", head[26:30])
    start = member.header_offset + 30 + name + extra
    if start + member.file_size > buffer.size:
      raise DataError(f"{member.filename!r:.80} reaches beyond the end of the file: it is cut off")
    found[member.filename] = (start, member.file_size)
  return found


def _read_zip(path: Path, buffer: np.ndarray) -> Any:
  members = _members(path, buffer)
  pickle_name = next((name for name in members if name.endswith("data.pkl")), None)
  if pickle_name is None:
    raise DataError("a zip without data.pkl: neither a PyTorch file nor, by its suffix, an .npz")
  root = pickle_name.removesuffix("data.pkl")
  order = ">" if f"{root}byteorder" in members and _text(buffer, members[f"{root}byteorder"]) == "big" else "<"
  seen: dict[str, Storage] = {}

  def persistent(found: Any) -> Storage:
    kind, key, elements = _storage_id(found)
    if key not in seen:
      if f"{root}data/{key}" not in members:
        raise pickles.Refused(f"it has no storage {key!r:.40}")
      start, length = members[f"{root}data/{key}"]
      dtype = kind.newbyteorder(order)
      if elements * dtype.itemsize > length:
        raise pickles.Refused(f"storage {key!r:.40} should have {elements} elements of {dtype}, its member has {length} bytes")
      seen[key] = Storage(dtype, elements, tensors.view(buffer, start, (elements,), dtype).read)
    return seen[key]
  start, length = members[pickle_name]
  return Reader(memoryview(buffer[start:start + length]), 0, persistent).load()


def _text(buffer: np.ndarray, span: tuple[int, int]) -> str:
  return buffer[span[0]:span[0] + min(span[1], 16)].tobytes().decode("ascii", "replace").strip()


def _storage_id(found: Any) -> tuple[np.dtype, str, int]:
  if not (isinstance(found, tuple) and len(found) >= 5 and found[0] == "storage" and isinstance(found[1], Name)
          and found[1].name in pickles.STORAGES and isinstance(found[2], str) and type(found[4]) is int and 0 <= found[4] < 2**62):
    raise pickles.Refused(f"a persistent id that is no storage: {pickles.brief(found)}")
  return np.dtype(pickles.STORAGES[found[1].name]), found[2], found[4]


def _read_stream(buffer: np.ndarray) -> Any:
  """PyTorch before 1.6: pickles of a magic number, a version, the system, the value and its storages' keys; then the storages."""
  data = memoryview(buffer)
  seen: dict[str, list[Any]] = {}           # key -> [dtype, elements, start in the file]

  def late(key: str) -> Callable[[], np.ndarray]:
    return lambda: tensors.view(buffer, seen[key][2], (seen[key][1],), seen[key][0]).read()

  def persistent(found: Any) -> Storage:
    kind, key, elements = _storage_id(found)
    if len(found) > 5 and found[5] is not None:
      raise pickles.Refused("a view of a storage, as PyTorch 0.3 wrote them")
    dtype, elements, _ = seen.setdefault(key, [kind, elements, None])
    return Storage(dtype, elements, late(key))

  def value() -> Any:
    reader = Reader(data, value.position, persistent)
    made = reader.load()
    value.position = reader.position
    return made
  value.position = 0
  first = value()
  if first != LEGACY_MAGIC:
    raise DataError(f"a pickle of a {type(first).__name__}, not of PyTorch. {pickles.WAY_OUT}")
  value(), value()
  made, keys = value(), value()
  position = value.position
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise DataError("the list of storages is damaged")
  for key in keys:
    dtype, elements, _ = seen[key]
    count, = struct.unpack("<q", data[position:position + 8])
    if count != elements:
      raise DataError(f"storage {key!r:.40} has {count} elements where {elements} were promised")
    seen[key][2] = position + 8
    position += 8 + elements * dtype.itemsize
    if position > buffer.size:
      raise DataError(f"storage {key!r:.40} reaches beyond the end of the file: it is cut off")
  lacking = [key for key, (_, _, start) in seen.items() if start is None]
  if lacking:
    raise DataError(f"{len(lacking)} storages are missing")
  return made


def read_npz(path: Path) -> dict[str, Tensor]:
  """The arrays of an `.npz`, read one at a time; object arrays, which are pickles, are refused."""
  found = {}
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as file:
          version = np.lib.format.read_magic(file)
          read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
          shape, _, dtype = read_header(file)
          if dtype.hasobject:
            raise DataError(f"{path}: {name} holds Python objects. {pickles.WAY_OUT}")
          if member.file_size != file.tell() + tensors.size(shape) * dtype.itemsize:
            raise DataError(f"{path}: {name}: {list(shape)} of {dtype} do not fit its {member.file_size} bytes: the file is damaged")
        if dtype.kind == "V" and dtype.itemsize == 2:      # how NumPy stores bfloat16, whose name it does not know
          dtype = tensors.DTYPES["BF16"]
        found[name] = Tensor(tuple(shape), dtype, _npz_reader(path, member.filename, dtype))
  except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError, EOFError, NotImplementedError, struct.error, SyntaxError,
          RuntimeError, OverflowError, zlib.error) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f"{path}: not an .npz of arrays: {type(error).__name__}: {str(error):.200}") from None
  return found


def _npz_reader(path: Path, member: str, dtype: np.dtype) -> Callable[[], np.ndarray]:
  def read() -> np.ndarray:
    try:
      with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        made = np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, zlib.error) as error:
      raise DataError(f"{path}: {member} is damaged: {error}") from None
    return made.view(dtype) if made.dtype.kind == "V" else made
  return read


def read_msgpack(path: Path) -> dict[str, Tensor]:
  """The arrays of a `flax_model.msgpack`, under paths with "/"."""
  from flax import serialization
  try:
    made = serialization.msgpack_restore(path.read_bytes())
  except Exception as error:             # msgpack and numpy raise whatever the bytes make them
    raise DataError(f"{path}: not a msgpack of arrays: {type(error).__name__}: {str(error):.200}") from None
  return flatten(made, separator="/")


def flatten(value: Any, *, separator: str = ".") -> dict[str, Tensor]:
  """{path: tensor} of nested containers; what is no tensor is left out."""
  found: dict[str, Tensor] = {}
  counted = 0

  def visit(prefix: str, node: Any, depth: int) -> None:
    nonlocal counted
    counted += 1
    if depth > DEEPEST or counted > MOST_MEMBERS or len(prefix) > LONGEST_NAME:
      raise DataError("containers nested without end: not a checkpoint")
    if isinstance(node, Tensor):
      found[prefix] = node
    elif isinstance(node, (np.ndarray, np.generic)):
      found[prefix] = tensors.of(np.asarray(node))
    elif isinstance(node, Mapping):
      for key, inner in node.items():
        if isinstance(key, (str, int)):
          visit(f"{prefix}{separator}{key}" if prefix else str(key), inner, depth + 1)
    elif isinstance(node, (list, tuple)):
      for i, inner in enumerate(node):
        visit(f"{prefix}{separator}{i}" if prefix else str(i), inner, depth + 1)
  visit("", value, 0)
  return found


def unwrap(value: Any, *, prefer: str | None = None) -> Any:
  """The part of a checkpoint that holds the weights: `prefer`, or the first of `WRAPPERS` that it has. Raises OptionError for a `prefer`
  that is not there."""
  there: list[str] = []
  while isinstance(value, Mapping) and not isinstance(value, pickles.Record):
    there += [name for name, inner in value.items() if isinstance(name, str) and isinstance(inner, Mapping)]
    inner = next((name for name in (prefer, *WRAPPERS) if name and isinstance(value.get(name), Mapping)), None)
    if inner is None:
      break
    value = value[inner]
  if prefer and prefer not in there:
    raise OptionError(f"prefer: expected one of the sets of weights there, {', '.join(there) or 'of which there is one'}, found {prefer!r}")
  return value
