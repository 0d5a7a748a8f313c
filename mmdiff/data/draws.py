"""Every random choice of the data path, as pure functions of (seed, epoch, record).

Nothing here depends on hosts, workers or on what was read before, so a run resumes exactly and on any number of machines.
"""
import hashlib

import numpy as np

ROUNDS = 8
_MASK = (1 << 64) - 1


def digest(*parts) -> int:
  """A 64-bit hash of ints and strings, the same on every machine and Python version."""
  return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def uniform(*parts) -> float:
  """A number in [0, 1) drawn by `digest(*parts)`."""
  return (digest(*parts) >> 11) * 2.0 ** -53


def generator(*parts) -> np.random.Generator:
  """A numpy generator (Philox, counter based) keyed by `digest(*parts)`."""
  return np.random.Generator(np.random.Philox(key=digest(*parts)))


def record_id(key: str, *, epoch: int = 0, instead: int | None = None) -> int:
  """The uint32 identity of one occurrence of a record, which per-example randomness on the device is folded with.

  A record has one turn an epoch, and stands in for others (`instead`, the index of a bad one) at theirs. A batch may reach over several
  epochs of a small source or bucket: each time the record is another example, with a time, a noise and a dropout of its own. The first
  epoch's is a function of the key alone, as evaluation's is.
  """
  turn = () if instead is None else (instead,)
  name = repr((key, epoch, *turn)) if epoch or turn else key
  return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


def round_keys(seed: int, epoch: int) -> tuple[int, ...]:
  """What `shuffled` needs for one epoch; worth keeping between calls."""
  return tuple(digest("order", seed, epoch, r) for r in range(ROUNDS))


def shuffled(index: int, *, length: int, keys: tuple[int, ...]) -> int:
  """Where `index` goes in the permutation of range(length) that `keys` name.

  A Feistel network over the smallest even number of bits, applied again while the value lies outside the range (cycle walking: Black
  and Rogaway 2002, "Ciphers with arbitrary finite domains"). Constant memory at any length, no state.
  """
  half = max(1, ((length - 1).bit_length() + 1) // 2)
  mask = (1 << half) - 1
  while True:
    left, right = index >> half, index & mask
    for key in keys:
      x = (right + key) * 0x9E3779B97F4A7C15 & _MASK       # a multiply-xorshift mix; the high bits are the well mixed ones
      x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93 & _MASK
      left, right = right, left ^ ((x >> 40) & mask)
    index = left << half | right
    if index < length:
      return index
