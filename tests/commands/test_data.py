"""`mmdiff data`: what each subcommand writes and prints, exit codes, and how a source is named."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmdiff.__main__ import main
from mmdiff.commands import data
from mmdiff.core.errors import ConfigError
from mmdiff.data import emoji, webdataset
from tests.data import toy_job
from tests.data.fixtures import picture, shard, write_tar


@pytest.fixture
def shards(tmp_path):
  (tmp_path / "tars").mkdir()
  shard(tmp_path / "tars" / "00000.tar", 0, 6)
  return tmp_path / "tars"


def run(*argv):
  return main(["data", *map(str, argv)])


def test_inspect_writes_sheet_page_and_json(shards, tmp_path, capsys):
  assert run("inspect", shards, f"--out={tmp_path / 'out'}", "--examples=3") == 0
  told = capsys.readouterr().out
  assert "webdataset: 6 records" in told and "caption kinds: original 3/3" in told and "alt 2" in told
  found = json.loads((tmp_path / "out" / "inspect.json").read_text())
  assert found["records"] == 6 and found["argv"][:2] == ["data", "inspect"] and found["source"]["name"] == "webdataset"
  assert found["fingerprint"] == webdataset.webdataset(urls=str(shards)).fingerprint() and found["versions"]["numpy"] == np.__version__
  assert np.asarray(Image.open(tmp_path / "out" / "sheet.png")).shape[1] == 4 * 260
  assert "alt 2" in (tmp_path / "out" / "sheet.html").read_text()


def test_validate_counts_and_fails_beyond_the_limit(tmp_path, capsys):
  write_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.txt", b"x"), ("b.png", b"<html>"), ("b.txt", b"x"), ("c.txt", b"x")])
  out = tmp_path / "report.json"
  assert run("validate", tmp_path / "a.tar", f"--out={out}") == 65
  found = json.loads(out.read_text())
  assert (found["good"], found["bad"]) == (1, {"undecodable": 1, "missing_key": 1})
  assert [offender["key"] for offender in found["offenders"]] == ["b", "c"] and found["argv"][1] == "validate"
  told = capsys.readouterr()
  assert "2 of 3 records are bad" in told.err and f"{out} names them all" in told.err
  assert "3 records: 1 good, 2 bad" in told.out and "b (starts with b'<html>')" in told.out and "{" not in told.out
  assert run("validate", tmp_path / "a.tar", "--max_bad_fraction=0.7") == 0
  assert "3 records: 1 good, 2 bad" in capsys.readouterr().out


def test_validate_reads_the_folder_of_a_job(tmp_path, capsys):
  folder, out = tmp_path / "job", tmp_path / "report.json"
  toy_job.work(folder)
  assert run("validate", folder, f"--out={out}") == 0
  assert "toy, 15 units, 15 files, " in capsys.readouterr().out and json.loads(out.read_text())["damaged"] == []
  text = (folder / "00003.jsonl").read_text()
  (folder / "00003.jsonl").write_text(text.replace("picture 1", "picture 2"))
  (folder / "00004.jsonl").unlink()
  assert run("validate", folder) == 65
  told = capsys.readouterr()
  assert "2 damaged" in told.out and "00003.jsonl: its bytes are not those of its manifest" in told.err and "found no file" in told.err
  assert run("validate", folder, "--limit=3") == 64
  assert "--limit: says nothing of" in capsys.readouterr().err


def test_shard_and_validate_find_the_same_and_name_it(tmp_path, capsys):
  folder, out = tmp_path / "in", tmp_path / "out"
  folder.mkdir()
  for i in range(6):
    (folder / f"{i}.05.png").write_bytes(picture(i))
  (folder / "broken.png").write_bytes(picture(1)[:50])
  rows = ["image,caption", *(f"{i}.05.png,text {i}" for i in range(6)), "0.05.png,", "broken.png,x", "gone.png,y"]
  (folder / "metadata.csv").write_text("\n".join(rows))
  assert run("validate", folder, f"--out={tmp_path / 'v.json'}", "--max_bad_fraction=1") == 0
  assert "left out: empty_caption 1" in capsys.readouterr().out
  assert run("shard", folder, f"--out={out}", "--format=webdataset,array_record") == 0
  told, found = capsys.readouterr(), json.loads((tmp_path / "v.json").read_text())
  assert f"{out}: 6 records in 1 shards (0 were there), bad {{'undecodable': 1, 'missing_key': 1}}" in told.out
  assert "undecodable        1  broken (" in told.out and f"all of them: {out / 'bad_records.jsonl'}" in told.out
  assert "6 keys hold what the names in a tar may not, and are escaped there, such as '0.05' as '0%2E05'," in told.err
  assert [json.loads(line) for line in (out / "bad_records.jsonl").read_text().splitlines()] == found["offenders"]
  assert (found["good"], [offender["key"] for offender in found["offenders"]]) == (6, ["broken", "#7"])
  results = json.loads((out / "meta.json").read_text())["results"]
  assert results["webdataset"]["train"]["bad"] == results["array_record"]["bad"] == found["bad"]
  assert run("validate", out, "--max_bad_fraction=0") == 0


def test_shard_goes_on_and_can_be_read_by_every_reader(shards, tmp_path, capsys):
  out = tmp_path / "again"
  argv = ("shard", shards, f"--out={out}", "--per_shard=4", "--format=webdataset,array_record", "--dataset_name=toy")
  assert run(*argv) == 0 and run(*argv) == 0
  assert "6 records in 2 shards (2 were there)" in capsys.readouterr().out
  meta = json.loads((out / "meta.json").read_text())
  assert meta["results"]["webdataset"]["train"]["count"] == 6 and list(meta["inputs"]) == ["train"]
  for source in (str(out), f"{out / 'toy' / '1.0.0'}", f"{out / 'toy' / '1.0.0'}:train"):
    assert run("validate", source) == 0
    assert "6 records: 6 good, 0 bad" in capsys.readouterr().out


def test_index_makes_the_index_files(shards, capsys):
  assert run("index", "--source=webdataset", f"--source.urls={shards}/*.tar") == 0
  assert "6 records, indexed" in capsys.readouterr().out
  assert (shards / "00000.tar.mmdiff-index").exists()


def test_tokenizer(shards, tmp_path, capsys):
  assert run("tokenizer", shards, f"--out={tmp_path / 'new' / 'tokenizer.json'}", "--vocab=300") == 0
  told = capsys.readouterr()
  assert "tokens, where vocab asks for 300: in the 6 captions no pair of tokens comes twice any more" in told.err
  assert json.loads((tmp_path / "new" / "tokenizer.json").read_text())["model"]["type"] == "BPE"
  assert json.loads((tmp_path / "new" / "tokenizer.meta.json").read_text())["vocab"] <= 300


@pytest.mark.parametrize("command", ["tokenizer", "validate"])
def test_a_folder_where_a_file_should_go_is_refused_first(command, shards, tmp_path, capsys):
  assert run(command, shards, f"--out={tmp_path}") == 64
  assert f"--out: {tmp_path} is a folder; give a file, such as {tmp_path / command}.json" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["tars"]


def test_build_scenes(tmp_path, capsys):
  assert run("build", "scenes", "--tier=T16", "--count=5", "--splits=train,val_iid", f"--out={tmp_path}") == 0
  source = webdataset.webdataset(urls=str(tmp_path / "val_iid"))
  assert len(source) == 5 and set(source[0]["captions"]) == {"long", "short", "original"} and source[0]["scene"]["objs"]
  assert json.loads((tmp_path / "meta.json").read_text())["source"]["train"]["tier"] == "T16"


def test_build_emoji_or_how_to_get_the_font(tmp_path, capsys):
  there = any(map(os.path.isfile, emoji.FONTS)) and any(map(os.path.isfile, emoji.TABLES))
  code = run("build", "emoji", "--splits=val", "--size=32", f"--out={tmp_path}")
  if not there:
    assert code == 65 and "apt-get install" in capsys.readouterr().err
    return
  assert code == 0
  assert len(webdataset.webdataset(urls=str(tmp_path / "val"))) == len(emoji.emoji(split="val"))
  assert (tmp_path / "emoji" / "1.0.0" / "dataset_info.json").exists()


def test_build_emoji_without_the_font_is_exit_65(tmp_path, capsys):
  assert run("build", "emoji", f"--out={tmp_path}", f"--font={tmp_path / 'none.ttf'}") == 65
  assert "apt-get install fonts-noto-color-emoji unicode-data" in capsys.readouterr().err


def test_a_config_names_the_source(capsys):
  assert run("inspect", "--config=configs/clip.py:tiny", "--source.size=7") == 0
  assert "scenes: 7 records" in capsys.readouterr().out


@pytest.mark.parametrize("argv, said", [
  ([], "which command"), (["inspct"], "did you mean inspect"), (["inspect"], "give the source once"),
  (["inspect", "scenes:T16", "--source=coco"], "--data: given twice, 'scenes:T16' and 'coco'"),
  (["inspect", "--source=webdatset"], "did you mean 'webdataset'"),
  (["inspect", "webdataset", "--source.url=x"], "did you mean --data.urls"),
  (["inspect", "scenes:T17"], "T16"), (["inspect", "scenes", "--source.size=many"], "expected int"),
  (["shard", "scenes"], "--out: required"), (["shard", "scenes", "--out=x", "--formt=y"], "did you mean --format"),
  (["shard", "scenes", "--out=x", "--format=webdatast"], "did you mean webdataset"),
  (["shard", "scenes", "--out=x", "--per_shard=0"], "--per_shard: expected at least 1"),
  (["build", "emojis", "--out=x"], "did you mean emoji"), (["build", "--out=x"], "scenes or emoji"),
  (["build", "scenes", "--out=x", "--tier=T1"], "tier"), (["build", "emoji", "--out=x", "--splits=vall"], "unknown split 'vall'"),
  (["build", "scenes", "--out=x", "--source.size=3"], "--source.size: unknown flag"), (["validate", "scenes", "--vocab=3"], "unknown flag"),
])
def test_bad_flags_are_named_with_the_nearest(argv, said, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match=said):
    data.main(argv)
  assert main(["data", *argv]) == 64 and not os.listdir(tmp_path)


def test_every_mistake_at_once():
  with pytest.raises(ConfigError) as caught:
    data.main(["inspect", "webdataset", "--source.url=x", "--source.index_dirs=y", "--examples=0"])
  assert len(str(caught.value).splitlines()) >= 3
  with pytest.raises(ConfigError) as caught:
    data.main(["inspect", "webdataset", "--source.url=x", "--exmples=3"])
  assert all(part in str(caught.value) for part in ("--data.urls", "--examples"))


@pytest.mark.parametrize("source", ["/nope/{00000..00003}.tar", "/nope/folder", "/nope/x.csv"])
def test_missing_data_is_exit_65(source, capsys):
  assert run("inspect", source) == 65
  assert "/nope" in capsys.readouterr().err


def test_help_lists_commands_and_flags(capsys):
  assert run("--help") == 0
  told = capsys.readouterr().out
  assert all(name in told for name in (*data.TAKES, *(f"--{flag}" for flag in data.FLAGS)))
  assert set().union(*data.TAKES.values()) == set(data.FLAGS)


def test_caption_columns_by_flag(tmp_path, capsys):
  (tmp_path / "a.png").write_bytes(picture(1))
  (tmp_path / "pairs.csv").write_text("pic,alt,blip\na.png,one,two\n")
  assert run("inspect", "folder", f"--source.path={tmp_path}", "--source.table=pairs.csv", "--source.image_column=pic",
             "--source.captions.original=alt", "--source.captions.long=blip") == 0
  assert "caption kinds: original 1/1, long 1/1" in capsys.readouterr().out


def test_neither_jax_nor_tensorflow_is_imported():
  code = ("import sys; from mmdiff.__main__ import main; assert main(['data', 'inspect', 'scenes:T16']) == 0; "
          "assert not {'jax', 'tensorflow', 'flax'} & set(sys.modules), [m for m in sys.modules if m in ('jax', 'tensorflow', 'flax')]")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv, said", [
  (("build", "scenes", "--format=array_record", "--dataset_name=../../evil"), "--dataset_name: expected letters, digits and underscores"),
  (("shard", "scenes:T16", "--format=array_record", "--dataset_name=a b/c"), "--dataset_name: expected letters"),
  (("validate", "scenes:T16", "--max_bad_fraction=-1"), "--max_bad_fraction: expected a value from 0 to 1, found -1"),
  (("validate", "scenes:T16", "--max_bad_fraction=nan"), "--max_bad_fraction: expected"),
  (("precompute", "--config=configs/clip.py:tiny"), "this command keeps what the frozen encoders of a text-to-image config make")])
def test_flags_that_mean_nothing(tmp_path, capsys, argv, said):
  assert run(*argv, f"--out={tmp_path / 'deep' / 'out'}") == 64
  assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["webdataset", "array_record"])
def test_names_that_are_not_utf_8_are_bad_records(tmp_path, capsys, form):
  folder = os.fsencode(tmp_path / "in")
  os.mkdir(folder)
  for name in (b"\xff\xfe", b"good"):
    for ending, content in ((b".png", picture(1)), (b".txt", b"a cat")):
      with open(os.path.join(folder, name + ending), "wb") as file:
        file.write(content)
  assert run("shard", tmp_path / "in", f"--out={tmp_path / 'out'}", f"--format={form}") == 0
  assert "bad {'unreadable': 1}" in capsys.readouterr().out
