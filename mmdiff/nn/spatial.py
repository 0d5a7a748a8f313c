"""Transformers over the pixels of a feature map that read text (Rombach et al. 2022, https://arxiv.org/abs/2112.10752 §3.3, eq. 5 ff.).

What depends on the text alone, the keys and values of every cross-attention, is computed once per sampling loop: a first `apply` with
`mutable=["cache"]` leaves them in the collection `cache`, later calls that are given the collection read them (`kept`).
"""
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.nn.attention import attention
from mmdiff.nn.conv import TORCH_INIT, GroupNorm
from mmdiff.nn.transformer import GatedMlp, layer_norm, stack

CACHE = "cache"


def kept(module: nn.Module, name: str, compute: Callable[[], Array]) -> Array:
  """`compute()`, or what an earlier call left under `name` in the module's cache; left there when the cache is mutable."""
  if module.has_variable(CACHE, name):
    return module.get_variable(CACHE, name)
  value = compute()
  if module.is_mutable_collection(CACHE) and not module.is_initializing():
    module.put_variable(CACHE, name, value)
  return value


class SpatialAttention(nn.Module):
  """Self-attention of x, or cross-attention from x to text. Kernels `query`, `key`, `value` have no bias, `out` has one."""
  heads: int
  head_dim: int
  implementation: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, text: Array | None = None, lengths: Array | None = None) -> Array:
    """[B L D] (and text [B S C], of which `lengths` int32 [B] are real) -> [B L D]."""
    def project(source, name):
      flat = nn.Dense(self.heads * self.head_dim, use_bias=False, dtype=self.dtype, kernel_init=TORCH_INIT, name=name)(source)
      return flat.reshape(*flat.shape[:2], self.heads, self.head_dim)

    if text is None:
      key, value = project(x, "key"), project(x, "value")
    else:
      key, value = (kept(self, name, lambda name=name: project(text, name)) for name in ("key", "value"))
    out = attention(project(x, "query"), key, value, lengths=None if text is None else lengths, implementation=self.implementation)
    out = out.reshape(*x.shape[:2], self.heads * self.head_dim)
    return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=TORCH_INIT, name="out")(out)


class SpatialBlock(nn.Module):
  """x + attention(norm(x)), x + cross-attention(norm(x), text), x + mlp(norm(x)) with GEGLU of four times the width.

  With `text_only` the first attention is to the text as well (the x4 upscaler's `disable_self_attentions`).
  """
  heads: int
  head_dim: int
  text_only: bool = False
  implementation: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, text: Array, lengths: Array) -> tuple[Array, None]:
    """x [B L D], text [B S C] -> ([B L D], None)."""
    x = pin(x, BATCH)
    norm = lambda name: layer_norm(name, dtype=self.dtype, eps=1e-5)
    attend = lambda name: SpatialAttention(self.heads, self.head_dim, self.implementation, self.dtype, name=name)
    x = x + attend("attention")(norm("norm_attention")(x), *((text, lengths) if self.text_only else ()))
    x = x + attend("cross_attention")(norm("norm_cross")(x), text, lengths)
    mlp = GatedMlp(4 * x.shape[-1], dtype=self.dtype, up_init=TORCH_INIT, down_init=TORCH_INIT, name="mlp")
    return pin(x + mlp(norm("norm_mlp")(x)), BATCH), None


class SpatialTransformer(nn.Module):
  """x + project_out(blocks(project_in(norm(x)))) over the positions of a map; by default it starts as x.

  The published 1×1 convolutions and linear projections are the same function; both are kernels [C C] here.
  """
  depth: int
  heads: int | None = None              # of each attention; None: as many as `head_dim` gives
  head_dim: int | None = None
  text_only: bool = False
  groups: int = 32
  remat: str = "none"
  unroll: int | bool = 1
  implementation: str = "auto"
  dtype: Any = jnp.float32
  out_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array, text: Array, lengths: Array) -> Array:
    """x [B H W C], text [B S D], of which `lengths` int32 [B] are real -> [B H W C]."""
    batch, height, width, channels = x.shape
    heads = self.heads or channels // (self.head_dim or channels)
    if channels % heads:
      raise ConfigError(f"{channels} channels do not divide into {heads} heads; change the denoiser's heads or width")
    h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x).reshape(batch, height * width, channels)
    h = nn.Dense(channels, dtype=self.dtype, kernel_init=TORCH_INIT, name="project_in")(h)
    blocks = stack(SpatialBlock, self.depth, remat=self.remat, unroll=self.unroll, heads=heads, head_dim=channels // heads,
                   text_only=self.text_only, implementation=self.implementation, dtype=self.dtype)
    h, _ = blocks(h, text, lengths)
    h = nn.Dense(channels, dtype=self.dtype, kernel_init=self.out_init, name="project_out")(h)
    return x + h.reshape(x.shape)
