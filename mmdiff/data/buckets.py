"""Multi-aspect training: every record goes to the bucket nearest to its shape, and a step trains on one bucket.

Buckets as in SDXL (Podell et al. 2023, https://arxiv.org/abs/2307.01952, appendix I): a table of heights and widths, so that shapes are
static and each compiles once. Which bucket a step uses, and which records, is arithmetic on (seed, step): every host finds the same, and
a run resumes exactly.
"""
import bisect
import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.data import draws

LEAST = 0.9                          # of the square's pixels that a bucket of the rule has
SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def parse(words: Sequence[str], *, image_size: int) -> tuple[tuple[int, int], ...]:
  """`data.buckets` as ((height, width), …): entries "HEIGHTxWIDTH", or the rule "step=64" with perhaps "ratio=4".

  The rule names every height and width that are multiples of the step, of 0.9 to 1.0 times image_size² pixels, whose sides differ by at
  most the ratio. With image_size 1024 and step 64 these are SDXL's. Raises ConfigError.
  """
  rule, sizes, problems = dict(ratio=4.0), [], []
  for word in words:
    name, equals, value = word.partition("=")
    if match := SIZE.fullmatch(word):
      sizes.append((int(match[1]), int(match[2])))
    elif equals and name in ("step", "ratio") and re.fullmatch(r"\d+(\.\d+)?", value) and float(value) >= 1:
      rule[name] = float(value)
    else:
      problems.append(f"data.buckets: expected HEIGHTxWIDTH, step=PIXELS or ratio=NUMBER, found {word!r}")
  if "step" in rule and not problems:
    step = int(rule["step"])
    sides = range(step, int(image_size * math.sqrt(rule["ratio"])) + 1, step)
    sizes += [(height, width) for height in sides for width in sides if LEAST <= height * width / image_size ** 2 <= 1
              and max(height, width) <= rule["ratio"] * min(height, width)]
  if words and not sizes and not problems:
    problems.append(f"data.buckets: {', '.join(words)} names no size near {image_size}x{image_size}; give sizes, or a smaller step")
  if len(set(sizes)) < len(sizes):
    problems.append(f"data.buckets: a size comes twice among {', '.join(map(label, sizes))}")
  if problems:
    raise ConfigError("\n".join(problems))
  return tuple(sizes)


def label(size: tuple[int, int]) -> str:
  return f"{size[0]}x{size[1]}"


def assign(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
  """The bucket of each picture, int32 [N]: the one whose ratio of sides is nearest to that of `sizes` [N 2] (height, width), by factor;
  of equal ones the first. A picture of unknown size, (0, 0), goes to the bucket that is nearest to square."""
  known = np.where(sizes.min(axis=1, keepdims=True) > 0, sizes, 1)
  ratio = np.log(known[:, 0]) - np.log(known[:, 1])
  table = np.array([math.log(height / width) for height, width in buckets])
  return np.abs(ratio[:, None] - table[None]).argmin(axis=1).astype(np.int32)


class Place(NamedTuple):
  """Where a row of a step comes from."""
  bucket: int
  epoch: int                         # of that bucket
  index: int                         # in the source


class Order:
  """Which bucket and which records each step takes.

  Bucket k with n_k records is an endless sequence of its own, shuffled anew each time round, cut into batches of B. In the first r rounds
  over the data, floor(r n_k / B) of its batches come, so that after any number of rounds every record was seen as often as any other, to
  within one batch. The order of the batches within a round is shuffled by (seed, round).
  """

  def __init__(self, of_record: np.ndarray, count: int, *, batch_size: int, seed: int):
    self.members = [np.flatnonzero(of_record == bucket) for bucket in range(count)]
    self.counts = [len(rows) for rows in self.members]
    self.batch_size, self.seed = batch_size, seed

  def _before(self, rounds: int) -> int:
    """Steps in the first rounds."""
    return sum(rounds * n // self.batch_size for n in self.counts)

  @functools.lru_cache(maxsize=8)                        # noqa: B019 (an order lives as long as its run)
  def _round_of(self, step: int) -> int:
    """The round that a step is in. r rounds are at most r N / B steps, and less than one a bucket fewer."""
    first = step * self.batch_size // sum(self.counts)
    last = (step + len(self.counts) + 1) * self.batch_size // sum(self.counts) + 1
    return first + bisect.bisect_right(range(first, last), step, key=lambda r: self._before(r + 1))

  @functools.lru_cache(maxsize=64)                       # noqa: B019
  def batch(self, step: int) -> tuple[int, int]:
    """(bucket, which of its batches) of a step."""
    turn = self._round_of(step)
    shares = [(turn + 1) * n // self.batch_size - turn * n // self.batch_size for n in self.counts]
    place = draws.shuffled(step - self._before(turn), length=sum(shares), keys=_keys(self.seed, "buckets", turn))
    for bucket, share in enumerate(shares):
      if place < share:
        return bucket, turn * self.counts[bucket] // self.batch_size + place
      place -= share
    raise AssertionError("a round's places are its shares'")

  def place(self, step: int, row: int) -> Place:
    """Where a row of the global batch of a step comes from."""
    bucket, which = self.batch(step)
    epoch, at = divmod(which * self.batch_size + row, self.counts[bucket])
    keys = _keys(self.seed, f"bucket {bucket}", epoch)
    return Place(bucket, epoch, int(self.members[bucket][draws.shuffled(at, length=self.counts[bucket], keys=keys)]))

  def replacement(self, place: Place, attempt: int) -> int:
    """The record to try in place of a bad one: another of the same bucket, by a hash chain."""
    at = draws.digest("replace", self.seed, place.epoch, place.index, attempt) % self.counts[place.bucket]
    return int(self.members[place.bucket][at])


@functools.lru_cache(maxsize=256)
def _keys(seed: int, what: str, number: int) -> tuple[int, ...]:
  return tuple(draws.digest("order", what, seed, number, r) for r in range(draws.ROUNDS))
