"""Where the batch lives on a mesh, and the one activation constraint that models use."""
import math

import jax
from jax.sharding import AxisType, PartitionSpec

from mmdiff.core.types import Array

BATCH = ("data", "fsdp")          # the mesh axes that every batch is split over


def pin(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
  """`x` constrained to `PartitionSpec(*spec)`; the dimensions beyond `spec` are whole on every device.

  Without a mesh nothing happens. Axes that the mesh lacks, that a `shard_map` holds, or that do not divide the dimension are left
  out, so that a model also traces on one example and on any mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  auto = {name: size for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types) if kind == AxisType.Auto}
  kept: list[tuple[str, ...] | None] = []
  for size, entry in zip(x.shape, spec):
    names = tuple(name for name in ((entry,) if isinstance(entry, str) else entry or ()) if name in auto)
    kept.append(names if names and size % math.prod(auto[name] for name in names) == 0 else None)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept)) if auto else x
