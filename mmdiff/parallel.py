"""The mesh, and the one table that says how every leaf of the train state is laid out on it.

Axes: `data` (batch only), `fsdp` (batch and parameters), `tensor` (heads and MLP widths). Losses are written on the global batch under
`jit`, so the loss is the global-batch loss on any mesh. `RULES` address the path of a leaf in the *whole* state: the same line covers a
kernel, its averages and its moments, and every model, since all are built from the parts in `nn/`.
"""
import math
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH
from mmdiff.core.types import Tree

AXES = ("data", "fsdp", "tensor")

# Path pattern -> spec of the trailing dimensions; dimensions before them (a scanned stack's `layers`) are not sharded. First match wins.
RULES = (
  (r"\w*attention/(query|key|value)/kernel", ("fsdp", "tensor")),
  (r"\w*attention/out/kernel", ("tensor", "fsdp")),
  (r"mlp/(up|gate)/kernel", ("fsdp", "tensor")),
  (r"mlp/down/kernel", ("tensor", "fsdp")),
  (r"modulation/kernel", ("fsdp", None)),
  (r"conv\w*/kernel", (None, "fsdp")),
  (r"(projection|project\w*|proj)/kernel", ("fsdp", None)),
  # Looked up or added, never multiplied at scale: sharding them costs more traffic than it saves memory.
  (r"(embedding|position\w*|patchify/kernel|probe|query_tokens)", ()),
)

LARGE = 2 ** 20        # elements; a larger leaf that no rule matches is an error when there is an axis to shard it on


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """A mesh over all devices. One axis may be -1: what the others leave. Raises ConfigError if the sizes don't fit the device count."""
  devices = jax.devices() if devices is None else list(devices)
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1 or any(not isinstance(size, int) or size < 1 and size != -1 for size in sizes.values()):
    raise ConfigError(f"mesh: sizes are positive whole numbers and at most one is -1, found {sizes}")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(devices) % fixed or (not free and fixed != len(devices)):
    raise ConfigError(f"mesh: {sizes} does not fit {len(devices)} devices; make the product {len(devices)} or set one size to -1")
  if free:
    sizes[free[0]] = len(devices) // fixed
  # Explicit axis types would refuse Linen's embedding lookups; Auto lets GSPMD place what the table leaves open.
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `data` and `fsdp`."""
  return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """The layout of one leaf. An axis that does not divide its dimension is dropped; a factored statistic is replicated."""
  shardable = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
  if re.search(r"(^|/)v_(row|col)/", path):          # of a scanned stack it has two dimensions, and is no kernel
    return P()
  for pattern, spec in RULES:
    if re.search(rf"(^|/){pattern}$", path):
      if len(spec) > len(shape):
        return P()
      trailing = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape[len(shape) - len(spec):])]
      return P(*[None] * (len(shape) - len(spec)), *trailing)
  if shardable and math.prod(shape) >= LARGE:
    raise ConfigError(f"no sharding rule matches {path} {shape}; add one to mmdiff.parallel.RULES (replication is the empty spec)")
  return P()


def shardings(abstract: Tree, mesh: Mesh, mode: str = "auto") -> Tree:
  """A sharding for every leaf of an abstract tree: by `RULES` ("auto") or all replicated ("replicated")."""
  if mode == "replicated":
    return jax.tree.map(lambda _: replicated(mesh), abstract)
  return tree.map_with_path(lambda path, leaf: NamedSharding(mesh, spec_for(path, leaf.shape, mesh)), abstract)


def process_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """Which rows of the global batch this process has to make, in order. Raises ConfigError if the batch does not divide over the mesh."""
  ways = sharding.mesh.shape["data"] * sharding.mesh.shape["fsdp"]
  if batch_size % ways:
    raise ConfigError(f"batch_size {batch_size} does not divide over data × fsdp = {ways} devices")
  slices = {(s[0].start or 0, s[0].stop or batch_size) for s in sharding.addressable_devices_indices_map((batch_size,)).values()}
  return np.concatenate([np.arange(start, stop) for start, stop in sorted(slices)])


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
  """This process's rows -> global arrays [batch_size …]. The global shape is said, so that half a batch is an error, not a small batch."""
  return {key: jax.make_array_from_process_local_data(sharding, value, (batch_size, *value.shape[1:])) for key, value in batch.items()}


def put_replicated(value: np.ndarray, mesh: Mesh) -> jax.Array:
  """The same value on every device; every process has it."""
  value = np.asarray(value)
  return jax.make_array_from_callback(value.shape, replicated(mesh), lambda index: value[index])


def fetch(array: jax.Array) -> np.ndarray:
  """The whole value on every process, whatever its layout."""
  if array.is_fully_addressable:
    return np.asarray(array)
  from jax.experimental import multihost_utils
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))
