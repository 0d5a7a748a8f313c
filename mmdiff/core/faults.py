"""The failures of a machine that are not a bug of anyone's, in one line with the way out: no memory, no such accelerator, a full disk."""
import errno
import os
import re
import sys
from typing import Any

from mmdiff.core.errors import CannotWrite, GaveUp

ASKED = re.compile(r"(?:allocat\w*|allocating) ([\d.]+) ?(bytes|[KMGT]iB)?", re.IGNORECASE)
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
# What makes the work of a command smaller.
SMALLER = {
  "train": "lower --config.batch_size, raise --config.accumulate (the same batch in parts), set remat='full' in the model, or split the "
           "state by --config.mesh.fsdp",
  "bench": "lower --batch_size, or set remat='full' in the model",
  "sample": "lower --batch_size, --height and --width, or load with --dtype=bfloat16",
  "edit": "lower --batch_size or make the picture smaller",
}
FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EROFS: "the file system is read-only",
        errno.EFBIG: "the file would be too large"}


def told(error: BaseException, command: str = "") -> GaveUp | CannotWrite | None:
  """The error to show instead of `error`; None where that is a bug to be seen whole.

  Of JAX: RESOURCE_EXHAUSTED, and a back end that `JAX_PLATFORMS` names and that is not there. Of Python: MemoryError, and writing where
  there is no room.
  """
  message = str(error)
  if isinstance(error, OSError) and error.errno in FULL:
    return CannotWrite(f"cannot write {error.filename or 'the output'}: {FULL[error.errno]}")
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in message:
    return GaveUp(f"out of memory{_sizes(message)}: {SMALLER.get(command, 'lower the batch size, or use a smaller model')}")
  if _of_backend(error) or "Unable to initialize backend" in message or "Unknown backend" in message:
    return GaveUp(_no_backend(message))
  return None


def hush() -> None:
  """Of a command line: after a save that failed, which comes up as an error, tensorstore prints a traceback for each part of it that finds
  its event loop closed; those are left out."""
  before = sys.unraisablehook

  def hook(dropped: Any) -> None:
    if "Event loop is closed" not in str(dropped.exc_value):
      before(dropped)
  sys.unraisablehook = hook


def _sizes(message: str) -> str:
  from mmdiff.core.memory import host_memory, size
  asked = ASKED.search(message)
  parts = [f"{size(float(asked[1]) * UNITS.get(asked[2] or 'bytes', 1))} more were asked for"] if asked else []
  jax, limit, where = sys.modules.get("jax"), None, "this machine"
  if jax:
    try:
      device = jax.local_devices()[0]
      limit, where = (device.memory_stats() or {}).get("bytes_limit"), f"each {device.device_kind}"
    except Exception:          # the device may be what failed
      limit = None
  limit, where = (limit, where) if limit else (host_memory()[1], "this machine")
  return f" ({', '.join([*parts, f'{where} has {size(limit)}'])})" if limit != float("inf") or parts else ""


def _of_backend(error: BaseException) -> bool:
  """Whether JAX's choice of a back end raised it, which says nothing when the list of them is empty."""
  trace = error.__traceback__
  while trace and trace.tb_next:
    trace = trace.tb_next
  return isinstance(error, AssertionError) and trace is not None and trace.tb_frame.f_code.co_filename.endswith("xla_bridge.py")


def _no_backend(message: str) -> str:
  wanted = os.environ.get("JAX_PLATFORMS", "")
  extra = next((name for name in ("cuda", "tpu") if name in (wanted or message)), None)
  known = f"install it by `make setup EXTRAS={extra}` (or pip install 'mmdiff[{extra}]')" if extra else "JAX knows none of that name"
  first = message.splitlines()[0] if message else ""
  return (f"JAX has no {wanted or 'such'} back end on this machine{f' ({first})' if first else ''}: {known}, or unset JAX_PLATFORMS to use "
          "what there is")
