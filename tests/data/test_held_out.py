"""A share by key that training never sees."""
import pickle

import pytest

from mmdiff.core.build import build
from mmdiff.core.errors import DataError
from mmdiff.data import SOURCES, held_out
from mmdiff.data.quarantine import BadRecord
from tests.data.fixtures import Rows

RECORDS = [{"key": f"k{i}", "image": b"x", "captions": {"original": str(i)}} for i in range(400)]


def keys(source):
  return [source[i]["key"] for i in range(len(source))]


def test_training_and_the_rest_are_the_whole():
  source = Rows(RECORDS)
  inside, outside = held_out.held_out(of=source, share=0.1), held_out.training(source, 0.1)
  assert set(keys(inside)).isdisjoint(keys(outside)) and len(inside) + len(outside) == 400
  assert sorted(keys(inside) + keys(outside)) == sorted(record["key"] for record in RECORDS)
  assert 20 < len(inside) < 60 and len(inside) == held_out.count(source, 0.1)
  assert held_out.training(source, 0.0) is source
  assert inside.fingerprint() != outside.fingerprint() != source.fingerprint()
  copy = pickle.loads(pickle.dumps(inside))                               # noqa: S301
  assert keys(copy) == keys(inside) == [inside.key(i) for i in range(len(inside))]


def test_it_goes_by_key_alone():
  inside = set(keys(held_out.held_out(of=Rows(RECORDS), share=0.1)))
  fewer = set(keys(held_out.held_out(of=Rows(RECORDS[::-2], identity="fewer"), share=0.1)))
  assert fewer == inside & {record["key"] for record in RECORDS[::-2]}
  assert set(keys(held_out.held_out(of=Rows(RECORDS), share=0.05))) < inside


def test_bad_records_stay_in_training_and_shares_that_hold_nothing_are_refused():
  source = Rows([BadRecord("unreadable")] + RECORDS[:50], identity="bad")
  outside = held_out.training(source, 0.5)
  with pytest.raises(BadRecord):
    outside[0]
  with pytest.raises(DataError, match="a share of 1e-09 holds out none of 51 records; choose another, larger one"):
    held_out.held_out(of=source, share=1e-9)


def test_a_config_names_it():
  made = build(SOURCES, dict(name="held_out", share=0.2, of=dict(name="scenes", tier="T16", split="train", size=50)))
  assert 0 < len(made) < 30 and made.allow_empty_captions and made.without_image(0)["image"] == b""
