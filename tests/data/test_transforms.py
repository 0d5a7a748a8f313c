import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdiff.core.errors import ConfigError
from mmdiff.data import draws, transforms
from tests.data.worlds import noise


@settings(max_examples=80, deadline=None)
@given(h=st.integers(1, 90), w=st.integers(1, 90), size=st.integers(1, 40), resize=st.sampled_from(transforms.RESIZES),
       interpolation=st.sampled_from(list(transforms.INTERPOLATIONS)))
def test_any_shape_comes_out_square(h, w, size, resize, interpolation):
  image = noise(h, w)
  out = transforms.fit(image, size=size, resize=resize, interpolation=interpolation)
  assert out.shape == (size, size, 3) and out.dtype == np.uint8
  if h == w == size:
    assert out is image


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), size=st.integers(1, 30), grey=st.integers(0, 255))
def test_a_flat_picture_stays_flat(h, w, size, grey):
  for resize in ("crop", "squash"):
    assert (transforms.fit(np.full((h, w, 3), grey, np.uint8), size=size, resize=resize) == grey).all()


def test_crop_is_resize_then_centre():
  image = noise(50, 80)
  whole = np.asarray(Image.fromarray(image).resize((int(20 * 80 / 50), 20), Image.Resampling.BICUBIC))
  assert (transforms.fit(image, size=20) == whole[:, 6:26]).all()


def test_very_long_pictures_take_the_same_centre():
  """Beyond 4:1 only the part that is kept is resampled; the result is that of the two steps to a rounding."""
  image = noise(20, 150)
  whole = np.asarray(Image.fromarray(image).resize((75, 10), Image.Resampling.BICUBIC))
  difference = transforms.fit(image, size=10).astype(int) - whole[:, 32:42]
  assert np.abs(difference).max() <= 1
  assert transforms.fit(noise(1, 20_000), size=224).shape == (224, 224, 3)


def test_pad_keeps_the_ratio_on_black():
  out = transforms.fit(np.full((10, 40, 3), 200, np.uint8), size=20, resize="pad")
  assert (out[7:12] == 200).all() and not out[:7].any() and not out[12:].any()


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), seed=st.integers(0, 1000))
def test_random_crops_are_square_and_repeatable(h, w, seed):
  crop = lambda: transforms.random_crop(noise(h, w), size=9, area=(0.3, 1.0), rng=draws.generator(seed))
  assert crop().shape == (9, 9, 3) and (crop() == crop()).all()


def test_random_crops_keep_their_area():
  """Each pixel holds its own place, so a crop without resampling tells where it was cut."""
  yy, xx = np.mgrid[0:100, 0:100]
  image = np.stack([yy, xx, xx * 0], -1).astype(np.uint8)
  for seed in range(50):
    out = transforms.random_crop(image, size=100, area=(0.25, 0.5), rng=draws.generator(seed), interpolation="nearest").astype(int)
    area = (np.ptp(out[..., 0]) + 1) * (np.ptp(out[..., 1]) + 1) / 10_000
    assert 0.23 < area < 0.53


def test_wrong_values_are_named():
  for crop in ((0.5,), (0.0, 1.0), (0.9, 0.5), (0.5, 1.5)):
    with pytest.raises(ConfigError, match="data.augment.crop"):
      transforms.check(image_size=8, resize="crop", interpolation="bicubic", crop=crop)
  with pytest.raises(ConfigError, match="(?s)data.image_size.*data.resize.*data.interpolation"):
    transforms.check(image_size=0, resize="fit", interpolation="cubic", crop=())


@pytest.mark.parametrize("h, w, height, width, top, left", [
  (8, 8, 8, 8, 0, 0), (100, 100, 64, 64, 0, 0), (1000, 500, 512, 512, 256, 0), (480, 640, 512, 512, 0, 85), (400, 300, 72, 56, 1, 0),
  (333, 1000, 576, 448, 0, 640)])
def test_cover_and_its_conditions(h, w, height, width, top, left):
  """The coordinates of torchvision's Resize of the shorter side and CenterCrop, which diffusers' SDXL training gives to the model."""
  image = np.arange(h * w * 3).reshape(h, w, 3).astype(np.uint8)
  made, size = transforms.cover(image, height=height, width=width)
  assert made.shape == (height, width, 3) and size == (h, w, top, left, height, width)


def test_cover_of_a_square_is_the_crop_of_fit():
  image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
  made, _ = transforms.cover(image, height=16, width=16)
  assert np.abs(made.astype(int) - transforms.fit(image, size=16)).max() <= 1


def test_cover_mirrored_and_elsewhere():
  ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (50, 1, 3))
  left, size = transforms.cover(ramp, height=50, width=20, at=(0, 0))
  right, mirrored_size = transforms.cover(ramp, height=50, width=20, at=(0, 0), mirrored=True)
  assert left[0, :, 0].tolist() == list(range(20)) and right[0, :, 0].tolist() == list(range(99, 79, -1))
  assert size == mirrored_size == (50, 100, 0, 0, 50, 20)
  assert transforms.cover(ramp, height=50, width=20, at=(1, 1))[1][3] == 80


@pytest.mark.parametrize("h, w, resize, mirrored, top, left", [
  (8, 8, "crop", False, 0, 0), (40, 20, "crop", False, 4, 0), (20, 50, "crop", False, 0, 6), (20, 50, "crop", True, 0, 6),
  (21, 40, "crop", True, 0, 3), (40, 20, "squash", False, 0, 0), (40, 20, "pad", False, 0, -2), (20, 40, "pad", False, -2, 0)])
def test_size_says_where_the_picture_was_cropped(h, w, resize, mirrored, top, left):
  assert transforms.fitted(h, w, size=8, resize=resize, mirrored=mirrored) == (h, w, top, left, 8, 8)


def test_size_of_a_random_crop_is_where_it_lies():
  """In pixels of the picture when the crop has its size: the corner of the crop by its own colours."""
  yy, xx = np.mgrid[:200, :200]
  image = np.stack([yy, xx, xx * 0], -1).astype(np.uint8)
  for seed in range(20):
    box = transforms.random_box(200, 200, area=(0.1, 0.5), rng=draws.generator(seed))
    out = transforms.part(image, box, size=20).astype(float)
    h, w, top, left, *target = transforms.cropped(400, 400, box, of=(200, 200), size=20)
    assert (h, w, *target) == (400, 400, 20, 20)
    np.testing.assert_allclose(out[10, 10, :2], [(top + 10.5) * box[2] / 20, (left + 10.5) * box[3] / 20], atol=0.05 * max(box[2:]) + 1)
    assert transforms.cropped(400, 400, box, of=(200, 200), size=20, mirrored=True)[3] == round((200 - box[1] - box[3]) * 20 / box[3])
