"""One judge of records for all that count them or leave them out."""
import json
import threading

import pytest

from mmdiff.data import verdict
from mmdiff.data.quarantine import BadRecord, Offence
from tests.data.fixtures import Rows, picture


def row(i, **more):
  return {"key": f"k{i}", "image": picture(i), "captions": {"original": "one two"}} | more


@pytest.mark.parametrize("form, suffix", [
  ("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")])
def test_the_suffix_is_that_of_the_bytes(form, suffix):
  assert verdict.encoded(picture(1, form=form)) == (picture(1, form=form), suffix)


def test_a_good_record_is_handed_out_only_on_demand():
  seen = verdict.look(Rows([row(0)]), 0)
  assert seen == ("k0", None, "png", 8, 6, {"original": [2]}, {})
  assert verdict.look(Rows([row(0)]), 0, keep=True).record == row(0)


def test_a_name_that_no_report_can_hold_is_bad_and_can_be_reported():
  rows = [row(0, key="half \ud800"), row(1, key="x" * 10**6), BadRecord("unreadable", "gone: \udcff", "\udcff.png")]
  faults = [verdict.look(Rows(rows), i).fault for i in range(3)]
  assert [(fault.key, fault.kind) for fault in faults] == [("#0", "unreadable"), ("#1", "unreadable"), (r"\udcff.png", "unreadable")]
  assert json.dumps(faults, ensure_ascii=False).encode() and isinstance(faults[0], Offence)


def test_records_come_in_order_and_few_are_read_ahead():
  started, lock = [], threading.Lock()

  class Counted(Rows):
    def __getitem__(self, i):
      with lock:
        started.append(i)
      return super().__getitem__(i)
  found = verdict.each(Counted([row(i) for i in range(100)]), range(10, 100), threads=2)
  assert next(found).key == "k10" and max(started) <= 10 + verdict.AHEAD * 2 + 2
  assert [seen.key for seen in found] == [f"k{i}" for i in range(11, 100)]
