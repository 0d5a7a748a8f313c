"""CoCa (https://arxiv.org/abs/2205.01917): an image tower, a unimodal text decoder and a multimodal one that attends to the image.

The first half of the decoder never sees the image: a learned class token, last in the sentence, gives the text embedding there. The second
half attends to `queries` image tokens made by an attentional pooler. `PRESETS` has Table 1 of the paper, and the two public models of
open_clip, which differ: one pooler whose first query is the image embedding, an MLP in every cross-attention block, a class token in the
image tower, and a class token of the text that sees one position more than there are words.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int, UInt8

from mmdiff.core.build import OneOf
from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array, Params, Tree
from mmdiff.models.vit import ViT
from mmdiff.nn import embed
from mmdiff.nn.attention import KeysValues, empty_cache
from mmdiff.nn.pool import AttentionPool, lengths_of
from mmdiff.nn.transformer import Block, block_keys_values, clip_inits, layer_norm, layers_of, stack

# `image`: width, depth, heads, MLP width, patch; `text`: width, unimodal and multimodal layers, heads, MLP width.
PRESETS = {
  "Base": dict(image=(768, 12, 12, 3072, 18), text=(768, 12, 12, 12, 3072), embed_dim=768),
  "Large": dict(image=(1024, 24, 16, 4096, 18), text=(1024, 12, 12, 16, 4096), embed_dim=1024),
  "2.1B": dict(image=(1408, 40, 16, 6144, 18), text=(1408, 18, 18, 16, 5632), embed_dim=1408),
  "ViT-B/32": dict(image=(768, 12, 12, 3072, 32), text=(512, 12, 12, 8, 2048), embed_dim=512, open_clip=True),
  "ViT-L/14": dict(image=(1024, 24, 16, 4096, 14), text=(768, 12, 12, 12, 3072), embed_dim=768, open_clip=True),
  "tiny": dict(image=(128, 3, 4, 512, 8), text=(128, 1, 3, 4, 512), embed_dim=128, image_size=32, vocab=512, text_len=66, queries=16,
               pixels="half", pool_heads=4, position_std=0.4, word_std=0.5),
}
DEFAULTS = dict(image_size=288, vocab=64_000, text_len=76, queries=256, pool_heads=8, act="gelu", pixels="half", open_clip=False,
                position_std=None, word_std=0.02)
OPEN_CLIP = dict(image_size=224, vocab=49_408, pixels="clip")
PIXELS = {
  "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
  "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class ImagePools(nn.Module):
  """Image tokens [B S C] -> (float32 [B E], [B Q D]): what is compared with texts, and what captions are written from."""
  width: int
  queries: int                          # 0: captions are written from the image tokens themselves
  heads: int
  embed_dim: int
  single: bool                          # one pooler, whose first query is for contrast; else the contrastive one stands on the other
  dtype: Any = jnp.float32
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    pool = lambda queries, name: AttentionPool(self.width, queries, self.heads, dtype=self.dtype, implementation=self.implementation,
                                               name=name)
    norm = layer_norm("norm_post", dtype=self.dtype)
    tokens = pool(self.queries, "caption")(x) if self.queries else x
    if self.single:
      tokens = norm(tokens)
      one, tokens = tokens[:, 0], tokens[:, 1:]
    else:
      one = norm(pool(1, "contrast")(tokens)[:, 0])
    one = nn.Dense(self.embed_dim, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(self.width**-0.5),
                   name="projection")(one)
    return one.astype(jnp.float32), tokens


class UnimodalText(nn.Module):
  """The half of the decoder that sees words only."""
  vocab: int
  length: int                           # words; the class token has the position after them
  width: int
  depth: int
  heads: int
  mlp_dim: int
  embed_dim: int
  total_depth: int                      # of both halves, for the initial values
  sees_one_more: bool = False           # open_clip's `build_cls_mask` is off by one: see `class_token_mask`
  word_std: float = 0.02                # of the words at the start; of positions and the class token half of it
  act: str = "gelu"
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int | bool = 1
  attention: str = "auto"

  @property
  def block(self) -> dict[str, Any]:
    """The fields of its blocks."""
    return dict(heads=self.heads, mlp_dim=self.mlp_dim, act=self.act, causal=True, dtype=self.dtype, implementation=self.attention,
                inits=clip_inits(self.width, self.total_depth))

  @nn.compact
  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> tuple[Float[Array, "B E"], Float[Array, "B L D"]]:
    """Tokens and mask -> (text embedding, states of the words)."""
    batch, length = tokens.shape
    if length > self.length:
      raise ConfigError(f"texts of {length} tokens do not fit {self.length} positions: lower data.text_len or raise the model's text_len")
    x = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(self.word_std), dtype=self.dtype, name="embed")(tokens)
    half = nn.initializers.normal(self.word_std / 2)
    position = self.param("position", half, (self.length + 1, self.width)).astype(self.dtype)
    token = self.param("class_token", half, (self.width,)).astype(self.dtype) + position[self.length]
    x = jnp.concatenate([x + position[None, :length], jnp.broadcast_to(token[None, None], (batch, 1, self.width))], axis=1)
    x, _ = stack(Block, self.depth, remat=self.remat, unroll=self.unroll, **self.block)(
      x, None, class_token_mask(mask, sees_one_more=self.sees_one_more))
    pooled = layer_norm("norm_post", dtype=self.dtype)(x[:, -1])
    pooled = nn.Dense(self.embed_dim, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(self.width**-0.5),
                      name="projection")(pooled)
    return pooled.astype(jnp.float32), x[:, :-1]


def class_token_mask(mask: Bool[Array, "B L"], *, sees_one_more: bool = False) -> Bool[Array, "B 1 M M"]:
  """Who sees whom when a class token stands after L words: the causal mask, and in the class token's row the real words and itself.

  sees_one_more: as open_clip does it, which pads its mask on the wrong side: the position after the last word instead of itself.
  """
  length = mask.shape[1]
  words = lengths_of(mask)[:, None]
  place = jnp.arange(length + 1)[None]
  row = (place <= words) if sees_one_more else (place < words) | (place == length)                       # [B L+1]
  last = (jnp.arange(length + 1) == length)[None, :, None]
  return jnp.where(last, row[:, None], jnp.tri(length + 1, dtype=bool)[None])[:, None]


class DecoderLayer(nn.Module):
  """Causal self-attention, then attention to the image and an MLP; with `self_mlp` the first has one as well."""
  heads: int
  mlp_dim: int
  self_mlp: bool
  fields: Mapping[str, Any]             # of both blocks

  @nn.compact
  def __call__(self, x: Array, image: Array | None, cache: tuple[KeysValues, KeysValues] | None = None,
               position: Array | None = None) -> tuple[Array, KeysValues | None]:
    own, cross = cache or (None, None)
    x, own = Block(self.heads, self.mlp_dim if self.self_mlp else 0, causal=True, name="self", **self.fields)(
      x, cache=own, position=position)
    x, _ = Block(self.heads, self.mlp_dim, name="cross", **self.fields)(x, kv=image, cache=cross)
    return x, own


class MultimodalDecoder(nn.Module):
  """The half of the decoder that sees the image: [B L D] and image tokens [B Q C] -> last states [B L D], and logits [B L V]."""
  vocab: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  total_depth: int
  self_mlp: bool = False
  act: str = "gelu"
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int | bool = 1
  attention: str = "auto"

  @property
  def layer(self) -> dict[str, Any]:
    """The fields of its layers."""
    fields = dict(act=self.act, dtype=self.dtype, implementation=self.attention, inits=clip_inits(self.width, self.total_depth))
    return dict(heads=self.heads, mlp_dim=self.mlp_dim, self_mlp=self.self_mlp, fields=fields)

  @nn.compact
  def __call__(self, x: Array, image: Array) -> Array:
    x, _ = stack(DecoderLayer, self.depth, remat=self.remat, unroll=self.unroll, **self.layer)(x, image)
    x = layer_norm("norm_post", dtype=self.dtype)(x)
    if self.is_initializing():          # the loss multiplies by this kernel in chunks (`losses.language`)
      nn.Dense(self.vocab, use_bias=False, kernel_init=nn.initializers.normal(self.width**-0.5), name="project_vocab")(x)
    return x


class CoCa(nn.Module):
  """Parameter groups `image`, `pool`, `text`, `decoder`, `logit_scale` (a logarithm)."""
  image: ViT
  pool: ImagePools
  text: UnimodalText
  decoder: MultimodalDecoder
  image_size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  scale_init: float = math.log(1 / 0.07)

  def setup(self):
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(self.scale_init), ())

  def encode_image(self, image: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]) -> tuple[Float[Array, "B E"], Float[Array, "B Q D"]]:
    """uint8 or [-1, 1] pixels -> (embedding, not normalised; image tokens for the decoder)."""
    size = (self.image_size, self.image_size, 3)
    if image.shape[1:] != size:
      raise ConfigError(f"the model takes images of {size}, found {image.shape[1:]}: make data.image_size the model's image_size")
    return self.pool(self.image(embed.normalize(image, mean=self.mean, std=self.std)))

  def encode_text(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B E"]:
    """Embedding, not normalised."""
    return self.text(tokens, mask)[0]

  def __call__(self, image: Array, tokens: Int[Array, "B L"],
               mask: Bool[Array, "B L"]) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, "B M D"]]:
    """(image embedding, text embedding, last states before the head at the positions of the first L − 1 words)."""
    image, image_tokens = self.encode_image(image)
    text, words = self.text(tokens, mask)
    return image, text, self.decoder(words[:, :-1], image_tokens)


def step_function(model: CoCa, params: Params, image_tokens: Float[Array, "R Q D"], *,
                  max_len: int) -> tuple[Callable[[Array, Array, Tree], tuple[Array, Tree]], Tree]:
  """(step, empty cache) of `mmdiff.decode` for the pictures with these tokens. What depends on the picture alone is computed once, here."""
  text, decoder = model.text, model.decoder
  if max_len > text.length:
    raise ConfigError(f"max_len: {max_len} tokens do not fit the model's {text.length} positions")
  text_layers = layers_of(params["text"]["stack"], text.depth)
  layers = layers_of(params["decoder"]["stack"], decoder.depth)
  crosses = [block_keys_values(layer["cross"], image_tokens, heads=decoder.heads, dtype=decoder.dtype) for layer in layers]
  word, layer_of = Block(**text.block), DecoderLayer(**decoder.layer)
  kernel = params["decoder"]["project_vocab"]["kernel"].astype(decoder.dtype)

  def step(tokens: Array, position: Array, cache: Tree) -> tuple[Array, Tree]:
    words, both = [], []
    x = params["text"]["embed"]["embedding"][tokens] + params["text"]["position"][position][None]
    x = x.astype(text.dtype)[:, None]                                                                       # [R 1 D]
    for layer, kept in zip(text_layers, cache[0]):
      x, kept = word.apply({"params": layer}, x, cache=kept, position=position)
      words.append(kept)
    for layer, kept, cross in zip(layers, cache[1], crosses):
      x, kept = layer_of.apply({"params": layer}, x, None, cache=(kept, cross), position=position)
      both.append(kept)
    x = layer_norm(dtype=decoder.dtype).apply({"params": params["decoder"]["norm_post"]}, x[:, 0])
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32), (words, both)

  room = lambda part: empty_cache(image_tokens.shape[0], max_len, heads=part.heads, head_dim=part.width // part.heads, dtype=part.dtype)
  return step, ([room(text) for _ in text_layers], [room(decoder) for _ in layers])


def uncached_step_function(model: CoCa, params: Params, image_tokens: Float[Array, "R Q D"], *,
                           max_len: int) -> tuple[Callable[[Array, Array, Tree], tuple[Array, Tree]], Tree]:
  """The same without a cache: every step runs the whole text again. What the cached one is tested and timed against."""
  kernel = params["decoder"]["project_vocab"]["kernel"].astype(model.decoder.dtype)

  def step(tokens: Array, position: Array, written: Tree) -> tuple[Array, Tree]:
    written = jax.lax.dynamic_update_slice_in_dim(written, tokens[:, None], position, axis=1)
    _, words = model.text.apply({"params": params["text"]}, written, jnp.ones(written.shape, bool))
    x = model.decoder.apply({"params": params["decoder"]}, words, image_tokens)
    x = jax.lax.dynamic_index_in_dim(x, position, axis=1, keepdims=False)
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32), written
  return step, jnp.zeros((image_tokens.shape[0], max_len), jnp.int32)


def coca(*, variant: OneOf["PRESETS"] = "Base", image_size: int | None = None, vocab: int | None = None, text_len: int | None = None,
         embed_dim: int | None = None, patch: int | None = None, image_width: int | None = None, image_depth: int | None = None,
         image_heads: int | None = None, text_width: int | None = None, unimodal_depth: int | None = None,
         multimodal_depth: int | None = None, text_heads: int | None = None, queries: int | None = None, pool_heads: int | None = None,
         act: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] | None = None, pixels: Literal["clip", "half"] | None = None,
         open_clip: bool | None = None, position_std: float | None = None, word_std: float | None = None,
         dtype: Literal["float32", "bfloat16"] = "float32",
         remat: Literal["none", "dots", "full", "names"] = "none", unroll: bool = False,
         attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> CoCa:
  """A CoCa of a preset's shape, with any part overridden.

  Args:
    variant: the preset.
    image_size: pixels a side.
    vocab, text_len: of the tokenizer, and the most tokens of a text.
    embed_dim: width of the shared space.
    patch, image_width, image_depth, image_heads: of the image tower.
    text_width, text_heads, unimodal_depth, multimodal_depth: of the two halves of the decoder.
    queries: of the caption pooler; with `open_clip` the first is the image embedding. 0: no such pooler, the decoder attends
      to the patches.
    pool_heads: of the poolers.
    act: MLP activation.
    pixels: normalisation, CLIP's mean and std or 0.5 and 0.5.
    open_clip: open_clip's structure instead of the paper's, see the module.
    position_std, word_std: of the patches' positions and of the words at the start. Small models learn what is where much sooner from
      large ones.
    dtype: of the computation; parameters are float32.
    remat, unroll, attention: see `nn.transformer.stack` and `nn.attention.resolve`.
  """
  preset = PRESETS[variant]
  given = dict(image_size=image_size, vocab=vocab, text_len=text_len, embed_dim=embed_dim, queries=queries, pool_heads=pool_heads, act=act,
               pixels=pixels, open_clip=open_clip, position_std=position_std, word_std=word_std)
  given = {key: value for key, value in given.items() if value is not None}
  row = DEFAULTS | (OPEN_CLIP if preset.get("open_clip") else {}) | preset | given
  run = dict(act=row["act"], dtype=jnp.dtype(dtype), remat=remat, unroll=unroll, attention=attention)

  width, depth, heads, mlp_dim, size = (value or default for value, default in zip(
    (image_width, image_depth, image_heads, image_width and 4 * image_width, patch), row["image"]))
  if row["open_clip"] and not row["queries"]:
    raise ConfigError("queries: 0 is of the paper's structure; with open_clip the image embedding is the pooler's first")
  if row["image_size"] % size:
    raise ConfigError(f"image_size: {row['image_size']} does not divide into patches of {size}; set patch or another size")
  image = ViT(width=width, depth=depth, heads=heads, mlp_dim=mlp_dim, patch=size, pool="none", class_token=row["open_clip"],
              position_std=row["position_std"], **run)

  width, unimodal, multimodal, heads, mlp_dim = (value or default for value, default in zip(
    (text_width, unimodal_depth, multimodal_depth, text_heads, text_width and 4 * text_width), row["text"]))
  shape = dict(vocab=row["vocab"], width=width, heads=heads, mlp_dim=mlp_dim, total_depth=unimodal + multimodal)
  text = UnimodalText(length=row["text_len"], depth=unimodal, embed_dim=row["embed_dim"], sees_one_more=row["open_clip"],
                      word_std=row["word_std"], **shape, **run)
  decoder = MultimodalDecoder(depth=multimodal, self_mlp=row["open_clip"], **shape, **run)
  pool = ImagePools(width=width, queries=row["queries"], heads=row["pool_heads"], embed_dim=row["embed_dim"], single=row["open_clip"],
                    dtype=jnp.dtype(dtype), implementation=attention)
  mean, std = PIXELS[row["pixels"]]
  return CoCa(image, pool, text, decoder, row["image_size"], mean, std)
