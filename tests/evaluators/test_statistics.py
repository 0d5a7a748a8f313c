"""Intervals cover what they claim; equal models are called different as often as a test may err."""
import json
import math

import numpy as np
import pytest

from mmdiff.evaluators.statistics import area, bootstrap, compare, paired, sign_flip, standard_error


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


def test_prompts_of_one_text_are_paired_as_one():
  rng = np.random.default_rng(9)
  a, b = rng.normal(size=(3, 60)) + 0.3, rng.normal(size=(3, 60))
  alone, together = paired(a, b), paired(np.repeat(a, 4, axis=1), np.repeat(b, 4, axis=1), clusters=np.repeat(np.arange(60), 4))
  singly = paired(np.repeat(a, 4, axis=1), np.repeat(b, 4, axis=1))
  assert together == pytest.approx(alone) and singly.high - singly.low < 0.85 * (together.high - together.low)
  assert paired(a, b, clusters=range(60)) == pytest.approx(alone)


def test_area_is_the_mean_over_training():
  assert area([2, 4, 8], np.array([0.0, 1.0, 1.0])) == pytest.approx((1 + 4) / 6)
  np.testing.assert_allclose(area([0, 10], np.array([[0.0, 3.0], [1.0, 3.0]])), [0.5, 3.0])
  assert area([5], np.array([0.7])) == 0.7


@pytest.mark.parametrize("only_a, only_b, p", [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 2, 0.03857421875), (3, 3, 1.0)])
def test_with_one_picture_a_prompt_it_is_mcnemars_exact_test(only_a, only_b, p):
  differences = [1] * only_a + [-1] * only_b + [0] * 8
  assert sign_flip(differences) == (len(differences), only_a, only_b, pytest.approx(p))
  assert sign_flip([-d for d in differences]).p == sign_flip(differences).p


def test_the_law_is_that_of_all_signs():
  """Against all 2^9 ways to exchange the models' results."""
  differences = np.array([4, -1, 3, 0, 2, 2, -3, 1, 1])
  signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
  totals = np.abs(differences @ signs)
  assert sign_flip(differences).p == pytest.approx(np.mean(totals >= abs(differences.sum())), abs=1e-12)
  assert sign_flip([]) == (0, 0, 0, 1.0)


def test_thousands_of_pairs_do_not_overflow():
  normal = math.erfc((200 - 1) / math.sqrt(2_000) / math.sqrt(2))
  assert sign_flip([1] * 1_100 + [-1] * 900).p == pytest.approx(normal, rel=0.02)
  assert sign_flip([4] * 20_000 + [-4] * 19_900 + [1] * 5_000).p < 1


def simulated(rng, *, prompts=100, noises=4, ahead=0.0):
  """Right or wrong of two models [2 prompts noises]: each model finds each prompt easy or hard, whatever the noise."""
  easy = rng.normal(size=(2, prompts, 1)) * 2 + np.array([ahead, 0])[:, None, None]
  return easy + 0.7 * rng.normal(size=(2, prompts, noises)) > 0


def test_equal_models_differ_in_no_more_than_one_case_in_twenty():
  """Four noises a prompt that rise and fall together. Counted singly, as if independent, they call every fifth pair of equals different."""
  rng, together, singly = np.random.default_rng(5), 0, 0
  for _ in range(400):
    a, b = simulated(rng).astype(int)
    together += sign_flip((a - b).sum(1)).p < 0.05
    singly += sign_flip((a - b).ravel()).p < 0.05
  assert together / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
  assert singly / 400 > 0.15                                 # what the test above must not do


def test_a_real_difference_is_found():
  rng = np.random.default_rng(6)
  assert np.mean([sign_flip(np.subtract(*simulated(rng, ahead=1.5).astype(int)).sum(1)).p < 0.05 for _ in range(100)]) > 0.9


def test_rows_of_one_cluster_are_resampled_together():
  """One right or wrong a picture, five times: the interval is that of the pictures, whatever the number of rows."""
  rng = np.random.default_rng(7)
  per_picture = rng.random(100) < 0.5
  rows, owner = np.repeat(per_picture, 5), np.repeat(np.arange(100), 5)
  alone, clustered, singly = bootstrap(per_picture), bootstrap(rows, clusters=owner), bootstrap(rows)
  assert clustered == pytest.approx(alone, abs=1e-12) and singly.high - singly.low < 0.6 * (clustered.high - clustered.low)
  inside = 0
  for _ in range(200):                                       # unequal clusters: one to nine rows
    owner = np.repeat(np.arange(60), rng.integers(1, 10, 60))
    values = (rng.normal(size=60)[owner] + 0.3 * rng.normal(size=len(owner))) + 0.4
    _, low, high = bootstrap(values, clusters=owner, resamples=300)
    inside += low <= 0.4 <= high
  assert 0.87 <= inside / 200 <= 0.99


def test_the_standard_error_is_of_what_is_independent():
  values = np.random.default_rng(8).normal(size=50)
  assert standard_error(values) == pytest.approx(values.std() / math.sqrt(50)) == standard_error(values, list(range(50)))
  assert standard_error(np.repeat(values, 4), np.repeat(np.arange(50), 4)) == pytest.approx(standard_error(values))


def test_compare_pairs_two_result_files(tmp_path):
  rows = [dict(category=category, prompt=i, seed=i, right=i < 3) for category in ("color", "counting") for i in range(10)]
  better = [row | {"right": row["right"] or row["category"] == "color"} for row in rows]
  for name, table in (("a", better), ("b", rows[::-1]), ("c", rows[1:])):
    (tmp_path / name).write_text(json.dumps({"tables": {"prompts": table}}))
  found = compare(tmp_path / "a", tmp_path / "b")
  assert found["color"] == (10, 7, 0, pytest.approx(2 / 2 ** 7)) and found["counting"] == (10, 0, 0, 1.0)
  assert found["all"].p == pytest.approx(2 / 2 ** 7)
  with pytest.raises(ValueError, match="differ in 1 prompts"):
    compare(tmp_path / "a", tmp_path / "c")


def test_all_noises_of_a_prompt_and_all_prompts_of_a_text_are_one_observation(tmp_path):
  """The first model is right in all four pictures of two prompts of three: two observations, not eight. Another text is another prompt."""
  def rows(right, text):
    return [dict(category="color", prompt=i, seed=4 * i + k, right=right and i < 2, text=text(i)) for i in range(3) for k in range(4)]
  for name, table in (("a", rows(True, str)), ("b", rows(False, str)), ("same", rows(True, lambda i: "one")),
                      ("none", rows(False, lambda i: "one"))):
    (tmp_path / name).write_text(json.dumps({"tables": {"prompts": table}}))
  assert compare(tmp_path / "a", tmp_path / "b")["color"] == (3, 2, 0, 0.5)
  assert compare(tmp_path / "same", tmp_path / "none")["color"] == (1, 1, 0, 1.0)
  with pytest.raises(ValueError, match="differ in 12 prompts"):
    compare(tmp_path / "a", tmp_path / "none")
