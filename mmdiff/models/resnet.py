"""CLIP's modified ResNets (https://arxiv.org/abs/2103.00020 §2.4; openai/CLIP model.py): a stem of three convolutions and an average
pool, anti-aliased strides (average pool instead of a strided convolution), and attention pooling by the mean token."""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.nn.attention import Attention

# Blocks of the four stages, width of the first. Table 19 of the paper.
VARIANTS = {
  "RN50": dict(blocks=(3, 4, 6, 3), width=64),
  "RN101": dict(blocks=(3, 4, 23, 3), width=64),
  "RN50x4": dict(blocks=(4, 6, 10, 6), width=80),
  "RN50x16": dict(blocks=(6, 8, 18, 8), width=96),
  "RN50x64": dict(blocks=(3, 15, 36, 10), width=128),
  "tiny-rn": dict(blocks=(1, 1, 1, 1), width=16),
}


def conv(width: int, size: int, stride: int = 1, *, dtype: Any, name: str) -> nn.Conv:
  return nn.Conv(width, (size, size), (stride, stride), padding=size // 2, use_bias=False, dtype=dtype, name=name,
                 kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))


def batch_norm(name: str, *, train: bool, dtype: Any, scale_init=nn.initializers.ones) -> nn.BatchNorm:
  """Under `jit` the batch is the global one, on any mesh; running averages keep 0.9 of their value."""
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init,
                      use_fast_variance=False, name=name)


def halve(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
  return nn.avg_pool(x, (2, 2), (2, 2))


class Bottleneck(nn.Module):
  """1×1, 3×3, (average pool,) 1×1 to four times the width; the last norm starts at zero, so a block starts as its shortcut."""
  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  train: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    norm = lambda name, **kw: batch_norm(name, train=self.train, dtype=self.dtype, **kw)
    shrink = halve if self.stride == 2 else lambda y: y
    y = nn.relu(norm("norm1")(conv(self.width, 1, dtype=self.dtype, name="conv1")(x)))
    y = nn.relu(norm("norm2")(conv(self.width, 3, dtype=self.dtype, name="conv2")(y)))
    y = norm("norm3", scale_init=nn.initializers.zeros)(conv(4 * self.width, 1, dtype=self.dtype, name="conv3")(shrink(y)))
    if self.stride == 2 or x.shape[-1] != 4 * self.width:
      x = norm("norm_shortcut")(conv(4 * self.width, 1, dtype=self.dtype, name="conv_shortcut")(shrink(x)))
    return pin(nn.relu(x + y), BATCH)


class ResNet(nn.Module):
  """[B H W 3], normalised -> float32 [B embed_dim]; with `train` batch statistics are used and, where mutable, updated."""
  blocks: tuple[int, ...]
  width: int
  embed_dim: int
  heads: int | None = None            # of the attention pool; default: its width / 64
  dtype: Any = jnp.float32
  remat: str = "none"
  attention: str = "auto"

  @nn.compact
  def __call__(self, image: Float[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B D"]:
    if image.shape[1] % 32 or image.shape[2] % 32:
      raise ConfigError(f"a ResNet reduces its image 32 times; {image.shape[1]}×{image.shape[2]} does not divide by 32")
    x = image.astype(self.dtype)
    for i, (width, stride) in enumerate([(self.width // 2, 2), (self.width // 2, 1), (self.width, 1)], 1):
      x = conv(width, 3, stride, dtype=self.dtype, name=f"conv{i}")(x)
      x = nn.relu(batch_norm(f"norm{i}", train=train, dtype=self.dtype)(x))
    x = halve(x)
    block = Bottleneck if self.remat == "none" else nn.remat(Bottleneck)
    for stage, depth in enumerate(self.blocks):
      for i in range(depth):
        x = block(self.width * 2**stage, 2 if stage and not i else 1, dtype=self.dtype, train=train, name=f"stage{stage + 1}_{i}")(x)

    x = x.reshape(x.shape[0], -1, x.shape[-1])                                                # [B H W D] -> [B L D]
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    normal = nn.initializers.normal(x.shape[-1]**-0.5)
    x = x + self.param("position", normal, x.shape[1:]).astype(self.dtype)[None]
    pooled = Attention(self.heads or x.shape[-1] // 64, out_dim=self.embed_dim, qkv_init=normal, out_init=normal, dtype=self.dtype,
                       implementation=self.attention, name="attention")(x[:, :1], x)
    return pooled[:, 0].astype(jnp.float32)


def resnet(variant: str, **overrides) -> ResNet:
  """`resnet("RN50x4", embed_dim=640)`: a published size, with any field overridden."""
  return ResNet(**(VARIANTS[variant] | overrides))
