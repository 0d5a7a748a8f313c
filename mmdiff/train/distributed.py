"""How the processes of one run find each other. Called once, before anything asks JAX for a device.

Three ways, the first that applies:
- explicit: `MMDIFF_COORDINATOR=host:port`, `MMDIFF_PROCESSES` and `MMDIFF_PROCESS_ID`, as `launch.local` sets them;
- a cluster that JAX recognises: the workers of a TPU slice, a Slurm step, Open MPI, Kubernetes with `jax[k8s]`;
- none: one process, nothing to do.
"""
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax

from mmdiff.core.errors import ConfigError
from mmdiff.train import peers

HEARTBEAT_SECONDS = 30        # a lost process is noticed within about this time; JAX's default is 100
SHUTDOWN_SECONDS = 120        # how long a process that is done waits for the others (the first may still write the report)
VARIABLES = ("MMDIFF_COORDINATOR", "MMDIFF_PROCESSES", "MMDIFF_PROCESS_ID")


def initialize() -> None:
  """Joins the other processes of this run, if there are any.

  Raises ConfigError when the environment describes a cluster only in part, or one whose GPUs would stay idle.
  """
  if jax.distributed.is_initialized():
    return
  env = os.environ
  timeouts: dict[str, Any] = dict(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
  explicit = explicit_arguments(env)
  if explicit:
    with peers.watched():
      jax.distributed.initialize(**explicit, **timeouts, cluster_detection_method="deactivate")
    peers.arm()
    return
  if env.get("SLURM_NTASKS") == "1" or env.get("OMPI_COMM_WORLD_SIZE") == "1":
    return                    # one process sees all GPUs; initialising would bind it to the first
  check_gpu_tasks(env)
  try:
    with peers.watched():
      jax.distributed.initialize(local_device_ids=local_devices(env), **timeouts)
    peers.arm()
  except (ValueError, RuntimeError) as error:
    # No cluster found; or JAX is in use already, as in a second run of one process, which can't be one of several then.
    if not re.search(r"coordinator_address|before any JAX c", str(error)):
      raise
    check_alone(env)


def abandon(code: int) -> None:
  """Ends this process now if it is one of several, after an error that the others don't share; else returns.

  An ordinary exit would first wait for the others at JAX's shutdown barrier, while they wait for this one in a collective.
  """
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def explicit_arguments(env: Mapping[str, str]) -> dict:
  """The arguments that our own variables give, {} when none is set.

  Raises ConfigError for a part of them or a number that doesn't fit.
  """
  given = [name for name in VARIABLES if env.get(name)]
  if not given:
    return {}
  missing = [name for name in VARIABLES if name not in given]
  if missing:
    raise ConfigError(f"{', '.join(given)} is set but not {', '.join(missing)}; set all of {', '.join(VARIABLES)} or none")
  address, processes, process = (env[name] for name in VARIABLES)
  if not re.fullmatch(r".+:\d+", address):
    raise ConfigError(f"MMDIFF_COORDINATOR: expected host:port of process 0, found {address!r}")
  if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
    raise ConfigError(f"MMDIFF_PROCESS_ID {process!r} of MMDIFF_PROCESSES {processes!r}: expected whole numbers with "
                      "0 <= id < processes")
  return dict(coordinator_address=address, num_processes=int(processes), process_id=int(process))


def slurm_tasks_here(env: Mapping[str, str]) -> int | None:
  """Tasks of this Slurm step on this node; Slurm writes `8(x2),4` for nodes with 8, 8 and 4."""
  counts = []
  for part in env.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
    match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
    if match:
      counts += [int(match[1])] * int(match[2] or 1)
  node = int(env.get("SLURM_NODEID", "0"))
  return counts[node] if node < len(counts) else None


def check_gpu_tasks(env: Mapping[str, str]) -> None:
  """Raises ConfigError when a Slurm or MPI launcher started fewer processes on this node than it has GPUs.

  JAX binds each such process to the GPU of its local number, so the others would idle without a word.
  """
  if env.get("JAX_PLATFORMS") == "cpu":
    return
  tasks = slurm_tasks_here(env)
  gpus = env.get("SLURM_GPUS_ON_NODE", "")
  if tasks and gpus.isdigit() and int(gpus) != tasks:
    raise ConfigError(f"Slurm gave this node {gpus} GPUs and {tasks} tasks, but every task drives one GPU; "
                      f"ask for --ntasks-per-node={gpus}")
  ranks, visible = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""), env.get("CUDA_VISIBLE_DEVICES", "")
  if ranks.isdigit() and visible and len(visible.split(",")) not in (1, int(ranks)):
    raise ConfigError(f"mpirun started {ranks} ranks on a node with {len(visible.split(','))} GPUs visible, but every rank drives "
                      f"one GPU; start {len(visible.split(','))} ranks per node")


def local_devices(env: Mapping[str, str]) -> list[int] | None:
  """[0] when the launcher already shows this task one GPU only (`--gpus-per-task=1`): its number here is 0 whatever the task's is."""
  return [0] if env.get("CUDA_VISIBLE_DEVICES", "").strip() and "," not in env["CUDA_VISIBLE_DEVICES"] else None


def check_alone(env: Mapping[str, str]) -> None:
  """Raises ConfigError when this process is plainly one of several although JAX found no cluster: each would train alone."""
  if "JOB_COMPLETION_INDEX" in env:
    raise ConfigError(f"this pod is number {env['JOB_COMPLETION_INDEX']} of an indexed Job, but JAX found no cluster; install "
                      f"jax[k8s] and let the service account read jobs, or set {', '.join(VARIABLES)}")
  if env.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in env:
    raise ConfigError("Slurm runs several tasks, but this process was not started by srun's step; start it with srun "
                      f"(or set {', '.join(VARIABLES)})")
