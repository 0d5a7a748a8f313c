"""Transformers over feature maps: identity at the start, text kept in a cache."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.nn.spatial import SpatialAttention, SpatialTransformer

X = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
TEXT, LENGTHS = jax.random.normal(jax.random.key(1), (2, 5, 6)), jnp.asarray([2, 5])


def test_starts_as_the_identity():
  model = SpatialTransformer(2, heads=2, groups=4)
  params = jax.jit(model.init)(jax.random.key(2), X, TEXT, LENGTHS)
  np.testing.assert_array_equal(jax.jit(model.apply)(params, X, TEXT, LENGTHS), X)
  assert params["params"]["stack"]["cross_attention"]["key"]["kernel"].shape == (2, 6, 8)
  with pytest.raises(ConfigError, match="3 heads"):
    jax.eval_shape(SpatialTransformer(1, heads=3, groups=4).init, jax.random.key(2), X, TEXT, LENGTHS)


def test_kept_keys_and_values_stand_in_for_the_text():
  model = SpatialAttention(heads=2, head_dim=4)
  x = X.reshape(2, 16, 8)
  params = jax.jit(model.init)(jax.random.key(2), x, TEXT, LENGTHS)
  assert set(params) == {"params"}                                          # initialisation keeps nothing
  out, cache = model.apply(params, x, TEXT, LENGTHS, mutable=["cache"])
  assert cache["cache"]["key"].shape == (2, 5, 2, 4)
  np.testing.assert_allclose(model.apply(params | cache, 2 * x, TEXT * 0, LENGTHS), model.apply(params, 2 * x, TEXT, LENGTHS), atol=1e-6)
  np.testing.assert_allclose(model.apply(params, x, TEXT.at[0, 2:].set(9), LENGTHS)[0], out[0], atol=1e-6)


def test_self_attention_has_no_bias_but_at_its_end():
  params = jax.eval_shape(SpatialAttention(heads=2, head_dim=4).init, jax.random.key(2), X.reshape(2, 16, 8))["params"]
  assert {name: set(leaf) for name, leaf in params.items()} == {
    "query": {"kernel"}, "key": {"kernel"}, "value": {"kernel"}, "out": {"kernel", "bias"}}
