"""How much there is and how much a tree of arrays takes, without making it."""
from pathlib import Path
from typing import Any

import numpy as np


def size(count: float) -> str:
  """Bytes in words: 5_000_000 -> "4.8 MiB"."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if count < 1_024:
      return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
    count /= 1_024
  return f"{count:.1f} TiB"


def host_memory() -> tuple[float, float]:
  """(available, total) bytes of this host; infinite where the system does not say."""
  lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines()) if Path("/proc/meminfo").exists() else {}
  read = lambda key: int(lines[key].split()[0]) * 1_024 if key in lines else float("inf")
  return read("MemAvailable"), read("MemTotal")


def nbytes(leaf: Any, sharding: Any = None) -> int:
  """Bytes of an abstract leaf, or of its part on one device."""
  return int(np.prod(sharding.shard_shape(leaf.shape) if sharding else leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize
