import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.evaluators.reconstruction import pairs, reconstruction
from tests.evaluators import toys


def encode(params, images, *, extra=()):
  mean = 2.0 * (images.astype(jnp.float32) / 127.5 - 1.0)
  return mean, 0.5 * jnp.ones_like(mean)


def decode(params, latents, *, extra=()):
  return jnp.clip(latents / 2.0 + params["error"], -1.0, 1.0)


def test_scalars_are_means_over_the_records_and_leave_out_padding():
  made = reconstruction(toys.services(dict(encode=encode, decode=decode)), source={}, every_steps=5, limit=11, count=5, columns=3)
  found = made.run({"error": 0.1}, 5)
  pictures = np.stack([toys.Colors()[i]["image"] for i in range(11)]) / np.float64(127.5) - 1
  error = np.clip(pictures + 0.1, -1, 1) - pictures
  np.testing.assert_allclose(found.scalars["psnr"], np.mean(10 * np.log10(4 / np.square(error).mean((1, 2, 3)))), rtol=1e-4)
  np.testing.assert_allclose(found.scalars["l1"], np.abs(error).mean(), rtol=1e-4)
  np.testing.assert_allclose(found.scalars["latent_mean"], 2 * pictures.mean(), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found.scalars["latent_std"], np.sqrt(4 * pictures.var() + 0.25), rtol=1e-3)
  assert found.scalars["records"] == 11 and "ssim" not in found.scalars        # 4 pixels hold no window
  assert found.images[""].shape == (4 * (toys.SIZE + 2) - 2, 3 * (toys.SIZE + 2) - 2, 3)


def test_channels_of_noise_are_not_counted_as_used():
  def encode(params, images, *, extra=()):
    mean = (images.astype(jnp.float32) / 127.5 - 1.0) * jnp.array([1.0, 0.1, 1.0]).reshape(1, 1, 1, 3)
    return mean, jnp.broadcast_to(jnp.array([0.1, 1.0, 0.2]), mean.shape)
  made = reconstruction(toys.services(dict(encode=encode, decode=decode)), source={}, every_steps=5, limit=11)
  assert made.run({"error": 0.0}, 5).scalars["latent_used"] == 2


def test_originals_stand_above_their_reconstructions():
  before, after = (np.full((3, 2, 2, 3), value, np.uint8) for value in (10, 20))
  sheet = pairs(before, after, 2)
  assert sheet.shape == (14, 6, 3)
  assert [int(sheet[row, 0, 0]) for row in (0, 4, 8, 12)] == [10, 20, 10, 20] and sheet[8, 5, 0] == 255


def test_what_it_needs_is_said():
  with pytest.raises(ConfigError, match="needs the predict functions encode, decode"):
    reconstruction(toys.services({}), source={}, every_steps=1)
