"""`mmdiff search`: an index finds what it was built from, goes on where it stopped, and says what is wrong."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmdiff
from mmdiff.commands import search
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_runs

FIXTURES = Path(__file__).parent.parent / "convert" / "fixtures"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("clip"), toy_runs.clip())


@pytest.fixture
def pictures(tmp_path):
  folder = tmp_path / "pictures"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(9):
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
  (folder / "4.png").write_bytes(b"no picture")
  return folder


def build(clip, pictures, out, *flags):
  return search.main(["build", f"--model={clip}", f"--data=name=folder,path={pictures}", f"--out={out}", "--batch_size=4", *flags])


def test_a_picture_finds_itself_and_a_text_what_is_nearest(clip, pictures, tmp_path, capsys):
  assert build(clip, pictures, tmp_path / "index") == 0
  told = capsys.readouterr().out
  assert "8 pictures, bad records {'undecodable': 1}" in told and "undecodable        1  4 (" in told
  assert [one["key"] for one in search.read_index(str(tmp_path / "index")).meta["offenders"]] == ["4"]
  search.main(["query", f"--index={tmp_path / 'index'}", f"--images={pictures / '3.png'}", "--count=3", f"--out={tmp_path / 'found'}"])
  result, = json.loads((tmp_path / "found" / "results.json").read_text())["results"]
  assert len(result["found"]) == 3 and "3" in result["found"][0]["key"] and result["found"][0]["cosine"] == pytest.approx(1, abs=1e-5)
  page = (tmp_path / "found" / "index.html").read_text()
  assert page.count("data:image/png;base64,") == 3
  (tmp_path / "q.txt").write_text("a red circle\n\na <b>blue</b> square\n")
  search.main(["query", f"--index={tmp_path / 'index'}", f"--texts={tmp_path / 'q.txt'}", "--count=8", f"--out={tmp_path / 'texts'}"])
  results = json.loads((tmp_path / "texts" / "results.json").read_text())["results"]
  model = mmdiff.load(clip)
  good = [i for i in range(9) if i != 4]
  images = model.embed_image([Image.open(pictures / f"{i}.png") for i in good])
  for result in results:
    wanted = images @ model.embed_text(result["query"])[0]
    np.testing.assert_allclose([each["cosine"] for each in result["found"]], np.sort(wanted)[::-1], atol=1e-5)
    assert [each["row"] for each in result["found"]] == [good[n] for n in np.argsort(-wanted)]
  assert "<b>blue" not in (tmp_path / "texts" / "index.html").read_text()


def test_a_second_start_goes_on(clip, pictures, tmp_path, monkeypatch):
  monkeypatch.setattr(search, "PART", 3)
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  build(clip, pictures, whole)
  calls = []
  embedded = search.embedded

  def stops(*args):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return embedded(*args)
  monkeypatch.setattr(search, "embedded", stops)
  with pytest.raises(KeyboardInterrupt):
    build(clip, pictures, stopped)
  with pytest.raises(DataError, match="no whole index"):
    search.read_index(str(stopped))
  build(clip, pictures, stopped)
  assert len(calls) == 4                                      # the first part was kept
  a, b = search.read_index(str(whole)), search.read_index(str(stopped))
  np.testing.assert_array_equal(a.embeddings, b.embeddings)
  assert a.keys == b.keys and not list(stopped.glob("part_*"))
  before = (whole / "index.json").read_bytes()
  assert build(clip, pictures, whole) == 0 and (whole / "index.json").read_bytes() == before            # finished, it is left as it is
  with pytest.raises(ConfigError, match="holds an index of another model or of other data"):
    build(clip, pictures, whole, "--limit=2")


def test_an_index_serves_from_any_folder_and_says_where_its_model_was(clip, pictures, tmp_path, monkeypatch):
  shutil.copytree(clip, tmp_path / "there" / "run")
  monkeypatch.chdir(pictures.parent)
  search.main(["build", "--model=there/run", "--data=name=folder,path=pictures", "--out=index"])
  meta = json.loads((tmp_path / "index" / "index.json").read_text())
  assert meta["model"].startswith(f"{tmp_path / 'there' / 'run'}@") and meta["data"]["path"] == str(pictures)
  monkeypatch.chdir("/")
  ask = ["query", f"--index={tmp_path / 'index'}", "--texts=a", "--count=2"]
  search.main([*ask, f"--out={tmp_path / 'found'}"])
  assert (tmp_path / "found" / "index.html").read_text().count("data:image/png;base64,") == 2
  (tmp_path / "there").rename(tmp_path / "here")
  with pytest.raises(DataError, match="the model of the index: .*no such file or folder.*If it was moved, say where it is: --model=PATH"):
    search.main([*ask, f"--out={tmp_path / 'x'}"])
  search.main([*ask, f"--out={tmp_path / 'again'}", f"--model={tmp_path / 'here' / 'run'}"])
  with pytest.raises(DataError, match="another model than the index was made with"):
    search.main([*ask, f"--out={tmp_path / 'x'}", f"--model={FIXTURES / 'hf_clip'}"])


def test_classes(clip, pictures, tmp_path, capsys):
  build(clip, pictures, tmp_path / "index")
  search.main(["classify", f"--index={tmp_path / 'index'}", "--labels=a circle,a square", f"--out={tmp_path / 'classes'}"])
  found = json.loads((tmp_path / "classes" / "results.json").read_text())
  assert sum(found["counts"].values()) == len(found["results"]) == 8
  assert all(0.5 <= row["probability"] <= 1 and row["label"] in ("a circle", "a square") for row in found["results"])
  assert "a circle: " in capsys.readouterr().out
  with pytest.raises(ConfigError, match="--template: expected a sentence with {}"):
    search.main(["classify", f"--index={tmp_path / 'index'}", "--labels=a", "--template=x", f"--out={tmp_path / 'x'}"])
  (tmp_path / "labels.txt").write_text("\ufeffa cat\na dog\na cat\n")               # as editors write it
  for labels in ("a cat,a dog,a cat", tmp_path / "labels.txt"):
    with pytest.raises(ConfigError, match="--labels: 'a cat' is in it twice"):
      search.main(["classify", f"--index={tmp_path / 'index'}", f"--labels={labels}", f"--out={tmp_path / 'x'}"])


def test_nearest_is_the_same_in_pieces():
  rng = np.random.default_rng(0)
  queries, embeddings = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(50, 5)).astype(np.float32)
  whole, values = search.nearest(queries, embeddings, 7)
  pieces, again = search.nearest(queries, embeddings, 7, rows=6)
  np.testing.assert_array_equal(whole, pieces)
  np.testing.assert_allclose(values, again, rtol=1e-6)
  np.testing.assert_array_equal(whole, np.argsort(-(queries @ embeddings.T), 1)[:, :7])
  assert search.nearest(queries, embeddings[:2], 7)[0].shape == (3, 2)


def test_flags(tmp_path):
  for argv, message in (([], "which command. .known: build, query, classify"), (["quer"], "did you mean query"),
                        (["build", "--out=x"], "--model: required.*\n--data: required"),
                        (["query", "--out=x", "--index=i"], "--texts or --images: expected one of the two"),
                        (["classify", "--out=x", "--index=i"], "--labels: required")):
    with pytest.raises(ConfigError, match=message):
      search.main(argv)
  with pytest.raises(DataError, match="no whole index"):
    search.main(["query", f"--index={tmp_path}", "--texts=a", "--out=x"])


@pytest.mark.parametrize("name, content, said", [
  ("index.json", b"[" * 100_000, "index.json: not valid JSON: nested too deeply"), ("keys.json", b"[" * 100_000, "nested too deeply"),
  ("index.json", b"[]", "expected an object"), ("index.json", b"{}", "index.json lacks identity, model, params"),
  ("keys.json", b"{}", "'rows'|'keys'"), ("keys.json", b'{"keys": ["a"], "rows": [0]}', "2 embeddings for 1 keys and 1 rows"),
  ("keys.json", b'{"keys": ["a", "b"], "rows": [0]}', "2 keys and 1 rows"), ("embeddings.npy", b"", "no whole index")])
def test_a_damaged_index_is_no_whole_one(tmp_path, name, content, said):
  (tmp_path / "index.json").write_text(json.dumps(dict(model="m", params=None, identity={})))
  (tmp_path / "keys.json").write_text(json.dumps(dict(keys=["a", "b"], rows=[0, 1])))
  np.save(tmp_path / "embeddings.npy", np.zeros((2, 3), np.float32))
  assert search.read_index(str(tmp_path)).keys == ["a", "b"]
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=said):
    search.read_index(str(tmp_path))
