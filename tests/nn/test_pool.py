"""Pooling by explicit masks."""
import jax
import jax.numpy as jnp

from mmdiff.nn import pool
from mmdiff.nn.attention import Attention
from mmdiff.nn.transformer import Mlp

X = jax.random.normal(jax.random.key(0), (3, 4, 8))
MASK = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def test_at_end_takes_the_last_true_position():
  assert pool.lengths_of(MASK).tolist() == [2, 4, 0]
  out = pool.at_end(X, MASK)
  assert jnp.array_equal(out[0], X[0, 1]) and jnp.array_equal(out[1], X[1, 3])


def test_average_ignores_padding():
  out = pool.average(X, MASK)
  assert jnp.abs(out[0] - X[0, :2].mean(0)).max() <= 1e-6 and jnp.all(out[2] == 0)
  assert jnp.abs(pool.average(X)[1] - out[1]).max() <= 1e-6


def test_attention_pool_sees_a_set():
  layer = pool.MapPool(2, 16)
  params = jax.jit(layer.init)(jax.random.key(1), X)
  assert params["params"]["probe"].shape == (1, 8)
  out = jax.jit(layer.apply)(params, X)
  assert out.shape == (3, 8) and jnp.abs(out - layer.apply(params, X[:, ::-1])).max() <= 1e-5


def test_map_pooling_norms_with_the_models_epsilon():
  """y + mlp(norm(y)) by hand, with an epsilon that is felt."""
  layer = pool.MapPool(2, 16, eps=0.3)
  params = jax.jit(layer.init)(jax.random.key(1), X)["params"]
  query = jnp.broadcast_to(params["probe"][None], (3, 1, 8))
  y = Attention(2).apply({"params": params["attention"]}, query, X)
  centred = y - y.mean(-1, keepdims=True)
  normed = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 0.3)
  wanted = y + Mlp(16, "gelu_tanh").apply({"params": params["mlp"]}, normed)
  assert jnp.abs(layer.apply({"params": params}, X) - wanted[:, 0]).max() <= 1e-5


def test_learned_queries_pool_a_set_into_a_few_tokens():
  layer = pool.AttentionPool(width=12, queries=5, heads=2)
  params = jax.jit(layer.init)(jax.random.key(1), X)
  assert params["params"]["query_tokens"].shape == (5, 12) and set(params["params"]) == {"query_tokens", "norm_queries", "norm_keys",
                                                                                         "attention"}
  out = jax.jit(layer.apply)(params, X)
  assert out.shape == (3, 5, 12) and jnp.abs(out - layer.apply(params, X[:, ::-1])).max() <= 1e-5
  assert jnp.abs(layer.apply(params, 3 * X + 1) - out).max() <= 1e-4             # keys are normalised
