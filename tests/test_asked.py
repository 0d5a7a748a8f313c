import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmdiff import asked
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import decode


def pictures(images):
  return list(asked.pictures(images))


def test_one_or_many(tmp_path):
  """A path, a picture of PIL or an array, alone or among others."""
  one = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
  Image.fromarray(one).save(tmp_path / "a.png")
  for image in (one, Image.fromarray(one), tmp_path / "a.png", str(tmp_path / "a.png"), one[None]):
    for given in (image, [image], (image,)) if not isinstance(image, np.ndarray) or image.ndim == 3 else (image,):
      found, = pictures(given)
      np.testing.assert_array_equal(found, one)
  assert [picture.shape for picture in pictures([one, Image.new("L", (6, 7)), tmp_path / "a.png"])] == [(4, 5, 3), (7, 6, 3), (4, 5, 3)]
  assert pictures(one[..., 0])[0].shape == (4, 5, 3) and len(pictures(np.stack([one] * 3))) == 3 and pictures([]) == []
  assert asked.texts("a cat") == ["a cat"] and asked.texts(("a", "b")) == ["a", "b"]


def test_a_path_that_is_no_picture_is_named(tmp_path):
  (tmp_path / "notes.txt").write_text("no picture")
  for path, said in (("nowhere.png", "nowhere.png: no such file"), (tmp_path, "a folder; expected a picture, or a list of them"),
                     (tmp_path / "notes.txt", "notes.txt: cannot be read as a picture")):
    for given in (path, [np.zeros((4, 4, 3), np.uint8), path]):
      with pytest.raises(DataError, match=said):
        pictures(given)


def test_seeds_are_consecutive_or_given_one_each():
  assert asked.seeds(7, 3, "prompts") == [7, 8, 9] and asked.seeds([5, 1], 2, "prompts") == [5, 1]
  with pytest.raises(ConfigError, match="one for each of the 3 prompts, found 2"):
    asked.seeds([5, 1], 3, "prompts")
  with pytest.raises(ConfigError, match=r"from 0 to 2\*\*32 - 1, found -1"):
    asked.seeds(-1, 2, "prompts")


@pytest.mark.parametrize("seeds", [None, 1.5, [1.5], ["x"], "12"])
def test_seeds_that_are_no_whole_numbers(seeds):
  with pytest.raises(ConfigError, match=r"seeds: expected whole numbers from 0"):
    asked.seeds(seeds, 1, "prompts")


def test_sides_counts_and_noise_are_checked_before_anything_is_made():
  """A side of 10^9 ended the process within XLA, one of 0 was the model's own, noise of NaN a black picture."""
  for value in (0, -8, 10 ** 9, 16.0, "16", True):
    with pytest.raises(ConfigError, match="height: expected a whole number from 1 to 16,384, found"):
      asked.numbers(width=None, height=value)
  asked.numbers(height=np.int64(16), width=1)
  for noise in (np.zeros((2, 8, 8)), np.full((1, 8, 8, 4), np.nan)):
    with pytest.raises(ConfigError, match=r"latents: expected finite numbers \[1 h w C\]"):
      asked.noise("latents", noise, 1)


def test_numbers_that_are_none():
  for value in ("x", np.nan, np.inf, True, [1.0]):
    with pytest.raises(ConfigError, match="guidance: expected a finite number, found"):
      asked.reals(eta=None, guidance=value)
  asked.reals(guidance=np.float32(2), eta=-1)
  asked.numbers(least=0, feather=0)


def photo(**options):
  """A JPEG, 8 wide and 4 high, that was taken on its side."""
  exif, file = Image.Exif(), io.BytesIO()
  exif[0x0112] = 6
  Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)).save(file, "JPEG", exif=exif, **options)
  return file.getvalue()


def test_a_picture_of_pil_is_what_its_file_is():
  """Upright by its EXIF orientation, also once it is converted; and not turned twice."""
  opened, file = Image.open(io.BytesIO(photo())), decode.decode(photo())
  assert file.shape == (8, 4, 3)
  for image in (opened, opened.convert("RGB"), ImageOps.exif_transpose(opened)):
    np.testing.assert_array_equal(pictures([image])[0], file)


def test_pictures_and_texts_that_are_none_are_refused_by_number(monkeypatch):
  noise = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(noise, "PNG")
  cut = Image.open(io.BytesIO(noise.getvalue()[:900]))
  for odd in (Image.new("F", (4, 4)), Image.fromarray(np.full((4, 4), 70_000, np.int32)), cut, None):
    with pytest.raises(DataError, match="image 0: "):
      pictures([odd])
  for odd in (None, 5, b"a.png", {}):
    with pytest.raises(DataError, match="images: expected a picture .*, a list of them, or uint8 .B H W 3., found"):
      pictures(odd)
  monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("a picture too large was converted"))
  with pytest.raises(DataError, match="oversized: 20000x20000"):
    pictures([Image.new("1", (20_000, 20_000))])
  for odd, about in ((None, "texts: expected"), (b"a", "texts: expected"), (["a", 5], "text 1: expected a text, found int"),
                     ("\ud800", "text 0: half of a surrogate pair")):
    with pytest.raises(DataError, match=about):
      asked.texts(odd)
