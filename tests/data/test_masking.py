"""Masks: every form of them, and how a new part joins a picture."""
import io

import numpy as np
import pytest
from PIL import Image

from mmdiff.core.errors import DataError
from mmdiff.data import masking

MASK = np.zeros((9, 12), bool)
MASK[2:8, 3:10] = True


def test_every_form():
  read = lambda mask: masking.read(mask, height=9, width=12)
  bytes_ = MASK.astype(np.uint8) * 255
  for form in (MASK, bytes_, MASK.astype(np.uint8), MASK.astype(np.float32), MASK[..., None], Image.fromarray(bytes_),
               Image.fromarray(bytes_).convert("RGB"), np.where(MASK, 200, 90).astype(np.uint8)):
    np.testing.assert_array_equal(read(form), MASK)
  twice = masking.read(np.kron(MASK, np.ones((2, 2), bool)), height=9, width=12)
  np.testing.assert_array_equal(twice, MASK)
  for wrong in (np.zeros(3), np.zeros((9, 12, 5)), np.zeros((0, 4)), np.asarray([["a"]])):
    with pytest.raises(DataError, match="expected .H W. of bool"):
      read(wrong)
  for wrong in (bytes_.astype(np.float32), MASK * np.nan, bytes_.astype(np.uint16) * 257, -MASK.astype(np.float32)):
    with pytest.raises(DataError, match="expected bool, whole numbers from 0 to 255 or floats from 0 to 1, found"):
      read(wrong)


@pytest.mark.parametrize("form", ["RGBA", "LA", "P", "RGB", "array RGBA", "array LA", "float RGBA", "bool RGBA"])
def test_what_is_transparent_is_not_mask(form):
  """White strokes on an empty layer, whose hidden colour is white too, as painting programs leave it."""
  layer = np.full((9, 12, 4), 255, np.uint8)
  layer[..., 3] = MASK * 255
  picture = Image.fromarray(layer)
  given = {"RGBA": picture, "LA": picture.convert("LA"), "array RGBA": layer, "array LA": layer[..., 2:], "float RGBA": layer / 255,
           "bool RGBA": layer > 0}.get(form)
  if form in ("P", "RGB"):
    flat = Image.fromarray(np.where(MASK, 0, 1).astype(np.uint8)).convert("P")
    flat.putpalette([255, 255, 255, 254, 254, 254])
    flat.info["transparency"] = 1
    given = flat
    if form == "RGB":
      given = flat.convert("RGB")
      given.info["transparency"] = (254, 254, 254)
  np.testing.assert_array_equal(masking.read(given, height=9, width=12), MASK)


def test_half_transparent_strokes_count_from_one_half():
  layer = np.full((1, 4, 4), 255, np.uint8)
  layer[0, :, 3] = 0, 100, 160, 255
  assert masking.read(layer, height=1, width=4).tolist() == [[False, False, True, True]]
  assert masking.read(Image.fromarray(layer), height=1, width=4).tolist() == [[False, False, True, True]]


def test_colour_counts_by_its_light_in_every_form():
  colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]]], np.uint8)
  expected = [[False, True, False, True, False]]
  for form in (colours, Image.fromarray(colours), colours / 255):
    assert masking.read(form, height=1, width=5).tolist() == expected


@pytest.mark.parametrize("shape", [(12, 9), (9, 13), (10, 12), (9, 9)])
def test_a_mask_of_another_shape_is_refused_with_both_sizes(shape):
  with pytest.raises(DataError, match=f"mask 3: {shape[1]}x{shape[0]} pixels, its picture has 12x9"):
    masking.read(np.ones(shape, bool), height=9, width=12, where="mask 3")


@pytest.mark.parametrize("mask", [np.zeros((9, 12), bool), np.full((9, 12), 90, np.uint8), Image.new("RGBA", (12, 9), (255, 255, 255, 0)),
                                  Image.new("RGBA", (12, 9), "black")])
def test_a_mask_that_says_nothing_is_refused(mask):
  with pytest.raises(DataError, match="nothing in it is to be drawn"):
    masking.read(mask, height=9, width=12)


def test_a_mask_is_cropped_as_its_picture():
  found = masking.covered(MASK, height=9, width=9)
  np.testing.assert_array_equal(found, MASK[:, 2:11])
  np.testing.assert_array_equal(masking.covered(MASK, height=9, width=12), MASK)
  assert masking.covered(MASK, height=18, width=24).sum() == 4 * MASK.sum()


def test_feathers_lie_within_the_mask():
  np.testing.assert_array_equal(masking.weights(MASK, 0), MASK.astype(np.float32))
  soft = masking.weights(MASK, 2)
  assert not soft[~MASK].any() and soft.max() == 1
  np.testing.assert_allclose(soft[5, 3:10], [1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3], rtol=1e-6)
  # A mask that reaches the border does not fade there.
  assert masking.weights(np.ones((5, 5), bool), 3).min() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_kept_is_kept_bit_for_bit(dtype):
  rng = np.random.default_rng(0)
  old, new = ((255 * rng.random((9, 12, 3))).astype(dtype) for _ in range(2))
  made = masking.joined(old, new, masking.weights(MASK, 2))
  assert made.dtype == dtype
  np.testing.assert_array_equal(made[~MASK], old[~MASK])
  np.testing.assert_array_equal(made[5, 5:8], new[5, 5:8])
  assert (np.abs(made.astype(float) - old) <= np.abs(new.astype(float) - old) + 0.5).all()


def test_pictures_that_are_no_masks_are_refused_and_sideways_ones_turned():
  for mode in ("F", "La"):
    with pytest.raises(DataError, match="mask 2: undecodable"):
      masking.read(Image.new(mode, (12, 9)), height=9, width=12, where="mask 2")
  exif, file = Image.Exif(), io.BytesIO()
  exif[0x0112] = 6
  Image.fromarray(MASK.astype(np.uint8) * 255).save(file, "PNG", exif=exif)
  found = masking.read(Image.open(file), height=12, width=9)
  np.testing.assert_array_equal(found, np.rot90(MASK, -1))


def test_a_mask_may_be_a_file(tmp_path):
  mask = np.zeros((8, 6), bool)
  mask[2:5, 1:4] = True
  Image.fromarray(mask).save(tmp_path / "mask.png")
  for path in (tmp_path / "mask.png", str(tmp_path / "mask.png")):
    np.testing.assert_array_equal(masking.read(path, height=8, width=6), mask)
