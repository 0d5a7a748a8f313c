import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmdiff.core.errors import CannotWrite
from mmdiff.data import claims
from mmdiff.data.claims import Claims, born, create_exclusively


@pytest.fixture
def make(tmp_path):
  made = []

  def one(**options):
    made.append(Claims(tmp_path / "claims", **{"beat_seconds": 0.02, "stale_seconds": 30.0} | options))
    return made[-1]
  yield one
  for each in made:
    each.close()


def abandoned(folder, name, **changes):
  """A claim of a process that is not there."""
  folder.mkdir(exist_ok=True)
  owner = dict(machine=claims.machine(), pid=2 ** 22 + 1, born="1", token="x") | changes
  (folder / name).write_text(json.dumps(owner))


def test_one_takes_what_another_has_not(make, tmp_path):
  a, b = make(), make()
  assert [a.take("xyz"), b.take("xyz"), a.take("xyz"), b.take("xyz")] == ["x", "y", "z", None]
  a.release("x")
  assert b.take("xyz") == "x"
  a.close()
  assert b.take("xyz") == "z"


def test_of_many_at_once_each_name_goes_to_one(make):
  names = [str(n) for n in range(8)]
  everyone = [make() for _ in range(8)]
  with ThreadPoolExecutor(8) as pool:
    barrier = threading.Barrier(8)

    def rush(mine):
      barrier.wait()
      return mine.take(names)
    assert sorted(pool.map(rush, everyone)) == names


def test_the_claim_of_a_dead_process_is_overtaken_at_once_by_one(make, tmp_path):
  abandoned(tmp_path / "claims", "x.1")
  a, b = make(), make()
  assert (a.take("x"), b.take("x")) == ("x", None)
  a.release("x")
  assert not list((tmp_path / "claims").iterdir())


def test_the_number_of_a_dead_process_given_to_another_does_not_keep_its_claim(make, tmp_path):
  abandoned(tmp_path / "claims", "x.1", pid=os.getpid(), born="1")
  assert make().take("x") == "x"


def test_the_claim_of_another_host_is_overtaken_when_it_has_been_silent_for_long(make, tmp_path):
  abandoned(tmp_path / "claims", "x.1", machine="elsewhere")
  a = make(stale_seconds=0.1)
  assert a.take("x") is None
  time.sleep(0.15)
  assert a.take("x") == "x"


def test_a_claim_that_is_kept_alive_stays(make, tmp_path):
  a = make()
  a._me["machine"] = "elsewhere"
  assert a.take("x") == "x"
  b = make(stale_seconds=0.5)
  until = time.monotonic() + 0.8
  while time.monotonic() < until:
    assert b.take("x") is None
    time.sleep(0.05)


def test_a_holder_that_was_overtaken_leaves_the_new_claim_alone(make, tmp_path):
  a, b = make(), make()
  a.take("x")
  os.unlink(tmp_path / "claims" / "x.1")
  abandoned(tmp_path / "claims", "x.1")
  assert b.take("x") == "x"
  a.release("x")
  assert {path.name for path in (tmp_path / "claims").iterdir()} == {"x.1", "x.2"}


def test_a_torn_claim_is_stale_by_time_only(make, tmp_path):
  (tmp_path / "claims").mkdir()
  (tmp_path / "claims" / "x.1").write_bytes(b"")
  a = make(stale_seconds=0.05)
  assert a.take("x") is None
  time.sleep(0.1)
  assert a.take("x") == "x"


def test_exclusive_creation_without_hard_links(tmp_path, monkeypatch):
  def refuse(*_):
    raise PermissionError(1, "no links here")
  monkeypatch.setattr(claims.os, "link", refuse)
  assert create_exclusively(tmp_path / "a", b"1") and not create_exclusively(tmp_path / "a", b"2")
  assert (tmp_path / "a").read_bytes() == b"1" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_born():
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
  assert born(child.pid) and born(os.getpid()) == born(os.getpid()) != born(child.pid)
  child.kill()
  while born(child.pid) is not None:                      # dead, though nobody has waited for it yet
    time.sleep(0.01)
  child.communicate()
  assert born(child.pid) is None


def test_a_place_that_can_not_be_written(tmp_path):
  (tmp_path / "claims").write_text("a file")
  mine = Claims(tmp_path / "claims")
  with pytest.raises(CannotWrite, match="claims"):
    mine.take("x")
  mine.close()
