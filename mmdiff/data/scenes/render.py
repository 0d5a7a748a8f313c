"""A scene as pixels: sprites, drawn once per process, are pasted on a copy of the background."""
import numpy as np

from mmdiff.data.scenes.sprites import background, sprite
from mmdiff.data.scenes.tiers import tier_named
from mmdiff.data.scenes.world import Scene


def render(scene: Scene) -> np.ndarray:
  """uint8 [px px 3]. Sprites never leave their cells, so that their order does not matter."""
  tier = tier_named(scene.tier)
  image = background(tier.backgrounds[scene.bg], tier.px).copy()
  for cell, shape, color, tex, size, turn, dx, dy in scene.things:
    pixels, mask = sprite(scene.tier, shape, color, tex, size, turn)
    side = len(pixels)
    row, column = divmod(cell, tier.grid)
    top = row * tier.cell + (tier.cell - side) // 2 + dy
    left = column * tier.cell + (tier.cell - side) // 2 + dx
    np.copyto(image[top:top + side, left:left + side], pixels, where=mask)
  return image
