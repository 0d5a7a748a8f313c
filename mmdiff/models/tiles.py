"""Encoding and decoding pictures that are too large for one pass, tile by tile, with seams blended away.

Neighbouring tiles share a strip. The outer quarter of the strip, where a tile lacks its surroundings, counts nothing, and over the middle
half the tiles fade into each other. What a function computes from up to a quarter of the overlap around a pixel comes out as untiled; an
autoencoder's group norms and middle attention see the whole input, so its pictures come out nearly so.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array, Tree


def decode(fn: Callable[[Array], Tree], latents: Float[Array, "B h w C"], *, factor: int, tile: int = 64, overlap: int = 16) -> Tree:
  """`fn(latents)`, each side `factor` times as long, by tiles of `tile` latents that share `overlap`."""
  return tiled(fn, latents, tile=tile, overlap=overlap, up=factor)


def encode(fn: Callable[[Array], Tree], images: Float[Array, "B H W C"], *, factor: int, tile: int = 512, overlap: int = 128) -> Tree:
  """`fn(images)`, each side 1 / `factor` as long, by tiles of `tile` pixels that share `overlap`."""
  return tiled(fn, images, tile=tile, overlap=overlap, down=factor)


def tiled(fn: Callable[[Array], Tree], x: Array, *, tile: int, overlap: int, up: int = 1, down: int = 1) -> Tree:
  """`fn` of [B H W C], computed on one tile at a time and compiled for one shape; sides of results are those of `x` times `up` / `down`.

  Args:
    fn: [B h w C] -> a tree of arrays [B h·up/down w·up/down …], float32.
    tile: side of a tile; a picture's shorter side if that is smaller.
    overlap: what neighbours share at least, a multiple of 4 · down.

  Raises:
    ConfigError: sizes that do not divide.
  """
  if overlap % (4 * down) or tile % down or x.shape[1] % down or x.shape[2] % down or not 0 <= overlap < tile:
    raise ConfigError(f"tiles of {tile} that share {overlap}, over {x.shape[1]}×{x.shape[2]}: sides must divide by {down}, the overlap by "
                      f"{4 * down}, and the overlap must be smaller than a tile")
  sizes = tuple(min(tile, side) for side in x.shape[1:3])
  rows, columns = (starts(side, size, overlap, down) for side, size in zip(x.shape[1:3], sizes))
  corners = [(row, column) for row in rows for column in columns]

  def one(corner):
    return fn(jax.lax.dynamic_slice(x, (0, corner[0], corner[1], 0), (x.shape[0], *sizes, x.shape[3])))

  scale = lambda length: length * up // down
  fades = [fade(scale(size), scale(overlap)) for size in sizes]

  def join(parts):                                                          # [tiles B h w …] -> [B H W …]
    shape = (parts.shape[1], scale(x.shape[1]), scale(x.shape[2]), *parts.shape[4:])
    total, weight = jnp.zeros(shape, jnp.float32), np.zeros(shape[1:3], np.float32)
    for part, (row, column) in zip(parts, corners):
      place = slice(scale(row), scale(row + sizes[0])), slice(scale(column), scale(column + sizes[1]))
      # At the picture's own border there is no neighbour to fade into.
      down_, across = (inner(line, first, last) for line, first, last in (
        (fades[0], row == rows[0], row == rows[-1]), (fades[1], column == columns[0], column == columns[-1])))
      mask = np.outer(down_, across)
      weight[place] += mask
      total = total.at[:, *place].add(part * jnp.asarray(mask).reshape(1, *mask.shape, *(1,) * (part.ndim - 3)))
    return total / jnp.asarray(weight).reshape(1, *weight.shape, *(1,) * (total.ndim - 3))

  return jax.tree.map(join, jax.lax.map(one, jnp.asarray(corners, jnp.int32)))


def starts(side: int, size: int, overlap: int, step: int) -> list[int]:
  """Where tiles of `size` begin to cover `side` with at least `overlap` shared, evenly, at multiples of `step`."""
  count = 1 if side <= size else -(-(side - overlap) // (size - overlap))
  return [round(at / step) * step for at in np.linspace(0, side - size, count)]


def fade(size: int, overlap: int) -> np.ndarray:
  """Weights [size]: zero for a quarter of the overlap from either end, rising over half of it, then one."""
  if not overlap:
    return np.ones(size, np.float32)
  from_edge = np.arange(size) + 0.5
  rise = lambda d: np.clip((d - overlap / 4) / (overlap / 2), 0.0, 1.0)
  return (rise(from_edge) * rise(size - from_edge)).astype(np.float32)


def inner(line: np.ndarray, first: bool, last: bool) -> np.ndarray:
  """`line` with full weight towards a border of the picture."""
  half, line = len(line) // 2, line.copy()
  line[:half] = 1.0 if first else line[:half]
  line[half:] = 1.0 if last else line[half:]
  return line
