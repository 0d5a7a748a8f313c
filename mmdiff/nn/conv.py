"""The parts of convolutional autoencoders and UNets (ADM, https://arxiv.org/abs/2105.05233; latent diffusion,
https://arxiv.org/abs/2112.10752, model.py and openaimodel.py of CompVis/latent-diffusion). Activations are [B H W C], kernels HWIO.
"""
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array

# PyTorch's default for convolutions and linear layers: uniform in ±1/√fan_in. All published weights started from it.
TORCH_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ASYMMETRIC = ((0, 1), (0, 1))


def conv(width: int, size: int = 3, *, stride: int = 1, padding: Any = None, dtype: Any = jnp.float32, init=TORCH_INIT,
         name: str | None = None) -> nn.Conv:
  """A convolution with bias, zero-padded by size // 2 on every side unless `padding` says otherwise."""
  return nn.Conv(width, (size, size), (stride, stride), padding=size // 2 if padding is None else padding, dtype=dtype, kernel_init=init,
                 name=name)


class GroupNorm(nn.Module):
  """Group normalisation (https://arxiv.org/abs/1803.08494, eq. 7): `scale`, `bias` [C]; statistics in float32 in two passes.

  Moments are taken per channel first and then averaged over a group's channels: the same numbers as over [H W C/G] at once, several
  times faster on a CPU and in one fusion on an accelerator.
  """
  groups: int = 32
  eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
    """[B H W C] -> [B H W C]; with `scale`, `shift` [B C] the result times (1 + scale), plus shift (ADM §3, adaptive group norm)."""
    channels = x.shape[-1]
    if channels % self.groups:
      raise ConfigError(f"{channels} channels do not divide into {self.groups} groups of a group norm; choose widths that are multiples of "
                        "`groups`, or fewer groups")
    gain = self.param("scale", nn.initializers.ones, (channels,))[None, None, None]
    bias = self.param("bias", nn.initializers.zeros, (channels,))[None, None, None]

    def over_group(moment):                                                                   # [B C] -> [B 1 1 C]
      mean = moment.reshape(moment.shape[0], self.groups, -1).mean(-1)
      return jnp.repeat(mean, channels // self.groups, axis=-1)[:, None, None]

    centred = x.astype(jnp.float32)
    centred = centred - over_group(centred.mean((1, 2)))
    y = centred * (jax.lax.rsqrt(over_group(jnp.square(centred).mean((1, 2))) + self.eps) * gain) + bias
    if scale is not None and shift is not None:
      y = y * (1.0 + scale.astype(jnp.float32)[:, None, None]) + shift.astype(jnp.float32)[:, None, None]
    return y.astype(self.dtype)


class ResBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1 `conv_shortcut` where the width changes.

  A condition [B D] goes through silu and `project`, and is added between the convolutions ("add") or becomes scale and shift of the
  second norm ("scale_shift"). Parameters: norm1, conv1, (project,) norm2, conv2, (conv_shortcut).
  """
  width: int
  groups: int = 32
  eps: float = 1e-6
  conditioning: Literal["add", "scale_shift"] = "add"
  out_init: nn.initializers.Initializer = TORCH_INIT         # zeros: the block starts as its shortcut
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, condition: Array | None = None) -> Array:
    """[B H W C], [B D] -> [B H W width]."""
    x = pin(x, BATCH)
    norm = lambda name: GroupNorm(self.groups, self.eps, self.dtype, name=name)
    h = conv(self.width, dtype=self.dtype, name="conv1")(jax.nn.silu(norm("norm1")(x)))
    modulation: tuple[Array, ...] = ()
    if condition is not None:
      double = self.conditioning == "scale_shift"
      projected = nn.Dense(self.width * (1 + double), dtype=self.dtype, kernel_init=TORCH_INIT, name="project")(jax.nn.silu(condition))
      if double:
        modulation = tuple(jnp.split(projected, 2, axis=-1))
      else:
        h = h + projected[:, None, None]
    h = conv(self.width, dtype=self.dtype, init=self.out_init, name="conv2")(jax.nn.silu(norm("norm2")(h, *modulation)))
    if x.shape[-1] != self.width:
      x = conv(self.width, 1, dtype=self.dtype, name="conv_shortcut")(x)
    return pin(x + h, BATCH)


class Downsample(nn.Module):
  """A 3×3 convolution of stride 2, padded by one on every side (UNets), or on the right and bottom only (`asymmetric`: the VAE)."""
  asymmetric: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B H W C] -> [B H/2 W/2 C]."""
    return conv(x.shape[-1], stride=2, padding=ASYMMETRIC if self.asymmetric else 1, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
  """Every pixel twice in both directions, then a 3×3 convolution."""
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B H W C] -> [B 2H 2W C]."""
    return conv(x.shape[-1], dtype=self.dtype, name="conv")(nearest(x))


def nearest(x: Array, factor: int = 2) -> Array:
  """[B H W C] -> [B factor·H factor·W C], pixels repeated."""
  return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)
