"""Files that appear whole or not at all, and what made them."""
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.core.spelling import shown

# What may change a result.
PACKAGES = ("mmdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "tokenizers", "tensorflow-datasets",
            "array-record")


def versions() -> dict[str, str]:
  """Of Python and of every package that may change a result, without importing one."""
  found = {"python": sys.version.split()[0]}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "absent"
  return found


def parse_json(text: str | bytes, *, infinities: bool = False, nan: bool = False) -> Any:
  """The value of a JSON text. Raises ValueError, also for what the standard does not know or leaves open: a key given twice, nesting
  without end, and what Python's own `json` writes for a number that is none, unless the caller looks at it: infinities, or `nan` too."""
  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
      names = [name for name, _ in pairs]
      raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} is given twice")
    return made

  def constant(name: str) -> float:
    if nan or infinities and name != "NaN":
      return float(name)
    raise ValueError(f"{name} is no number")
  try:
    return json.loads(text, object_pairs_hook=once, parse_constant=constant)
  except RecursionError:
    raise ValueError("nested too deeply") from None


def parse_object(text: str | bytes, *, infinities: bool = False, nan: bool = False) -> dict[str, Any]:
  """The object of a JSON text, read as `parse_json` does. Raises ValueError."""
  try:
    found = parse_json(text, infinities=infinities, nan=nan)
  except ValueError as error:
    raise ValueError(f"not valid JSON: {error}") from None
  if not isinstance(found, dict):
    raise ValueError(f"expected an object, found a {type(found).__name__}")
  return found


def read_object(file: Path, *, infinities: bool = False, nan: bool = False) -> dict[str, Any]:
  """The JSON object of a file, read as `parse_json` does. Raises DataError that names the file."""
  try:
    return parse_object(file.read_bytes(), infinities=infinities, nan=nan)
  except OSError as error:
    raise DataError(f"{file}: cannot be read: {error.strerror}") from None
  except ValueError as error:
    raise DataError(f"{file}: {error}") from None


def plain(value: Any) -> Any:
  """Scalars and arrays of numpy, and tuples, as JSON has them."""
  if hasattr(value, "tolist"):
    return value.tolist()
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
  return value


def write_atomically(path: Path, fill: Callable[[Any], None]) -> None:
  """Calls `fill` with a binary file that takes the place of `path` when it is complete. Raises CannotWrite."""
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="." + path.name + ".")
    with os.fdopen(handle, "wb") as file:
      fill(file)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except OSError as error:
    raise CannotWrite(f"cannot write {path}: {error}") from error
  finally:
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
  """A file of UTF-8, atomically. Raises CannotWrite."""
  write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
  """A JSON file, atomically. Raises CannotWrite, and TypeError for what JSON has no form of."""
  write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
