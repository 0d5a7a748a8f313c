import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mmdiff import parallel
from mmdiff.core.memory import host_memory, nbytes, size


def test_sizes_in_words():
  assert [size(count) for count in (12, 5_000_000, 3 * 2 ** 40)] == ["12 B", "4.8 MiB", "3.0 TiB"]


def test_this_host_has_memory():
  available, total = host_memory()
  assert 2 ** 20 < available <= total


def test_a_part_is_smaller_than_the_whole():
  leaf = jax.ShapeDtypeStruct((16, 4), jnp.bfloat16)
  split = NamedSharding(parallel.make_mesh(data=1, fsdp=8), PartitionSpec("fsdp"))
  assert nbytes(leaf) == 128 and nbytes(leaf, split) == 16
