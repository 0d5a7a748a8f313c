import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

ROOT = Path(local.__file__).resolve().parent.parent

JOIN = """
from mmdiff.train import distributed
distributed.initialize()
import jax
"""
SUM = JOIN + """
import sys
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("data",))
rows = np.arange(4, dtype=np.float32) + 4 * jax.process_index()
x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), rows, (8,))
total = jax.jit(lambda x: jnp.sum(x ** 2), out_shardings=NamedSharding(mesh, P()))(x)
with open(f"{sys.argv[2]}/{jax.process_index()}", "w") as file:       # XLA's own remarks on stdout may cut into a printed line
  print(sys.argv[1], jax.process_count(), jax.local_device_count(), jax.device_count(), float(total), file=file)
"""
FAIL = JOIN + """
import sys, time
if jax.process_index() == 1:
  print("one is leaving", file=sys.stderr)
  distributed.abandon(int(sys.argv[1]))
time.sleep(600)
"""
WAIT = """
import signal, sys, time
def stop(number, frame):
  print("saved", flush=True)
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("waiting", flush=True)
time.sleep(600)
"""


@pytest.fixture
def launched(tmp_path):
  """launched(source, *flags, arguments=()) -> the launcher's Popen over a module with that source."""
  started = []

  def start(source, *flags, arguments=()):
    (tmp_path / "job.py").write_text(source)
    env = dict(os.environ, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    command = [sys.executable, "-m", "launch.local", "--module=job", *flags, "--", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.append(process)
    return process
  yield start
  for process in started:
    process.kill()
    process.communicate()


def test_processes_see_all_devices_and_sum_over_them(launched, tmp_path):
  process = launched(SUM, "--processes=2", "--devices=4", arguments=["--word", str(tmp_path)])
  _, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["--word 2 4 8 140.0\n"] * 2


def test_the_first_failure_ends_the_others_and_gives_its_code(launched):
  started = time.monotonic()
  process = launched(FAIL, "--devices=1", "--grace-seconds=1", arguments=["64"])
  _, err = process.communicate(timeout=120)
  assert process.returncode == 64
  assert "[1] one is leaving" in err and "process 1 ended with exit code 64" in err
  assert time.monotonic() - started < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_every_process_as_a_request_to_stop(launched, number):
  process = launched(WAIT, "--processes=3", "--devices=1", arguments=["x"])
  lines = [process.stdout.readline() for _ in range(3)]
  assert all("waiting" in line for line in lines)
  process.send_signal(number)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 75, err
  assert sorted(out.split()) == sorted("[0] saved [1] saved [2] saved".split())


def test_a_process_that_a_signal_ended_counts_as_128_plus_the_signal(launched):
  process = launched("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "--processes=1", arguments=["x"])
  process.communicate(timeout=30)
  assert process.returncode == 128 + signal.SIGKILL


def test_environment_gives_every_process_its_own_devices():
  env = local.environment(1, processes=2, devices=4, port=7, platform="cuda")
  assert env["CUDA_VISIBLE_DEVICES"] == "4,5,6,7" and env["MMDIFF_PROCESS_ID"] == "1"
  env = local.environment(0, processes=2, devices=3, port=7, platform="cpu")
  assert env["JAX_NUM_CPU_DEVICES"] == "3" and env["JAX_PLATFORMS"] == "cpu" and env["MMDIFF_COORDINATOR"] == "127.0.0.1:7"


@pytest.mark.parametrize("argv, said", [
  (["--processes=0", "--", "train"], "at least 1"), ([], "no command"), (["--proceses=2x", "--", "train"], "proceses")])
def test_bad_flags_exit_with_64(argv, said, capsys):
  with pytest.raises(SystemExit) as left:
    local.main(argv)
  assert left.value.code == 64
  assert re.search(said, capsys.readouterr().err)
