"""Palette and shapes: the judge's margins, and geometry that does not depend on the platform."""
import itertools

import numpy as np
import pytest

from mmdiff.data.scenes.sprites import background, dark, silhouette, turns
from mmdiff.data.scenes.tiers import COLORS, SHAPES, TIERS


@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_colors_are_far_from_one_another_and_from_every_background(tier):
  colors = {name: np.array(COLORS[name]) for name in tier.colors}
  for (a, color_a), (b, color_b) in itertools.combinations(colors.items(), 2):
    assert abs(color_a - color_b).max() >= 60, (a, b)
  for name in tier.backgrounds:
    pixels = np.unique(background(name, tier.px).reshape(-1, 3), axis=0).astype(int)
    for color in colors.values():
      assert abs(pixels - color).max(axis=1).min() >= 60, name


def test_the_dark_phase_is_exactly_35_percent():
  assert all(channel % 20 == 0 for color in COLORS.values() for channel in color)


@pytest.mark.parametrize("shape", ["circle", "square", "cross", "diamond", "ring"])
@pytest.mark.parametrize("size", [7, 9, 12, 14, 15])
def test_symmetric_shapes_are_unchanged_by_a_quarter_turn(shape, size):
  mask = silhouette(shape, size)
  np.testing.assert_array_equal(mask, np.rot90(mask))
  np.testing.assert_array_equal(mask, mask[:, ::-1])


@pytest.mark.parametrize("size", [9, 12, 15])
def test_the_others_are_mirror_images_of_themselves(size):
  for shape in ("triangle", "star", "heart", "hexagon", "arrow"):
    mask = silhouette(shape, size)
    # Even-odd rule: a pixel centre on an edge belongs to one side only.
    assert (mask ^ mask[:, ::-1]).mean() < 0.06, shape


@pytest.mark.parametrize("size", [9, 12, 15])
def test_arrows_turn_by_eighths(size):
  masks = [silhouette("arrow", size, turn) for turn in range(turns("arrow"))]
  for turn in range(8):
    np.testing.assert_array_equal(masks[(turn + 2) % 8], np.rot90(masks[turn], -1))
  for a, b in itertools.combinations(masks, 2):
    assert (a ^ b).sum() >= 8


@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_no_two_objects_of_a_tier_look_alike(tier):
  looks = {}
  for shape in tier.shapes:
    for size, side in zip(tier.sizes, tier.sides):
      for turn in range(turns(shape)):
        mask = silhouette(shape, side, turn)
        for texture in tier.textures:
          canvas = np.zeros((tier.cell, tier.cell), int)
          start = (tier.cell - side) // 2
          canvas[start:start + side, start:start + side] = 2 * mask - dark(mask, texture, tier.stripe)
          looks[shape, size, turn, texture] = canvas
  for (a, look_a), (b, look_b) in itertools.combinations(looks.items(), 2):
    assert (look_a != look_b).sum() >= 4, (a, b)


def test_polygons_are_exact_on_a_square():
  from mmdiff.data.scenes.sprites import polygon
  assert polygon(((-1000, -1000), (1000, -1000), (1000, 1000), (-1000, 1000)), 9).all()
  assert set(SHAPES) == set(TIERS["T64"].shapes)
