"""How sure a share is, and whether two models differ: bootstrap over prompts, McNemar's exact test on pairs."""
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
  """A mean and its confidence limits."""
  mean: float
  low: float
  high: float


def bootstrap(values: np.ndarray, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Interval:
  """Percentile bootstrap of the mean (Efron 1979) over the first axis.

  `values` [N] or [N K]: one row per prompt; the K pictures of a prompt are resampled together, since they are not independent.
  Raises ValueError without rows.
  """
  rows = np.asarray(values, np.float64)
  rows = rows.reshape(len(rows), -1).mean(axis=1) if len(rows) else rows
  if not len(rows):
    raise ValueError("a bootstrap needs at least one row")
  draws = np.random.Generator(np.random.Philox(key=seed)).integers(len(rows), size=(resamples, len(rows)))
  low, high = np.quantile(rows[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
  return Interval(float(rows.mean()), float(low), float(high))


class Comparison(NamedTuple):
  """McNemar's table of discordant pairs and its exact two-sided p-value."""
  first_only: int              # prompts that only the first model got right
  second_only: int
  p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
  """McNemar (1947), exact: under the null hypothesis each discordant pair is a fair coin. Raises ValueError for unequal lengths."""
  a, b = np.asarray(first, bool), np.asarray(second, bool)
  if a.shape != b.shape:
    raise ValueError(f"paired results of {a.shape} and {b.shape} differ in length; both models must answer the same prompts")
  only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
  n, k = only_a + only_b, min(only_a, only_b)
  # Python's whole numbers: 2^n overflows a float from 1,024 pairs on.
  tail = sum(math.comb(n, i) for i in range(k + 1))
  return Comparison(only_a, only_b, min(1.0, 2 * tail / (1 << n)))


def compare(first: str | Path, second: str | Path, *, table: str = "prompts") -> dict[str, Comparison]:
  """McNemar between two models' result files of the same evaluator (`eval/NAME_STEP.json`), per category and over all (`all`).

  Each row of `tables[table]` has `category`, `prompt`, `seed` and `right`; rows are paired by the first three. Raises ValueError when
  the two files do not hold the same prompts and seeds.
  """
  rows = [{(row["category"], row["prompt"], row["seed"]): bool(row["right"]) for row in
           json.loads(Path(path).read_text(encoding="utf-8"))["tables"][table]} for path in (first, second)]
  if rows[0].keys() != rows[1].keys():
    missing = len(rows[0].keys() ^ rows[1].keys())
    raise ValueError(f"{first} and {second} differ in {missing} prompts; compare runs of one tier, style, number of prompts and seed")
  keys = sorted(rows[0])
  groups = {"all": keys} | {name: [key for key in keys if key[0] == name] for name in sorted({key[0] for key in keys})}
  return {name: mcnemar([rows[0][key] for key in group], [rows[1][key] for key in group]) for name, group in groups.items()}
