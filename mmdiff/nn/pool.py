"""How a sequence becomes one vector. The class token is `x[:, 0]` and needs no function."""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mmdiff.core.types import Array
from mmdiff.nn.attention import Attention
from mmdiff.nn.transformer import Mlp, layer_norm


def lengths_of(mask: Array) -> Array:
  """Bool [B L] -> int32 [B], the last true position plus one (0 for an empty row)."""
  positions = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(mask, positions[None], 0), axis=1)


def at_end(x: Array, mask: Array) -> Array:
  """[B L D] -> [B D], the row at the last true position of `mask` [B L]: the end token."""
  index = jnp.maximum(lengths_of(mask) - 1, 0)
  return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def average(x: Array, mask: Array | None = None) -> Array:
  """[B L D] -> [B D], the mean over the positions where `mask` [B L] is true (None: all), in float32."""
  if mask is None:
    return jnp.mean(x.astype(jnp.float32), axis=1).astype(x.dtype)
  weight = mask.astype(jnp.float32)[..., None]
  return (jnp.sum(x * weight, axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)).astype(x.dtype)


class MapPool(nn.Module):
  """Attention pooling by one learned query (https://arxiv.org/abs/2106.04560 §3.2): y = attention(probe, x), then y + mlp(norm(y))."""
  heads: int
  mlp_dim: int
  act: str = "gelu_tanh"
  eps: float = 1e-6
  dtype: Any = jnp.float32
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B L D] -> [B D]."""
    batch, _, width = x.shape
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, width))
    query = jnp.broadcast_to(probe[None].astype(self.dtype), (batch, 1, width))
    y = Attention(self.heads, dtype=self.dtype, implementation=self.implementation, name="attention")(query, x)
    y = y + Mlp(self.mlp_dim, self.act, dtype=self.dtype, name="mlp")(layer_norm("norm", dtype=self.dtype, eps=self.eps)(y))
    return y[:, 0]


class AttentionPool(nn.Module):
  """Cross-attention from `queries` learned vectors (CoCa, https://arxiv.org/abs/2205.01917 §3.2) in the form of open_clip's
  AttentionalPooler: LayerNorm on queries and on keys, queries from N(0, 1), no residual and no MLP."""
  width: int
  queries: int
  heads: int
  eps: float = 1e-5
  dtype: Any = jnp.float32
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B S C] -> [B queries width]."""
    learned = self.param("query_tokens", nn.initializers.normal(1.0), (self.queries, self.width))
    query = layer_norm("norm_queries", dtype=self.dtype, eps=self.eps)(learned)[None]
    query = jnp.broadcast_to(query, (x.shape[0], self.queries, self.width))
    attend = Attention(self.heads, dtype=self.dtype, implementation=self.implementation, name="attention")
    return attend(query, layer_norm("norm_keys", dtype=self.dtype, eps=self.eps)(x))
