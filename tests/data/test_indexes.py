"""Index files: kept while the file is the same, made anew otherwise, and never in the way of reading."""
import os
import pickle

import numpy as np
import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import indexes


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "a.bin"
  path.write_bytes(b"0123456789")
  return str(path)


class Counted:
  """Makes an index and counts how often."""

  def __init__(self):
    self.calls = 0

  def __call__(self, path):
    self.calls += 1
    return {"size": np.array([os.path.getsize(path)])}


def test_made_once_and_again_when_the_file_changes(file):
  make = Counted()
  assert [indexes.cached(file, make)["size"].tolist() for _ in range(3)] == [[10]] * 3 and make.calls == 1
  with open(file, "ab") as out:
    out.write(b"x")
  assert indexes.cached(file, make)["size"].tolist() == [11] and make.calls == 2
  os.utime(file, ns=(1, 1))
  indexes.cached(file, make)
  assert make.calls == 3


@pytest.mark.parametrize("damage", [b"", b"garbage", b"PK\x03\x04 not a zip"])
def test_a_damaged_index_is_made_anew(file, damage):
  make = Counted()
  indexes.cached(file, make)
  with open(file + indexes.SUFFIX, "wb") as out:
    out.write(damage)
  assert indexes.cached(file, make)["size"].tolist() == [10] and make.calls == 2
  indexes.cached(file, make)
  assert make.calls == 2


def test_an_index_never_runs_code(file):
  with open(file + indexes.SUFFIX, "wb") as out:
    np.savez(out, stamp=np.array([print], object), size=np.array([1]))
  assert indexes.cached(file, Counted())["size"].tolist() == [10]


def test_another_place_tells_folders_apart(tmp_path):
  places = []
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "x").write_bytes(name.encode() * 3)
    places.append(indexes.place(str(tmp_path / name / "x"), index_dir=str(tmp_path / "index")))
    indexes.cached(str(tmp_path / name / "x"), Counted(), index_dir=str(tmp_path / "index"))
    assert os.listdir(tmp_path / name) == ["x"]
  assert places[0] != places[1] and all(place.exists() for place in places)


def test_where_nothing_can_be_written_it_stays_in_memory(file, tmp_path):
  (tmp_path / "taken").write_text("a file where the folder should be")
  make = Counted()
  for _ in range(2):
    assert indexes.cached(file, make, index_dir=str(tmp_path / "taken"))["size"].tolist() == [10]
  assert make.calls == 2


def test_many_in_order(tmp_path):
  paths = []
  for i in range(20):
    paths.append(str(tmp_path / str(i)))
    (tmp_path / str(i)).write_bytes(b"x" * i)
  assert [table["size"].tolist() for table in indexes.cached_all(paths, Counted())] == [[i] for i in range(20)]


def test_reads_stop_when_the_file_changes(file):
  files = indexes.Files([file])
  assert files.read(0, 2, 3) == b"234" and files.read(0, 8, 5) == b"89"
  copy = pickle.loads(pickle.dumps(files))                                # noqa: S301
  assert copy.read(0, 0, 1) == b"0"
  late = pickle.loads(pickle.dumps(files))                                # noqa: S301
  with open(file, "ab") as out:
    out.write(b"x")
  with pytest.raises(DataError, match="changed while it was in use"):
    late.read(0, 0, 1)


def test_samples_tell_files_apart(tmp_path):
  file, size = tmp_path / "a", 2 ** 20
  whole = bytes(size)
  file.write_bytes(whole)
  first = indexes.sampled(str(file))
  for at in (0, size // 2, size - indexes.END_BYTES, size - 1):
    file.write_bytes(whole[:at] + b"x" + whole[at + 1:])
    assert indexes.sampled(str(file)) != first
  file.write_bytes(whole[1:])
  assert indexes.sampled(str(file)) != first
