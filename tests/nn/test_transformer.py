"""The block and the scanned stack: one program for any depth, the same numbers with and without scanning or rematerialisation."""
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.nn.transformer import ACTIVATIONS, Block, GatedMlp, block_keys_values, clip_inits, layer_norm, layers_of, stack

X = jax.random.normal(jax.random.key(0), (2, 5, 16))


class Net(nn.Module):
  remat: str = "none"
  unroll: int | bool = 1
  causal: bool = False

  @nn.compact
  def __call__(self, x, lengths=None):
    return stack(Block, 3, heads=2, mlp_dim=32, causal=self.causal, remat=self.remat, unroll=self.unroll, inits=clip_inits(16, 3))(
      x, lengths)[0]


PARAMS = jax.jit(Net().init)(jax.random.key(1), X)


def grads(net, lengths=None):
  return jax.jit(jax.value_and_grad(lambda params: jnp.sum(net.apply(params, X, lengths) ** 2)))(PARAMS)


def test_scan_equals_a_loop_over_single_blocks():
  x = X
  for i in range(3):
    layer = jax.tree.map(lambda p, i=i: p[i], PARAMS["params"]["stack"])
    x, _ = jax.jit(Block(2, 32).apply)({"params": layer}, x)
  assert jnp.abs(Net().apply(PARAMS, X) - x).max() <= 1e-5
  kernel = PARAMS["params"]["stack"]["attention"]["query"]["kernel"]
  assert kernel.shape == (3, 16, 16) and not jnp.array_equal(kernel[0], kernel[1])


@pytest.mark.parametrize("net", [Net(unroll=True), Net(remat="full"), Net(remat="dots"), Net(remat="names")], ids=str)
def test_unrolling_and_rematerialisation_change_no_gradient(net):
  lengths = jnp.array([3, 5])
  (value, got), (expected_value, expected) = grads(net, lengths), grads(Net(), lengths)
  assert abs(value - expected_value) <= 1e-5 * abs(expected_value)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    assert jnp.abs(a - b).max() <= 1e-5 * (1 + jnp.abs(b).max())


def test_rematerialisation_saves_memory():
  def temporaries(remat):
    net = Net(remat=remat)
    x = jax.ShapeDtypeStruct((64, 32, 16), jnp.float32)
    return jax.jit(jax.grad(lambda p, x: jnp.sum(net.apply(p, x) ** 2))).lower(PARAMS, x).compile().memory_analysis().temp_size_in_bytes
  assert temporaries("full") < temporaries("none")


def test_causal_stack_has_zero_gradient_from_the_future():
  def at(x, i):
    return jnp.sum(Net(causal=True).apply(PARAMS, x)[:, i] ** 2)
  grad = jax.jit(jax.grad(at), static_argnums=1)(X, 2)
  assert jnp.all(grad[:, 3:] == 0) and jnp.all(jnp.abs(grad[:, :3]).sum(-1) > 0)


def test_program_size_does_not_grow_with_depth():
  class Deep(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
      return stack(Block, self.depth, heads=2, mlp_dim=32)(x)[0]
  size = lambda depth: len(jax.jit(Deep(depth).init).lower(jax.random.key(0), X).as_text())
  assert abs(size(12) - size(2)) <= 0.05 * size(2)


def test_activations_and_norm():
  x = jnp.linspace(-3, 3, 7)
  assert jnp.abs(ACTIVATIONS["quick_gelu"](x) - x / (1 + jnp.exp(-1.702 * x))).max() <= 1e-6
  assert 0 < jnp.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x)).max() < 1e-3
  big = 1e4 + jnp.arange(8, dtype=jnp.float32)[None]                # the textbook one-pass variance loses this
  out = layer_norm(affine=False).apply({}, big)
  assert jnp.abs(out.std() - 1) <= 1e-4 and layer_norm(affine=False, dtype=jnp.bfloat16).apply({}, big).dtype == jnp.bfloat16


def test_unknown_policy_is_named():
  with pytest.raises(ConfigError, match="unknown remat policy 'all'"):
    Net(remat="all").init(jax.random.key(0), X)


def test_gated_mlp_by_hand():
  mlp = GatedMlp(8, "gelu_tanh", use_bias=False)
  params = jax.jit(mlp.init)(jax.random.key(2), X)["params"]
  kernel = lambda name: params[name]["kernel"]
  expected = (jax.nn.gelu(X @ kernel("gate")) * (X @ kernel("up"))) @ kernel("down")
  assert jnp.abs(mlp.apply({"params": params}, X) - expected).max() <= 1e-5
  narrow = GatedMlp(8, use_bias=False, dtype=jnp.bfloat16, down_dtype=jnp.float32)
  assert jax.eval_shape(narrow.apply, {"params": params}, X).dtype == jnp.float32


def test_a_block_may_attend_to_other_tokens_and_do_without_an_mlp():
  kv = jax.random.normal(jax.random.key(5), (X.shape[0], 3, 10))
  block = Block(heads=2, mlp_dim=0)
  params = jax.jit(lambda key: block.init(key, X, kv=kv))(jax.random.key(6))["params"]
  assert set(params) == {"attention", "norm_attention", "norm_kv"} and params["attention"]["key"]["kernel"].shape == (10, X.shape[-1])
  out = jax.jit(lambda kv: block.apply({"params": params}, X, kv=kv)[0])
  assert jnp.any(out(kv) != out(kv[:, ::-1] * 2 + kv)) and jnp.abs(out(kv) - out(kv[:, ::-1])).max() <= 1e-5
  cache = block_keys_values(params, kv, heads=2)
  step, _ = block.apply({"params": params}, X[:, :1], cache=cache)
  assert jnp.abs(step - out(kv)[:, :1]).max() <= 1e-5
  assert len(layers_of({"a": jnp.arange(6).reshape(3, 2)}, 3)) == 3
