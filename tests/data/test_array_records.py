"""Any source as a TFDS set, written and read back without TensorFlow."""
import json
import sys

import numpy as np
import pytest

from mmdiff.core.errors import CannotWrite, ConfigError, DataError
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


@pytest.mark.parametrize("damage, said", [
  (lambda file: file.unlink(), "toy-train.* is gone; remove .*toy/1.0.0, and run this again"),
  (lambda file: file.write_bytes(bytes(file.stat().st_size)), "toy-train.* is not as it was written"),
  (lambda file: (file.parent / "mmdiff.json").write_text("{"), "mmdiff.json: not valid JSON"),
  (lambda file: (file.parent / "features.json").write_text("{}"), "features.json is not as it was written")])
def test_a_set_whose_files_changed_is_not_there(tmp_path, damage, said):
  array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="toy")
  damage(next((tmp_path / "toy" / "1.0.0").glob("*train*")))
  with pytest.raises(DataError, match=said):
    array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="toy")


def test_a_note_that_lacks_what_was_written(tmp_path):
  array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="toy")
  note = tmp_path / "toy" / "1.0.0" / "mmdiff.json"
  note.write_text(json.dumps({"fingerprint": json.loads(note.read_text())["fingerprint"]}))
  with pytest.raises(DataError, match="mmdiff.json does not say what was written; remove"):
    array_records.write({"train": Rows(rows(2))}, str(tmp_path), name="toy")


def test_where_no_record_is_good_nothing_is_left(tmp_path):
  wrong = [record | {"image": b"<html>"} for record in rows(2)]
  with pytest.raises(DataError, match="none of 2 records is good: bad {'undecodable': 2}; the first: k0: "):
    array_records.write({"train": Rows(rows(2)), "val": Rows(wrong)}, str(tmp_path), name="toy")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../evil", "a b/c", "", "1st", "é/", "toy\n"])
def test_names_that_would_lead_elsewhere(tmp_path, name):
  with pytest.raises(ConfigError, match="name: expected letters, digits and underscores"):
    array_records.write({"train": Rows(rows(1))}, str(tmp_path / "out"), name=name)
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_bug(tmp_path, monkeypatch):
  (tmp_path / "downloads").mkdir()
  (tmp_path / "downloads" / "mine").write_text("")
  def full(*args, **options):
    raise RuntimeError('Failed to finalize writing of split "train": write() failed: File too large; writing x; at byte 20480')
  monkeypatch.setattr("tensorflow_datasets.core.writer.Writer.finalize", full)
  with pytest.raises(CannotWrite, match="File too large"):
    array_records.write({"train": Rows(rows(1))}, str(tmp_path), name="toy")
  assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["downloads", "downloads/mine"]
