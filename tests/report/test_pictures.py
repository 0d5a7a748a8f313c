"""Sheets come apart into their pictures; small ones stay exact, large ones become small."""
import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmdiff.report import pictures
from tests.report.test_run import sheet


@pytest.mark.parametrize("rows,columns,side", [(4, 4, 16), (2, 8, 32), (1, 3, 9), (1, 1, 16)])
def test_sheets_come_apart_into_their_pictures(rows, columns, side):
  made, apart = sheet(np.random.default_rng(0), rows, columns, side)
  assert np.array_equal(pictures.cut(made), apart)


def test_what_is_no_sheet_stays_whole():
  assert pictures.cut(np.random.default_rng(0).integers(0, 255, (34, 70, 3), np.uint8)) == []


def decoded(url):
  return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_small_pictures_are_exact_and_large_ones_small():
  noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
  assert np.array_equal(np.asarray(decoded(pictures.data_url(Image.fromarray(noise), 256))), noise)
  assert "class=pixels" in pictures.image(Image.fromarray(noise))
  large = Image.fromarray(np.tile(noise, (32, 32, 1)))
  url = pictures.data_url(large, 256)
  assert url.startswith("data:image/jpeg") and max(decoded(url).size) == 256 and len(url) < 60_000 and "pixels" not in pictures.image(large)


def test_the_first_are_shown_and_the_rest_folded(tmp_path):
  made, _ = sheet(np.random.default_rng(0), 3, 4)
  Image.fromarray(made).save(tmp_path / "x.png")
  page = pictures.pictures(tmp_path / "x.png", [dict(caption=f"<{i}>") for i in range(12)])
  assert page.count("<img") == 12 and page.index("&lt;7&gt;") < page.index("4 more") < page.index("&lt;8&gt;")


def test_small_sheets_are_enlarged_by_whole_numbers():
  assert pictures.enlarged(Image.new("RGB", (100, 50))).size == (300, 150)
  assert pictures.enlarged(Image.new("RGB", (300, 20))).size == (300, 20)
