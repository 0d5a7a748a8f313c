"""The mesh and the table of layouts."""
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmdiff import parallel
from mmdiff.core.errors import ConfigError


def test_one_axis_takes_the_rest():
  assert dict(parallel.make_mesh(data=-1, fsdp=2, tensor=2).shape) == dict(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=-1, fsdp=-1), dict(data=0), dict(data=2, fsdp=1, tensor=1)])
def test_sizes_that_do_not_fit_say_so(sizes):
  with pytest.raises(ConfigError, match="mesh"):
    parallel.make_mesh(**sizes)


def test_one_rule_serves_a_kernel_its_moments_its_averages_and_its_scanned_stack():
  mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
  for prefix, shape, spec in [("params/image/block_0/", (64, 64), P("fsdp", "tensor")),
                              ("opt_state/inner_states/default/inner_state/0/mu/image/stack/", (3, 64, 64), P(None, "fsdp", "tensor")),
                              ("ema/eval/text/stack/", (3, 64, 64), P(None, "fsdp", "tensor"))]:
    assert parallel.spec_for(prefix + "attention/query/kernel", shape, mesh) == spec
  assert parallel.spec_for("params/x/mlp/down/kernel", (64, 32), mesh) == P("tensor", "fsdp")


def test_what_enters_the_heads_is_split_by_columns_and_what_leaves_them_by_rows():
  """So that between the two products every device keeps its own heads, or its own part of an MLP, and one sum follows (Megatron-LM)."""
  mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
  spec = lambda path: parallel.spec_for(f"params/image/stack/{path}/kernel", (3, 64, 64), mesh)
  for path in ("attention/query", "attention/key", "attention/value", "cross_attention/value", "mlp/up", "mlp/gate"):
    assert spec(path) == P(None, "fsdp", "tensor"), path
  for path in ("attention/out", "cross_attention/out", "mlp/down"):
    assert spec(path) == P(None, "tensor", "fsdp"), path


@pytest.mark.parametrize("path, shape, spec", [
  ("attention/query/kernel", (64, 64), P("fsdp", "tensor")), ("cross_attention/key/kernel", (64, 64), P("fsdp", "tensor")),
  ("self/attention/value/kernel", (64, 64), P("fsdp", "tensor")), ("attention/out/kernel", (64, 64), P("tensor", "fsdp")),
  ("mlp/up/kernel", (64, 128), P("fsdp", "tensor")), ("mlp/gate/kernel", (64, 128), P("fsdp", "tensor")),
  ("mlp/down/kernel", (128, 64), P("tensor", "fsdp")), ("modulation/kernel", (64, 384), P("fsdp", None)),
  ("conv_in/kernel", (3, 3, 8, 64), P(None, None, None, "fsdp")), ("projection/kernel", (64, 32), P("fsdp", None)),
  ("project_vocab/kernel", (64, 512), P("fsdp", None)), ("embed/embedding", (512, 64), P(None, None)),
  ("position", (77, 64), P(None, None))])
def test_every_layout_is_as_written(path, shape, spec):
  mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
  whole = lambda found, shape: P(*found, *[None] * (len(shape) - len(found)))
  assert whole(parallel.spec_for(f"params/text/{path}", shape, mesh), shape) == spec
  assert whole(parallel.spec_for(f"opt_state/mu/text/stack/{path}", (3, *shape), mesh), (3, *shape)) == P(None, *spec)



def test_axes_that_do_not_divide_are_dropped_and_factored_statistics_are_replicated():
  mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
  assert parallel.spec_for("a/attention/query/kernel", (63, 64), mesh) == P(None, "tensor")
  assert parallel.spec_for("opt/v_row/a/attention/query/kernel", (64,), mesh) == P()
  assert parallel.spec_for("opt/v_col/a/stack/attention/query/kernel", (4, 64), mesh) == P()           # of a scanned stack


def test_a_large_leaf_without_a_rule_is_an_error_only_where_it_could_be_sharded():
  with pytest.raises(ConfigError, match="no sharding rule matches params/odd/kernel"):
    parallel.spec_for("params/odd/kernel", (2048, 2048), parallel.make_mesh(data=4, fsdp=2, tensor=1))
  assert parallel.spec_for("params/odd/kernel", (2048, 2048), parallel.make_mesh(data=8)) == P()


def test_rows_and_batches():
  sharding = parallel.batch_sharding(parallel.make_mesh(data=4, fsdp=2))
  np.testing.assert_array_equal(parallel.process_rows(sharding, 16), np.arange(16))
  batch = parallel.put_batch(dict(x=np.arange(32).reshape(16, 2)), sharding, 16)
  np.testing.assert_array_equal(parallel.fetch(batch["x"]), np.arange(32).reshape(16, 2))
  assert len({shard.device for shard in batch["x"].addressable_shards}) == 8
  with pytest.raises(ConfigError, match="batch_size 12 does not divide"):
    parallel.process_rows(sharding, 12)
  with pytest.raises(ValueError):
    parallel.put_batch(dict(x=np.arange(8)), sharding, 16)


def test_replicated_mode():
  mesh = parallel.make_mesh(fsdp=2)
  tree = {"attention": {"query": {"kernel": jax.ShapeDtypeStruct((64, 64), np.float32)}}}
  assert parallel.shardings(tree, mesh, "replicated")["attention"]["query"]["kernel"].spec == P()
