"""Next-token loss: the definition, and chunks that change nothing but memory."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.losses import language


def inputs(rows=3, length=7, width=8, vocab=11):
  k_hidden, k_kernel, k_labels = jax.random.split(jax.random.key(0), 3)
  return (jax.random.normal(k_hidden, (rows, length, width)), jax.random.normal(k_kernel, (width, vocab)),
          jax.random.randint(k_labels, (rows, length), 0, vocab))


def test_definition():
  hidden, kernel, labels = inputs()
  loss, right = language.token_losses(hidden, kernel, labels)
  log_probs = jax.nn.log_softmax(hidden @ kernel)
  assert jnp.abs(loss + jnp.take_along_axis(log_probs, labels[..., None], -1)[..., 0]).max() <= 1e-5
  assert jnp.array_equal(right, jnp.argmax(log_probs, -1) == labels)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_give_the_same_losses_and_gradients(chunk):
  hidden, kernel, labels = inputs()
  weight = jnp.asarray(np.random.default_rng(0).uniform(size=labels.shape), jnp.float32)
  total = lambda hidden, kernel, chunk: jnp.sum(weight * language.token_losses(hidden, kernel, labels, chunk=chunk)[0])
  whole, parts = (jax.value_and_grad(total, argnums=(0, 1))(hidden, kernel, size) for size in (0, chunk))
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
    assert jnp.abs(a - b).max() <= 1e-4


def test_chunks_hold_fewer_logits():
  hidden, kernel, labels = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs(rows=8, length=64, width=16, vocab=2_000))

  def temporaries(chunk):
    fn = jax.grad(lambda hidden, kernel, labels: language.token_losses(hidden, kernel, labels, chunk=chunk)[0].sum(), argnums=(0, 1))
    return jax.jit(fn).lower(hidden, kernel, labels).compile().memory_analysis().temp_size_in_bytes
  assert temporaries(4) < 0.3 * temporaries(0)


def test_mean_counts_what_is_real():
  values = jnp.array([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
  assert language.mean_where(values, values < 5) == pytest.approx(7 / 3)
  assert language.mean_where(values, values > 10) == 0
