"""One word for a source."""
import json

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import named
from tests.data.fixtures import picture, shard
from tests.data.test_parquet import write


@pytest.mark.parametrize("text, config", [
  ("scenes:T16", {"name": "scenes", "tier": "T16"}), ("scenes:T16:val_comp", {"name": "scenes", "tier": "T16", "split": "val_comp"}),
  ("scenes", {"name": "scenes"}), ("/d/{00000..00041}.tar", {"name": "webdataset", "urls": "/d/{00000..00041}.tar"}),
  ("/d/*.tar", {"name": "webdataset", "urls": "/d/*.tar"}), ("/d/pairs.csv", {"name": "folder", "path": "/d", "table": "pairs.csv"}),
  ("coco", {"name": "coco"}), ("tfds:flowers", {"name": "tfds", "dataset": "flowers", "split": "train"}),
  ("tfds:flowers:1.0.0:test[:9]", {"name": "tfds", "dataset": "flowers:1.0.0", "split": "test[:9]"}),
  ("tfds:flowers:val", {"name": "tfds", "dataset": "flowers", "split": "val"}),
  ("/d/*.parquet", {"name": "parquet", "path": "/d/*.parquet"})])
def test_words(text, config):
  assert named.source(text) == (config, [])


def test_keys_in_the_word():
  assert named.source("name=webdataset,urls=a.tar,b.tar,image=png") == ({"name": "webdataset"}, [("urls", "a.tar,b.tar"), ("image", "png")])


def test_folders(tmp_path):
  at = lambda name: tmp_path / name
  for name in ("tars", "pictures", "tfds", "sets/one/1.0.0", "hub/data", "beside"):
    at(name).mkdir(parents=True)
  shard(at("tars") / "0.tar", 0, 1)
  for name in ("tfds", "sets/one/1.0.0"):
    (at(name) / "dataset_info.json").write_text("{}")
  for split in ("train", "test"):
    write(at("hub/data") / f"{split}-00000-of-00001.parquet", image=[{"bytes": picture(1), "path": "1.png"}], caption=["one"])
  write(at("beside") / "metadata.parquet", file_name=["1.png"], caption=["one"])
  assert named.source(str(at("tars")))[0] == {"name": "webdataset", "urls": str(at("tars"))}
  assert named.source(str(at("pictures")))[0] == {"name": "folder", "path": str(at("pictures"))}
  assert named.source(f"{at('tfds')}:val")[0] == {"name": "tfds", "dataset": str(at("tfds")), "split": "val"}
  assert named.source(str(at("sets")))[0] == {"name": "tfds", "dataset": str(at("sets/one/1.0.0")), "split": "train"}
  assert named.source(str(at("hub")))[0] == {"name": "parquet", "path": str(at("hub")), "split": "train"}
  assert named.source(f"{at('hub')}:test")[0] == {"name": "parquet", "path": str(at("hub")), "split": "test"}
  assert named.source(str(at("beside")))[0] == {"name": "folder", "path": str(at("beside"))}
  table = named.source(str(at("beside") / "metadata.parquet"))[0]
  assert table == {"name": "folder", "path": str(at("beside")), "table": "metadata.parquet"}
  with pytest.raises(DataError, match="no such file or folder"):
    named.source("/nope/nothing")
  (tmp_path / "x.npy").write_bytes(b"")
  with pytest.raises(DataError, match="x.npy: no source of data"):
    named.source(str(tmp_path / "x.npy"))
  with pytest.raises(DataError, match="my_pics: no such file or folder"):
    named.source("my_pics")
  with pytest.raises(DataError, match="source folder, which has no splits; leave :val out"):
    named.source(f"{at('pictures')}:val")


def test_coco_finds_its_pictures(tmp_path):
  for name in ("val2014", "annotations"):
    (tmp_path / name).mkdir()
  (tmp_path / "val2014" / "a.png").write_bytes(picture(1))
  for name, content in (("official", {"info": {}, "images": [{"id": 1, "file_name": "a.png"}], "annotations": []}),
                        ("karpathy", {"images": [{"filepath": "val2014", "filename": "a.png"}]})):
    file = tmp_path / "annotations" / f"{name}.json"
    file.write_text(json.dumps(content))
    found = named.source(str(file))[0]
    assert found == {"name": "coco", "images": str(tmp_path / "val2014"), "annotations": str(file)}
  (tmp_path / "list.json").write_text('[{"image": "a.png"}]')
  assert named.source(str(tmp_path / "list.json"))[0]["name"] == "folder"
