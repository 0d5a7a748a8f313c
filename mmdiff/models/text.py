"""CLIP's text transformer (https://arxiv.org/abs/2103.00020 §2.4) and SigLIP's non-causal variant (https://arxiv.org/abs/2303.15343)."""
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array
from mmdiff.nn import pool
from mmdiff.nn.transformer import Block, clip_inits, layer_norm, stack


class TextTransformer(nn.Module):
  """Tokens int32 [B L] and mask bool [B L] -> float32 [B embed_dim], or [B L D] with pool="none"."""
  vocab: int
  length: int                         # rows of the position table; shorter texts use its head
  width: int
  depth: int
  heads: int
  mlp_dim: int
  embed_dim: int | None = None        # of the projection; None = no projection, D out
  causal: bool = True
  masked: bool = False                # hide padding from attention; CLIP and SigLIP were trained without
  pool: str = "eot"                   # "eot": the last true position of the mask | "last": the last position | "none"
  projection_bias: bool = False
  act: str = "gelu"
  eps: float = 1e-5
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int | bool = 1
  attention: str = "auto"

  @nn.compact
  def __call__(self, tokens: Array, mask: Array) -> Array:
    length = tokens.shape[1]
    if length > self.length:
      raise ConfigError(f"texts of {length} tokens do not fit {self.length} positions: lower data.text_len or raise the model's text_len")
    x = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name="embed")(tokens)
    position = self.param("position", nn.initializers.normal(0.01), (self.length, self.width))
    x = x + position[None, :length].astype(self.dtype)                                       # [B L D]
    x, _ = stack(Block, self.depth, remat=self.remat, unroll=self.unroll, heads=self.heads, mlp_dim=self.mlp_dim, act=self.act,
                 causal=self.causal, eps=self.eps, dtype=self.dtype, implementation=self.attention,
                 inits=clip_inits(self.width, self.depth))(x, pool.lengths_of(mask) if self.masked else None)
    norm = layer_norm("norm_post", dtype=self.dtype, eps=self.eps)
    if self.pool == "none":
      return norm(x).astype(jnp.float32)
    x = norm(pool.at_end(x, mask) if self.pool == "eot" else x[:, -1])                        # [B D]
    if self.embed_dim is not None:
      x = nn.Dense(self.embed_dim, use_bias=self.projection_bias, dtype=self.dtype,
                   kernel_init=nn.initializers.normal(self.width**-0.5), name="projection")(x)
    return x.astype(jnp.float32)


def causal_text(*, vocab: int = 49_408, text_len: int = 77, width: int = 512, depth: int = 12, heads: int = 8,
                act: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "quick_gelu", dtype: Literal["float32", "bfloat16"] = "float32",
                remat: Literal["none", "dots", "full", "names"] = "none", unroll: bool = False,
                attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> TextTransformer:
  """CLIP's causal text encoder as the conditioning of a text-to-image model: (tokens, mask) -> float32 [B L width]."""
  return TextTransformer(vocab=vocab, length=text_len, width=width, depth=depth, heads=heads, mlp_dim=4 * width, pool="none", act=act,
                         dtype=jnp.dtype(dtype), remat=remat, unroll=unroll, attention=attention)
