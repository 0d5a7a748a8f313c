"""The encoder of T5 1.1 (https://arxiv.org/abs/1910.10683; 1.1: gated GELU of https://arxiv.org/abs/2002.05202), a text encoder to freeze.

Pre-norm blocks with RMS norms, no biases, attention without 1/√d, and one table of relative-position biases for all layers. What a block
adds is summed in float32, the last product of the MLP included: T5's stream grows beyond what bfloat16 resolves.
"""
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from mmdiff.core.build import OneOf
from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.nn.transformer import GatedMlp, stack

PRESETS = {                             # width, depth, heads, mlp_dim; heads are 64 wide but for tiny
  "tiny": (64, 2, 4, 128),
  "small": (512, 8, 6, 1024),
  "base": (768, 12, 12, 2048),
  "large": (1024, 24, 16, 2816),
  "xl": (2048, 24, 32, 5120),
  "xxl": (4096, 24, 64, 10240),
}
HEAD_DIM = {"tiny": 16}
HIDDEN = -1e9                           # what a hidden key's score is lowered by; finite, so that a row without any key is no NaN
BUCKETS, LONGEST = 32, 128
END = 1                                 # </s>, all that is left of an empty text


def relative_buckets(queries: int, keys: int) -> np.ndarray:
  """int32 [L S] in [0, 32): the bucket of key position minus query position, half of them for each sign.

  Distances below 8 have a bucket each, those up to 128 share the rest logarithmically (Raffel et al. 2020 §2.1).
  """
  offset = np.arange(keys)[None] - np.arange(queries)[:, None]
  half, distance = BUCKETS // 2, np.abs(offset)
  exact = half // 2
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(LONGEST / exact))
  far = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
  return (np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)).astype(np.int32)


class RmsNorm(nn.Module):
  """x / rms(x) · scale, without mean and bias (https://arxiv.org/abs/1910.07467); statistics in float32."""
  eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.eps)
    return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


class BiasedAttention(nn.Module):
  """softmax(q kᵀ + bias) v, unscaled. Kernels `query`, `key`, `value` [D N·Dh] and `out` [N·Dh D]."""
  heads: int
  head_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, bias: Array) -> Array:
    """[B L D], bias float32 [B N L L] -> [B L D]."""
    width, inner = x.shape[-1], self.heads * self.head_dim
    normal = nn.initializers.normal

    def project(name, std):
      flat = nn.Dense(inner, use_bias=False, dtype=self.dtype, kernel_init=normal(std), name=name)(x)
      return jnp.swapaxes(flat.reshape(*flat.shape[:2], self.heads, self.head_dim), 1, 2)                 # [B N L Dh]
    # Without 1/√d in the attention it is in the queries' initial size.
    query, key = project("query", (width * self.head_dim) ** -0.5), project("key", width**-0.5)
    scores = jnp.einsum("bnld,bnsd->bnls", query, key, preferred_element_type=jnp.float32) + bias
    mixed = jnp.einsum("bnls,bnsd->bnld", jax.nn.softmax(scores, -1).astype(self.dtype), project("value", width**-0.5))
    out = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=normal(inner**-0.5), name="out")
    return out(jnp.swapaxes(mixed, 1, 2).reshape(*x.shape[:2], inner))


class T5Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); x stays float32."""
  heads: int
  head_dim: int
  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, bias: Array) -> tuple[Array, None]:
    x, width = pin(x, BATCH), x.shape[-1]
    normed = RmsNorm(dtype=self.dtype, name="norm_attention")(x)
    x = x + BiasedAttention(self.heads, self.head_dim, self.dtype, name="attention")(normed, bias).astype(jnp.float32)
    mlp = GatedMlp(self.mlp_dim, "gelu_tanh", use_bias=False, dtype=self.dtype, down_dtype=jnp.float32,
                   up_init=nn.initializers.normal(width**-0.5), down_init=nn.initializers.normal(self.mlp_dim**-0.5), name="mlp")
    return pin(x + mlp(RmsNorm(dtype=self.dtype, name="norm_mlp")(x)), BATCH), None


class T5Encoder(nn.Module):
  """Tokens int32 [B L] and mask bool [B L] -> float32 [B L D]. Positions where the mask is false are hidden from the others."""
  vocab: int
  width: int
  depth: int
  heads: int
  head_dim: int
  mlp_dim: int
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int | bool = 1
  empty: tuple[int, ...] = (END,)         # the tokens of an empty text

  @nn.compact
  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    x = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(1.0), name="embed")(tokens)
    table = self.param("position_bias", nn.initializers.normal(self.width**-0.5), (BUCKETS, self.heads))
    length = tokens.shape[1]
    bias = jnp.transpose(table[relative_buckets(length, length)], (2, 0, 1))[None]                         # [1 N L L]
    bias = jnp.where(mask[:, None, None], bias, HIDDEN)                                # [B N L L]
    x, _ = stack(T5Block, self.depth, remat=self.remat, unroll=self.unroll, heads=self.heads, head_dim=self.head_dim,
                 mlp_dim=self.mlp_dim, dtype=self.dtype)(x, bias)
    return RmsNorm(name="norm_post")(x)


def t5(*, variant: OneOf["PRESETS"], vocab: int = 32_128, dtype: Literal["float32", "bfloat16"] = "bfloat16",
       remat: Literal["none", "full", "dots", "names"] = "none", unroll: bool = False) -> T5Encoder:
  """The encoder of a published size (`tiny` is ours) as the condition of a text-to-image model.

  Args:
    variant: small 35 M, base 110 M, large 341 M, xl 1.22 B, xxl 4.76 B parameters, of which vocab × width are the embedding.
    vocab: rows of the embedding; the published ones have 32,128 for 32,100 tokens.
    dtype: of the products; norms, softmax, the stream and the MLP's last product are float32 in any case.
  """
  if variant not in PRESETS:
    raise ConfigError(f"condition.variant: unknown value {variant!r}; known: {', '.join(PRESETS)}")
  width, depth, heads, mlp_dim = PRESETS[variant]
  return T5Encoder(vocab, width, depth, heads, HEAD_DIM.get(variant, 64), mlp_dim, jnp.dtype(dtype), remat, unroll)
