import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.data import draws


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 700), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(length, seed, epoch):
  keys = draws.round_keys(seed, epoch)
  assert sorted(draws.shuffled(i, length=length, keys=keys) for i in range(length)) == list(range(length))


def test_positions_beyond_32_bits():
  length, keys = 5_850_000_000, draws.round_keys(0, 0)
  places = [draws.shuffled(i, length=length, keys=keys) for i in range(length - 200, length)]
  assert len(set(places)) == 200 and 0 <= min(places) and max(places) < length and max(places) > 2**32


@pytest.mark.parametrize("length", [3, 10, 100])
def test_every_place_is_as_likely(length):
  trials, counts = 1500, np.zeros((length, length))
  for seed in range(trials):
    keys = draws.round_keys(seed, 0)
    for i in range(length):
      counts[i, draws.shuffled(i, length=length, keys=keys)] += 1
  expected, freedom = trials / length, (length - 1) ** 2
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert (chi2 - freedom) / np.sqrt(2 * freedom) < 6


def test_seeds_and_epochs_do_not_overlap():
  order = lambda seed, epoch: tuple(draws.shuffled(i, length=50, keys=draws.round_keys(seed, epoch)) for i in range(50))
  orders = {order(seed, epoch) for seed in range(5) for epoch in range(5)}
  assert len(orders) == 25                         # (0, 1) is not (1, 0): epochs are not seeds that were added up


def test_neighbours_are_shuffled_apart():
  places = np.array([draws.shuffled(i, length=4096, keys=draws.round_keys(3, 0)) for i in range(4096)])
  assert abs(np.corrcoef(places, np.arange(4096))[0, 1]) < 0.06
  assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.06


def test_digests_are_fixed():
  """A change here would change the order and the captions of every run that resumes."""
  assert draws.digest("a", 1, 2) == 18027632225540211701
  assert draws.record_id("k0") == 2418387900
  later = [draws.record_id("k0", epoch=1), draws.record_id("k0", epoch=1, instead=0), draws.record_id("k0", instead=0)]
  assert later == [880964570, 915966677, 855592478]
  assert [draws.shuffled(i, length=10, keys=draws.round_keys(0, 0)) for i in range(10)] == [2, 0, 7, 8, 3, 1, 9, 5, 6, 4]
  assert draws.generator("augment", 0, 0, "k").integers(0, 1000, 3).tolist() == [528, 343, 93]


def test_uniform_is_uniform():
  values = np.array([draws.uniform("u", i) for i in range(20_000)])
  assert values.min() >= 0 and values.max() < 1
  assert np.abs(np.histogram(values, 20, (0, 1))[0] - 1000).max() < 150
