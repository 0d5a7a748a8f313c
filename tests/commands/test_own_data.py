"""--data=PATH: what of a config follows the data, and the whole way from a messy folder to one's own held-out score."""
import csv
import json

import jax
import pytest
from PIL import Image

from mmdiff import parallel
from mmdiff.__main__ import main
from mmdiff.commands import evaluate, flags, own_data
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import SOURCES, held_out
from mmdiff.train import distributed
from tests import toy_runs
from tests.data.fixtures import picture
from tests.data.worlds import World


def pictures(folder, count=60, kinds=("original",)):
  folder.mkdir(parents=True)
  rows = [dict(image=f"{i}.png") | {f"caption_{kind}" if kind != "original" else "caption": f"{kind} {i}" for kind in kinds}
          for i in range(count)]
  for row in rows:
    (folder / row["image"]).write_bytes(picture(3))
  (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return folder


def config_of(*argv, config="configs/clip.py:tiny"):
  return flags.load_config([f"--config={config}", *argv])


def test_captions_held_out_share_and_evaluators_follow(tmp_path, capsys):
  mine = pictures(tmp_path / "mine")
  made = config_of(f"--config.data.source={mine}")
  assert made["data"]["captions"] == {"original": 1.0} and made["data"]["held_out"] == 0.2
  retrieval = made["evals"]["retrieval"]
  assert retrieval["source"] == dict(name="held_out", of=made["data"]["source"], share=0.2) and retrieval["caption"] == ""
  assert retrieval["limit"] == 500                                      # what has nothing to do with data stays
  said = capsys.readouterr().err
  count = held_out.count(build(SOURCES, made["data"]["source"]), 0.2)
  assert f"data: 60 records of folder; captions original 1; retrieval: of {count} held out by key (data.held_out 0.2)" in said
  again = tmp_path / "config.json"
  again.write_text(json.dumps(made))
  assert flags.load_config([f"--config={again}"]) == made               # a run's own config says all of it


def test_what_the_command_line_says_stays(tmp_path):
  mine = pictures(tmp_path / "mine", kinds=("original", "short", "long"))
  source = f"--config.data.source={mine}"
  made = config_of(source, "--config.data.held_out=0.1", "--config.data.captions.short=1", "--config.evals.retrieval.caption=short")
  assert made["data"]["held_out"] == 0.1 and made["data"]["captions"] == {"short": 1.0}
  assert made["evals"]["retrieval"]["caption"] == "short" and made["evals"]["retrieval"]["source"]["share"] == 0.1
  made = config_of(source)
  assert made["data"]["captions"] == {"long": 0.95, "original": 0.05} and made["evals"]["retrieval"]["caption"] == "long"
  made = config_of(source, "--config.evals.retrieval.source=scenes:T16:val_iid")
  assert made["evals"]["retrieval"]["source"]["tier"] == "T16"
  made = config_of(source, "--config.data.held_out=0")
  assert made["evals"]["retrieval"]["source"] == made["data"]["source"]
  with pytest.raises(ConfigError, match="evals.retrieval.source.share: training leaves out 0.1 .data.held_out., found 0.2"):
    config_of(source, "--config.data.held_out=0.1", f"--config.evals.retrieval.source=name=held_out,of={mine},share=0.2")


def test_a_flag_of_its_own_and_all_mistakes_before_the_data_are_read(tmp_path):
  table = dict(config=dict(required=True), data=dict(type="source", sets="data.source"))
  mine = pictures(tmp_path / "mine")
  parsed = flags.parse(["--config=configs/clip.py:tiny", f"--data={mine}", "--data.layout=table"], table)
  assert parsed["config"]["data"]["source"]["layout"] == "table" and parsed["data"] is None
  with pytest.raises(ConfigError, match="(?s)source.layot: unknown key; did you mean .*layout.*--config.stes: unknown key"):
    flags.parse(["--config=configs/clip.py:tiny", f"--data={mine}", "--data.layot=table", "--config.stes=3"], table)
  with pytest.raises(DataError, match="none.x: no such file"):
    flags.parse(["--config=configs/clip.py:tiny", f"--data={tmp_path}/none.x"], table)


def test_evaluators_of_the_built_in_scenes_are_left_out_by_name(tmp_path, capsys):
  mine = pictures(tmp_path / "mine")
  made = config_of(f"--config.data.source={mine}", config="configs/t2i_pixels.py:tiny")
  assert set(made["evals"]) == {"samples", "loss"} and "tier" not in str(made["evals"])
  assert made["evals"]["loss"]["source"]["name"] == made["evals"]["samples"]["source"]["name"] == "held_out"
  assert "data: without the evaluator judge, which asks about the built-in scenes" in capsys.readouterr().err
  made = config_of("--config.data.source=scenes:T16", config="configs/t2i_pixels.py:tiny")
  assert made["evals"]["judge"]["tier"] == "T16" and made["data"]["held_out"] == 0


@pytest.mark.parametrize("count, share", [(3_000, 0.05), (500, 0.096), (100, 0.2), (1, 0.0), (400_000, 0.0125)])
def test_the_share_that_is_held_out(count, share, monkeypatch):
  if count > 10_000:
    monkeypatch.setattr(held_out, "count", lambda source, share: int(share * len(source)))
  assert own_data.share_of(World(count)) == share


def test_kinds_that_there_are():
  assert own_data.shares(dict(long=0.6, short=0.2, other=0.2), ("short", "long")) == pytest.approx(dict(long=0.75, short=0.25))
  assert own_data.shares(dict(long=1.0), ("original", "alt")) == dict(original=0.5, alt=0.5)
  seen = own_data.Seen(9, ("original",), False, ())
  zeroshot = dict(zeroshot=dict(name="zeroshot", source={}, every_steps=1))
  assert own_data.evaluators(dict(evals=zeroshot), dict(name="x"), seen, lambda path: False)[1] == {
    "zeroshot": "needs classes, which these records lack"}
  assert own_data.evaluators(dict(evals=zeroshot), dict(name="x"), seen._replace(labels=True, classes=("a",)), lambda path: False)[0][
    "zeroshot"]["source"] == dict(name="x")


def messy(folder):
  """200 pictures with what people's folders have: odd names, a broken and a missing picture, empty captions, an id that comes twice."""
  (folder / "imgs").mkdir(parents=True)
  scenes = build(SOURCES, dict(name="scenes", tier="T16", split="train", size=200))
  rows = []
  for i in range(200):
    record = scenes[i]
    Image.fromarray(record["image"]).save(folder / "imgs" / f"IMG_{i:04}.png")
    rows.append([i, f"IMG_{i:04}.png", record["captions"]["short"], f"https://example.org/{i}.png"])
  (folder / "imgs" / "IMG_0003.png").write_bytes(b"not a picture")
  (folder / "imgs" / "IMG_0005.png").unlink()
  rows[7][2], rows[9][2], rows[12][0] = "", "   ", 11
  rows.append([200, "IMG_0055.png", "the same picture again", ""])
  with open(folder / "My Labels.csv", "w", newline="", encoding="utf-8-sig") as file:
    csv.writer(file).writerows([["id", "Image File", "Alt Text", "URL"], *rows])
  return folder


def test_one_command_from_a_messy_folder_to_its_own_held_out_score(tmp_path, monkeypatch, capsys):
  make_mesh = parallel.make_mesh
  monkeypatch.setattr(distributed, "initialize", lambda: None)
  one = lambda devices=None, **sizes: make_mesh(**sizes, devices=devices or jax.devices()[:1])
  monkeypatch.setattr(parallel, "make_mesh", one)                         # what is compiled for eight takes longer
  monkeypatch.chdir(tmp_path)
  messy(tmp_path / "my_pictures")
  evals = dict(retrieval=dict(name="retrieval", source=toy_runs.SCENES, caption="long", every_steps=2, limit=500),
               hard=dict(name="hard_negatives", tier="T16", every_steps=2))
  toy = toy_runs.clip() | dict(steps=2, evals=evals, mesh=dict(data=-1, fsdp=1, tensor=1))
  (tmp_path / "toy.json").write_text(json.dumps(toy))
  with jax.default_prng_impl("rbg"):
    assert main(["train", "--config=toy.json", "--data=my_pictures", "--workdir=runs/mine"]) == 0
  said = capsys.readouterr().err
  assert "without the evaluator hard, which asks about the built-in scenes" in said and "chance" in said
  result = json.loads((tmp_path / "runs/mine/eval/retrieval_00000002.json").read_text())
  source = build(SOURCES, result["evaluator"]["source"])
  assert list(result["records"].values()) == [f"{len(source)} of {source.fingerprint()}"]
  own = build(SOURCES, result["config"]["data"]["source"])
  assert {source.key(i) for i in range(len(source))} == {key for i in range(len(own)) if held_out.is_held_out(key := own.key(i), 0.2)}
  assert 20 < result["scalars"]["images"] <= len(source) and source.key(0).startswith("IMG_")

  assert evaluate.main(["--workdir=runs/mine", "--task=loss", "--data=my_pictures", "--out=loss.json"]) == 0
  found = json.loads((tmp_path / "loss.json").read_text())
  assert found["evaluator"]["source"] == result["evaluator"]["source"]
  assert "the run was trained on these; scored are those that it never saw" in capsys.readouterr().err
  with pytest.raises(ConfigError, match="--data: hard_negatives reads no source"):
    evaluate.main(["--workdir=runs/mine", "--task=hard_negatives", "--data=my_pictures"])
