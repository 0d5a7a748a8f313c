"""Intervals cover what they claim; McNemar's test equals the binomial it is."""
import json
import math

import numpy as np
import pytest

from mmdiff.evaluators.statistics import bootstrap, compare, mcnemar


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says():
  draws = np.random.default_rng(0).random((200, 80)) < 0.7
  inside = [low <= 0.7 <= high for _, low, high in (bootstrap(row, resamples=400) for row in draws)]
  assert 0.88 <= np.mean(inside) <= 0.99


def test_pictures_of_one_prompt_are_resampled_together():
  per_prompt = np.repeat(np.random.default_rng(1).random((100, 1)) < 0.5, 4, axis=1)
  alone, together = bootstrap(per_prompt.ravel()), bootstrap(per_prompt)
  assert together.mean == alone.mean
  assert together.high - together.low == pytest.approx(2 * (alone.high - alone.low), rel=0.15)


def test_bootstrap_is_repeatable_and_degenerate_cases_are_points():
  assert bootstrap([True, False, True]) == bootstrap([True, False, True])
  assert bootstrap([True] * 5) == (1.0, 1.0, 1.0)
  with pytest.raises(ValueError, match="at least one"):
    bootstrap([])


@pytest.mark.parametrize("only_a, only_b, p", [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 2, 0.03857421875), (3, 3, 1.0)])
def test_mcnemar(only_a, only_b, p):
  a = [True] * only_a + [False] * only_b + [True, False] * 4
  b = [False] * only_a + [True] * only_b + [True, False] * 4
  assert mcnemar(a, b) == (only_a, only_b, pytest.approx(p))
  assert mcnemar(b, a).p == mcnemar(a, b).p


def test_mcnemar_of_thousands_does_not_overflow():
  a, b = [True] * 1_100 + [False] * 900, [False] * 1_100 + [True] * 900
  normal = math.erfc((200 - 1) / math.sqrt(2_000) / math.sqrt(2))
  assert mcnemar(a, b).p == pytest.approx(normal, rel=0.02)
  with pytest.raises(ValueError, match="same prompts"):
    mcnemar([True], [True, False])


def test_compare_pairs_two_result_files(tmp_path):
  rows = [dict(category=category, prompt=i, seed=i, right=i < 3) for category in ("color", "counting") for i in range(10)]
  better = [row | {"right": row["right"] or row["category"] == "color"} for row in rows]
  for name, table in (("a", better), ("b", rows[::-1]), ("c", rows[1:])):
    (tmp_path / name).write_text(json.dumps({"tables": {"prompts": table}}))
  found = compare(tmp_path / "a", tmp_path / "b")
  assert found["color"][:2] == (7, 0) and found["counting"] == (0, 0, 1.0) and found["all"].p == 2 / 2 ** 7
  with pytest.raises(ValueError, match="differ in 1 prompts"):
    compare(tmp_path / "a", tmp_path / "c")
