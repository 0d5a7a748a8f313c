"""The shapes, textures and backgrounds as pixels, by integer arithmetic only.

A sprite of D pixels uses coordinates in half pixels about its centre, u = 2x + 1 − D to the right and v = 2y + 1 − D down, so that
odd and even sizes are both symmetric.
"""
import functools

import numpy as np

from mmdiff.data.scenes.tiers import COLORS, DIRECTIONS, tier_named

# Vertices in thousandths of the half size.
_POLYGONS = {
  "star": ((0, -1050), (255, -330), (1020, -310), (410, 130), (640, 900), (0, 440), (-640, 900), (-410, 130), (-1020, -310), (-255, -330)),
  "hexagon": ((-1000, 0), (-500, -866), (500, -866), (1000, 0), (500, 866), (-500, 866)),
  "arrow": ((0, -1000), (950, 50), (340, 50), (340, 1000), (-340, 1000), (-340, 50), (-950, 50)),
}


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
  line = 2 * np.arange(size) + 1 - size
  return line[None, :], line[:, None]


def polygon(vertices, size: int) -> np.ndarray:
  """bool [size size]: pixel centres inside a polygon (even–odd rule). Vertices are in thousandths of the half size."""
  u, v = (axis * 1000 for axis in _axes(size))
  inside = np.zeros((size, size), bool)
  for (x0, y0), (x1, y1) in zip(vertices, (*vertices[1:], vertices[0])):
    x0, y0, x1, y1 = x0 * size, y0 * size, x1 * size, y1 * size
    crosses = (y0 > v) != (y1 > v)
    # u < x0 + (v − y0)(x1 − x0)/(y1 − y0), without the division.
    side = (u - x0) * (y1 - y0) - (v - y0) * (x1 - x0)
    inside ^= crosses & ((side < 0) == (y1 > y0))
  return inside


def silhouette(shape: str, size: int, turn: int = 0) -> np.ndarray:
  """bool [size size] of a shape; `turn` counts eighths of a turn clockwise, for arrows."""
  u, v = _axes(size)
  full = np.ones((size, size), bool)
  if shape == "square":
    return full
  if shape == "circle":
    return u * u + v * v <= size * size
  if shape == "triangle":
    return full & (2 * abs(u) <= v + size + 1)
  if shape == "cross":
    return (3 * abs(u) <= size) | (3 * abs(v) <= size)
  if shape == "diamond":
    return abs(u) + abs(v) <= size
  if shape == "ring":
    return (u * u + v * v <= size * size) & (4 * (u * u + v * v) >= size * size)
  if shape == "heart":
    lobes = (2 * abs(u) - size) ** 2 + (2 * v + size - 2) ** 2 <= (size + 1) ** 2
    return lobes | ((2 * v > 2 - size) & (abs(u) <= size - v - size // 5) & (v <= size) & full)
  vertices = _POLYGONS[shape]
  for _ in range(turn % 2):
    # An eighth of a turn; 707/1000 for the cosine, in whole thousandths.
    vertices = tuple(((x - y) * 707 // 1000, (x + y) * 707 // 1000) for x, y in vertices)
  return np.rot90(polygon(vertices, size), -(turn // 2))


def dark(mask: np.ndarray, texture: str, stripe: int) -> np.ndarray:
  """bool like `mask`: the pixels of a silhouette that take the dark phase, 0.35 × colour."""
  size = mask.shape[0]
  x, y = np.arange(size)[None, :], np.arange(size)[:, None]
  if texture == "striped":
    return mask & (y // stripe % 2 == 0)
  if texture == "checkered":
    return mask & ((x // stripe + y // stripe) % 2 == 1)
  if texture == "dotted":
    return mask & (x % 2 == 1) & (y % 2 == 1)
  if texture == "outlined":
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
  return np.zeros_like(mask)


def turns(shape: str) -> int:
  """How many directions a shape has: eight for an arrow, else one."""
  return len(DIRECTIONS) if shape == "arrow" else 1


@functools.cache
def sprite(tier_name: str, shape: int, color: int, texture: int, size: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [D D 3], bool [D D 1]) of an object given by indices into the tier's lists."""
  tier = tier_named(tier_name)
  mask = silhouette(tier.shapes[shape], tier.sides[size], turn)
  shade = dark(mask, tier.textures[texture], tier.stripe)
  bright = np.array(COLORS[tier.colors[color]])
  pixels = np.where(shade[..., None], bright * 7 // 20, bright).astype(np.uint8)
  return pixels, np.ascontiguousarray(mask[..., None])


@functools.cache
def background(name: str, px: int) -> np.ndarray:
  """uint8 [px px 3]. Every pixel of the patterned ones is a gray in 88–172, away from each object colour."""
  x, y = np.arange(px)[None, :], np.arange(px)[:, None]
  gray = {
    "black": lambda: 0 * (x + y),
    "white": lambda: 0 * (x + y) + 255,
    "gray": lambda: 0 * (x + y) + 128,
    "gradient": lambda: 88 + 84 * y // (px - 1) + 0 * x,
    "noise": lambda: 92 + 76 * ((x * 374_761_393 + y * 668_265_263 ^ (x * y + 7) * 1_274_126_177) // 8192 % 2),
    "grid": lambda: np.where((x % 8 == 4) | (y % 8 == 4), 92, 164),
  }[name]()
  image = np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)
  image.setflags(write=False)
  return image
