"""CLIP's text transformer (https://arxiv.org/abs/2103.00020 §2.4), SigLIP's non-causal variant (https://arxiv.org/abs/2303.15343), and
CLIP's as the condition of latent diffusion: any layer, with or without the final norm, alone or two side by side.
"""
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from mmdiff.core.build import Built, OneOf
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
  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B ... D"]:
    x = words_at_positions(self, tokens)                                                      # [B L D]
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


def words_at_positions(module: Any, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
  """The parameters `embed` and `position` of a module with the fields vocab, length, width and dtype, looked up and added."""
  length = tokens.shape[1]
  if length > module.length:
    raise ConfigError(f"texts of {length} tokens do not fit {module.length} positions: lower data.text_len or raise the model's text_len")
  x = nn.Embed(module.vocab, module.width, embedding_init=nn.initializers.normal(0.02), dtype=module.dtype, name="embed")(tokens)
  position = module.param("position", nn.initializers.normal(0.01), (module.length, module.width))
  return x + position[None, :length].astype(module.dtype)


class Kept(NamedTuple):
  """A stream of which one layer's output is kept on the way."""
  x: Array
  kept: Array
  layer: Array          # int32 [], of the block to come


class KeepingBlock(Block):
  """`Block` on a `Kept` stream: what enters layer `keep` is kept."""
  keep: int = 0

  @nn.compact
  def __call__(self, stream: Kept, lengths: Array | None = None) -> tuple[Kept, None]:       # type: ignore[override]
    kept = jnp.where(stream.layer == self.keep, stream.x, stream.kept)
    return Kept(super().__call__(stream.x, lengths)[0], kept, stream.layer + 1), None


class ClipStates(nn.Module):
  """Tokens int32 [B L] and mask bool [B L] -> text dict: `tokens` float32 [B L D], `mask` all true, `pooled` float32 [B embed_dim or D].

  Parameters are named as those of `TextTransformer`. Padding is seen, as in CLIP's own training, and is what the published models pad
  with, whatever the data's tokenizer used. `pooled` is the normed last layer at the end token, projected if there is an `embed_dim`.
  """
  vocab: int
  length: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  embed_dim: int | None                # of the projection of `pooled`; None: no projection
  skip: int = 0                        # layers of the depth that `tokens` leave out
  norm: bool = True                    # whether `tokens` pass the final norm
  act: str = "gelu"
  pad: int = 0
  whole: bool = False                  # whether layers beyond the one taken exist without a projection, as published checkpoints have them
  eps: float = 1e-5
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int | bool = 1
  attention: str = "auto"
  sees_padding = True                   # all states count for who reads them

  @property
  def empty(self) -> tuple[int, ...]:
    """The tokens of an empty text: start and end, the vocabulary's last two."""
    return self.vocab - 2, self.vocab - 1

  @property
  def pooled_width(self) -> int:
    return self.embed_dim or self.width

  @nn.compact
  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Mapping[str, Array]:
    x = words_at_positions(self, jnp.where(mask, tokens, self.pad))                           # [B L D]
    taken = self.depth - self.skip
    fields = dict(heads=self.heads, mlp_dim=self.mlp_dim, act=self.act, causal=True, eps=self.eps, dtype=self.dtype,
                  implementation=self.attention, inits=clip_inits(self.width, self.depth))
    options: dict[str, Any] = dict(remat=self.remat, unroll=self.unroll)
    if not self.skip or (self.embed_dim is None and not self.whole):
      last, _ = stack(Block, taken, **options, **fields)(x)
      states = last
    else:
      stream, _ = stack(KeepingBlock, self.depth, **options, **fields, keep=taken)(Kept(x, x, jnp.int32(0)))
      last, states = stream.x, stream.kept
    norm = layer_norm("norm_post", dtype=self.dtype, eps=self.eps)
    pooled = norm(pool.at_end(last, mask))
    if self.embed_dim is not None:
      pooled = nn.Dense(self.embed_dim, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(self.width**-0.5),
                        name="projection")(pooled)
    states = norm(states) if self.norm else states
    return {"tokens": states.astype(jnp.float32), "mask": jnp.ones_like(mask), "pooled": pooled.astype(jnp.float32)}


class SideBySide(nn.Module):
  """Two encoders of the same tokens: states side by side, `pooled` of the second (SDXL, https://arxiv.org/abs/2307.01952 §2.1)."""
  first: nn.Module
  second: nn.Module
  sees_padding = True

  @property
  def empty(self) -> tuple[int, ...]:
    return self.second.empty

  @property
  def length(self) -> int:
    return self.second.length

  @property
  def width(self) -> int:
    return self.first.width + self.second.width

  @property
  def pooled_width(self) -> int:
    return self.second.pooled_width

  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Mapping[str, Array]:
    first, second = self.first(tokens, mask), self.second(tokens, mask)
    return second | {"tokens": jnp.concatenate([first["tokens"], second["tokens"]], -1)}


# width, depth, heads, projection of `pooled` or None, skip, norm, activation, padding ("end" token or token 0)
CLIP_STATES = {
  "tiny": (32, 2, 2, None, 0, True, "quick_gelu", "end"),
  "tiny-pooled": (48, 3, 2, 40, 1, False, "gelu", "zero"),
  "sd1": (768, 12, 12, None, 0, True, "quick_gelu", "end"),             # CLIP ViT-L/14, last layer
  "sd2": (1024, 24, 16, None, 1, True, "gelu", "zero"),                 # OpenCLIP ViT-H/14, penultimate layer and final norm
  "sdxl-1": (768, 12, 12, None, 1, False, "quick_gelu", "end"),         # CLIP ViT-L/14, penultimate layer
  "sdxl-2": (1280, 32, 20, 1280, 1, False, "gelu", "zero"),             # OpenCLIP ViT-bigG/14, penultimate layer, projected last one
}


def clip_states(*, variant: OneOf["CLIP_STATES"], vocab: int = 49_408, text_len: int = 77, skip: int | None = None,
                norm: bool | None = None, dtype: Literal["float32", "bfloat16"] = "bfloat16",
                remat: Literal["none", "dots", "full", "names"] = "none", unroll: bool = False,
                attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> ClipStates:
  """A published CLIP text encoder as the condition of a text-to-image model; what is None is the variant's.

  Args:
    variant: by the model that it is part of; SDXL takes both of its own in `two_texts`.
    vocab: the last two tokens are start and end.
    skip: layers left out at the end: 0 the last hidden state, 1 the penultimate one.
    norm: whether the states pass the final norm.
  """
  if variant not in CLIP_STATES:
    raise ConfigError(f"condition.variant: unknown value {variant!r}; known: {', '.join(CLIP_STATES)}")
  width, depth, heads, embed_dim, own_skip, own_norm, act, pad = CLIP_STATES[variant]
  skip = own_skip if skip is None else skip
  if not 0 <= skip < depth:
    raise ConfigError(f"condition.skip: {variant} has {depth} layers, found {skip}; use 0 to {depth - 1}")
  return ClipStates(vocab=vocab, length=text_len, width=width, depth=depth, heads=heads, mlp_dim=4 * width, embed_dim=embed_dim, skip=skip,
                    norm=own_norm if norm is None else norm, act=act, pad=vocab - 1 if pad == "end" else 0, dtype=jnp.dtype(dtype),
                    remat=remat, unroll=unroll, attention=attention)


def two_texts(*, first: Built["mmdiff.models:TEXT_ENCODERS"], second: Built["mmdiff.models:TEXT_ENCODERS"]) -> SideBySide:
  """Two of `clip_states` on the same tokens."""
  return SideBySide(first, second)
