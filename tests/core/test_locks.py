"""One process at a time, and nothing left of work that did not begin."""
import fcntl
import os
import threading

import pytest

from mmdiff.core.errors import CannotWrite
from mmdiff.core.locks import LOCK, busy, held


def test_a_folder_is_held_by_one(tmp_path):
  with held(tmp_path, busy="in use"), pytest.raises(CannotWrite, match="in use"), held(tmp_path, busy="in use"):
    pass
  with held(tmp_path, busy="in use"):
    pass


def test_another_may_wait(tmp_path, capsys):
  with held(tmp_path, busy="x"):
    got = threading.Event()

    def other():
      with held(tmp_path, busy="waiting", wait=True):
        got.set()
    thread = threading.Thread(target=other)
    thread.start()
    assert not got.wait(0.05)
  assert got.wait(10)
  thread.join()
  assert capsys.readouterr().out == "waiting\n"


def test_what_fails_first_leaves_nothing(tmp_path):
  (tmp_path / "there").mkdir()
  (tmp_path / "there" / "mine.txt").write_text("x")
  for folder in ("new/deep", "there"):
    with pytest.raises(ValueError, match="refused"), held(tmp_path / folder, busy=""):
      (tmp_path / folder / "empty").mkdir()
      raise ValueError("refused")
  assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["there", "there/mine.txt"]


def test_what_fails_later_leaves_what_it_made_and_the_lock(tmp_path):
  with pytest.raises(ValueError, match="failed"), held(tmp_path / "run", busy=""):
    (tmp_path / "run" / "config.json").write_text("{}")
    raise ValueError("failed")
  assert sorted(os.listdir(tmp_path / "run")) == [LOCK, "config.json"]


def test_a_lock_that_was_removed_while_it_was_taken_holds_nothing(tmp_path, monkeypatch):
  flock, taken = fcntl.flock, []

  def late(file, how):
    flock(file, how)
    taken.append(file.name)
    if len(taken) == 1:
      (tmp_path / LOCK).unlink()                         # by a process that had it and failed
  monkeypatch.setattr(fcntl, "flock", late)
  with held(tmp_path, busy="in use"), pytest.raises(CannotWrite, match="in use"), held(tmp_path, busy="in use"):
    pass
  assert len(taken) == 2


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  for place in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(CannotWrite, match="cannot write in"), held(place, busy=""):
      pass


def test_a_folder_says_whether_it_is_held(tmp_path):
  assert not busy(tmp_path) and not list(tmp_path.iterdir())
  with held(tmp_path, busy=""):
    assert busy(tmp_path)
  assert not busy(tmp_path)
