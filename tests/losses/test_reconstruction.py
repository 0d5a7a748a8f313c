import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.losses.reconstruction import kl_to_normal, l1, mse, psnr, ssim


def pictures(seed=0, size=16):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (2, size, size, 3)), jnp.float32)


def test_pixel_distances_by_hand():
  a = jnp.zeros((2, 4, 4, 3))
  b = a.at[0].set(0.5).at[1, 0].set(-1.0)
  np.testing.assert_allclose(l1(a, b), [0.5, 0.25])
  np.testing.assert_allclose(mse(a, b), [0.25, 0.25])
  np.testing.assert_allclose(psnr(a, b), 10 * np.log10(4 / np.asarray([0.25, 0.25])), rtol=1e-6)
  np.testing.assert_allclose(psnr(a, a), [100.0, 100.0])


def naive_ssim(a, b, sigma=1.5, size=11):
  """Equation 13, window by window, in float64."""
  line = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
  window = np.outer(line, line) / line.sum() ** 2
  scores = []
  for y in range(a.shape[0] - size + 1):
    for x in range(a.shape[1] - size + 1):
      p, q = (np.asarray(v[y:y + size, x:x + size], np.float64) for v in (a, b))
      mean = lambda v: (window * v).sum()
      mp, mq = mean(p), mean(q)
      vp, vq, cov = mean((p - mp) ** 2), mean((q - mq) ** 2), mean((p - mp) * (q - mq))
      c1, c2 = 0.02**2, 0.06**2
      scores.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
  return np.mean(scores)


def test_ssim_is_its_definition():
  a = pictures()
  b = 0.7 * a + 0.3 * pictures(1)
  want = np.mean([naive_ssim(a[0, :, :, c], b[0, :, :, c]) for c in range(3)])
  found = jax.jit(ssim)(a, b)
  np.testing.assert_allclose(found[0], want, rtol=1e-4)
  np.testing.assert_allclose(jax.jit(ssim)(a, a), [1.0, 1.0], atol=1e-5)
  with pytest.raises(ValueError, match="windows of 11×11; the pictures are 8×8"):
    ssim(a[:, :8, :8], a[:, :8, :8])


def test_kl_is_zero_for_the_normal_and_its_monte_carlo_elsewhere():
  zero = jnp.zeros((1, 2, 2, 1))
  np.testing.assert_allclose(kl_to_normal(zero, zero), [0.0])
  mean, std = 0.5, 0.3
  z = mean + std * np.random.default_rng(0).normal(size=400_000)
  log_ratio = -0.5 * ((z - mean) / std) ** 2 - np.log(std) + 0.5 * z**2
  found = kl_to_normal(zero + mean, zero + 2 * np.log(std))
  np.testing.assert_allclose(found, [4 * log_ratio.mean()], rtol=1e-2)
