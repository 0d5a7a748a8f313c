"""What proves that a run directory holds what was written: digests of its files, and fingerprints of its arrays.

Orbax restores a flipped bit without a word. So every folder of arrays has a `manifest.json` with the sha256 of each file, written when the
asynchronous save is done, and a checkpoint's `meta` a fingerprint of every leaf, computed on the device and independent of the mesh. The
other files of a run are vouched for by `train.sums`.
"""
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.core.files import parse_json
from mmdiff.core.types import Array, Tree
from mmdiff.train.sums import digest

MANIFEST = "manifest.json"
ODD, GOLDEN = 2_654_435_761, 0x9E37_79B9       # Knuth's multiplier, and the golden ratio, of 32 bits


def words(x, xp):
  """The bits of an array as uint32, one word an element."""
  if x.dtype == jnp.bool_:
    x = x.astype(xp.uint8)
  kind = {1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[x.dtype.itemsize]
  return (jax.lax.bitcast_convert_type(x, kind) if xp is jnp else np.ascontiguousarray(x).view(kind)).astype(xp.uint32)


def fingerprint(x: Array) -> Array:
  """uint32 [] over the bits of `x`: a sum of words, each times an odd number drawn from its position. Any one flipped bit changes it, and
  the order of summation, hence the mesh, does not."""
  found = words(x, jnp)
  index = jnp.zeros(found.shape, jnp.uint32)
  for axis in range(found.ndim):
    index = index * jnp.uint32(found.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, found.shape, axis)
  weight = (index * jnp.uint32(ODD) + jnp.uint32(GOLDEN)) | jnp.uint32(1)
  return jnp.sum(found * weight, dtype=jnp.uint32)


def fingerprint_here(x: np.ndarray) -> int:
  """`fingerprint` of an array on the host, with nothing compiled."""
  found = words(x, np).reshape(-1)
  weight = (np.arange(found.size, dtype=np.uint32) * np.uint32(ODD) + np.uint32(GOLDEN)) | np.uint32(1)
  return int(np.sum(found * weight, dtype=np.uint32))


@jax.jit
def fingerprints(items: Tree) -> Tree:
  return jax.tree.map(fingerprint, items)


def as_ints(prints: Tree) -> dict:
  return {item: {name: int(value) for name, value in leaves.items()} for item, leaves in jax.device_get(prints).items()}


def name_of(prints: Mapping[str, int], shapes: Mapping[str, Iterable[int]]) -> str:
  """The name of a set of arrays by what is in them."""
  told = json.dumps([[name, list(shapes[name]), prints[name]] for name in sorted(prints)])
  return hashlib.sha256(told.encode()).hexdigest()[:16]


def wrong_arrays(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
  """Raises ValueError that names the arrays that are other ones."""
  wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
  if wrong:
    raise ValueError(f"arrays differ from their fingerprints: {', '.join(wrong[:4])}")


def _digests(folder: Path) -> dict[str, str]:
  return {str(file.relative_to(folder)): digest(file) for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST}


def write_manifest(folder: Path) -> None:
  """The digests of a folder's files, beside them."""
  part = folder / f"{MANIFEST}.part"
  part.unlink(missing_ok=True)
  content = json.dumps(_digests(folder))
  part.write_text(content)
  os.replace(part, folder / MANIFEST)


def has_manifest(folder: Path) -> bool:
  return (folder / MANIFEST).is_file()


def check_files(folder: Path) -> bool:
  """Whether there is a manifest; a folder whose writer was killed before it has none. Raises ValueError if a file is not what it says."""
  if not has_manifest(folder):
    return False
  try:
    expected = parse_json((folder / MANIFEST).read_bytes())
  except ValueError:
    raise ValueError(f"{MANIFEST} is not JSON") from None
  found = _digests(folder)
  if not isinstance(expected, dict):
    raise ValueError(f"{MANIFEST} is no table of files")
  wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
  if wrong:
    raise ValueError(f"files differ from the manifest: {', '.join(wrong[:4])}")
  return True
