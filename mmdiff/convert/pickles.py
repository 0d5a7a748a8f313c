"""A reader of PyTorch's pickles that builds tensors, texts, numbers and plain containers, and can do nothing else.

The opcodes are those of Python's pickletools, interpreted here: no class is looked up, nothing is imported and nothing is called. What a
file names (`torch._utils._rebuild_tensor_v2`, `collections.OrderedDict`) selects a line of a table in this file; any other name is refused.
A TorchScript archive's modules become dicts of their attributes.
"""
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmdiff.convert.tensors import Tensor, size
from mmdiff.core.errors import DataError

WAY_OUT = ("Nothing in it was run. If you trust where it comes from, open it where it was made and save its tensors there with "
           "safetensors.torch.save_file(state_dict, 'model.safetensors')")
STORAGES = {
  "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
  "BoolStorage": np.bool_, "UntypedStorage": np.uint8,
}
TORCH_DTYPES = {
  "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int64": np.int64,
  "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
  "bool": np.bool_, "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
}
# Classes that public checkpoints mention beside their weights, as keys or marks; they stay names.
INERT = {("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
         ("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint")}
NUMPY_NUMBER = re.compile(r"[<>|=]?[biuf][1248]")
MOST_DIGITS = 40


class Refused(DataError):
  """What a pickle asks for is not on the list."""


class Name(NamedTuple):
  """A global that a file names; never the thing itself."""
  module: str
  name: str

  def __str__(self):
    return f"{self.module}.{self.name}"


class Storage(NamedTuple):
  """Flat values of a file: `data()` gives them as [elements]."""
  dtype: np.dtype
  elements: int
  data: Callable[[], np.ndarray]


class Record(dict):
  """The attributes of a TorchScript module."""


def brief(value: Any) -> str:
  """A value for a message. Never the repr of a container: one that holds another twice, 60 levels deep, would not end."""
  return repr(value)[:80] if isinstance(value, (str, bytes, int, float, bool, type(None))) else str(value) if isinstance(value, Name) \
    else type(value).__name__


def plain(keys: Iterable[Any]) -> list[Any]:
  """The keys, if all are simple: hashing tuples within tuples, 100,000 deep, would end the process."""
  keys = list(keys)
  for key in keys:
    if not isinstance(key, (str, bytes, int, float, bool, type(None), Name)):
      raise Refused(f"a {type(key).__name__} as a key")
  return keys


class _Mark:
  """What MARK leaves on the stack."""


MARK = _Mark()


def tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> Tensor:
  """The strided view that PyTorch would rebuild. Raises DataError unless it lies inside its storage."""
  if not isinstance(storage, Storage):
    raise Refused(f"a tensor of {type(storage).__name__}: not a storage")
  shape, strides = tuple(shape), tuple(strides)
  if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, *shape, *strides)) or len(shape) != len(strides):
    raise Refused(f"a tensor of {len(shape)} dimensions at {brief(offset)} with sizes or strides that cannot be")
  kind, have = storage.dtype, storage.elements
  if dtype is not None and dtype != kind:
    kind, have = dtype, storage.elements * storage.dtype.itemsize // dtype.itemsize
  last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides))
  if size(shape) and (last >= have or size(shape) > have):
    raise Refused(f"a tensor {list(shape)} reaches element {last} of a storage of {have}")

  def read() -> np.ndarray:
    if not size(shape):
      return np.zeros(shape, kind)
    flat = storage.data()
    flat = flat if kind == storage.dtype else flat.view(kind)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, [stride * kind.itemsize for stride in strides], writeable=False)
  return Tensor(shape, np.dtype(kind), read)


def _rebuild_v3(storage, offset, shape, strides, grad, hooks, dtype, *rest):
  if not isinstance(dtype, Name) or dtype.name not in TORCH_DTYPES:
    raise Refused(f"a tensor of {brief(dtype)}: unknown dtype")
  return tensor(storage, offset, shape, strides, np.dtype(TORCH_DTYPES[dtype.name]))


class _Dtype(NamedTuple):
  """`numpy.dtype(code)`, whose byte order a BUILD may set."""
  dtype: np.dtype


def _dtype(code, *rest):
  if not isinstance(code, str) or not NUMPY_NUMBER.fullmatch(code):
    raise Refused(f"a numpy dtype {brief(code)}")
  return _Dtype(np.dtype(code))


def _scalar(dtype, data=b""):
  data = data.encode("latin-1") if isinstance(data, str) else data
  if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
    raise Refused("a numpy scalar that is no number")
  return np.frombuffer(data, dtype.dtype)[0].item()


def _text(value, encoding):
  if not isinstance(value, str) or not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
    raise Refused(f"an encoding {brief(encoding)}")
  return value.encode("latin-1")


def _items(pairs=()):
  pairs = list(pairs.items()) if isinstance(pairs, dict) else [tuple(pair) for pair in pairs]
  plain(pair[0] for pair in pairs)
  return dict(pairs)


def _set(values=()):
  return set(plain(values))


CALLS: dict[tuple[str, str], Callable] = {
  ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *rest: tensor(storage, offset, shape, strides),
  ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
  ("torch._utils", "_rebuild_tensor"): tensor,
  ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
  ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
  ("torch.jit._pickle", "build_intlist"): list,
  ("torch.jit._pickle", "build_doublelist"): list,
  ("torch.jit._pickle", "build_boollist"): list,
  ("torch.jit._pickle", "build_tensorlist"): list,
  ("torch.jit._pickle", "restore_type_tag"): lambda value, *rest: value,
  ("torch", "Size"): lambda shape: tuple(shape),
  ("torch", "device"): lambda *parts: "device",
  ("collections", "OrderedDict"): _items,
  ("collections", "defaultdict"): lambda *factory: {},
  ("builtins", "set"): _set, ("__builtin__", "set"): _set, ("builtins", "frozenset"): _set, ("__builtin__", "frozenset"): _set,
  ("builtins", "dict"): _items, ("__builtin__", "dict"): _items, ("builtins", "list"): list, ("__builtin__", "list"): list,
  ("_codecs", "encode"): _text,
  ("numpy", "dtype"): _dtype,
  ("numpy.core.multiarray", "scalar"): _scalar, ("numpy._core.multiarray", "scalar"): _scalar,
}


def named(module: str, name: str) -> Name:
  """The global of these names, if it is on the list. Raises Refused."""
  known = ((module, name) in CALLS or (module, name) in INERT or module == "torch" and (name in STORAGES or name in TORCH_DTYPES)
           or module == "torch.storage" and name in STORAGES or module.partition(".")[0] == "__torch__")
  if not known:
    raise Refused(f"it asks for {module}.{name}, which is neither a tensor nor a plain container")
  return Name(module, name)


class Reader:
  """One pickle in `data` from `position` on: `load()` returns its value and leaves `position` behind it.

  persistent: turns a persistent id into a `Storage`.
  """

  def __init__(self, data: memoryview, position: int, persistent: Callable[[Any], Any]):
    self.data, self.position, self.persistent = data, position, persistent
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def load(self) -> Any:
    """Raises DataError for whatever is not a pickle of tensors and plain containers."""
    try:
      while (code := self.take(1)) != b".":
        if code not in OPCODES:
          raise Refused(f"it uses the pickle instruction {code!r}, which plain data does not need")
        OPCODES[code](self)
      return self.pop()
    except Refused as error:
      raise Refused(f"{error}. {WAY_OUT}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, UnicodeError, OverflowError, MemoryError,
            RecursionError) as error:
      raise DataError(f"the pickle is damaged at byte {self.position}: {type(error).__name__}: {str(error):.200}") from None

  def take(self, count: int) -> bytes:
    if not 0 <= count <= len(self.data) - self.position:
      raise ValueError(f"{count} bytes are wanted, {len(self.data) - self.position} are left")
    self.position += count
    return bytes(self.data[self.position - count:self.position])

  def number(self, form: str) -> Any:
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def line(self) -> bytes:
    for stop in range(self.position, min(self.position + 4096, len(self.data))):
      if self.data[stop] == 10:
        text = self.take(stop - self.position)
        self.position += 1
        return text
    raise ValueError("a line without an end")

  def digits(self) -> int:
    text = self.line()
    if len(text) > MOST_DIGITS:
      raise ValueError("a number with too many digits")
    return int(text.rstrip(b"L"))

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    value = self.stack.pop()
    if value is MARK:
      raise ValueError("a value is missing")
    return value

  def marked(self) -> list[Any]:
    """What was pushed since the last mark, which goes too."""
    for start in range(len(self.stack) - 1, -1, -1):
      if self.stack[start] is MARK:
        values = self.stack[start + 1:]
        del self.stack[start:]
        return values
    raise ValueError("a mark is missing")

  def of(self, *kinds: type) -> Any:
    """The top of the stack, which must be of one of these types."""
    if not isinstance(self.stack[-1], kinds):
      raise ValueError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, found {type(self.stack[-1]).__name__}")
    return self.stack[-1]

  def set_items(self, values: list[Any]) -> None:
    if len(values) % 2:
      raise ValueError("a key without a value")
    self.of(dict).update(zip(plain(values[::2]), values[1::2]))

  def extend(self, values: list[Any]) -> None:
    self.of(list).extend(values)

  def memoize(self, index: int) -> None:
    self.memo[index] = self.stack[-1]

  def name(self) -> None:
    module, name = self.line().decode(), self.line().decode()
    self.push(named(module, name))

  def stack_name(self) -> None:
    name, module = self.pop(), self.pop()
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError("a global is named by two texts")
    self.push(named(module, name))

  def reduce(self) -> None:
    args, function = self.pop(), self.pop()
    if not isinstance(function, Name) or tuple(function) not in CALLS or not isinstance(args, tuple):
      raise Refused(f"it asks to call {brief(function)}")
    self.push(CALLS[tuple(function)](*args))

  def new(self) -> None:
    args, kind = self.pop(), self.pop()
    if isinstance(kind, Name) and kind.module.partition(".")[0] == "__torch__" and args == ():
      return self.push(Record())
    raise Refused(f"it asks to make a {brief(kind)}")

  def build(self) -> None:
    state, target = self.pop(), self.of(dict, Tensor, _Dtype)
    if isinstance(target, Record):
      if not isinstance(state, dict):
        raise ValueError("a module's attributes are a dict")
      target.update(state)
    elif isinstance(target, _Dtype):
      order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
      if not isinstance(order, str) or order not in ("<", ">", "|", "="):
        raise ValueError("a numpy byte order")
      self.stack[-1] = _Dtype(target.dtype.newbyteorder(order))

  def text(self, count: int) -> None:
    self.push(str(self.take(count), "utf-8", "surrogatepass"))

  def latin(self, count: int) -> None:
    self.push(self.take(count).decode("latin-1"))

  def long(self, count: int) -> None:
    if count > 16:
      raise ValueError("a number with too many digits")
    self.push(int.from_bytes(self.take(count), "little", signed=True))

  def plain_integer(self) -> None:
    text = self.line()
    self.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text) if len(text) <= MOST_DIGITS else None)


def _tuple(count: int) -> Callable[[Reader], None]:
  def make(reader: Reader) -> None:
    values = [reader.pop() for _ in range(count)]
    reader.push(tuple(values[::-1]))
  return make


def _pop(reader: Reader) -> None:
  reader.stack.pop()


def _add(reader: Reader) -> None:
  values = reader.marked()
  reader.of(set).update(plain(values))


def _pairs(values: list[Any]) -> dict:
  if len(values) % 2:
    raise ValueError("a key without a value")
  return dict(zip(plain(values[::2]), values[1::2]))


def _two(then: Callable[[Reader, list[Any]], None], count: int) -> Callable[[Reader], None]:
  return lambda r: then(r, [r.pop() for _ in range(count)][::-1])


OPCODES: dict[bytes, Callable[[Reader], Any]] = {
  b"\x80": lambda r: r.take(1), b"\x95": lambda r: r.take(8),
  b"(": lambda r: r.push(MARK), b"0": _pop, b"1": lambda r: r.marked(), b"2": lambda r: r.push(r.stack[-1]),
  b"N": lambda r: r.push(None), b"\x88": lambda r: r.push(True), b"\x89": lambda r: r.push(False),
  b"J": lambda r: r.push(r.number("<i")), b"K": lambda r: r.push(r.number("<B")), b"M": lambda r: r.push(r.number("<H")),
  b"I": lambda r: r.plain_integer(), b"L": lambda r: r.push(r.digits()), b"\x8a": lambda r: r.long(r.number("<B")),
  b"\x8b": lambda r: r.long(r.number("<I")), b"G": lambda r: r.push(r.number(">d")), b"F": lambda r: r.push(float(r.line())),
  b"X": lambda r: r.text(r.number("<I")), b"\x8c": lambda r: r.text(r.number("<B")), b"\x8d": lambda r: r.text(r.number("<Q")),
  b"V": lambda r: r.push(r.line().decode("raw-unicode-escape")), b"B": lambda r: r.push(r.take(r.number("<I"))),
  b"C": lambda r: r.push(r.take(r.number("<B"))), b"\x8e": lambda r: r.push(r.take(r.number("<Q"))),
  b"S": lambda r: r.push(r.line().decode("latin-1").strip("'\"")), b"T": lambda r: r.latin(r.number("<I")),
  b"U": lambda r: r.latin(r.number("<B")),
  b"]": lambda r: r.push([]), b"a": _two(Reader.extend, 1), b"e": lambda r: r.extend(r.marked()), b"l": lambda r: r.push(r.marked()),
  b")": lambda r: r.push(()), b"t": lambda r: r.push(tuple(r.marked())), b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
  b"}": lambda r: r.push({}), b"d": lambda r: r.push(_pairs(r.marked())), b"s": _two(Reader.set_items, 2),
  b"u": lambda r: r.set_items(r.marked()), b"\x8f": lambda r: r.push(set()), b"\x90": _add,
  b"\x91": lambda r: r.push(_set(r.marked())),
  b"g": lambda r: r.push(r.memo[r.digits()]), b"h": lambda r: r.push(r.memo[r.number("<B")]),
  b"j": lambda r: r.push(r.memo[r.number("<I")]),
  b"p": lambda r: r.memoize(r.digits()), b"q": lambda r: r.memoize(r.number("<B")), b"r": lambda r: r.memoize(r.number("<I")),
  b"\x94": lambda r: r.memoize(len(r.memo)),
  b"c": lambda r: r.name(), b"\x93": lambda r: r.stack_name(), b"R": lambda r: r.reduce(), b"b": lambda r: r.build(),
  b"\x81": lambda r: r.new(), b"Q": lambda r: r.push(r.persistent(r.pop())),
}
