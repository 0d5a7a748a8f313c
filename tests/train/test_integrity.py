"""Digests of files and fingerprints of arrays."""
import numpy as np
import pytest

from mmdiff.train import integrity
from mmdiff.train.integrity import fingerprint, fingerprint_here


def test_every_flipped_bit_changes_the_fingerprint():
  x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
  clean = int(fingerprint(x))
  assert fingerprint_here(x) == clean and fingerprint_here(x > 0) == int(fingerprint(x > 0))
  for position in range(0, x.nbytes * 8, 13):
    flipped = bytearray(x.tobytes())
    flipped[position // 8] ^= 1 << position % 8
    assert fingerprint_here(np.frombuffer(bytes(flipped), np.float32).reshape(5, 7)) != clean


def test_a_name_is_of_what_is_in_the_arrays():
  prints, shapes = dict(a=1, b=2), dict(a=[2], b=[3, 4])
  assert integrity.name_of(prints, shapes) == integrity.name_of(dict(b=2, a=1), shapes)
  names = {integrity.name_of(prints, shapes), integrity.name_of(dict(a=1, b=3), shapes), integrity.name_of(prints, dict(a=[2], b=[4, 3]))}
  assert len(names) == 3
  with pytest.raises(ValueError, match="fingerprints: b, c$"):
    integrity.wrong_arrays(dict(a=1, b=2), dict(a=1, b=3, c=4))


def test_a_manifest_knows_files_that_changed_went_or_came(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "sub" / "a").write_text("a")
  assert integrity.check_files(tmp_path) is False
  integrity.write_manifest(tmp_path)
  assert integrity.check_files(tmp_path) is True
  (tmp_path / "b").write_text("b")
  with pytest.raises(ValueError, match="files differ from the manifest: b"):
    integrity.check_files(tmp_path)
  (tmp_path / "b").unlink()
  (tmp_path / "sub" / "a").unlink()
  with pytest.raises(ValueError, match="files differ from the manifest: sub/a"):
    integrity.check_files(tmp_path)
  for content, told in (("{", "not JSON"), ("[]", "no table of files")):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=told):
      integrity.check_files(tmp_path)
