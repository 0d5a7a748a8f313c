"""Autoencoders on tiles: what acts locally gives the same, small pictures are not cut, and no seam shows."""
import jax
import numpy as np
import pytest

from mmdiff.models import tiled
from mmdiff.models.autoencoder import kl
from mmdiff.models.tiled import Tiled


class Local:
  """Latents are the means of blocks of two, pictures repeat them."""
  factor, latent_channels = 2, 3

  def apply(self, variables, x, *, method):
    if method == "decode":
      return x.repeat(2, 1).repeat(2, 2)
    small = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))
    return small, small + 1


@pytest.mark.parametrize("side, tile", [(5, 5), (6, 5), (40, 8), (41, 8), (64, 48), (9, 2), (3, 1)])
def test_tiles_cover_a_side_and_overlap(side, tile):
  starts = tiled.starts(side, tile)
  assert starts[0] == 0 and starts[-1] == side - tile and starts == sorted(set(starts))
  assert all(b - a <= max(int(tile * 0.75), 1) for a, b in zip(starts, starts[1:]))
  assert all(start % 2 == 0 for start in tiled.starts(2 * side, 2 * tile, 2))


@pytest.mark.parametrize("height, width, tile", [(16, 16, 32), (48, 16, 16), (40, 56, 16), (34, 18, 12)])
def test_what_acts_locally_is_the_same(height, width, tile):
  x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
  made = Tiled(Local(), tile)
  mean, std = made.apply({}, x, method="encode")
  wanted, other = Local().apply({}, x, method="encode")
  np.testing.assert_allclose(mean, wanted, atol=1e-5)
  np.testing.assert_allclose(std, other, atol=1e-5)
  np.testing.assert_allclose(made.apply({}, wanted, method="decode"), Local().apply({}, wanted, method="decode"), atol=1e-5)


def test_an_autoencoder():
  """Pictures within one tile are not touched; others differ by what norms and attention see beyond a tile."""
  module = kl(variant="tiny", image_size=16, widths=(8, 8), groups=2)
  x = np.random.default_rng(0).uniform(-1, 1, (1, 32, 16, 3)).astype(np.float32)
  params = jax.jit(module.init)(jax.random.key(0), x)
  run = lambda made, method, x: jax.jit(lambda p: made.apply(p, x, method=method))(params)
  whole = run(module, "encode", x)[0]
  np.testing.assert_array_equal(run(Tiled(module, 64), "encode", x)[0], whole)
  assert run(Tiled(module, 16), "decode", whole).shape == x.shape
  error = np.abs(run(Tiled(module, 24), "encode", x)[0] - whole)
  assert 0 < error.max() and error.mean() < 0.5 * np.abs(whole - whole.mean((1, 2), keepdims=True)).mean()
