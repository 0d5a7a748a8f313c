"""The KL autoencoder of latent diffusion (https://arxiv.org/abs/2112.10752 §3.1, appendix G; model.py and autoencoder.py of
CompVis/latent-diffusion): a convolutional encoder to the mean and log variance of a Gaussian over a small grid, and a decoder.

What the public methods call latents is (z - `shift`) · `scale`, so that their deviation is about one; a diffusion model sees nothing else.
"""
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key, UInt

from mmdiff.core.build import OneOf
from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.nn.attention import Attention
from mmdiff.nn.conv import Downsample, GroupNorm, ResBlock, Upsample, conv

LOG_VARIANCE = (-30.0, 20.0)          # clamped, distributions.py

# Widths by level, latent channels, levels with attention beside that of the middle; the models of the paper's Table 8 as published, and
# Stable Diffusion's two (kl-f8 with the scale of its own latents).
VARIANTS: dict[str, dict[str, Any]] = {
  "f4": dict(widths=(128, 256, 512), latent_channels=3),
  "f8": dict(widths=(128, 256, 512, 512), latent_channels=4),
  "f16": dict(widths=(128, 128, 256, 256, 512), latent_channels=16, attention_levels=(4,)),
  "f32": dict(widths=(128, 128, 256, 256, 512, 512), latent_channels=64, attention_levels=(4, 5)),
  "sd": dict(widths=(128, 256, 512, 512), latent_channels=4, scale=0.18215),
  "sdxl": dict(widths=(128, 256, 512, 512), latent_channels=4, scale=0.13025),
  "tiny": dict(widths=(32, 64), latent_channels=4, blocks=1, groups=8, patch=2, image_size=64),
}


class AttentionBlock(nn.Module):
  """x + attention(norm(x)) over all positions, one head as wide as the features."""
  groups: int
  dtype: Any
  implementation: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B H W C] -> [B H W C]."""
    flat = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
    return x + Attention(1, implementation=self.implementation, dtype=self.dtype, name="attention")(flat).reshape(x.shape)


class Half(nn.Module):
  """What encoder and decoder share."""
  widths: tuple[int, ...]
  blocks: int
  out: int
  groups: int
  attention_levels: tuple[int, ...]
  dtype: Any
  remat: str
  attention: str

  def block(self, width: int, name: str) -> nn.Module:
    made = ResBlock if self.remat == "none" else nn.remat(ResBlock)
    return made(width, groups=self.groups, dtype=self.dtype, name=name)

  def attend(self, name: str) -> AttentionBlock:
    return AttentionBlock(self.groups, self.dtype, self.attention, name=name)

  def level(self, x: Array, i: int, blocks: int, name: str) -> Array:
    for j in range(blocks):
      x = self.block(self.widths[i], f"{name}_block{j}")(x)
      if i in self.attention_levels:
        x = self.attend(f"{name}_attention{j}")(x)
    return x

  def middle(self, x: Array) -> Array:
    x = self.attend("mid_attention")(self.block(self.widths[-1], "mid_block0")(x))
    return self.block(self.widths[-1], "mid_block1")(x)

  def rest(self, x: Array) -> Array:
    return jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_out")(x))


class Encoder(Half):
  """[B H W C] -> [B h w out]; level i's parameters are `down{i}_block{j}`, `down{i}_attention{j}`, `down{i}_sample`."""
  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = conv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
    for i in range(len(self.widths)):
      x = self.level(x, i, self.blocks, f"down{i}")
      if i < len(self.widths) - 1:
        x = Downsample(asymmetric=True, dtype=self.dtype, name=f"down{i}_sample")(x)
    return conv(self.out, dtype=self.dtype, name="conv_out")(self.rest(self.middle(x)))


class Decoder(Half):
  """[B h w C] -> the features [B H W D] that `conv_out` turns into pixels; level i's parameters are `up{i}_…`, i as in the encoder."""
  def setup(self):
    self.conv_out = conv(self.out, dtype=self.dtype)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = self.middle(conv(self.widths[-1], dtype=self.dtype, name="conv_in")(x))
    for i in reversed(range(len(self.widths))):
      x = self.level(x, i, self.blocks + 1, f"up{i}")
      if i > 0:
        x = Upsample(dtype=self.dtype, name=f"up{i}_sample")(x)
    return self.rest(x)

  def paint(self, features: Array) -> Array:
    return self.conv_out(features)


class Autoencoder(nn.Module):
  """Pictures [B H W 3] in [-1, 1] <-> latents [B h w C], H/h = W/w = `factor`. Any sides that `factor` divides."""
  widths: tuple[int, ...]
  latent_channels: int
  blocks: int = 2                       # per level of the encoder; the decoder has one more
  groups: int = 32
  attention_levels: tuple[int, ...] = ()
  patch: int = 1
  scale: float | tuple[float, ...] = 1.0          # one for all channels, or one each
  shift: float | tuple[float, ...] = 0.0
  image_size: int = 256
  dtype: Any = jnp.float32
  remat: str = "none"
  attention: str = "auto"
  quant: bool = True                    # whether the encoder ends in a 1×1 convolution of its own
  post_quant: bool = True               # and the decoder begins with one

  @property
  def factor(self) -> int:
    return self.patch * 2 ** (len(self.widths) - 1)

  @property
  def latent_size(self) -> int:
    return self.image_size // self.factor

  def setup(self):
    shared = dict(widths=self.widths, blocks=self.blocks, groups=self.groups, attention_levels=self.attention_levels, dtype=self.dtype,
                  remat=self.remat, attention=self.attention)
    self.encoder = Encoder(out=2 * self.latent_channels, **shared)
    self.decoder = Decoder(out=3 * self.patch**2, **shared)
    self.quant_conv = conv(2 * self.latent_channels, 1, dtype=self.dtype) if self.quant else lambda x: x
    self.post_quant_conv = conv(self.latent_channels, 1, dtype=self.dtype) if self.post_quant else lambda x: x

  def posterior(self, image: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
    """Pictures -> (mean, log variance) of the unscaled latents, float32."""
    if image.shape[1] % self.factor or image.shape[2] % self.factor:
      raise ConfigError(f"the autoencoder reduces its pictures {self.factor} times; {image.shape[1]}×{image.shape[2]} does not divide")
    x = pin(to_depth(image, self.patch).astype(self.dtype), BATCH)
    mean, log_variance = jnp.split(self.quant_conv(self.encoder(x)).astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)

  def features(self, z: Float[Array, "B h w C"]) -> Float[Array, "B a b D"]:
    """Unscaled latents -> the input of the decoder's last convolution."""
    return self.decoder(self.post_quant_conv(z.astype(self.dtype)))

  def paint(self, features: Float[Array, "B a b D"]) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution: pixels, float32, about in [-1, 1] but not clipped."""
    return from_depth(self.decoder.paint(features).astype(jnp.float32), self.patch)

  def encode(self, image: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
    """Pictures in [-1, 1] -> (mean, standard deviation) of the latents, float32, shifted and scaled."""
    mean, log_variance = self.posterior(image)
    scale = by_channel(self.scale)
    return scale * (mean - by_channel(self.shift)), scale * jnp.exp(0.5 * log_variance)

  def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
    """Latents as `encode` gives them -> pictures in [-1, 1], float32, clipped."""
    if latents.shape[-1] != self.latent_channels:
      raise ConfigError(f"latents: expected [h, w, {self.latent_channels}] for each picture, found {list(latents.shape[1:])}; channels "
                        "come last")
    z = latents / by_channel(self.scale) + by_channel(self.shift)
    return jnp.clip(self.paint(self.features(z)), -1.0, 1.0)

  def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """The picture that the mean latents decode to, not clipped."""
    return self.paint(self.features(self.posterior(image)[0]))


def by_channel(value: float | tuple[float, ...]) -> Array:
  """One number as float32 [], one for each channel as [1 1 1 C]."""
  made = jnp.asarray(value, jnp.float32)
  return made.reshape(1, 1, 1, -1) if made.ndim else made


def to_depth(x: Array, patch: int) -> Array:
  """[B H W C] -> [B H/p W/p p·p·C]: a patch's pixels as channels, in the order (row, column, channel)."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
  return jnp.swapaxes(x, 2, 3).reshape(batch, height // patch, width // patch, patch * patch * channels)


def from_depth(x: Array, patch: int) -> Array:
  """The inverse of `to_depth`."""
  batch, height, width, size = x.shape
  x = jnp.swapaxes(x.reshape(batch, height, width, patch, patch, size // patch**2), 2, 3)
  return x.reshape(batch, height * patch, width * patch, size // patch**2)


def draw_latents(mean: Float[Array, "B h w C"], std: Float[Array, "B h w C"], key: Key[Array, ""],
                 ids: UInt[Array, " B"]) -> Float[Array, "B h w C"]:
  """A sample of the posterior; record i's noise is a function of `key` and `ids[i]` alone."""
  noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), mean.shape[1:]))(ids)
  return mean + std * noise


def kl(*, variant: OneOf["VARIANTS"] = "f8", image_size: int | None = None,
       widths: tuple[int, ...] | None = None, latent_channels: int | None = None, blocks: int | None = None, groups: int | None = None,
       attention_levels: tuple[int, ...] | None = None, patch: int | None = None, scale: float | None = None,
       dtype: Literal["float32", "bfloat16"] = "float32", remat: Literal["none", "full"] = "none",
       attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> Autoencoder:
  """A KL autoencoder; a key that is not None replaces the variant's value.

  Args:
    variant: published sizes by their factor; sd and sdxl are f8 with the latent scale of those models; tiny is for a CPU.
    image_size: side of the training pictures; others work too.
    widths: features by level, full resolution first; each further level halves the sides.
    latent_channels: of a latent.
    blocks: residual blocks per level of the encoder.
    groups: of the norms; divides every width.
    attention_levels: levels with attention after every block; the middle has one always.
    patch: side of the pixel blocks that the first level sees as channels.
    scale: what latents are multiplied by, 1 / their standard deviation (the `reconstruction` evaluator reports it).
    dtype: of the activations.
    remat: full recomputes residual blocks in the backward pass.
    attention: implementation, see `nn.attention`.
  """
  given = dict(image_size=image_size, widths=widths, latent_channels=latent_channels, blocks=blocks, groups=groups,
               attention_levels=attention_levels, patch=patch, scale=scale)
  options = VARIANTS[variant] | {key: tuple(value) if isinstance(value, (list, tuple)) else value
                                 for key, value in given.items() if value is not None}
  return Autoencoder(**options, dtype=jnp.dtype(dtype), remat=remat, attention=attention)
