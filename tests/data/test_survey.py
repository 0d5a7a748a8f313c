"""Counts of a survey equal what was put in; the sheet and page show what a person needs, and only as text."""
import numpy as np
import pytest

from mmdiff.data import survey
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.verdict import Limits
from tests.data.fixtures import Rows, picture


def row(i, **more):
  return {"key": f"k{i}", "image": picture(i, width=8 + i), "captions": {"original": "one two", "long": ["a b c", "d"]}} | more


BAD = {
  "undecodable": [b"<html>", picture(1)[:45], b""],
  "oversized": [picture(1, width=200, height=200)],
  "bad_type": [3, np.zeros((2, 2), float)],
}


@pytest.mark.parametrize("threads", [1, 4])
def test_counts_are_exact(threads):
  rows = [row(i) for i in range(10)]
  rows += [row(10 + i, image=image) for kind in BAD for i, image in enumerate(BAD[kind])]
  rows += [row(20, captions={"original": " "}), row(21, captions={}), row(22, captions={"original": "a\0b"}), row(23, captions=["a"]),
           row(26, captions={"long": []}), BadRecord("unreadable", "gone", "k24"), row(0), {"key": "k25", "captions": {}}]
  found = survey.validate(Rows(rows), limits=Limits(max_pixels=10_000), threads=threads)
  assert found["bad"] == {"undecodable": 3, "oversized": 1, "bad_type": 3, "empty_caption": 1, "missing_caption": 2, "control_caption": 1,
                          "unreadable": 1, "missing_key": 1}
  assert (found["records"], found["good"], found["duplicates"]) == (24, 11, ["k0"])
  assert found["captions"]["long"] == {"records": 11, "texts": 22, "words": {"min": 1, "p5": 1, "median": 2, "p95": 3, "max": 3}}
  assert found["images"]["width"]["max"] == 17 and found["images"]["formats"] == {"png": 11}
  assert [offender["key"] for offender in found["offenders"]] == [f"k{i}" for i in (10, 11, 12, 10, 10, 11, 20, 21, 22, 23, 26, 24, 25)]


def test_a_source_may_allow_empty_captions():
  source = Rows([row(0, captions={"original": ""})])
  source.allow_empty_captions = True
  assert survey.validate(source)["bad"] == {}


def test_what_was_found_in_a_few_lines():
  bad = [*(row(10 + i, image=b"<html>") for i in range(5)), BadRecord("unreadable", "gone")]
  source = Rows([row(0), row(1, captions={"original": "one"}), *bad, row(0)])
  source.skipped = {"empty_caption": 2}
  lines = survey.told(survey.validate(source)).splitlines()
  assert lines[0] == "9 records: 3 good, 6 bad"
  assert lines[3].startswith("undecodable  ") and "5  k10 (starts with b'<html>'); k11 (" in lines[3] and "k13" not in lines[3]
  assert lines[4].startswith("unreadable") and lines[4].endswith("1  #7 (gone)")
  assert "formats: png 3" in lines and any(line.split()[:4] == ["long", "2", "1", "4"] for line in lines)
  assert lines[-3:] == ["1 keys come again: k0", "", "left out: empty_caption 2"]


def test_the_first_records_only():
  assert survey.validate(Rows([row(i) for i in range(5)]), limit=2)["records"] == 2


def test_spec():
  assert survey.spec(row(0, image=np.zeros((2, 3, 3), np.uint8), label=1)) == {
    "key": "str", "image": "uint8 [2, 3, 3]", "captions": {"original": "str", "long": ["str", "2 items"]}, "label": "int"}


def test_the_sheet():
  hostile = "<script>alert(1)</script> \u202e & " + "word " * 200
  cards = survey.sample(Rows([row(0), BadRecord("unreadable", "x"), row(2, captions={"original": hostile}), row(3)]), 4)
  assert [card.key for card in cards] == ["k0", "k2", "k3"] and max(cards[0].image.size) == 256 and cards[0].size == (8, 6)
  sheet = survey.sheet(cards, columns=2)
  assert sheet.dtype == np.uint8 and sheet.shape[1:] == (520, 3) and sheet.min() < 50 < sheet.max()
