"""How sure a share is, and whether two models differ: bootstraps over prompts and seeds, an exact test on pairs of prompts.

What is counted is what is independent: four pictures of one prompt are no four observations, nor are five captions of one picture.
"""
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmdiff.core.files import read_object


class Interval(NamedTuple):
  """A mean and its confidence limits."""
  mean: float
  low: float
  high: float


def bootstrap(values: np.ndarray, *, clusters: Sequence | None = None, level: float = 0.95, resamples: int = 2_000,
              seed: int = 0) -> Interval:
  """Percentile bootstrap of the mean (Efron 1979) over what is independent.

  `values` [N] or [N K]: one row per prompt; the K pictures of a prompt are resampled together, since they are not independent. `clusters`
  [N] names what each row belongs to (its text, its picture): rows of one name are resampled together too (Field & Welsh 2007).
  Raises ValueError without rows.
  """
  rows = np.asarray(values, np.float64)
  if not len(rows):
    raise ValueError("a bootstrap needs at least one row")
  rows = rows.reshape(len(rows), -1).mean(axis=1)
  totals, counts = clustered(rows, clusters)
  draws = np.random.Generator(np.random.Philox(key=seed)).integers(len(totals), size=(resamples, len(totals)))
  low, high = np.quantile(totals[draws].sum(axis=1) / counts[draws].sum(axis=1), [(1 - level) / 2, (1 + level) / 2])
  return Interval(float(rows.mean()), float(low), float(high))


def clustered(values: np.ndarray, clusters: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
  """(sums, counts) [C] of the values [N] of each cluster, in the order in which they first come; without clusters each is its own."""
  if clusters is None:
    return values, np.ones(len(values))
  number: dict[Any, int] = {}
  which = np.array([number.setdefault(name, len(number)) for name in clusters])
  return np.bincount(which, values), np.bincount(which).astype(np.float64)


def standard_error(values: np.ndarray, clusters: Sequence | None = None) -> float:
  """Of the mean of values [N], of which those of one cluster are not independent (Liang & Zeger 1986): √(Σ_c (Σ_i∈c (x_i − x̄))²) / N.
  With a cluster for each it is the deviation divided by √N."""
  centred, _ = clustered(np.asarray(values, np.float64) - np.mean(values), clusters)
  return float(np.sqrt(np.square(centred).sum()) / len(values))


def paired(first: np.ndarray, second: np.ndarray, *, clusters: Sequence | None = None, level: float = 0.95, resamples: int = 2_000,
           seed: int = 0) -> Interval:
  """The mean of `first` - `second`, both [seeds prompts] of the same seeds and prompts, and its confidence limits.

  Prompts and seeds are resampled independently, both with replacement (the pigeonhole bootstrap, Owen 2007,
  https://arxiv.org/abs/0712.1111), since prompts share a model and models share their prompts: the interval speaks of other prompts and of
  other seeds. It is wide when seeds are few and disagree; with one seed it speaks of prompts only. `clusters` [prompts] names what each
  prompt belongs to, as in `bootstrap`. Raises ValueError for unequal shapes.
  """
  a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if a.shape != b.shape or a.ndim != 2 or not a.size:
    raise ValueError(f"paired values are [seeds prompts] of one shape, found {a.shape} and {b.shape}")
  differences = a - b
  mean, seeds = float(differences.mean()), len(differences)
  columns = [clustered(row, clusters) for row in differences]
  differences, counts = np.stack([totals for totals, _ in columns]), columns[0][1]
  prompts = len(counts)
  rng = np.random.Generator(np.random.Philox(key=seed))
  means = []
  for _ in range(resamples):                       # one at a time: tens of thousands of prompts need not be held resamples times
    rows = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) @ differences
    drawn = rng.integers(prompts, size=prompts)
    means.append(rows[drawn].sum() / counts[drawn].sum() / seeds)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return Interval(mean, float(low), float(high))


def area(steps: Sequence[float], values: np.ndarray) -> np.ndarray:
  """The area under curves [T …] over steps [T] (trapezoids), divided by the span: a mean over training. Of one step, its value."""
  x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
  return y[0] if len(x) == 1 else np.trapezoid(y, x, axis=0) / (x[-1] - x[0])


class Comparison(NamedTuple):
  """How many prompts each of two models did better on, and the two-sided p-value of their difference."""
  prompts: int
  first_better: int            # prompts with more right pictures by the first model
  second_better: int
  p: float


def sign_flip(differences: Sequence[int]) -> Comparison:
  """Fisher's exact permutation test on pairs: `differences` [prompts] are the first model's right pictures of a prompt minus the second's.

  Under the null hypothesis a prompt's two results may be exchanged, all its pictures together: what they share through their prompt is
  left as it is. Its difference then has either sign with probability one half, and p is the chance of a total as far from zero. With one
  picture a prompt this is McNemar's exact test (1947).
  """
  d = np.asarray(differences, np.int64)
  sizes, counts = np.unique(np.abs(d[d != 0]), return_counts=True)
  # The total is Σ size · (2 · successes − count): of each size a binomial, and their sum's law by convolution.
  law = np.ones(1)                                                     # of Σ size · successes
  for size, count in zip(sizes.tolist(), counts.tolist()):
    chances = np.exp(math.lgamma(count + 1) - count * math.log(2) - np.array([math.lgamma(k + 1) + math.lgamma(count - k + 1)
                                                                             for k in range(count + 1)]))
    wider = np.zeros(len(law) + size * count)
    for k in np.flatnonzero(chances).tolist():
      wider[k * size:k * size + len(law)] += chances[k] * law
    law = wider
  most = int((sizes * counts).sum())
  totals = 2 * np.arange(len(law)) - most
  return Comparison(len(d), int((d > 0).sum()), int((d < 0).sum()), min(1.0, float(law[np.abs(totals) >= abs(int(d.sum()))].sum())))


def _rows(path: str | Path, table: str) -> dict[tuple, dict[str, Any]]:
  """{(category, prompt, seed): row} of a table. Raises ValueError."""
  found: dict[tuple, dict[str, Any]] = {}
  for row in read_object(Path(path), nan=True)["tables"][table]:
    key = row["category"], row["prompt"], row["seed"]
    if key in found:
      raise ValueError(f"{path}: category {key[0]!r:.40}, prompt {key[1]!r:.40}, seed {key[2]!r:.40} come twice in the table {table}")
    if row["right"] not in (0, 1):
      raise ValueError(f"{path}: prompt {key[1]!r:.40}: right: expected true or false, found {row['right']!r:.40}")
    if row["category"] == "all":
      raise ValueError(f"{path}: a category is called all, as the sum of them is")
    found[key] = row
  if not found:
    raise ValueError(f"{path}: the table {table} has no rows")
  return found


def compare(first: str | Path, second: str | Path, *, table: str = "prompts") -> dict[str, Comparison]:
  """`sign_flip` between two models' result files of the same evaluator (`eval/NAME_STEP.json`), per category and over all (`all`).

  Each row of `tables[table]` has `category`, `prompt`, `seed` and `right`, and perhaps `text`; rows are paired by the first three. All
  pictures of a prompt are one observation, and so are prompts of one text. Raises ValueError when the two files do not hold the same
  prompts and seeds, and for a row that comes twice or is neither right nor wrong.
  """
  rows = [_rows(path, table) for path in (first, second)]
  missing = len(rows[0].keys() ^ rows[1].keys())
  missing += sum(rows[0][key].get("text") != rows[1][key].get("text") for key in rows[0].keys() & rows[1].keys())
  if missing:
    raise ValueError(f"{first} and {second} differ in {missing} prompts; compare runs of one tier, style, number of prompts and seed")
  keys = sorted(rows[0])
  groups = {"all": keys} | {name: [key for key in keys if key[0] == name] for name in sorted({key[0] for key in keys})}
  found = {}
  for name, group in groups.items():
    differences = np.array([int(bool(rows[0][key]["right"])) - int(bool(rows[1][key]["right"])) for key in group], np.float64)
    totals, _ = clustered(differences, [rows[0][key].get("text") or key[:2] for key in group])
    found[name] = sign_flip(totals.astype(np.int64))
  return found
