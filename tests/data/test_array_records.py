"""Any source as a TFDS set, written and read back without TensorFlow."""
import sys

import numpy as np
import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import array_records, decode
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.tfds import tfds
from tests.data.fixtures import Rows, picture


def rows(count, start=0):
  return [{"key": f"k{i}", "image": np.full((4, 4, 3), i, np.uint8) if i % 2 else picture(i), "label": i,
           "captions": {"original": f"text {i}"} | ({"long": [f"long {i}", "other"]} if i % 2 else {}),
           "facts": {"original": [i]}} for i in range(start, start + count)]


def test_what_comes_back_is_what_went_in(tmp_path):
  sources = {"train": Rows(rows(6)), "val": Rows([*rows(2, 6), BadRecord("unreadable", "x")])}
  done = array_records.write(sources, str(tmp_path), name="toy")
  assert (done["splits"], done["bad"], done["count"]) == ({"train": 6, "val": 2}, {"unreadable": 1}, 8)
  for split, expected in (("train", rows(6)), ("val", rows(2, 6))):
    source = tfds(dataset="toy", split=split, data_dir=str(tmp_path))
    back = {record["key"]: record for record in (source[i] for i in range(len(source)))}
    assert set(back) == {record["key"] for record in expected}
    for record in expected:
      found = back[record["key"]]
      assert all(found[name] == record[name] for name in ("captions", "label", "facts"))
      assert np.array_equal(decode.pixels(found["image"]), decode.pixels(record["image"]))
  assert "tensorflow" not in sys.modules
  assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_kinds_that_come_late_are_kept(tmp_path):
  late = [*rows(70), rows(1, 70)[0] | {"captions": {"dense": "the only dense one"}}]
  for record in late[:70]:
    record["captions"].pop("long", None)
  array_records.write({"train": Rows(late)}, str(tmp_path), name="toy")
  source = tfds(dataset="toy", split="train", data_dir=str(tmp_path))
  back = {record["key"]: record["captions"] for record in (source[i] for i in range(len(source)))}
  assert back == {record["key"]: record["captions"] for record in late}


def test_a_record_that_turns_out_otherwise_is_counted():
  with pytest.raises(BadRecord, match="captions of kind long, which the set has no place for"):
    array_records.example_of(rows(2)[1], ["original"])


def test_a_finished_set_is_kept_and_a_foreign_one_left_alone(tmp_path):
  first = array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="toy")
  again = array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="toy")
  assert not first["kept"] and again == first | {"kept": True}
  with pytest.raises(DataError, match="records of another source"):
    array_records.write({"train": Rows(rows(3))}, str(tmp_path), name="toy")
  (tmp_path / "other" / "1.0.0").mkdir(parents=True)
  with pytest.raises(DataError, match="was not finished by this command"):
    array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="other")


@pytest.mark.parametrize("records, said", [(rows(1) * 2, "comes twice"), ([rows(1)[0] | {"captions": {}}], "no captions")])
def test_what_cannot_be_a_set(tmp_path, records, said):
  with pytest.raises(DataError, match=said):
    array_records.write({"train": Rows(records)}, str(tmp_path), name="toy")
  assert not (tmp_path / "toy" / "1.0.0").exists()
