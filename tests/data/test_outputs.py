"""The folder of a finished job, read to the last byte."""
import os

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import outputs
from mmdiff.data.latents import Features
from tests.data.test_latents import flipped, make
from tests.data.toy_job import work


def test_a_folder_is_read_to_the_last_byte_when_it_is_validated(tmp_path):
  make(tmp_path)
  size = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
  assert outputs.verify(tmp_path) == {"task": "precompute", "units": 3, "files": 18, "bytes": size, "entries": 30, "damaged": []}
  path = tmp_path / "00001.2x2.latent_std.npy"
  before = path.stat()
  flipped(path, 300)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))         # as a disk does, that says nothing of it
  (tmp_path / "00002.json").write_text("{")
  found = outputs.verify(tmp_path)["damaged"]
  assert len(found) == 2 and "00002.json: not valid JSON" in found[0] and "00001.2x2.latent_std.npy: its bytes are not those" in found[1]
  with pytest.raises(DataError, match="00002.json"):
    Features(tmp_path)
  make(tmp_path)
  assert not outputs.verify(tmp_path)["damaged"]


def test_captions_and_what_is_no_finished_job(tmp_path):
  work(tmp_path)
  assert outputs.verify(tmp_path)["entries"] == 40
  (tmp_path / "manifest.json").unlink()
  with pytest.raises(DataError, match="15 of 15 units are finished; run the command"):
    outputs.verify(tmp_path)
