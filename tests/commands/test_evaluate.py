import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmdiff
from mmdiff.commands import evaluate
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.evaluators import retrieval
from mmdiff.train import distributed
from tests import toy_pipelines, toy_runs

FIXTURES = Path(__file__).parent.parent / "convert" / "fixtures"
HELD_OUT = dict(name="scenes", tier="T16", split="val_iid", size=20)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  """The test's process used JAX already, which is too late to join others."""
  monkeypatch.setattr(distributed, "initialize", lambda: None)


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
  evals = dict(held_out=dict(name="retrieval", source=HELD_OUT, caption="long", every_steps=100, limit=10))
  return toy_runs.make(tmp_path_factory.mktemp("clip"), toy_runs.clip() | dict(evals=evals), steps=(2, 4))


@pytest.fixture(scope="module")
def t2i_run(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("t2i"), toy_runs.t2i())


def test_an_entry_of_the_config_is_changed_by_flags_and_written(clip_run, capsys):
  assert evaluate.main([f"--workdir={clip_run}@2", "--task=held_out", "--task.limit=7", "--task.captions_per_image", "1",
                        "--params=raw"]) == 0
  found = json.loads((clip_run / "eval" / "evaluate_held_out_00000002.json").read_text())
  model = mmdiff.load(clip_run, step=2, params="raw")
  data = model.services.dataset(HELD_OUT)
  records = [data.source[i] for i in range(7)]
  expected = retrieval.scores(model.embed_image([record["image"] for record in records]),
                              model.embed_text([record["captions"]["long"] for record in records]), np.arange(7))
  assert found["scalars"] == pytest.approx(expected, abs=1e-6)
  assert found["evaluator"]["limit"] == 7 and found["evaluator"]["params"] == "" and found["step"] == 2
  assert found["model"]["checkpoint"] and list(found["data"].values()) == [data.fingerprint()]
  assert found["argv"][0] == "evaluate" and found["versions"]["jax"] and found["config"]["seed"] == 0
  shown = capsys.readouterr().out
  assert "at step 2 (raw parameters)" in shown and "image_to_text/recall_at_1" in shown


def test_a_task_without_an_entry_takes_all_from_flags(clip_run, tmp_path):
  out = tmp_path / "loss.json"
  evaluate.main([f"--model={clip_run}", "--task=loss", "--task.source.name=scenes", "--task.source.tier=T16", "--task.source.size=16",
                 f"--out={out}"])
  found = json.loads(out.read_text())
  assert found["scalars"]["records"] == 16 and found["evaluator"]["params"] == "eval" and found["model"]["step"] == 4


def test_clip_score_of_a_folder_of_pictures(clip_run, tmp_path):
  for i in range(3):
    Image.fromarray(np.full((20, 30, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
  lines = [json.dumps(dict(file_name=f"{i}.png", caption=f"a red circle {i}")) for i in range(3)]
  (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
  out = tmp_path / "score.json"
  evaluate.main([f"--scorer={clip_run}", "--task=clipscore", f"--images={tmp_path}", f"--out={out}"])
  found, model = json.loads(out.read_text()), mmdiff.load(clip_run)
  images = model.embed_image([Image.open(tmp_path / f"{i}.png") for i in range(3)])
  cosines = np.sum(images * model.embed_text([f"a red circle {i}" for i in range(3)]), 1)
  assert found["scalars"]["clip_similarity"] == pytest.approx(100 * cosines.mean(), abs=1e-3)
  assert found["tables"]["protocol"][0]["params"] == "eval" and found["tables"]["protocol"][0]["step"] == 4


def test_samples_come_with_their_picture(t2i_run, tmp_path):
  out = tmp_path / "s.json"
  evaluate.main([f"--model={t2i_run}", "--task=samples", "--task.source.name=scenes", "--task.source.tier=T16", "--task.count=3",
                 "--task.columns=3", "--task.steps=2", f"--out={out}"])
  assert json.loads(out.read_text())["images"] == ["s.png"]
  assert np.asarray(Image.open(tmp_path / "s.png")).shape == (16, 3 * 18 - 2, 3)


def test_without_a_task_a_run_is_scored_by_its_own_entries(clip_run, capsys):
  config = json.loads((clip_run / "config.json").read_text())
  done = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluate, "run", lambda workdir, given, options, told, argv: done.append((given["task"], options["name"])))
    assert evaluate.main([f"--workdir={clip_run}"]) == 0
  assert done == [(name, entry["name"]) for name, entry in config["evals"].items()] and done
  with pytest.raises(ConfigError, match="--out: says nothing without --task.*\n--task.limit: says nothing without --task"):
    evaluate.main([f"--workdir={clip_run}", "--out=x.json", "--task.limit=3"])


def test_without_a_task_public_weights_say_what_scores_them():
  with pytest.raises(ConfigError, match="can be scored by loss, retrieval, collapse, zeroshot, clipscore, hard_negatives; name one"):
    evaluate.main([f"--model={FIXTURES / 'hf_clip'}"])


def test_help_names_every_evaluator():
  from mmdiff.evaluators import EVALUATORS
  assert set(EVALUATORS) <= set(re.findall(r"\w+", evaluate.__doc__))


def test_every_mistake_is_named_before_the_model_is_read(clip_run):
  def said(*flags):
    with pytest.raises(ConfigError) as error:
      evaluate.main([f"--workdir={clip_run}", *flags])
    return str(error.value)
  assert "--task=retrieva: unknown task; did you mean retrieval?" in said("--task=retrieva")
  assert said("--task=retrieval", "--task.limt=3", "--task.captions_per_image=x") == (
    "--task.limt: unknown key; did you mean --task.limit?\n--task.captions_per_image: expected int or None, found 'x'")
  assert "--task.source: missing" in said("--task=loss")
  assert "--task.limit: expected at least 1, found 0" in said("--task=held_out", "--task.limit=0")
  assert "--task.params: no average is called 'best'" in said("--task=held_out", "--params=best")
  assert "give one of --workdir" in said("--task=loss", f"--model={clip_run}")
  assert "needs the predict functions sample, plan" in said("--task=samples", "--task.source.name=scenes")
  with pytest.raises(DataError, match="nowhere: no such file or folder"):
    evaluate.main(["--workdir=nowhere", "--task=loss"])


def test_two_results_are_compared(tmp_path, capsys):
  for name, right in (("a", [1, 1, 1, 0]), ("b", [0, 1, 0, 0])):
    rows = [dict(category="spatial", prompt=f"p{i}", seed=i, right=bool(r)) for i, r in enumerate(right)]
    (tmp_path / f"{name}.json").write_text(json.dumps(dict(scalars=dict(all_facts=sum(right) / 4), tables=dict(prompts=rows))))
  files = f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}"
  assert evaluate.main([f"--compare={files}", f"--out={tmp_path / 'c.json'}"]) == 0
  found = json.loads((tmp_path / "c.json").read_text())
  assert found["scores"] == [dict(score="all_facts", first=0.75, second=0.25, difference=-0.5)]
  assert found["prompts"][0] == dict(category="all", prompts=4, first_better=2, second_better=0, p=pytest.approx(0.5))
  assert "exact test" in capsys.readouterr().out
  with pytest.raises(DataError, match="a.json: cannot be read: No such file"):
    evaluate.main(["--compare=a.json,none.json"])


ROW = dict(category="spatial", prompt=0, seed=0, right=True)


@pytest.mark.parametrize("found, flags, about", [
  (dict(tables=dict(prompts=[ROW, ROW | dict(right=False)])), (), "come twice in the table prompts"),
  (dict(tables=dict(prompts=[ROW | dict(right="false")])), (), "right: expected true or false, found 'false'"),
  (dict(tables=dict(prompts=[ROW | dict(right=float("nan"))])), (), "right: expected true or false, found nan"),
  (dict(tables=dict(prompts=[ROW | dict(category="all")])), (), "a category is called all"),
  (dict(tables=dict(prompts=[])), (), "the table prompts has no rows"),
  (dict(tables={}), (), "no table prompts in .*b.json;"),
  (dict(tables=dict(prompts=[ROW])), ("--table=promts",), "no table promts in .*a.json, .*b.json;"),
  (dict(scalars=dict(all_facts=10 ** 400)), (), "int too large"),
  ("[" * 100_000, (), "b.json: not valid JSON: nested too deeply"),
])
def test_results_that_tell_nothing_are_refused(tmp_path, found, flags, about):
  whole = dict(scalars=dict(all_facts=1.0), tables=dict(prompts=[ROW]))
  (tmp_path / "a.json").write_text(json.dumps(whole))
  (tmp_path / "b.json").write_text(found if isinstance(found, str) else json.dumps(whole | found))
  with pytest.raises(DataError, match=about):
    evaluate.main([f"--compare={tmp_path / 'a.json'},{tmp_path / 'b.json'}", *flags])


def test_unlike_results_are_refused_unless_that_is_meant(tmp_path, capsys):
  """What counts as unlike: tests/evaluators/test_likeness.py."""
  for name, steps in (("a", 20), ("b", 50)):
    result = dict(scalars=dict(all_facts=0.5), tables={}, evaluator=dict(name="scenes_judge", steps=steps, params=name))
    (tmp_path / f"{name}.json").write_text(json.dumps(result))
  files = f"--compare={tmp_path / 'a.json'},{tmp_path / 'b.json'}"
  with pytest.raises(DataError, match=r"b.json are not alike in steps \(20, 50\)\. Evaluate both alike.*--unlike=steps$"):
    evaluate.main([files])
  assert evaluate.main([files, "--unlike=steps", f"--out={tmp_path / 'c.json'}"]) == 0
  assert json.loads((tmp_path / "c.json").read_text())["unlike"] == dict(steps=[20, 50])
  evaluate.main([files, "--unlike=steps,guidence"])
  assert capsys.readouterr().err == "--unlike=guidence: the two are alike in that; they differ in steps\n"


@pytest.fixture(scope="module")
def public(tmp_path_factory):
  """A CLIP of transformers with a tokenizer, and a Stable Diffusion as a folder and as a file."""
  root = tmp_path_factory.mktemp("public")
  shutil.copytree(FIXTURES / "hf_clip", root / "clip")
  toy_pipelines.tokenizer(root / "clip")
  vocab = json.loads((root / "clip" / "vocab.json").read_text())
  size = json.loads((root / "clip" / "config.json").read_text())["text_config"]["vocab_size"]
  (root / "clip" / "vocab.json").write_text(json.dumps({word: i % size for word, i in vocab.items()}))
  toy_pipelines.folder(root / "sd")
  toy_pipelines.file(root / "file")
  return root


def test_public_towers_are_scored_as_runs_are(public, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  source = [f"--task.source.{key}={value}" for key, value in HELD_OUT.items()]
  assert evaluate.main([f"--model={public / 'clip'}", "--task=retrieval", "--task.limit=6", *source]) == 0
  found, model = json.loads((tmp_path / "evaluate_retrieval_clip.json").read_text()), mmdiff.load(public / "clip", quiet=True)
  data = model.services.dataset(HELD_OUT)
  records = [data.source[i] for i in range(6)]
  kind = next(iter(records[0]["captions"]))
  expected = retrieval.scores(model.embed_image([record["image"] for record in records]),
                              model.embed_text([record["captions"].get("original", record["captions"][kind]) for record in records]),
                              np.arange(6))
  assert found["scalars"] == pytest.approx(expected, abs=1e-6) and found["model"]["format"] == "hf-clip"
  assert "at step" not in capsys.readouterr().out and not (public / "clip" / "eval").exists()
  out = tmp_path / "loss.json"
  assert evaluate.main([f"--model={public / 'clip'}", "--task=loss", f"--out={out}", *source]) == 0
  assert np.isfinite(json.loads(out.read_text())["scalars"]["loss"])


@pytest.mark.parametrize("model, task, options, score", [
  ("sd", "samples", ["--task.count=2", "--task.columns=2", "--task.steps=1"], "pixel_mean"), ("sd", "reconstruction", [], "psnr"),
  ("file/model.safetensors", "reconstruction", [], "psnr"), ("sd/vae", "reconstruction", [], "psnr")])
def test_a_public_stable_diffusion_is_scored(public, tmp_path, model, task, options, score):
  out = tmp_path / "out.json"
  source = [f"--task.source.{key}={value}" for key, value in (HELD_OUT | dict(size=3)).items()]
  assert evaluate.main([f"--model={public / model}", f"--task={task}", f"--out={out}", *options, *source]) == 0
  assert np.isfinite(json.loads(out.read_text())["scalars"][score]) and (tmp_path / "out.png").exists()


def test_what_public_weights_do_not_serve(public):
  source = [f"--task.source.{key}={value}" for key, value in HELD_OUT.items()]

  def said(model, task, *flags, kind=ConfigError):
    with pytest.raises(kind) as error:
      evaluate.main([f"--model={public / model}", f"--task={task}", *source, *flags])
    return str(error.value)
  assert "kind text-to-image, whose tasks are alignment, samples, reconstruction, scenes_judge" in said("sd", "zeroshot")
  assert "whose tasks are loss, retrieval, collapse, zeroshot, clipscore, hard_negatives" in said("clip", "samples")
  assert "kind denoiser, whose tasks are none; a denoiser draws only with" in said("sd/unet", "samples")
  assert "--params: public weights have one set" in said("clip", "loss", "--params=eval")
  assert "--task.limit: expected at least 1, found 0" in said("clip", "loss", "--task.limit=0")
  with pytest.raises(ConfigError, match="--task.source: missing"):
    evaluate.main([f"--model={public / 'clip'}", "--task=loss"])
  with pytest.raises(DataError, match="there is no tokenizer beside the weights.*--tokenizer=FOLDER"):
    evaluate.main([f"--model={FIXTURES / 'hf_clip'}", "--task=loss", *source])
