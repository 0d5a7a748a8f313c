"""How sure a share is, and whether two models differ: bootstraps over prompts and seeds, McNemar's exact test on pairs."""
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


def paired(first: np.ndarray, second: np.ndarray, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Interval:
  """The mean of `first` - `second`, both [seeds prompts] of the same seeds and prompts, and its confidence limits.

  Prompts and seeds are resampled independently, both with replacement (the pigeonhole bootstrap, Owen 2007,
  https://arxiv.org/abs/0712.1111), since prompts share a model and models share their prompts: the interval speaks of other prompts and of
  other seeds. It is wide when seeds are few and disagree; with one seed it speaks of prompts only. Raises ValueError for unequal shapes.
  """
  a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if a.shape != b.shape or a.ndim != 2 or not a.size:
    raise ValueError(f"paired values are [seeds prompts] of one shape, found {a.shape} and {b.shape}")
  differences = a - b
  seeds, prompts = differences.shape
  rng = np.random.Generator(np.random.Philox(key=seed))
  means = []
  for _ in range(resamples):                       # one at a time: tens of thousands of prompts need not be held resamples times
    rows = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) @ differences
    means.append(rows[rng.integers(prompts, size=prompts)].mean() / seeds)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return Interval(float(differences.mean()), float(low), float(high))


def area(steps: Sequence[float], values: np.ndarray) -> np.ndarray:
  """The area under curves [T …] over steps [T] (trapezoids), divided by the span: a mean over training. Of one step, its value."""
  x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
  return y[0] if len(x) == 1 else np.trapezoid(y, x, axis=0) / (x[-1] - x[0])


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
