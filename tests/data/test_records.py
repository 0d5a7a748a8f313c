"""Caption fields of rows, in the forms that public sets use."""
import pytest

from mmdiff.data import records
from mmdiff.data.quarantine import BadRecord


@pytest.mark.parametrize("row, captions", [
  ({"caption": "a"}, {"original": "a"}), ({"text": "a", "title": "b"}, {"original": "a"}), ({"title": "b"}, {"original": "b"}),
  ({"captions": ["a", "b"]}, {"original": ["a", "b"]}), ({"captions": {"long": "l", "tags": ["t"]}, "caption": "a"},
                                                          {"long": "l", "tags": ["t"], "original": "a"}),
  ({"original": "o", "caption": "a"}, {"original": "o"}), ({"long": "l", "caption_blip": "b"}, {"long": "l", "blip": "b"}),
  ({"caption": None, "long": None}, {}), ({"caption": ""}, {"original": ""}), ({"url": "x"}, {})])
def test_captions_of(row, captions):
  assert records.captions_of(row) == captions


@pytest.mark.parametrize("row, kind", [
  ({"caption": 3}, "bad_type"), ({"captions": ["a", None]}, "bad_type"), ({"captions": 1}, "bad_type"),
  ({"long": "\udcff"}, "non_utf8_caption")])
def test_faults(row, kind):
  with pytest.raises(BadRecord) as caught:
    records.captions_of(row)
  assert caught.value.kind == kind


def test_fingerprints_keep_parts_apart():
  assert len({records.fingerprint(*parts) for parts in (("ab",), ("a", "b"), (b"ab",), ("b", "a"), (1,), ("1",))}) == 6
