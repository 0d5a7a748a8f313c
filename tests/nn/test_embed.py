"""Patches, positions and times."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.nn import embed


def test_patch_embedding_is_a_convolution():
  image = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
  kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
  expected = jax.lax.conv_general_dilated(image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")).reshape(2, 6, 5)
  assert jnp.abs(embed.patches(image, 4) @ kernel.reshape(-1, 5) - expected).max() <= 1e-4


def test_unpatch_inverts_patches():
  image = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
  assert jnp.array_equal(embed.unpatch(embed.patches(image, 4), 4, height=8, width=12), image)
  with pytest.raises(ConfigError, match="8×12 does not divide into patches of 5×5"):
    embed.patches(image, 5)


def test_bytes_and_floats_normalise_alike():
  image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
  options = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
  unit = jnp.asarray(image / 127.5 - 1, jnp.float32)
  assert jnp.abs(embed.normalize(jnp.asarray(image), **options) - embed.normalize(unit, **options)).max() <= 1e-5
  assert jnp.abs(embed.normalize(unit, mean=(0.5,) * 3, std=(0.5,) * 3) - unit).max() <= 1e-6


def test_positions_tell_places_apart():
  table = embed.sincos_positions(3, 5, 16)
  assert table.shape == (15, 16) and len(np.unique(table.round(4), axis=0)) == 15
  assert np.allclose(table[0, :4], 0) and np.allclose(table[0, 4:8], 1)            # sin 0, cos 0 of the column
  assert np.allclose(table[1, 8:], table[0, 8:])                                     # same row


def test_sinusoid_frequencies():
  out = embed.sinusoid(jnp.array([0.0, 2.0]), 6, max_period=100.0)
  rates = 100.0 ** -(np.arange(3) / 3)
  assert np.allclose(out[0], [1, 1, 1, 0, 0, 0]) and np.allclose(out[1], np.r_[np.cos(2 * rates), np.sin(2 * rates)], atol=1e-6)
