"""The tiers of the world: what may stand in a picture of 16, 32 or 64 pixels, and what training never shows.

Every length is a whole number of pixels and every colour channel of an object a multiple of 20, so that the dark phase of a texture,
0.35 × colour, is exact too: pictures are the same bits on every platform.
"""
from typing import NamedTuple

VERSION = 1

# At least 60/255 apart in max-norm from one another and from every background pixel: the judge's margin.
COLORS = {
  "red": (220, 20, 20), "green": (20, 160, 40), "blue": (40, 60, 220), "yellow": (240, 220, 40), "purple": (140, 40, 200),
  "cyan": (40, 200, 220), "orange": (240, 120, 0), "magenta": (240, 40, 180), "pink": (240, 160, 200), "brown": (160, 80, 20),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "star", "heart", "hexagon", "arrow")
TEXTURES = ("solid", "striped", "checkered", "dotted", "outlined")
BACKGROUNDS = ("black", "white", "gray", "gradient", "noise", "grid")
DIRECTIONS = ("up", "up-right", "right", "down-right", "down", "down-left", "left", "up-left")     # where an arrow points, clockwise
SPLITS = ("train", "val_iid", "val_comp", "val_rel", "val_count", "val_len")


class Tier(NamedTuple):
  """One size of world."""
  name: str
  px: int                               # pictures are [px px 3] uint8
  grid: int                             # cells per side
  cell: int                             # pixels per side of a cell
  objects: tuple[int, int]              # fewest and most objects in training; `val_len` has one more
  shapes: tuple[str, ...]
  colors: tuple[str, ...]
  textures: tuple[str, ...]
  sizes: tuple[str, ...]
  sides: tuple[int, ...]                # pixels of each size
  backgrounds: tuple[str, ...]
  jitter: int                           # an object may be this many pixels off the middle of its cell, per axis
  stripe: int                           # pixels per stripe or check
  modulus: int                          # a pair with (shape + colour) % modulus == 0 is never in training
  train_size: int
  val_size: int
  positions: tuple[str, ...]            # words for the cells, row by row


_QUARTERS = ("top left", "top right", "bottom left", "bottom right")
_NINTHS = ("top left", "top center", "top right", "middle left", "center", "middle right", "bottom left", "bottom center", "bottom right")

TIERS = {
  "T16": Tier("T16", px=16, grid=2, cell=8, objects=(2, 2), shapes=SHAPES[:4], colors=tuple(COLORS)[:6], textures=TEXTURES[:2],
              sizes=("large",), sides=(7,), backgrounds=BACKGROUNDS[:2], jitter=0, stripe=1, modulus=6, train_size=10_000, val_size=1_000,
              positions=_QUARTERS),
  "T32": Tier("T32", px=32, grid=2, cell=16, objects=(1, 3), shapes=SHAPES[:6], colors=tuple(COLORS)[:8], textures=TEXTURES[:3],
              sizes=("small", "large"), sides=(9, 14), backgrounds=BACKGROUNDS[:3], jitter=1, stripe=2, modulus=8, train_size=50_000,
              val_size=2_000, positions=_QUARTERS),
  "T64": Tier("T64", px=64, grid=3, cell=21, objects=(1, 5), shapes=SHAPES, colors=tuple(COLORS), textures=TEXTURES,
              sizes=("small", "medium", "large"), sides=(9, 12, 15), backgrounds=BACKGROUNDS, jitter=3, stripe=2, modulus=10,
              train_size=200_000, val_size=4_000, positions=_NINTHS),
}


def tier_named(name: str) -> Tier:
  """The tier, or a ValueError that lists them."""
  if name not in TIERS:
    raise ValueError(f"unknown tier {name!r} (known: {', '.join(TIERS)})")
  return TIERS[name]
