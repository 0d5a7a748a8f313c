"""TFDS sets of both record formats, written here without TensorFlow, read by index."""
import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets
from tensorflow_datasets import features

from mmdiff.core.errors import DataError
from mmdiff.data import array_records, records
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.tfds import tfds
from tests.data.fixtures import Rows, picture
from tests.data.test_tfrecord import frame

FEATURES = features.FeaturesDict({
  "image": features.Image(shape=(None, None, 3)), "image/filename": features.Text(), "label": features.ClassLabel(names=["red_fox", "dog"]),
  "captions": features.Sequence({"id": np.int64, "text": features.Text()})})


def example(i):
  return {"image": picture(i), "image/filename": f"{i:03d}.png", "label": i % 2,
          "captions": [{"id": 10 * i + j, "text": f"text {i} {j} é"} for j in range(1 + i % 2)]}


class Toy(tensorflow_datasets.core.GeneratorBasedBuilder):
  VERSION = tensorflow_datasets.core.Version("1.2.0")
  code_path = None

  def _info(self):
    return tensorflow_datasets.core.DatasetInfo(builder=self, features=FEATURES)

  def _split_generators(self, _):
    return {"train": self._generate_examples(0, 10), "val": self._generate_examples(10, 13)}

  def _generate_examples(self, first, end):
    for i in range(first, end):
      yield i, example(i)


@pytest.fixture(scope="module")
def array_record(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  tensorflow_datasets.disable_progress_bar()
  config = tensorflow_datasets.download.DownloadConfig(num_shards=2)
  Toy(data_dir=root).download_and_prepare(file_format="array_record", download_config=config)
  return root


@pytest.fixture(scope="module")
def tf_record(array_record, tmp_path_factory):
  """The same set with its records framed as TFRecords, in their order."""
  root = tmp_path_factory.mktemp("tfrecord")
  shutil.copytree(array_record / "toy", root / "toy")
  folder = root / "toy" / "1.2.0"
  info = json.loads((folder / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  for split in info["splits"]:
    split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    count, first = [int(n) for n in split["shardLengths"]], {"train": 0, "val": 10}[split["name"]]
    for number, length in enumerate(count):
      rows = range(first + sum(count[:number]), first + sum(count[:number]) + length)
      data = b"".join(frame(FEATURES.serialize_example(FEATURES.encode_example(example(i)))) for i in rows)
      (folder / f"toy-{split['name']}.tfrecord-{number:05d}-of-{len(count):05d}").write_bytes(data)
  for file in folder.glob("*.array_record*"):
    file.unlink()
  (folder / "dataset_info.json").write_text(json.dumps(info))
  return root


@pytest.fixture(params=["array_record", "tf_record"])
def root(request):
  return request.getfixturevalue(request.param)


def number(record):
  return int(record["key"].removesuffix(".png"))


def test_records_stay_encoded_and_tensorflow_is_not_needed(root):
  source = tfds(dataset="toy", split="train", data_dir=str(root))
  assert len(source) == 10 and sorted(number(source[i]) for i in range(10)) == list(range(10))
  for i in (0, 3, 9):
    record = source[i]
    n = number(record)
    texts = [f"text {n} {j} é" for j in range(1 + n % 2)]
    assert record == {"key": f"{n:03d}.png", "image": picture(n), "captions": {"original": texts if n % 2 else texts[0]}}
  assert "tensorflow" not in sys.modules
  with pytest.raises(IndexError):
    source[10]


@pytest.mark.parametrize("split, count", [("train[:30%]", 3), ("train[2:9]", 7), ("train[8:]+val", 5), ("val", 3)])
def test_splits_in_tfds_language(root, split, count):
  source = tfds(dataset="toy", split=split, data_dir=str(root))
  assert len({source[i]["key"] for i in range(len(source))}) == count == len(source)


def test_both_formats_slice_alike(tf_record):
  source = tfds(dataset="toy", split="train[3:8]", data_dir=str(tf_record))
  assert [number(source[i]) for i in range(5)] == [3, 4, 5, 6, 7]


def test_class_labels_are_captions(root):
  source = tfds(dataset="toy:1.2.0", split="val", data_dir=str(root), captions={"original": "label", "alt": "captions/text"})
  record = source[0]
  assert record["label"] == number(record) % 2
  assert record["captions"]["original"] == ["red fox", "dog"][record["label"]] and "text" in str(record["captions"]["alt"])
  assert source.labels == ("red fox", "dog")


def test_a_folder_itself_and_its_fingerprint(root):
  source = tfds(dataset=str(root / "toy" / "1.2.0"), split="train")
  assert source.fingerprint() == tfds(dataset="toy", split="train", data_dir=str(root)).fingerprint()
  assert source.fingerprint() != tfds(dataset="toy", split="train[:9]", data_dir=str(root)).fingerprint()


def test_a_copy_reads_the_same(root):
  source = tfds(dataset="toy", split="train", data_dir=str(root))
  copy = pickle.loads(pickle.dumps(source))                               # noqa: S301
  assert [copy[i] for i in range(10)] == [source[i] for i in range(10)]


@pytest.mark.parametrize("options, said", [
  ({"dataset": "coco"}, "no prepared dataset 'coco' .*it holds .*'toy'"), ({"dataset": "toy:2.0.0"}, "no prepared dataset"),
  ({"split": "test"}, "train.*val.*correct `split`"), ({"image": "picture"}, "no feature picture; it has .*image"),
  ({"captions": {"long": "captions/long"}}, "no feature captions/long"), ({"key": "id"}, "no feature id"),
  ({"split": "train[:0]"}, "is empty")])
def test_what_is_not_there(root, options, said):
  with pytest.raises(DataError, match=said):
    tfds(**{"dataset": "toy", "split": "train", "data_dir": str(root)} | options)


def test_damaged_tfrecords(tf_record, tmp_path):
  root = tmp_path / "copy"
  shutil.copytree(tf_record, root)
  file = sorted((root / "toy" / "1.2.0").glob("*train*.tfrecord-00000*[0-9]"))[0]
  whole = bytearray(file.read_bytes())
  whole[12:60] = os.urandom(48)                                           # the first record's data, not its frame
  file.write_bytes(whole)
  source = tfds(dataset="toy", split="train", data_dir=str(root))
  with pytest.raises(BadRecord, match="unreadable: .*checksum of record 0 .*get the file again"):
    source[0]
  assert source[1]["captions"]
  file.write_bytes(whole[:-3])
  with pytest.raises(DataError, match="cut short"):
    tfds(dataset="toy", split="train", data_dir=str(root))
  file.unlink()
  with pytest.raises(DataError, match="are missing"):
    tfds(dataset="toy", split="train", data_dir=str(root))


@pytest.fixture
def copied(root, tmp_path):
  """A copy of the set that a test may damage: its folder."""
  shutil.copytree(root, tmp_path / "copy")
  return tmp_path / "copy" / "toy" / "1.2.0"


def told_otherwise(folder, change):
  info = json.loads((folder / "dataset_info.json").read_text())
  change(info, info["splits"][[split["name"] for split in info["splits"]].index("train")])
  (folder / "dataset_info.json").write_text(json.dumps(info))


def shards(folder):
  return sorted(file for file in folder.glob("*train*") if "index" not in file.name)


def test_one_bit_of_a_tfrecord_s_caption_is_seen(tf_record, tmp_path):
  shutil.copytree(tf_record, tmp_path / "copy")
  file = shards(tmp_path / "copy" / "toy" / "1.2.0")[0]
  file.write_bytes(file.read_bytes().replace("text 0 0 é".encode(), "text 0 0 è".encode()))
  source = tfds(dataset="toy", split="train", data_dir=str(tmp_path / "copy"))
  with pytest.raises(BadRecord, match="unreadable: .*checksum of record 0 "):
    source[0]


def test_other_data_of_the_same_names_and_counts_has_another_fingerprint(copied):
  before = tfds(dataset=str(copied), split="train[:3]").fingerprint()
  first, second = shards(copied)
  content = first.read_bytes()
  first.write_bytes(second.read_bytes())
  second.write_bytes(content)
  told_otherwise(copied, lambda info, split: split["shardLengths"].reverse())
  assert tfds(dataset=str(copied), split="train[:3]").fingerprint() != before


@pytest.mark.parametrize("change, said", [
  (lambda split: split.update(shardLengths=["2", split["shardLengths"][1]]), "records, dataset_info.json says 2; get both again"),
  (lambda split: split.update(shardLengths=["99999999999999"] * 2), "says 99,999,999,999,999"),
  (lambda split: split.update(shardLengths=["-5", "6"]), "get both again"),
  (lambda split: split.update(filepathTemplate="{NOPE}"), "Could not format template {NOPE}"),
  (lambda split: split.update(filepathTemplate="../{DATASET}.{SPLIT}.{SHARD_X_OF_Y}"), "names the file .*, which lies outside")])
def test_what_dataset_info_says_that_is_not_so(copied, change, said):
  told_otherwise(copied, lambda info, split: change(split))
  with pytest.raises(DataError, match=said):
    tfds(dataset=str(copied), split="train")


@pytest.mark.parametrize("damage, said", [(lambda file: file.unlink(), "1 of 2 files of the split are missing"),
                                          (lambda file: file.write_bytes(file.read_bytes()[:-1000]), "get it again")])
def test_shards_that_are_gone_or_cut(copied, damage, said):
  damage(shards(copied)[1])
  with pytest.raises(DataError, match=said):
    tfds(dataset=str(copied), split="train")


@pytest.mark.parametrize("form", ["riegeli", "parquet"])
def test_formats_that_cannot_be_read(copied, form):
  for file in shards(copied):
    file.rename(copied / file.name.replace("array_record", form).replace("tfrecord", form))
  told_otherwise(copied, lambda info, split: (info.update(fileFormat=form), split.pop("filepathTemplate")))
  with pytest.raises(DataError, match=f"format {form} can't be read here"):
    tfds(dataset=str(copied), split="train")


def test_a_damaged_description(copied):
  for name, text in (("dataset_info.json", "{"), ("features.json", "{")):
    kept = (copied / name).read_text()
    (copied / name).write_text(text)
    with pytest.raises(DataError, match="prepare the dataset anew"):
      tfds(dataset=str(copied), split="train")
    (copied / name).write_text(kept)
  told_otherwise(copied, lambda info, split: info.pop("name"))
  with pytest.raises(DataError, match="prepare the dataset anew"):
    tfds(dataset=str(copied), split="train")


def test_extras_replace_nothing_of_a_record(tmp_path, monkeypatch):
  monkeypatch.setattr(records, "extras_of", lambda row: {"key": "stolen", "image": "x", "captions": {}, "label": 3, "facts": {}})
  array_records.write({"train": Rows([{"key": "k", "image": picture(0), "captions": {"original": "words"}}])}, str(tmp_path), name="toy")
  monkeypatch.undo()
  record = tfds(dataset="toy", split="train", data_dir=str(tmp_path))[0]
  assert record == {"key": "k", "image": picture(0), "captions": {"original": "words"}, "label": 3, "facts": {}}
