"""What a denoiser is told beside the noisy picture: captions, dropped or not, and the sizes of the picture.

A text dict has `tokens` [B L D], `mask` bool [B L] (a prefix of each row: which tokens count) and `pooled` [B D], and for denoisers that
read it `size` int32 [B 6].
"""
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmdiff.core.types import Array
from mmdiff.diffusion.schedules import Level

Text = dict[str, Array]


def drop_captions(tokens: Array, mask: Array, keep: Array) -> tuple[Array, Array]:
  """Captions [B L] emptied where `keep` [B] is false."""
  return jnp.where(keep[:, None], tokens, 0), mask & keep[:, None]


def fill_empty(tokens: Array, mask: Array, empty: tuple[int, ...]) -> tuple[Array, Array]:
  """Rows without a true mask entry become the encoder's own empty caption, e.g. start and end; () leaves them without a token."""
  if not empty:
    return tokens, mask
  place = jnp.arange(mask.shape[1])[None]
  none = ~mask.any(1, keepdims=True)
  own = jnp.pad(jnp.asarray(empty, tokens.dtype), (0, max(mask.shape[1] - len(empty), 0)))[None, :mask.shape[1]]
  return jnp.where(none, own, tokens), mask | (none & (place < len(empty)))


def as_text(encoded: Any, mask: Array) -> Text:
  """A text encoder's output as a text dict.

  An array [B L D] is pooled by its masked mean. Of an empty caption one zero token is left, which the denoiser's norm turns into a
  learned constant.
  """
  if isinstance(encoded, Mapping):
    return dict(encoded)
  x = jnp.where(mask[..., None], encoded, 0)
  pooled = x.sum(1, dtype=jnp.float32) / jnp.maximum(mask.sum(1, keepdims=True), 1)
  first = (jnp.arange(mask.shape[1]) == 0)[None]
  return {"tokens": x, "mask": mask | (~mask.any(1, keepdims=True) & first), "pooled": pooled.astype(encoded.dtype)}


def zero_where(text: Text, dropped: Array) -> Text:
  """`tokens` and `pooled` zero in the rows where `dropped` [B] is true."""
  return text | {name: jnp.where(dropped.reshape(-1, *[1] * (text[name].ndim - 1)), 0, text[name]) for name in ("tokens", "pooled")}


def choose(flag: Array, text: Text, other: Text) -> Text:
  """Row by row `text` where `flag` [B] is true, else `other`, whose rows may be one for all."""
  return {name: jnp.where(flag.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, other[name]) for name, leaf in text.items()}


def whole_picture(rows: int, height: int, width: int) -> Array:
  """`size` int32 [rows 6] of pictures that were neither scaled nor cropped (Podell et al. 2023, https://arxiv.org/abs/2307.01952 §2.2):
  original height and width, top and left of the crop, target height and width, in pixels."""
  return jnp.tile(jnp.asarray([[height, width, 0, 0, height, width]], jnp.int32), (rows, 1))


def interleave(a: Array, b: Array) -> Array:
  """Two [B …] -> [2B …], a row of a and its row of b side by side: on a mesh both stay where they are."""
  return jnp.stack([a, b], 1).reshape(2 * a.shape[0], *a.shape[1:])


def separate(x: Array) -> tuple[Array, Array]:
  """The inverse of `interleave`."""
  return x[::2], x[1::2]


def spread(level: Level, rows: int) -> Level:
  """A level of scalars as one of [rows]."""
  return Level(*(jnp.full((rows,), leaf, jnp.float32) for leaf in level))

