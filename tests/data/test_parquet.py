"""Parquet files and the folders that `datasets` writes."""
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pytest
from pyarrow import ipc
from pyarrow import parquet as pq

from mmdiff.core.errors import DataError
from mmdiff.data import parquet as module
from mmdiff.data.parquet import parquet, splits
from mmdiff.data.quarantine import BadRecord
from tests.data.fixtures import picture

LABELS = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["tabby_cat", "dog"]}, "image": {"_type": "Image"}}}})


def write(path, *, rows=100, metadata=None, **columns):
  """A parquet file of columns, in row groups of so many rows."""
  table = pyarrow.table(columns)
  pq.write_table(table.replace_schema_metadata({"huggingface": metadata} if metadata else None), path, row_group_size=rows)
  return str(path)


def struct(i):
  return {"bytes": picture(i), "path": f"{i}.png"}


def test_a_file_of_datasets(tmp_path):
  path = write(tmp_path / "x.parquet", rows=3, image=[struct(i) for i in range(8)], text=[f"alt {i}" for i in range(8)],
               caption_long=[[f"a long {i}", "another"] for i in range(8)], id=list(range(8)))
  source = parquet(path=path)
  captions = {"original": "alt 4", "long": ["a long 4", "another"]}
  assert len(source) == 8 and source[4] == {"key": "4", "image": picture(4), "captions": captions}
  copy = pickle.loads(pickle.dumps(source))                               # noqa: S301
  assert copy[7] == source[7] and source.fingerprint() == parquet(path=str(tmp_path)).fingerprint()
  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda i: source[i]["image"], [7, 0, 3, 5] * 5)) == [picture(i) for i in [7, 0, 3, 5] * 5]
  write(tmp_path / "x.parquet", rows=3, image=[struct(i) for i in range(8)], text=["other"] * 8)
  assert parquet(path=path).fingerprint() != source.fingerprint()


def test_odd_columns_and_plain_bytes(tmp_path):
  path = write(tmp_path / "x.parquet", jpg=[picture(i) for i in range(3)], What=["red shoes", "a dog", None], url=["https://a b/1.jpg"] * 3)
  source = parquet(path=path)
  assert [source[i]["captions"] for i in range(3)] == [{"original": "red shoes"}, {"original": "a dog"}, {}]
  assert [source.key(i) for i in (0, 2)] == ["x/000000000", "x/000000002"]


def test_classes(tmp_path):
  source = parquet(path=write(tmp_path / "x.parquet", metadata=LABELS, image=[struct(i) for i in range(3)], label=[1, 0, -1]))
  assert source.labels == ("tabby cat", "dog")
  assert [(source[i]["label"], source[i]["captions"]) for i in range(3)] == [
    (1, {"original": "dog"}), (0, {"original": "tabby cat"}), (-1, {})]


def test_splits_are_never_mixed(tmp_path):
  (tmp_path / "data").mkdir()
  for split, n in (("train", 2), ("validation", 1)):
    for part in range(n):
      write(tmp_path / "data" / f"{split}-{part:05}-of-{n:05}.parquet", image=[struct(part)], caption=[split])
  assert {name: len(files) for name, files in splits(str(tmp_path)).items()} == {"train": 2, "validation": 1}
  with pytest.raises(DataError, match="several splits, train, validation; say which: --data.split=train"):
    parquet(path=str(tmp_path))
  with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
    parquet(path=str(tmp_path), split="test")
  source = parquet(path=str(tmp_path), split="train")
  assert [source.key(i) for i in range(2)] == ["train-00000-of-00002/000000000", "train-00001-of-00002/000000000"]


@pytest.mark.parametrize("form", [ipc.new_stream, ipc.new_file])
def test_what_save_to_disk_wrote(tmp_path, form):
  (tmp_path / "train").mkdir()
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
  table = pyarrow.table(dict(image=[struct(i) for i in range(5)], caption=[f"c {i}" for i in range(5)]))
  with form(str(tmp_path / "train" / "data-00000-of-00001.arrow"), table.schema) as writer:
    writer.write_table(table, max_chunksize=2)
  source = pickle.loads(pickle.dumps(parquet(path=str(tmp_path), split="train")))                       # noqa: S301
  assert [source[i]["captions"]["original"] for i in range(5)] == [f"c {i}" for i in range(5)] and source[3]["image"] == picture(3)


def test_bad_rows_are_of_their_kind(tmp_path):
  path = write(tmp_path / "x.parquet", image=[struct(0), None, {"bytes": None, "path": "far.png"}], caption=["a", "b", "c"])
  source = parquet(path=path)
  assert source[0]["image"] == picture(0)
  for i, said in ((1, "no bytes of the picture"), (2, "only its path 'far.png'")):
    with pytest.raises(BadRecord, match=said) as caught:
      source[i]
    assert caught.value.kind == "missing_key"


def test_damaged_files_are_named(tmp_path):
  path = write(tmp_path / "x.parquet", rows=2, image=[struct(i) for i in range(6)], caption=list("abcdef"))
  data = (tmp_path / "x.parquet").read_bytes()
  (tmp_path / "x.parquet").write_bytes(data[:-20])
  with pytest.raises(DataError, match="x.parquet: cannot be read: .* damaged"):
    parquet(path=path)
  at = data.index(picture(0)[-30:])
  (tmp_path / "x.parquet").write_bytes(data[:4] + b"\xff" * (at - 4) + data[at:])
  source = parquet(path=path)
  with pytest.raises(BadRecord, match="x.parquet row group 0"):
    source[0]
  assert source[5]["image"] == picture(5)


def test_memory_is_bounded(tmp_path, monkeypatch):
  path = write(tmp_path / "x.parquet", rows=2, image=[picture(i) for i in range(20)], caption=["c"] * 20)
  source = parquet(path=path)
  monkeypatch.setattr(module, "KEPT_BYTES", 500)
  for i in range(20):
    source[i]
    assert sum(table.nbytes for table in source._kept.values()) <= 500
  monkeypatch.setattr(module, "MAX_GROUP_BYTES", 50)
  with pytest.raises(DataError, match="row group 0 has .* write it anew with smaller row groups"):
    parquet(path=path)[0]


@pytest.mark.parametrize("columns, options, said", [
  (dict(caption=["a"]), {}, "no column of pictures"),
  (dict(a=[b"x"], b=[b"x"], caption=["a"]), {}, "a, b could each be the pictures.*--data.image=a"),
  (dict(image=[b"x"], n=[3]), {}, "no column can be told to be the captions.*--data.captions.original=n"),
  (dict(image=[b"x"], caption=["a"]), dict(key="kye"), r"no column kye; found columns \['image', 'caption'\]"),
  (dict(image=[b"x"] * 2, caption=["a"] * 2), dict(key="caption"), "has 1 keys that are empty or come twice")])
def test_columns_that_cannot_be_told(tmp_path, columns, options, said):
  with pytest.raises(DataError, match=said):
    parquet(path=write(tmp_path / "x.parquet", **columns), **options)


def test_no_files(tmp_path):
  (tmp_path / "a.txt").write_text("")
  with pytest.raises(DataError, match=r"no parquet or Arrow files, found \['a.txt'\]"):
    parquet(path=str(tmp_path))
  assert parquet(path=write(tmp_path / "x.parquet", image=[b"x"], n=[3]), captionless=True)[0]["captions"] == {}
