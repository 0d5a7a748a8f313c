"""How far a picture is from another, row by row: pixels in [-1, 1], everything in float32, one number per picture."""
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mmdiff.core.precision import EXACT
from mmdiff.core.types import Array

RANGE = 2.0          # of pixels in [-1, 1]


def l1(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> Float[Array, " B"]:
  """Mean absolute difference."""
  return jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).mean((1, 2, 3))


def mse(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> Float[Array, " B"]:
  """Mean squared difference."""
  return jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean((1, 2, 3))


def psnr(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> Float[Array, " B"]:
  """Peak signal-to-noise ratio, 10 log10(range² / mse), in dB; at most 100, since equal pictures have none."""
  return -10.0 * jnp.log10(jnp.maximum(mse(a, b) / RANGE**2, 1e-10))


def ssim(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"], *, sigma: float = 1.5, size: int = 11) -> Float[Array, " B"]:
  """Structural similarity (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, eq. 13): Gaussian windows that lie wholly inside the
  picture, K1 = 0.01, K2 = 0.03, population moments, the mean over positions and channels. 1 for equal pictures.

  Raises ValueError for pictures smaller than a window.
  """
  if min(a.shape[1:3]) < size:
    raise ValueError(f"SSIM slides windows of {size}×{size}; the pictures are {a.shape[1]}×{a.shape[2]}")
  line = np.exp(-0.5 * np.square((np.arange(size) - (size - 1) / 2) / sigma))
  line = jnp.asarray(line / line.sum(), jnp.float32)

  def blur(x):
    for axis in (1, 2):
      x = jnp.tensordot(jnp.stack([jax.lax.slice_in_dim(x, i, x.shape[axis] - size + 1 + i, axis=axis) for i in range(size)], -1), line, 1,
                        precision=EXACT)           # variances are differences of squares
    return x

  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  mean_a, mean_b = blur(a), blur(b)
  var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
  covariance = blur(a * b) - mean_a * mean_b
  c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
  value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
  return value.mean((1, 2, 3))


def kl_to_normal(mean: Float[Array, "B h w C"], log_variance: Float[Array, "B h w C"]) -> Float[Array, " B"]:
  """KL(N(mean, variance) ‖ N(0, 1)) in nats, summed over the latent (https://arxiv.org/abs/1312.6114, appendix B)."""
  return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).sum((1, 2, 3))
