"""What a process does when another one of its run is lost: one line that says who, and exit code 75.

JAX's coordination service notices a lost process and then ends the others from C++, with a stack trace and SIGABRT. It would rather call a
function, but jaxlib can't hand the reason to Python: the call throws std::bad_cast in a thread of C++, and that calls C++'s terminate
handler, which is ours (`_Jaxlib`, `arm`). Who it was is known from a beat of every process in the service's own table (`Beats`).
"""
import contextlib
import ctypes
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jax._src import distributed as jax_distributed

from mmdiff.core.errors import EXIT_CODES, Interrupted

INTERRUPTED = EXIT_CODES[Interrupted]
BEAT_SECONDS = 2.0
LATE_BEATS = 4                 # a process is lost after so many beats without a sign
MOST_NAMED = 64                # processes; the table of more would be read for too long
TABLE = "mmdiff/beats"
# Of what a collective raises when the other end is gone (Gloo, NCCL, gRPC).
BROKEN = re.compile(r"gloo|nccl|connection (reset|closed|refused)|socket closed|coordination|heartbeat|unavailable", re.IGNORECASE)

_kept: list[Any] = []          # what C++ holds without counting


class _Jaxlib:
  """jaxlib as `jax.distributed` sees it, with a function to call when a process is lost instead of ending this one."""

  def __init__(self, jaxlib: Any):
    self.jaxlib = jaxlib

  def __getattr__(self, name: str) -> Any:
    return getattr(self.jaxlib, name)

  def get_distributed_runtime_client(self, *args, **options) -> Any:
    return self.jaxlib.get_distributed_runtime_client(*args, missed_heartbeat_callback=print, **options)


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Within it `jax.distributed.initialize` makes a client that leaves the end to `arm`. Elsewhere than on Linux nothing changes."""
  jaxlib = jax_distributed._jax
  try:
    ctypes.CDLL("libstdc++.so.6")
  except OSError:
    yield
    return
  jax_distributed._jax = _Jaxlib(jaxlib)
  try:
    yield
  finally:
    jax_distributed._jax = jaxlib


class Beats:
  """Signs of life of `count` processes, of which this is number `own`, in the table of a client of the coordination service."""

  def __init__(self, client: Any, *, own: int, count: int, clock: Callable[[], float] = time.monotonic):
    self.client, self.own, self.clock = client, own, clock
    self.seen = {process: (-1, clock()) for process in range(count) if process != own}
    self.number = 0

  def beat(self) -> None:
    """Gives a sign and reads those of the others. Raises what the client does when the service is gone."""
    self.number += 1
    self.client.key_value_set(f"{TABLE}/{self.own}", str(self.number), allow_overwrite=True)
    for key, value in self.client.key_value_dir_get(TABLE):
      process = int(key.rsplit("/", 1)[-1])
      if process in self.seen and self.seen[process][0] != int(value):
        self.seen[process] = (int(value), self.clock())

  def late(self) -> list[int]:
    """Those without a sign for too long."""
    return [process for process, (_, at) in self.seen.items() if self.clock() - at > LATE_BEATS * BEAT_SECONDS]

  def run(self) -> None:
    with contextlib.suppress(Exception):           # the service is gone: `lost_ones` finds that out by itself
      while True:
        self.beat()
        time.sleep(BEAT_SECONDS)


def reachable(address: str) -> bool:
  """Whether something listens at host:port."""
  host, _, port = address.rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
      return True
  except OSError:
    return False


def lost_ones(beats: Beats | None, coordinator: str) -> list[int]:
  """The processes that are gone, [] if all seem to be there; the first one is that of the service."""
  gone = [] if beats is not None and beats.own == 0 or reachable(coordinator) else [0]
  return gone or (beats.late() if beats else [])


def awaited(beats: Beats | None, coordinator: str) -> list[int]:
  """`lost_ones`, asked until there are some, as long as it may take to be sure: the others' beats are late only after some time, and a
  killed process's connections are cut before it stops to listen."""
  until = time.monotonic() + (LATE_BEATS + 2) * BEAT_SECONDS
  while not (lost := lost_ones(beats, coordinator)) and time.monotonic() < until:
    time.sleep(BEAT_SECONDS / 4)
  return lost


def line(lost: list[int]) -> str:
  who = f"process{'es' if len(lost) > 1 else ''} {', '.join(map(str, lost))}" if lost else "another process"
  return f"mmdiff: {who} of this run was lost; the same command goes on from the last checkpoint"


def leave(lost: list[int]) -> None:
  print(line(lost), file=sys.stderr, flush=True)
  os._exit(INTERRUPTED)


def arm() -> None:
  """After `jax.distributed.initialize`: takes C++'s terminate handler, and begins to beat."""
  state = jax_distributed.global_state
  if state.num_processes < 2:
    return
  try:
    library = ctypes.CDLL("libstdc++.so.6")
  except OSError:
    return
  beats, coordinator = None, state.coordinator_address or ""
  if state.num_processes <= MOST_NAMED:
    beats = Beats(state.client, own=state.process_id, count=state.num_processes)
    threading.Thread(target=beats.run, name="beats", daemon=True).start()
  kind = ctypes.CFUNCTYPE(None)
  library._ZSt13set_terminatePFvvE.restype = ctypes.c_void_p

  @kind
  def terminate() -> None:
    lost = awaited(beats, coordinator)
    if lost or beats is None:
      leave(lost)
    kind(before)()             # another fault: as it would have ended without us
  before = library._ZSt13set_terminatePFvvE(terminate)
  _kept[:] = [terminate, beats, coordinator]


def explain(error: Exception) -> None:
  """Ends this process as above if an error of a collective comes of a lost process, which may take some beats to be sure; else returns."""
  if not _kept or not BROKEN.search(str(error)):
    return
  _, beats, coordinator = _kept
  if lost := awaited(beats, coordinator):
    leave(lost)
