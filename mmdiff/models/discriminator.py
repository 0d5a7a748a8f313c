"""The PatchGAN discriminator (https://arxiv.org/abs/1611.07004 §3.2.2; NLayerDiscriminator of pix2pix and taming-transformers): one logit
for every overlapping patch of the picture, 70 pixels wide with three layers."""
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array
from mmdiff.nn.conv import GroupNorm, conv

NORMAL = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
  """4×4 convolutions: `conv0` and `layers` - 1 more of stride 2, one of stride 1, and `conv_out` to a logit; norms between them.

  norm: "batch" is the published one, with the statistics of the rows at hand, real and drawn ones apart, so rows are not independent;
  "group" (16 groups) treats each row alone.
  """
  width: int = 64
  layers: int = 3
  norm: str = "batch"
  dtype: Any = jnp.float32

  @property
  def couples_rows(self) -> bool:
    return self.norm == "batch"

  @nn.compact
  def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B h w 1"]:
    """Pictures in [-1, 1] -> logits in float32, positive = taken for real."""
    least = 3 * 2**self.layers
    if min(image.shape[1:3]) < least:
      found = f"{image.shape[1]}×{image.shape[2]}"
      raise ConfigError(f"a discriminator of {self.layers} layers needs pictures of {least}×{least}, found {found}; give it fewer layers")
    x = image.astype(self.dtype)
    for i in range(self.layers + 1):
      stride = 2 if i < self.layers else 1
      made = nn.Conv(self.width * min(2**i, 8), (4, 4), (stride, stride), padding=1, use_bias=i == 0 or self.norm == "none",
                     dtype=self.dtype, kernel_init=NORMAL, name=f"conv{i}")(x)
      x = nn.leaky_relu(made if i == 0 else self.normalise(made, f"norm{i}"), 0.2)
    return conv(1, 4, padding=1, dtype=self.dtype, init=NORMAL, name="conv_out")(x).astype(jnp.float32)

  def normalise(self, x: Array, name: str) -> Array:
    if self.norm == "none":
      return x
    if self.norm == "group":
      return GroupNorm(16, 1e-5, self.dtype, name=name)(x)
    return BatchNorm(self.dtype, name=name)(x)


class BatchNorm(nn.Module):
  """Batch normalisation with the statistics of the rows at hand, in float32; scales start near one as in pix2pix. There are no running
  averages: a discriminator judges in training only."""
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B H W C] -> [B H W C]."""
    channels = x.shape[-1]
    gain = self.param("scale", lambda key, shape: 1.0 + NORMAL(key, shape), (channels,))[None, None, None]
    bias = self.param("bias", nn.initializers.zeros, (channels,))[None, None, None]
    x = x.astype(jnp.float32)
    centred = x - x.mean((0, 1, 2), keepdims=True)
    return (centred * (jax.lax.rsqrt(jnp.square(centred).mean((0, 1, 2), keepdims=True) + 1e-5) * gain) + bias).astype(self.dtype)


def patch(*, width: int = 64, layers: int = 3, norm: Literal["batch", "group", "none"] = "batch",
          dtype: Literal["float32", "bfloat16"] = "float32") -> PatchDiscriminator:
  """A PatchGAN; `width` is that of the first convolution, `layers` those of stride 2."""
  return PatchDiscriminator(width, layers, norm, jnp.dtype(dtype))
