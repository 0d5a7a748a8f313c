"""An autoencoder that works on overlapping tiles: pictures of any size in the memory of one tile.

Attention and group norms of an autoencoder see the whole picture, so tiles differ a little from it; a quarter of each tile is shared with
its neighbours and faded from one to the other, so that no seam shows (as `enable_tiling` of diffusers' AutoencoderKL).
"""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mmdiff.core.types import Array

OVERLAP = 0.25          # of a tile's side


def starts(side: int, tile: int, unit: int = 1) -> list[int]:
  """Where the tiles of a side begin: as few as overlap by `OVERLAP` or more, evenly spread in multiples of `unit`, up to the border."""
  if side <= tile:
    return [0]
  count = 1 + -(-(side - tile) // max(int(tile * (1 - OVERLAP)) // unit * unit, unit))
  return [round(i * (side - tile) / (count - 1) / unit) * unit for i in range(count)]


def ramp(side: int, first: bool, last: bool) -> np.ndarray:
  """float32 [side]: the weight of a tile along one side, rising over what it shares with a neighbour."""
  shared = max(int(side * OVERLAP), 1)
  rise = np.minimum((np.arange(side) + 1) / (shared + 1), 1.0)
  return np.where(first, 1.0, rise) * np.where(last, 1.0, rise[::-1]).astype(np.float32)


class Tiled(NamedTuple):
  """An autoencoder whose `apply` of the methods encode and decode works on tiles of `tile` pixels a side where a picture is larger."""
  inner: Any
  tile: int

  @property
  def factor(self) -> int:
    return self.inner.factor

  @property
  def latent_channels(self) -> int:
    return self.inner.latent_channels

  def apply(self, variables: Mapping, x: Float[Array, "B H W C"], *, method: str) -> Any:
    """As the inner module's: "encode" is pictures -> (mean, standard deviation) of the latents, "decode" latents -> pictures."""
    side = max(self.tile // self.factor, 1)
    run = lambda piece: self.inner.apply(variables, piece, method=method)
    if method == "decode":
      return over_tiles(run, x, side, side * self.factor, 3)
    both = over_tiles(lambda piece: jnp.concatenate(run(piece), -1), x, side * self.factor, side, 2 * self.latent_channels)
    return jnp.split(both, 2, axis=-1)


def over_tiles(function: Callable[[Array], Array], x: Array, tile: int, made: int, channels: int) -> Array:
  """`function` on tiles [B tile tile C] of x, joined; a tile becomes [B made made channels]."""
  batch, height, width = x.shape[:3]
  if height <= tile and width <= tile:
    return function(x)
  high, wide = min(tile, height), min(tile, width)
  unit = max(tile // made, 1)             # of pictures, so that every tile is whole latents
  tops, lefts = starts(height, high, unit), starts(width, wide, unit)
  scaled = lambda side: side * made // tile
  out = jnp.zeros((batch, scaled(height), scaled(width), channels), jnp.float32)
  total = np.zeros((scaled(height), scaled(width)), np.float32)
  places, weights = [], []
  for top in tops:
    for left in lefts:
      weight = np.outer(ramp(scaled(high), top == tops[0], top == tops[-1]), ramp(scaled(wide), left == lefts[0], left == lefts[-1]))
      total[scaled(top):scaled(top) + scaled(high), scaled(left):scaled(left) + scaled(wide)] += weight
      places.append((top, left))
      weights.append(weight.astype(np.float32))

  def body(out: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
    (top, left), weight = given
    piece = function(jax.lax.dynamic_slice(x, (0, top, left, 0), (batch, high, wide, x.shape[-1])))
    at = (0, top * made // tile, left * made // tile, 0)
    before = jax.lax.dynamic_slice(out, at, piece.shape)
    return jax.lax.dynamic_update_slice(out, before + weight[None, :, :, None] * piece.astype(jnp.float32), at), None
  out, _ = jax.lax.scan(body, out, (jnp.asarray(places, jnp.int32), jnp.asarray(np.stack(weights))))
  return out / total[None, :, :, None]
