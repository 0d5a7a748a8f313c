"""Named tensors that are read from their file when they are needed, so that memory stays at one tensor beside the model."""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mmdiff.core.errors import DataError

# The names of safetensors, which every format here can be said in.
DTYPES = {
  "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32), "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Tensor(NamedTuple):
  """`read()` gives the values, as a view of the mapped file where that is possible: do not write into it."""
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return size(self.shape) * self.dtype.itemsize


Tensors = Mapping[str, Tensor]


def size(shape: tuple[int, ...]) -> int:
  """Elements of a shape, in Python's integers: no overflow whatever a file claims."""
  count = 1
  for side in shape:
    count *= side
  return count


def of(array: np.ndarray) -> Tensor:
  """A tensor that is in memory already."""
  return Tensor(tuple(array.shape), array.dtype, lambda: array)


def view(buffer: np.ndarray, start: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
  """A row-major tensor at byte `start` of a uint8 buffer. Raises DataError if it reaches beyond the end."""
  stop = start + size(shape) * dtype.itemsize
  if start < 0 or stop > buffer.size:
    raise DataError(f"a tensor {list(shape)} of {dtype} needs bytes {start} to {stop}, but there are {buffer.size}: the file is cut off "
                    "or damaged; fetch it again")
  return Tensor(shape, dtype, lambda: np.ndarray(shape, dtype, buffer=buffer[start:stop]) if stop > start else np.zeros(shape, dtype))


def mapped(path) -> np.ndarray:
  """The file as uint8 [bytes] without reading it; an empty file is an empty array."""
  try:
    return np.memmap(path, np.uint8, mode="r")
  except ValueError:                     # mmap refuses empty files
    return np.zeros(0, np.uint8)
  except OSError as error:
    raise DataError(f"{path}: cannot be read: {error}") from None
