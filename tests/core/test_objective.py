"""Chunks: split and join are inverse, and chunking changes neither values nor gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.objective import in_chunks, join_chunks, split_chunks


@pytest.mark.parametrize("chunks", [1, 2, 6])
def test_join_undoes_split(chunks):
  x = jnp.arange(24).reshape(12, 2)
  np.testing.assert_array_equal(join_chunks(split_chunks(x, chunks)), x)


def test_unequal_chunks_are_refused():
  with pytest.raises(ValueError, match="12 does not divide into 5"):
    split_chunks(jnp.zeros(12), 5)


@pytest.mark.parametrize("chunks", [2, 4])
def test_a_function_of_all_rows_has_the_same_value_and_gradient(chunks):
  x = jax.random.normal(jax.random.key(0), (8, 3))
  w = jax.random.normal(jax.random.key(1), (3, 5))

  def loss(w, chunks):
    z = in_chunks(lambda batch: jnp.tanh(batch["x"] @ w), {"x": x}, chunks)
    return jax.nn.logsumexp(z @ z.T)

  whole, chunked = jax.value_and_grad(loss)(w, 1), jax.value_and_grad(loss)(w, chunks)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), whole, chunked)


def test_memory_is_that_of_a_chunk():
  x, w = jnp.ones((8192, 32)), jnp.ones((32, 32))

  def deep(x):
    for _ in range(10):
      x = jnp.tanh(x @ w)
    return x.sum(-1)

  def temp(chunks):
    fn = lambda w: jnp.sum(in_chunks(lambda x: deep(x @ w), x, chunks))
    return jax.jit(jax.grad(fn)).lower(w).compile().memory_analysis().temp_size_in_bytes

  assert temp(16) < temp(1) / 3
