import subprocess
import sys

import jax
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.train import distributed

EXPLICIT = dict(MMDIFF_COORDINATOR="10.0.0.1:1234", MMDIFF_PROCESSES="4", MMDIFF_PROCESS_ID="3")
SLURM = dict(SLURM_JOB_ID="1234", SLURM_STEP_NODELIST="n[001-002]", SLURM_NTASKS="16", SLURM_PROCID="9", SLURM_LOCALID="1",
             SLURM_NODEID="1", SLURM_STEP_TASKS_PER_NODE="8(x2)")


@pytest.fixture
def environ(monkeypatch):
  """environ(variables) -> the arguments that jax.distributed.initialize then gets, or None."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
  for name in list(distributed.os.environ):
    if name.startswith(("SLURM_", "OMPI_", "MMDIFF_", "JAX_PLATFORMS", "CUDA_VISIBLE")):
      monkeypatch.delenv(name)

  def run(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    distributed.initialize()
    return calls[0] if calls else None
  return run


def test_a_laptop_is_one_process():
  program = "from mmdiff.train import distributed; distributed.initialize(); import jax; print(jax.process_count())"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "1"


def test_our_variables_are_passed_on(environ):
  arguments = environ(EXPLICIT)
  assert (arguments["coordinator_address"], arguments["num_processes"], arguments["process_id"]) == ("10.0.0.1:1234", 4, 3)
  assert arguments["heartbeat_timeout_seconds"] == 30


@pytest.mark.parametrize("change, said", [
  (dict(MMDIFF_PROCESSES=""), "MMDIFF_PROCESSES"), (dict(MMDIFF_PROCESS_ID="4"), "0 <= id"),
  (dict(MMDIFF_PROCESSES="two"), "whole numbers"), (dict(MMDIFF_COORDINATOR="host"), "host:port")])
def test_part_of_our_variables_is_refused(environ, change, said):
  with pytest.raises(ConfigError, match=said):
    environ(EXPLICIT | change)


def test_slurm_is_left_to_jax(environ):
  assert environ(SLURM | dict(SLURM_GPUS_ON_NODE="8")) ["local_device_ids"] is None


def test_a_task_that_sees_one_gpu_uses_that_one(environ):
  assert environ(SLURM | dict(SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES="0"))["local_device_ids"] == [0]


def test_slurm_with_idle_gpus_is_refused(environ):
  with pytest.raises(ConfigError, match="--ntasks-per-node=8"):
    environ(SLURM | dict(SLURM_GPUS_ON_NODE="8", SLURM_STEP_TASKS_PER_NODE="8,1"))


def test_mpi_with_idle_gpus_is_refused(environ):
  with pytest.raises(ConfigError, match="start 4 ranks"):
    environ(dict(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_LOCAL_SIZE="2", CUDA_VISIBLE_DEVICES="0,1,2,3"))


def test_one_task_in_a_slurm_session_sees_all_gpus(environ):
  assert environ(dict(SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_GPUS_ON_NODE="8")) is None


@pytest.mark.parametrize("tasks, node, expected", [
  ("8(x2),4", "2", 4), ("8(x2),4", "1", 8), ("3", "0", 3), ("", "0", None), ("1", "5", None)])
def test_tasks_per_node_as_slurm_writes_them(tasks, node, expected):
  assert distributed.slurm_tasks_here(dict(SLURM_STEP_TASKS_PER_NODE=tasks, SLURM_NODEID=node)) == expected


@pytest.mark.parametrize("variables, said", [
  (dict(JOB_COMPLETION_INDEX="3"), r"jax\[k8s\]"), (dict(SLURM_NTASKS="4", SLURM_PROCID="1"), "srun")])
def test_one_of_several_does_not_train_alone(variables, said):
  with pytest.raises(ConfigError, match=said):
    distributed.check_alone(variables)
