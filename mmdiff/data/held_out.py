"""A share of a source that training never sees and evaluation does, the same for every run: by the record's key alone.

A record is held out when its number in [0, 1), a hash of its key, is below the share. So a smaller share is a part of a larger one, records
that come later move no other, and neither order nor number of the records matters.
"""
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import DataError
from mmdiff.data import draws, records
from mmdiff.data.quarantine import BadRecord

LOG = logging.getLogger(__name__)
KEPT = 4                       # masks
_MASKS: dict[tuple[str, float], np.ndarray] = {}
SECONDS = 10.0                 # between notices while keys are read


def is_held_out(key: str, share: float) -> bool:
  """Of a readable key; "" stands for one that is not."""
  return key != "" and draws.uniform("held out", key) < share


class Part:
  """The records of a source that are held out, or (`inside` false) the others, in the source's order. Keys that can't be read are not held
  out: their records are counted where they are met."""

  def __init__(self, source: Any, share: float, *, inside: bool):
    self.source, self.share, self.inside = source, share, inside
    self._rows = np.nonzero(_mask(source, share) == inside)[0]
    if not len(self._rows):
      raise DataError(f"data.held_out: a share of {share:g} holds out {'none' if inside else 'all'} of {len(source):,} records; choose "
                      f"another, {'larger' if inside else 'smaller'} one" + ("" if inside else ", or 0 for none"))

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Any:
    return self.source[self._row(i)]

  def without_image(self, i: int) -> Any:
    """The same record, without reading its picture where the source can."""
    return records.without_image(self.source, self._row(i))

  def _row(self, i: int) -> int:
    if not 0 <= int(i) < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    return int(self._rows[int(i)])

  def key(self, i: int) -> str:
    return key_at(self.source, self._row(i))

  def fingerprint(self) -> str:
    """A digest of the source's and of which part of it this is."""
    return records.fingerprint("held out", self.source.fingerprint(), self.share, self.inside)

  def __getattr__(self, name: str) -> Any:
    if name.startswith("_") or name in ("source", "shard_rows"):       # rows of a shard are no run of these
      raise AttributeError(name)
    return getattr(self.source, name)                                   # labels, allow_empty_captions, skipped, …


def key_at(source: Any, i: int) -> str:
  """The key of a record, without its picture; "" when it can't be read."""
  try:
    key = source.key(i) if hasattr(source, "key") else records.without_image(source, i)["key"]
    return key if isinstance(key, str) else ""
  except (BadRecord, KeyError, TypeError):
    return ""


def count(source: Any, share: float) -> int:
  """How many records of a source a share holds out."""
  return int(_mask(source, share).sum()) if share else 0


def _mask(source: Any, share: float) -> np.ndarray:
  """bool [N]: which are held out. The last few are kept: training and every evaluator ask for the same."""
  asked = (source.fingerprint(), share)
  if asked not in _MASKS:
    while len(_MASKS) >= KEPT:
      _MASKS.pop(next(iter(_MASKS)), None)
    _MASKS[asked] = np.fromiter((is_held_out(key, share) for key in _keys(source)), bool, len(source))
  return _MASKS[asked]


def _keys(source: Any) -> Iterator[str]:
  """All keys in order; says how far it is where that takes long."""
  last = time.monotonic()
  for i in range(len(source)):
    yield key_at(source, i)
    if i % 4096 == 0 and time.monotonic() - last > SECONDS:
      last = time.monotonic()
      LOG.warning("data.held_out: looked at %s of %s keys", f"{i:,}", f"{len(source):,}")


def training(source: Any, share: float) -> Any:
  """What training reads of a source: all but the share held out."""
  return Part(source, share, inside=False) if share else source


def held_out(*, of: Built["mmdiff.data:SOURCES"], share: float) -> Part:
  """The share of a source that `config.data.held_out` keeps out of training.

  Args:
    of: the source that training reads.
    share: at most `config.data.held_out`, else training has seen some of these records.
  Raises: DataError when no record is held out.
  """
  return Part(of, share, inside=True)
