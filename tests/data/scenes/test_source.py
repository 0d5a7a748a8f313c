"""The source: the record contract, and what a configured world may be."""
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmdiff.core.build import build
from mmdiff.data import SOURCES
from mmdiff.data.scenes.source import KINDS, scenes
from mmdiff.data.scenes.tiers import TIERS


def same(a, b):
  return (a["image"] == b["image"]).all() and {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}


@pytest.mark.parametrize("tier", TIERS)
def test_record(tier):
  source = build(SOURCES, dict(name="scenes", tier=tier))
  record = source[3]
  assert set(record) == {"key", "image", "captions", "facts", "scene"}
  assert record["image"].dtype == np.uint8 and record["image"].shape == (TIERS[tier].px,) * 2 + (3,)
  assert record["image"].flags.writeable
  assert set(record["captions"]) == set(record["facts"]) == set(KINDS)
  assert all(isinstance(text, str) for text in record["captions"].values())
  assert record["key"] == f"{tier}-train-0000003"


def test_sizes():
  assert [len(scenes(tier=tier)) for tier in TIERS] == [10_000, 50_000, 200_000]
  assert [len(scenes(tier=tier, split="val_rel")) for tier in TIERS] == [1_000, 2_000, 4_000]
  assert len(scenes(size=7)) == 7


def test_random_access_by_any_integer_and_end():
  source = scenes(tier="T16", size=5)
  assert same(source[np.int64(2)], source[2])
  for index in (-1, 5):
    with pytest.raises(IndexError, match="5 records"):
      source[index]


def test_pickles_and_threads():
  source = scenes(tier="T32", size=64)
  again = pickle.loads(pickle.dumps(source))  # noqa: S301
  with ThreadPoolExecutor(4) as pool:
    assert all(same(a, source[i]) for i, a in enumerate(pool.map(again.__getitem__, range(64))))
  assert again.fingerprint() == source.fingerprint()


def test_the_fingerprint_changes_with_anything_that_changes_a_record():
  options = [{}, dict(tier="T16"), dict(split="val_iid"), dict(size=9), dict(long_variants=2), dict(alt_empty=0.5), dict(alt_cut_chars=9)]
  assert len({scenes(**option).fingerprint() for option in options}) == len(options)


def test_empty_alt_text_is_a_present_caption():
  source = scenes(tier="T16", size=20, alt_empty=1.0)
  assert source.allow_empty_captions
  assert all(source[i]["captions"]["original"] == "" and source[i]["facts"]["original"] == [] for i in range(20))


@pytest.mark.parametrize("options", [dict(size=-1), dict(alt_typo=1.5), dict(long_variants=0), dict(alt_cut_chars=0), dict(tier="T17")])
def test_impossible_worlds_are_refused(options):
  with pytest.raises(ValueError, match="T17|found"):
    scenes(**options)


def test_the_world_needs_no_jax():
  code = ("import sys, mmdiff.data.scenes.benchmark, mmdiff.data.scenes.swaps, mmdiff.data.scenes.source as s; s.scenes()[0]; "
          "assert 'jax' not in sys.modules")
  subprocess.run([sys.executable, "-c", code], check=True)
