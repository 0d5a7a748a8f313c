"""A process that loses another one of its run says who it was and ends with 75."""
import os
import signal
import subprocess
import sys

import pytest

from launch import local
from mmdiff.train import peers
from tests.test_layering import ROOT

JOINED = """
import sys, time
from mmdiff import __main__ as cli
from mmdiff.train import distributed
distributed.HEARTBEAT_SECONDS = 10
class Command:
  @staticmethod
  def main(argv):
    distributed.initialize()
    import jax
    from jax.experimental import multihost_utils
    print("joined", flush=True)
    while sys.argv[2] == "summing":
      multihost_utils.process_allgather(jax.numpy.ones(3))
    time.sleep(300)
sys.modules["mmdiff.commands.info"] = Command
sys.exit(cli.main(["info"]))
"""


class Client:
  """The coordination service's table."""

  def __init__(self):
    self.table = {}

  def key_value_set(self, key, value, *, allow_overwrite):
    assert allow_overwrite
    self.table[key] = value

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.table.items() if key.startswith(prefix)]


def test_who_gives_no_sign_is_late():
  now, client = [0.0], Client()
  made = [peers.Beats(client, own=own, count=3, clock=lambda: now[0]) for own in range(3)]
  for _ in range(20):
    now[0] += peers.BEAT_SECONDS
    made[0].beat()
    made[1].beat()
  assert made[0].late() == made[1].late() == [2]
  assert made[0].seen[1][0] >= 19 and 0 not in made[0].seen
  made[2].beat()
  made[0].beat()
  assert made[0].late() == []


def test_a_service_that_nobody_answers_is_the_first_process():
  nobody = f"127.0.0.1:{local.free_port()}"
  made = peers.Beats(Client(), own=1, count=2)
  assert not peers.reachable(nobody) and peers.lost_ones(made, nobody) == peers.lost_ones(None, nobody) == [0]
  assert peers.lost_ones(peers.Beats(Client(), own=0, count=2), nobody) == []
  assert "process 0 of this run was lost; the same command" in peers.line([0])
  assert "processes 1, 4 of" in peers.line([1, 4]) and "another process of" in peers.line([])


def test_a_service_that_still_listens_while_it_dies_is_waited_for(monkeypatch):
  answers = iter([True, True, False])
  monkeypatch.setattr(peers, "reachable", lambda address: next(answers))
  monkeypatch.setattr(peers, "BEAT_SECONDS", 0.01)
  assert peers.awaited(None, "127.0.0.1:1") == [0]
  monkeypatch.setattr(peers, "reachable", lambda address: True)
  assert peers.awaited(None, "127.0.0.1:1") == []


def test_only_a_broken_connection_is_explained(monkeypatch):
  left = []
  monkeypatch.setattr(peers, "leave", left.append)
  monkeypatch.setattr(peers, "BEAT_SECONDS", 0.01)
  error = ValueError("UNKNOWN: Gloo AllGather failed: [external/gloo/pair.cc:538] Read error: Connection reset by peer")
  peers.explain(error)                             # of one process
  monkeypatch.setattr(peers, "_kept", [None, None, f"127.0.0.1:{local.free_port()}"])
  peers.explain(KeyError("a bug"))
  assert left == []
  peers.explain(error)
  assert left[0] == [0]


def test_jax_still_has_what_the_watch_hooks_into():
  with peers.watched():
    assert isinstance(peers.jax_distributed._jax, peers._Jaxlib)
    assert "missed_heartbeat_callback" in peers.jax_distributed._jax.jaxlib.get_distributed_runtime_client.__doc__
  assert not isinstance(peers.jax_distributed._jax, peers._Jaxlib)


@pytest.mark.long
@pytest.mark.parametrize("doing", ["summing", "waiting"])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_of_two_real_processes_names_the_lost_one(tmp_path, victim, doing):
  (tmp_path / "job.py").write_text(JOINED)
  port, env = local.free_port(), {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  children = [subprocess.Popen([sys.executable, str(tmp_path / "job.py"), "info", doing], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=env | local.environment(i, processes=2, devices=1, port=port, platform="cpu")
                               | dict(PYTHONPATH=str(ROOT))) for i in range(2)]
  try:
    assert all(child.stdout.readline() == "joined\n" for child in children)
    children[victim].send_signal(signal.SIGKILL)
    _, err = children[1 - victim].communicate(timeout=90)
  finally:
    for child in children:
      child.kill()
      child.communicate()
  assert children[1 - victim].returncode == 75, err
  assert err.splitlines()[-1] == peers.line([victim]) and "stack trace" not in err and "Traceback" not in err
