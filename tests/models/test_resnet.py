"""CLIP's ResNets: shapes, batch statistics, identity at the start."""
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmdiff.core.errors import ConfigError
from mmdiff.models.resnet import Bottleneck, resnet

IMAGE = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
MODEL = resnet("tiny-rn", embed_dim=8, width=8)


@pytest.fixture(scope="module")
def variables():
  return jax.jit(MODEL.init)(jax.random.key(1), IMAGE)


def test_training_updates_running_statistics_by_a_tenth(variables):
  apply = jax.jit(lambda v, x: MODEL.apply(v, x, train=True, mutable=["batch_stats"]))
  out, changed = apply(variables, IMAGE)
  assert out.shape == (8, 8) and out.dtype == jnp.float32
  stem = jax.lax.conv_general_dilated(IMAGE, variables["params"]["conv1"]["kernel"], (2, 2), ((1, 1), (1, 1)),
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  running = changed["batch_stats"]["norm1"]
  assert jnp.abs(running["mean"] - 0.1 * stem.mean((0, 1, 2))).max() <= 1e-5
  assert jnp.abs(running["var"] - (0.9 + 0.1 * stem.var((0, 1, 2)))).max() <= 1e-5


def test_statistics_are_those_of_the_global_batch(variables):
  mesh = jax.make_mesh((8, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  apply = jax.jit(lambda v, x: MODEL.apply(v, x, train=True, mutable=["batch_stats"]))
  expected = apply(variables, IMAGE)
  with jax.set_mesh(mesh):
    got = apply(jax.device_put(variables, NamedSharding(mesh, P())), jax.device_put(IMAGE, NamedSharding(mesh, P(("data", "fsdp")))))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    assert jnp.abs(jax.device_get(a) - jax.device_get(b)).max() <= 1e-5 * (1 + jnp.abs(b).max())


def test_a_block_starts_as_its_shortcut():
  x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 4, 4, 16)))
  block = Bottleneck(4)
  assert jnp.array_equal(block.apply(jax.jit(block.init)(jax.random.key(1), x), x), x)


def test_evaluation_uses_running_statistics_row_by_row(variables):
  apply = jax.jit(MODEL.apply)
  assert jnp.abs(apply(variables, IMAGE)[:2] - apply(variables, IMAGE[:2])).max() <= 1e-5


def test_sizes_that_do_not_reduce_are_refused():
  with pytest.raises(ConfigError, match="does not divide by 32"):
    MODEL.init(jax.random.key(0), IMAGE[:, :24])
