import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import ConfigError
from mmdiff.data import buckets
from mmdiff.data.buckets import Order, parse

SDXL = {512: (2048, 1984, 1920, 1856), 576: (1792, 1728, 1664), 640: (1600, 1536), 704: (1472, 1408, 1344), 768: (1344, 1280),
        832: (1216, 1152), 896: (1152, 1088), 960: (1088, 1024), 1024: (1024, 960), 1088: (960, 896), 1152: (896, 832), 1216: (832,),
        1280: (768,), 1344: (768, 704), 1408: (704,), 1472: (704,), 1536: (640,), 1600: (640,), 1664: (576,), 1728: (576,), 1792: (576,),
        1856: (512,), 1920: (512,), 1984: (512,), 2048: (512,)}


def test_the_rule_gives_the_buckets_of_sdxl():
  assert set(parse(("step=64",), image_size=1024)) == {(height, width) for height, widths in SDXL.items() for width in widths}


def test_sizes_and_rules():
  assert parse(("512x512", "576x448"), image_size=512) == ((512, 512), (576, 448)) and parse((), image_size=8) == ()
  assert all(max(size) <= 2 * min(size) for size in parse(("step=8", "ratio=2"), image_size=64))


@pytest.mark.parametrize("words, said", [(("512",), "HEIGHTxWIDTH"), (("0x3",), "0x3"), (("step=0",), "step=0"), (("8x8", "8x8"), "twice"),
                                         (("step=64",), "smaller step"), (("ratio=2",), "names no size")])
def test_what_names_no_bucket(words, said):
  with pytest.raises(ConfigError, match=said):
    parse(words, image_size=32)


def test_a_picture_goes_to_the_nearest_ratio():
  table = ((64, 64), (96, 48), (48, 96))
  sizes = np.array([(100, 100), (100, 80), (200, 100), (100, 141), (100, 142), (0, 0), (10, 1)])
  assert buckets.assign(sizes, table).tolist() == [0, 0, 1, 0, 2, 0, 1]


def keys(order, steps):
  return [[order.place(step, row).index for row in range(order.batch_size)] for step in steps]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_after_r_rounds_every_record_was_seen_r_times_to_within_a_batch(counts, batch_size, seed):
  of_record = np.repeat(np.arange(len(counts)), counts)
  order = Order(np.random.default_rng(seed).permutation(of_record), len(counts), batch_size=batch_size, seed=seed)
  rounds = 5
  steps = range(order._before(rounds))
  seen = collections.Counter(index for step in keys(order, steps) for index in step)
  assert len(seen) == 0 or max(seen.values()) <= rounds
  for bucket, n in enumerate(order.counts):
    batches = [which for step in steps for b, which in (order.batch(step),) if b == bucket]
    assert sorted(batches) == list(range(rounds * n // batch_size))
    total = sum(seen[int(index)] for index in order.members[bucket])
    assert rounds * n - batch_size < total <= rounds * n


def test_a_step_takes_one_bucket_and_the_order_is_shuffled():
  of_record = np.repeat([0, 1], [60, 40])
  order = Order(of_record, 2, batch_size=5, seed=0)
  for step in range(40):
    assert {of_record[index] for index in keys(order, [step])[0]} == {order.batch(step)[0]}
  first, second = keys(order, range(20)), keys(order, range(20, 40))
  assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(100)) and first != second
  assert [order.batch(step)[0] for step in range(20)] not in ([0] * 12 + [1] * 8, [1] * 8 + [0] * 12)
  other = Order(of_record, 2, batch_size=5, seed=1)
  assert [order.batch(step)[0] for step in range(20)] != [other.batch(step)[0] for step in range(20)]


def test_any_step_can_be_made_alone():
  make = lambda: Order(np.repeat([0, 1, 2], [7, 11, 3]), 3, batch_size=4, seed=2)
  assert keys(make(), [17]) == keys(make(), range(18))[17:] and len(keys(make(), [10 ** 12])[0]) == 4


def test_a_replacement_is_of_the_same_bucket():
  of_record = np.repeat([0, 1], [6, 4])
  order = Order(of_record, 2, batch_size=2, seed=0)
  place = order.place(3, 1)
  assert all(of_record[order.replacement(place, n)] == place.bucket for n in range(9))


def test_buckets_smaller_than_a_batch():
  order = Order(np.array([0, 1, 1]), 3, batch_size=9, seed=0)
  assert [sorted(collections.Counter(batch).values()) for batch in keys(order, range(3))] in ([[4, 5], [4, 5], [9]], [[4, 5], [9], [4, 5]],
                                                                                             [[9], [4, 5], [4, 5]])
