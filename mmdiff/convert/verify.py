"""Whether two models compute the same: one pass over random inputs through each."""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmdiff.core import tree


def difference(first: tuple[nn.Module, Any, Any], second: tuple[nn.Module, Any, Any], inputs: tuple, *, seed: int = 0) -> float:
  """The largest difference of any output, relative to the largest output of its kind.

  first, second: (module, parameters, batch statistics or ()). inputs: abstract arguments; pictures, tokens and numbers are drawn, masks
  are true up to a drawn length.
  """
  args = random_inputs(inputs, first[1], rows=2, seed=seed)

  def outputs(module, params, statistics):
    variables = {"params": params} | ({"batch_stats": statistics} if jax.tree.leaves(statistics) else {})
    return jax.tree.leaves(jax.jit(module.apply)(variables, *args))

  worst = 0.0
  for a, b in zip(outputs(*first), outputs(*second), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))) if a.shape == b.shape else float("inf")
  return worst


def values(first: Any, second: Any) -> float:
  """The largest difference of two parameter trees of the same names, each leaf's relative to its largest value."""
  worst = 0.0
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    scale = max(float(np.abs(a).max()), 1e-12) if np.size(a) else 1.0
    worst = max(worst, float(np.abs(np.asarray(a, np.float64) - b).max()) / scale if np.shape(a) == np.shape(b) else float("inf"))
  return worst


def random_inputs(inputs: tuple, params: Any, *, rows: int, seed: int) -> tuple:
  """Arrays for abstract arguments with one row; tokens are drawn from the smallest embedding of `params`."""
  rng = np.random.default_rng(seed)
  words = min((leaf.shape[0] for path, leaf in zip(tree.paths(params), jax.tree.leaves(params)) if path.endswith("embedding")), default=2)

  def draw(like):
    shape = (rows, *like.shape[1:])
    if like.dtype == jnp.bool_:
      return np.arange(shape[1])[None] < rng.integers(2, shape[1] + 1, (rows, 1))
    if like.dtype == jnp.uint8:
      return rng.integers(0, 256, shape, dtype=np.uint8)
    if jnp.issubdtype(like.dtype, jnp.integer):
      return rng.integers(0, words, shape, dtype=np.int32)
    return rng.normal(size=shape).astype(np.float32)
  return jax.tree.map(draw, inputs)
