import hashlib

import numpy as np
import pytest
from PIL import Image

from mmdiff.commands import results
from mmdiff.core.errors import CannotWrite


def test_pictures_are_written_whole_or_not_at_all(tmp_path):
  pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
  results.write_png(tmp_path / "new" / "a.png", pixels)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), pixels)
  (tmp_path / "b.png").mkdir()
  with pytest.raises(CannotWrite, match="cannot write .*b.png"):
    results.write_png(tmp_path / "b.png", pixels)
  assert not (tmp_path / "b.png.part").exists()


def test_digests(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"a")
  assert results.digest(tmp_path / "a.txt") == hashlib.sha256(b"a").hexdigest() and results.digest(tmp_path / "b.txt") == ""
