import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.models import tiles
from mmdiff.nn.conv import nearest


def picture(height, width, channels=3):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, height, width, channels)), jnp.float32)


def local_decode(x):
  """Looks one latent around and doubles the sides."""
  kernel = jnp.ones((3, 3, x.shape[-1], 2)) * jnp.asarray([0.1, -0.2])[None, None, None]
  return nearest(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))


def local_encode(x):
  half = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))
  return half, jnp.abs(half)


@pytest.mark.parametrize("height,width", [(8, 8), (21, 40), (16, 17)])
def test_what_is_computed_locally_comes_out_as_untiled(height, width):
  x = picture(height, width)
  np.testing.assert_allclose(tiles.decode(local_decode, x, factor=2, tile=16, overlap=8), local_decode(x), atol=1e-5)


def test_trees_and_smaller_results():
  x = picture(32, 56)
  for found, want in zip(tiles.encode(local_encode, x, factor=2, tile=24, overlap=8), local_encode(x)):
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_norm_over_the_whole_input_comes_out_nearly_as_untiled():
  """A tile's statistics are nearly the picture's; where two tiles meet there is no step larger than their difference."""
  normed = lambda x: local_decode(x / jnp.std(x, axis=(1, 2, 3), keepdims=True))
  x = picture(40, 40)
  whole, parts = normed(x), tiles.decode(normed, x, factor=2, tile=24, overlap=8)
  error = np.abs(whole - parts)
  assert 0 < error.mean() < 0.02 * np.asarray(whole).std()
  # Fading, the error moves from one tile's to the other's by a little a pixel; cut at a line, it would jump there by their difference.
  jump = max(np.abs(np.diff(np.asarray(whole - parts), axis=axis)).max() for axis in (1, 2))
  assert jump < 0.25 * np.asarray(whole).std()


def test_tiles_cover_and_share_enough():
  for side in range(16, 60):
    at = tiles.starts(side, 16, 4, 1)
    assert at[0] == 0 and at[-1] == side - 16 and all(b - a <= 12 for a, b in zip(at, at[1:]))
  assert tiles.starts(64, 32, 8, 8) == [0, 16, 32]


def test_sizes_that_do_not_divide_are_refused():
  with pytest.raises(ConfigError, match="tiles of 512 that share 102, over 32×32"):
    tiles.encode(local_encode, picture(32, 32), factor=2, overlap=100 + 2)
