"""Reads a picture back into a scene: per cell the nearest of all templates under the picture's background.

A template is a silhouette with a dark phase, in a colour c, somewhere within the search range. Its squared distance to the cell x is
linear in sums over masks: with background g, union mask u, shade s (1 bright, 0.35 dark, 0 outside),
  |x − T|² = Σ |x − g|² + Σ_u (|x|² − |x − g|²) − 2 c · Σ s x + |c|² Σ s²,
so that two matrix products over pixels score every shape, texture, size, turn and place, and one over channels every colour.

Measured on training scenes: every attribute of every object is read right in renders, under noise of sigma 40 (of 255; 4,096 scenes of
T16 and T32, 3,000 of T64) and after JPEG at quality 95 with full chroma. JPEG's usual halved chroma (4:2:0) is not harmless at this size:
it leaves 100 % of T16, 97 % of T32 and 78 % of T64 pictures readable without a mistake. Judge PNG or arrays.
"""
import functools
from typing import NamedTuple

import numpy as np

from mmdiff.data.scenes.sprites import background, dark, silhouette, turns
from mmdiff.data.scenes.tiers import COLORS, DIRECTIONS, Tier, tier_named

# Pixels beyond the tier's own jitter that a drawn object may be off.
_SLACK = {"T16": 1, "T32": 1, "T64": 0}
# How many backgrounds, nearest first, are tried in full.
_BACKGROUNDS_TRIED = {"T16": 2, "T32": 3, "T64": 1}
# Root mean square distance, of 255, beyond which a picture is no scene: the 99.9 % quantile of renders with noise of sigma 25.
RESIDUAL_LIMIT = {"T16": 21.9, "T32": 25.7, "T64": 25.4}


class Reading(NamedTuple):
  """What the judge sees in one picture."""
  scene: dict                  # JSON as of `world.to_json`, without `v` and `id`
  residual: float              # root mean square distance to that scene's render, of 255
  parseable: bool              # residual within the tier's limit; a picture beyond it counts as wrong


class _Bank(NamedTuple):
  """The templates of a tier without their colours: M masks over P = cell² pixels, and what each means."""
  shade: np.ndarray            # float32 [P M]: 1 bright, 0.35 dark, 0 outside
  energy: np.ndarray           # float32 [M]: sum of shade²
  union: np.ndarray            # float32 [P U]: the silhouettes
  of: np.ndarray               # int [M]: which silhouette
  meaning: list                # per mask: (shape, tex, size, turn, dx, dy)


@functools.cache
def _bank(tier: Tier) -> _Bank:
  reach = tier.jitter + _SLACK[tier.name]
  cell, pad = tier.cell, tier.cell
  unions, shades, of, meaning = [], [], [], []
  for shape, name in enumerate(tier.shapes):
    for size, side in enumerate(tier.sides):
      start = pad + (cell - side) // 2
      for turn in range(turns(name)):
        mask = silhouette(name, side, turn)
        looks = [mask - 0.65 * dark(mask, tex, tier.stripe) for tex in tier.textures]
        for dy in range(-reach, reach + 1):
          for dx in range(-reach, reach + 1):
            def place(values, at=(start + dy, start + dx), side=side):
              canvas = np.zeros((cell + 2 * pad,) * 2, np.float32)
              canvas[at[0]:at[0] + side, at[1]:at[1] + side] = values
              return canvas[pad:-pad, pad:-pad].ravel()
            for tex, look in enumerate(looks):
              shades.append(place(look))
              of.append(len(unions))
              meaning.append((shape, tex, size, turn, dx, dy))
            unions.append(place(mask))
  shade = np.stack(shades, axis=1)
  return _Bank(shade, np.square(shade).sum(axis=0), np.stack(unions, axis=1), np.array(of), meaning)


def _cells(images: np.ndarray, tier: Tier) -> np.ndarray:
  """[B px px …] -> [B cells, P, …]; a margin that the grid leaves over is cut off."""
  n, cell, span = tier.grid, tier.cell, tier.grid * tier.cell
  tail = images.shape[3:]
  cut = images[:, :span, :span].reshape(-1, n, cell, n, cell, *tail)
  return np.moveaxis(cut, 3, 2).reshape(-1, n * n, cell * cell, *tail)


def _read(images: np.ndarray, ground: int, tier: Tier, bank: _Bank) -> tuple[np.ndarray, np.ndarray]:
  """(squared distance [B], choice [B cells]) on one background; choice is −1 for an empty cell, else mask · colours + colour."""
  count, channels = len(images), len(tier.colors)
  plain = background(tier.backgrounds[ground], tier.px).astype(np.float32)
  away = np.square(images - plain).sum(axis=-1)                                       # [B px px]
  gain = (_cells(np.square(images).sum(axis=-1) - away, tier)).reshape(-1, tier.cell ** 2) @ bank.union      # [B·cells U]
  pixels = _cells(images, tier).reshape(-1, tier.cell ** 2, 3)
  sums = np.moveaxis(pixels, 2, 1).reshape(-1, tier.cell ** 2) @ bank.shade           # [B·cells·3 M]
  sums = sums.reshape(len(pixels), 3, -1)
  colors = np.array([COLORS[name] for name in tier.colors], np.float32)
  best = np.zeros(len(pixels), np.float32)                                            # the empty cell changes nothing
  choice = np.full(len(pixels), -1)
  gain = gain[:, bank.of]
  for c, color in enumerate(colors):
    cost = gain + np.float32(color @ color) * bank.energy
    for channel in range(3):
      cost -= np.float32(2 * color[channel]) * sums[:, channel]
    at = cost.argmin(axis=1)
    lowest = cost[np.arange(len(cost)), at]
    better = lowest < best
    best = np.where(better, lowest, best)
    choice = np.where(better, at * channels + c, choice)
  return away.sum(axis=(1, 2)) + best.reshape(count, -1).sum(axis=1), choice.reshape(count, -1)


def judge(images: np.ndarray, tier: str, *, chunk: int = 32) -> list[Reading]:
  """Reads uint8 [B px px 3] pictures of a tier. `chunk` pictures are in memory at a time.

  Raises ValueError for pictures of another shape or type.
  """
  world = tier_named(tier)
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.shape[1:] != (world.px, world.px, 3):
    raise ValueError(f"the judge of {tier} reads uint8 [B {world.px} {world.px} 3], found {images.dtype} {list(images.shape)}")
  bank = _bank(world)
  parts = (images[start:start + chunk].astype(np.float32) for start in range(0, len(images), chunk))
  return [reading for part in parts for reading in _judge(part, world, bank)]


def _judge(images: np.ndarray, tier: Tier, bank: _Bank) -> list[Reading]:
  # A background is far from every object colour, so the one that most pixels are near is tried first.
  nearness = np.stack([np.minimum(np.square(images - background(name, tier.px)).sum(axis=-1), 8_000).sum(axis=(1, 2))
                       for name in tier.backgrounds])                                  # [backgrounds B]
  tried = np.argsort(nearness, axis=0)[:_BACKGROUNDS_TRIED[tier.name]]
  distance = np.full(len(images), np.inf)
  choice = np.zeros((len(images), tier.grid ** 2), int)
  ground = np.zeros(len(images), int)
  for g in range(len(tier.backgrounds)):
    rows = np.flatnonzero((tried == g).any(axis=0))
    if not len(rows):
      continue
    found, chosen = _read(images[rows], g, tier, bank)
    keep = found < distance[rows]
    better = rows[keep]
    distance[better], choice[better], ground[better] = found[keep], chosen[keep], g
  residual = np.sqrt(np.maximum(distance, 0) / images[0].size)
  return [Reading(_scene(row, g, tier, bank), float(r), bool(r <= RESIDUAL_LIMIT[tier.name]))
          for row, g, r in zip(choice, ground, residual)]


def _scene(choice: np.ndarray, ground: int, tier: Tier, bank: _Bank) -> dict:
  objs = []
  for cell, code in enumerate(choice.tolist()):
    if code < 0:
      continue
    mask, color = divmod(code, len(tier.colors))
    shape, tex, size, turn, dx, dy = bank.meaning[mask]
    obj = {"shape": tier.shapes[shape], "color": tier.colors[color], "tex": tier.textures[tex], "size": tier.sizes[size],
           "cell": [cell // tier.grid, cell % tier.grid], "dx": dx, "dy": dy, "z": len(objs)}
    if obj["shape"] == "arrow":
      obj["rot"] = DIRECTIONS[turn]
    objs.append(obj)
  return {"bg": tier.backgrounds[ground], "objs": objs}
