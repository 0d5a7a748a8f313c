"""Pinning places an array on the mesh, and is nothing without one."""
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmdiff.core.sharding import BATCH, pin
from mmdiff.parallel import make_mesh


def test_without_a_mesh_it_is_the_same_array():
  x = jnp.arange(8.0)
  assert pin(x, BATCH) is x


def test_on_a_mesh_rows_are_split_over_data_and_fsdp():
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    out = jax.jit(lambda x: pin(x * 2, BATCH))(jnp.arange(8.0))
  assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(BATCH)), 1)
  np.testing.assert_array_equal(out, 2 * np.arange(8.0))
