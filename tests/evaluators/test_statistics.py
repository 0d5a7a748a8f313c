"""Intervals cover what they claim; McNemar's test equals the binomial it is."""
import json
import math

import numpy as np
import pytest

from mmdiff.evaluators.statistics import area, bootstrap, compare, mcnemar, paired


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


def test_a_paired_interval_covers_the_truth_about_as_often_as_it_says():
  """Two models of a known difference, with an effect of the seed, one of the prompt on both, and noise; six seeds."""
  rng, inside = np.random.default_rng(2), 0
  for _ in range(100):
    prompt, seed = rng.normal(size=60), 0.3 * rng.normal(size=(6, 1))
    a, b = prompt + 0.5 + seed + 0.3 * rng.normal(size=(6, 60)), prompt + 0.3 * rng.normal(size=(6, 60))
    _, low, high = paired(a, b, resamples=300)
    inside += low <= 0.5 <= high
  assert 85 <= inside <= 100


def test_pairing_removes_what_the_models_share():
  rng = np.random.default_rng(3)
  shared = 10 * rng.normal(size=(3, 200))
  a, b = shared + 0.2 + 0.1 * rng.normal(size=(3, 200)), shared + 0.1 * rng.normal(size=(3, 200))
  difference = paired(a, b)
  assert difference.mean == pytest.approx((a - b).mean()) and 0.1 < difference.low < 0.2 < difference.high < 0.3
  assert paired(b, a).mean == -difference.mean and paired(a, b) == difference


def test_seeds_that_disagree_widen_the_interval_and_one_seed_speaks_of_prompts():
  agree, disagree = np.full((3, 50), 0.5), np.array([0.0, 0.5, 1.0])[:, None] + np.zeros((3, 50))
  assert paired(agree, np.zeros((3, 50))) == (0.5, 0.5, 0.5)
  assert paired(disagree, np.zeros((3, 50))) == (0.5, 0.0, 1.0)
  ones = np.random.default_rng(4).random((1, 400)) < 0.5
  one, alone = paired(ones, np.zeros((1, 400))), bootstrap(ones[0])
  assert one.high - one.low == pytest.approx(alone.high - alone.low, rel=0.1)
  for wrong in ((np.zeros((2, 3)), np.zeros((3, 2))), (np.zeros(3), np.zeros(3)), (np.zeros((0, 3)), np.zeros((0, 3)))):
    with pytest.raises(ValueError, match=r"\[seeds prompts\] of one shape"):
      paired(*wrong)


def test_area_is_the_mean_over_training():
  assert area([2, 4, 8], np.array([0.0, 1.0, 1.0])) == pytest.approx((1 + 4) / 6)
  np.testing.assert_allclose(area([0, 10], np.array([[0.0, 3.0], [1.0, 3.0]])), [0.5, 3.0])
  assert area([5], np.array([0.7])) == 0.7


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
