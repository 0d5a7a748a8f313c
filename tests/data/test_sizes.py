import numpy as np
import pytest
from PIL import Image

from mmdiff.data import sizes
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import Listed, World, encode, noise, png_header


def test_from_the_header_alone():
  picture = Image.fromarray(noise(24, 32))
  assert sizes.size_of(encode(picture, "JPEG")) == (24, 32) and sizes.size_of(noise(5, 7)) == (5, 7)
  assert sizes.size_of(png_header(900, 70)) == (70, 900)
  assert sizes.size_of(b"<html>") == sizes.size_of(np.zeros(3, np.uint8)) == (0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_as_the_picture_will_be_decoded(orientation):
  from mmdiff.data import decode
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(Image.fromarray(noise(24, 32)), "JPEG", exif=exif)
  assert sizes.size_of(data) == decode.decode(data).shape[:2]


def test_of_a_source_with_holes():
  source = Listed([{"key": "a", "image": noise(4, 6)}, BadRecord("unreadable"), {"key": "c"}])
  assert sizes.sizes(source).tolist() == [[4, 6], [0, 0], [0, 0]]


def test_those_of_a_large_source_are_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(sizes, "WORTH_KEEPING", 5)
  first = sizes.sizes(World(6), cache=str(tmp_path))
  monkeypatch.setattr(sizes, "_survey", None)
  assert np.array_equal(sizes.sizes(World(6), cache=str(tmp_path)), first) and len(list(tmp_path.iterdir())) == 1
