"""Digests of files: read once for each state of a file, and by every process that looks after."""
import hashlib
import os

import pytest

from mmdiff.data import digests
from mmdiff.data.digests import Digests


@pytest.fixture
def read(monkeypatch):
  """The names of the files that were read."""
  names, digest = [], digests.digest
  monkeypatch.setattr(digests, "digest", lambda path: names.append(path.name) or digest(path))
  return names


def test_a_file_is_read_once_until_it_changes(tmp_path, read):
  (tmp_path / "a").write_bytes(b"one")
  expected = {"a": hashlib.sha256(b"one").hexdigest(), "gone": None}
  assert Digests(tmp_path).of(["a", "gone"]) == Digests(tmp_path).of(["a", "gone"]) == expected and read == ["a"]
  assert Digests(tmp_path).of(["a"], again=True) == {"a": expected["a"]} and read == ["a", "a"]
  (tmp_path / "b").write_bytes(b"two")
  os.utime(tmp_path / "b", ns=(0, (tmp_path / "a").stat().st_mtime_ns))
  (tmp_path / "b").rename(tmp_path / "a")                # another file of the same size and time
  assert Digests(tmp_path).known("a") is None and Digests(tmp_path).of(["a"]) == {"a": hashlib.sha256(b"two").hexdigest()}


def test_lines_that_cannot_be_read_are_as_good_as_none(tmp_path, read):
  (tmp_path / "a").write_bytes(b"one")
  kept = tmp_path / "digests.mmdiff-index"
  kept.write_text('{"name": 3}\n[]\n{"name": [], "state": 1, "sha256": 2}\n{')
  assert Digests(tmp_path).of(["a"])["a"] == hashlib.sha256(b"one").hexdigest()


def test_where_nothing_can_be_written_they_live_in_memory(tmp_path, read, caplog):
  (tmp_path / "a").write_bytes(b"one")
  (tmp_path / "digests.mmdiff-index").mkdir()
  held = Digests(tmp_path)
  assert held.of(["a"]) == held.of(["a"]) and read == ["a"] and "worked out at every start" in caplog.text
