"""T5's encoder: published sizes, relative positions, what is hidden."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmdiff import parallel
from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.models.t5 import PRESETS, relative_buckets, t5

TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 2, 40)
MASK = jnp.arange(9)[None] < jnp.array([[4], [9]])


@functools.cache
def tiny(dtype="float32"):
  model = t5(variant="tiny", vocab=40, dtype=dtype)
  return model, jax.jit(model.init)(jax.random.key(0), TOKENS, MASK), jax.jit(model.apply)


def abstract(variant):
  shape = jax.ShapeDtypeStruct
  return jax.eval_shape(t5(variant=variant).init, jax.random.key(0), shape((1, 8), jnp.int32), shape((1, 8), bool))["params"]


# Embedding + depth × (attention + gated MLP + two norms) + biases + final norm; XXL is the count of the published encoder.
SIZES = {"small": 35_332_800, "base": 109_628_544, "large": 341_231_104, "xl": 1_223_527_424, "xxl": 4_762_310_656}


@pytest.mark.parametrize("variant", SIZES)
def test_published_sizes(variant):
  assert tree.count(abstract(variant)) == SIZES[variant]


def test_every_large_leaf_has_a_layout():
  mesh = parallel.make_mesh(data=1, fsdp=4, tensor=2)
  specs = jax.tree.map(lambda sharding: sharding.spec, parallel.shardings(abstract("xxl"), mesh))
  assert specs["stack"]["attention"]["query"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
  assert specs["stack"]["mlp"]["gate"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")


def test_buckets_as_published():
  """Numbers of mesh_tensorflow's `_relative_position_bucket`, bidirectional, 32 buckets up to 128."""
  table = relative_buckets(300, 300)
  row = {offset: int(table[150, 150 + offset]) for offset in (0, -1, -7, -8, -11, -12, -16, -23, -64, -127, -128, 1, 7, 8, 64, 128)}
  assert row == {0: 0, -1: 1, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, -23: 11, -64: 14, -127: 15, -128: 15, 1: 17, 7: 23, 8: 24, 64: 30,
                 128: 31}


def test_padding_is_hidden_and_order_matters():
  _, params, apply = tiny()
  out = apply(params, TOKENS, MASK)
  assert out.shape == (2, 9, 64) and out.dtype == jnp.float32
  changed = apply(params, jnp.where(MASK, TOKENS, 1), MASK)
  np.testing.assert_array_equal(out[0, :4], changed[0, :4])
  assert np.abs(apply(params, TOKENS[:, ::-1], MASK[:, ::-1])[1, ::-1] - out[1]).max() > 1e-3
  short = apply(params, TOKENS[:1, :4], MASK[:1, :4])
  np.testing.assert_allclose(short, out[:1, :4], atol=1e-5)
  assert np.isfinite(apply(params, TOKENS, jnp.zeros_like(MASK))).all()


def test_attention_by_hand():
  """One head of one layer against the definition: no 1/√d, the bias of the bucket added."""
  model, variables, _ = tiny()
  params = jax.tree.map(np.asarray, variables["params"])
  layer = jax.tree.map(lambda leaf: leaf[0], params["stack"])
  x = params["embed"]["embedding"][np.asarray(TOKENS[1])]
  normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["norm_attention"]["scale"]
  q, k, v = (normed @ layer["attention"][name]["kernel"] for name in ("query", "key", "value"))
  heads = []
  for n in range(4):
    part = slice(16 * n, 16 * n + 16)
    scores = q[:, part] @ k[:, part].T + params["position_bias"][relative_buckets(9, 9), n]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
  x = x + np.concatenate(heads, -1) @ layer["attention"]["out"]["kernel"]
  normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["norm_mlp"]["scale"]
  gate, up = (normed @ layer["mlp"][name]["kernel"] for name in ("gate", "up"))
  x = x + (np.asarray(jax.nn.gelu(gate, approximate=True)) * up) @ layer["mlp"]["down"]["kernel"]
  one = t5(variant="tiny", vocab=40, dtype="float32").clone(depth=1)
  cut = {"params": params | {"stack": jax.tree.map(lambda leaf: leaf[:1], params["stack"])}}
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["norm_post"]["scale"]
  np.testing.assert_allclose(jax.jit(one.apply)(cut, TOKENS[1:], MASK[1:])[0], expected, atol=1e-4)


def test_bfloat16_products_stay_close():
  model, params, apply = tiny()
  narrow = jax.jit(tiny("bfloat16")[0].apply)(params, TOKENS, MASK)
  assert narrow.dtype == jnp.float32 and np.abs(narrow - apply(params, TOKENS, MASK)).max() < 0.2


def test_unknown_variants_list_the_known():
  with pytest.raises(ConfigError, match="xxl"):
    t5(variant="huge")
  assert set(SIZES) | {"tiny"} == set(PRESETS)
