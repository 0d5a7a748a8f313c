"""How large the pictures of a source are, from their headers: nothing is decoded, and it is looked up once per source."""
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.core.files import write_atomically
from mmdiff.data import decode
from mmdiff.data.quarantine import BadRecord

LOG = logging.getLogger(__name__)
CACHE = "~/.cache/mmdiff/sizes"
WORTH_KEEPING = 10_000               # pictures
BLOCK = 1_024
SIDEWAYS = (5, 6, 7, 8)              # EXIF orientations that swap height and width


def size_of(image: Any) -> tuple[int, int]:
  """(height, width) of a record's picture as it will be decoded; (0, 0) for what is no picture."""
  if isinstance(image, np.ndarray):
    return image.shape[:2] if image.ndim >= 2 else (0, 0)
  try:
    opened = decode.header(image)
    width, height = opened.size
    return (width, height) if decode.told_orientation(opened, image) in SIDEWAYS else (height, width)
  except decode.FAULTS:
    return 0, 0


def sizes(source: Any, *, threads: int = 4, cache: str = CACHE) -> np.ndarray:
  """int32 [N 2]: height and width of every picture, (0, 0) where there is none. Kept in `cache` for large sources."""
  kept = Path(os.path.expanduser(cache)) / f"{source.fingerprint()}.npy"
  if len(source) >= WORTH_KEEPING and kept.exists():
    found = np.load(kept, allow_pickle=False)
    if found.shape == (len(source), 2):
      return found
  made = _survey(source, threads)
  if len(source) >= WORTH_KEEPING:
    try:
      write_atomically(kept, lambda file: np.save(file, made, allow_pickle=False))
    except OSError as error:
      LOG.info("the sizes of the pictures are not kept: %s", error)
  return made


def _survey(source: Any, threads: int) -> np.ndarray:
  def one(index: int) -> tuple[int, int]:
    try:
      return size_of(source[index]["image"])
    except (BadRecord, KeyError):
      return 0, 0

  made = np.zeros((len(source), 2), np.int32)
  start = last = time.monotonic()
  with ThreadPoolExecutor(max(threads, 1)) as pool:
    for first in range(0, len(source), BLOCK):
      rows = range(first, min(first + BLOCK, len(source)))
      made[rows.start:rows.stop] = list(pool.map(one, rows))
      now = time.monotonic()
      if now - last > 10:
        rate, last, left = rows.stop / (now - start), now, len(source) - rows.stop
        LOG.warning("sizes of %d of %d pictures, %.0f a second, %.0f s left", rows.stop, len(source), rate, left / rate)
  return made
