"""How pixels, positions and times become vectors."""
import math

import jax.numpy as jnp
import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array


def normalize(image: Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
  """uint8 or [-1, 1] pixels [… C] -> float32 (pixel in [0, 1] - mean) / std, per channel."""
  unit = image.astype(jnp.float32) / 255.0 if image.dtype == jnp.uint8 else (image.astype(jnp.float32) + 1.0) / 2.0
  shape = (1,) * (image.ndim - 1) + (-1,)
  return (unit - jnp.asarray(mean, jnp.float32).reshape(shape)) / jnp.asarray(std, jnp.float32).reshape(shape)


def patches(image: Array, patch: int) -> Array:
  """[B H W C] -> [B (H/p)(W/p) p·p·C], patches in reading order, each in the order (row, column, channel).

  A patch embedding is `nn.Dense(width, name="patchify")(patches(image, p))`: its kernel [p·p·C D] is a convolution's HWIO kernel
  [p p C D], reshaped.
  """
  batch, height, width, channels = image.shape
  if height % patch or width % patch:
    raise ConfigError(f"an image of {height}×{width} does not divide into patches of {patch}×{patch}")
  x = image.reshape(batch, height // patch, patch, width // patch, patch * channels)
  return jnp.swapaxes(x, 2, 3).reshape(batch, -1, patch * patch * channels)


def unpatch(x: Array, patch: int, *, height: int, width: int) -> Array:
  """The inverse of `patches`: [B (H/p)(W/p) p·p·C] -> [B H W C]."""
  batch, _, size = x.shape
  x = x.reshape(batch, height // patch, width // patch, patch, size // patch)
  return jnp.swapaxes(x, 2, 3).reshape(batch, height, width, size // patch**2)


def sincos_positions(height: int, width: int, dim: int) -> np.ndarray:
  """Fixed 2-D positions [H·W D] (https://arxiv.org/abs/2111.06377): D/4 each of sin and cos of the column, then of the row."""
  if dim % 4:
    raise ConfigError(f"2-D sine positions need a width that is a multiple of 4, found {dim}")
  rate = 1.0 / 10_000 ** (np.arange(dim // 4) / (dim // 4))
  rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  parts = [fn(axis.reshape(-1, 1) * rate) for axis in (columns, rows) for fn in (np.sin, np.cos)]
  return np.concatenate(parts, axis=-1).astype(np.float32)


def sinusoid(x: Array, dim: int, *, max_period: float = 10_000.0) -> Array:
  """Scalars [B] -> float32 [B dim]: cos, then sin, of geometric frequencies 1 … 1/max_period.

  As in https://arxiv.org/abs/2006.11239 (ADM's order); diffusion times in [0, 1] are scaled to [0, 1000] by the caller.
  """
  if dim % 2:
    raise ConfigError(f"sinusoidal features come in pairs, found a width of {dim}")
  rates = jnp.exp(-math.log(max_period) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
  angles = x.astype(jnp.float32)[:, None] * rates[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
