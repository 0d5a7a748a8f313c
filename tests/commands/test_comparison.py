"""The numbers of an ablation's report, from results written by hand."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmdiff.commands import comparison
from mmdiff.core.errors import DataError

STEPS, PROMPTS, TOTAL = (2, 4, 6, 8), 40, 8
BASE = dict(steps=TOTAL, batch_size=8, evals=dict(alignment={}),
            data=dict(sidecar="", source=dict(name="scenes", tier="T16", split="train")))
CONFIG = dict(base=BASE, arms={"low": ("data.captions={'long': 0.65}",), "high": ("data.captions={'long': 0.95}",)}, seeds=(0, 1, 2),
              reference="high", read="alignment", prepare={})


def write(folder: Path, arm: str, seed: int, values: np.ndarray, *, steps=STEPS, kinds=("long", "original"), name="alignment"):
  """Results of a run whose pictures of prompt i score `values[step, i]`, and are right above a half."""
  run = SimpleNamespace(arm=arm, seed=seed, workdir=folder / arm / str(seed), config=BASE, finished=True)
  (run.workdir / "eval").mkdir(parents=True)
  for step, row in zip(steps, values):
    pictures = [dict(kind=kind, prompt=i, clip_similarity=float(value)) | (dict(right=bool(value > 0.5)) if kind == "long" else {})
                for kind in kinds for i, value in enumerate(row)]
    scalars = dict(all_facts=float((row > 0.5).mean()), unparseable=0.0) | {f"clipscore_{kind}": float(row.mean()) for kind in kinds}
    (run.workdir / "eval" / f"{name}_{step:08}.json").write_text(json.dumps(
      dict(name=name, step=step, scalars=scalars, tables=dict(pictures=pictures, protocol=[dict(scorer="clip")]))))
  return run


@pytest.fixture
def runs(tmp_path):
  """Both arms of a seed share what is easy; `high` is a fifth ahead, but for the first evaluation."""
  made = []
  for seed in (0, 1, 2):
    easy = np.random.default_rng(seed).random((1, PROMPTS)) * 0.3 + np.linspace(0.1, 0.6, 4)[:, None]
    ahead = np.array([0.0, 0.2, 0.2, 0.1])[:, None] + 0.02 * np.random.default_rng(seed + 9).normal(size=(4, PROMPTS))
    made += [write(tmp_path, "low", seed, easy), write(tmp_path, "high", seed, easy + ahead)]
  return made


def test_differences_are_paired_half_way_at_the_end_and_over_training(runs, tmp_path):
  found = comparison.compare(CONFIG, runs, tmp_path)
  assert list(found["arms"]) == ["low", "high"] and found["finished"] == found["runs"] == 6
  curve = found["arms"]["low"]["seeds"]["1"]
  assert curve["steps"] == list(STEPS) and len(curve["all_facts"]) == 4 and curve["finished"] is True
  assert curve["area"]["clipscore_long"] == pytest.approx(np.trapezoid(curve["clipscore_long"], STEPS) / 6)
  rows = {(row["metric"], row["at"]): row for row in found["comparisons"]}
  assert len(rows) == len(found["comparisons"]) == 9 and all(row["arm"] == "low" for row in rows.values())
  half, end, area = (rows["clipscore_long", at] for at in (comparison.HALF, comparison.END, comparison.AREA))
  assert (half["step"], end["step"], area["step"]) == (4, 8, None)
  assert half["difference"] == pytest.approx(-0.2, abs=0.01) and half["low"] <= half["difference"] <= half["high"] < -0.18
  assert end["difference"] == pytest.approx(-0.1, abs=0.01) and area["difference"] == pytest.approx(-0.15, abs=0.01)
  for row in rows.values():
    assert row["difference"] == pytest.approx(row["arm_mean"] - row["reference_mean"])
    assert row["difference"] == pytest.approx(np.mean(list(row["by_seed"].values())))
    assert set(row["by_seed"]) == {"0", "1", "2"} and row["prompts"] == PROMPTS
  exact = [found["arms"][arm]["seeds"]["2"]["all_facts"][1] for arm in ("low", "high")]
  assert rows["all_facts", "half-way"]["by_seed"]["2"] == pytest.approx(exact[0] - exact[1])
  assert any("low - high, all facts half-way" in line for line in comparison.lines(found))
  json.dumps(found)


def test_what_is_not_there_yet_is_left_out(runs, tmp_path):
  assert comparison.compare(CONFIG, [], tmp_path) is None
  only = comparison.compare(CONFIG, [run for run in runs if run.arm == "low"], tmp_path)
  assert list(only["arms"]) == ["low"] and only["comparisons"] == []
  (runs[0].workdir / "eval" / "alignment_00000008.json").unlink()
  found = comparison.compare(CONFIG, [run for run in runs if run.seed == 0], tmp_path)
  assert found["arms"]["low"]["seeds"]["0"]["steps"] == [2, 4, 6]
  assert {(row["at"], row["step"]) for row in found["comparisons"]} == {("half-way", 4)}          # as far as both have come


def test_other_evaluators_and_later_steps_do_not_count(tmp_path):
  values = np.full((4, 5), 0.7)
  run = write(tmp_path, "low", 0, values)
  for file, name, step in (("alignment_more_00000002", "alignment_more", 2), ("alignment_00000010", "alignment", 10)):
    (run.workdir / "eval" / f"{file}.json").write_text(json.dumps(dict(name=name, step=step, scalars={}, tables={})))
  assert comparison.read_curve(run, "alignment").steps == [2, 4, 6, 8]
  assert comparison.read_curve(run, "other") is None


def test_the_last_scores_of_other_evaluators_are_told(tmp_path):
  config = CONFIG | dict(base=BASE | dict(evals=dict(alignment={}, held_out={}, absent={})))
  run = write(tmp_path, "low", 0, np.full((4, 5), 0.7))
  for step, value in ((4, 0.1), (8, 0.4)):
    (run.workdir / "eval" / f"held_out_{step:08}.json").write_text(json.dumps(dict(name="held_out", step=step, scalars=dict(right=value))))
  found = comparison.compare(config, [run], tmp_path)
  assert found["arms"]["low"]["seeds"]["0"]["last"] == {"held_out/right": 0.4}


def test_runs_that_drew_other_prompts_are_not_compared(runs, tmp_path):
  other = write(tmp_path / "b", "high", 0, np.full((4, PROMPTS + 1), 0.5))
  with pytest.raises(DataError, match="low, seed 0, and high, seed 0, drew different prompts"):
    comparison.compare(CONFIG, [runs[0], other], tmp_path)
  write_more = write(tmp_path / "c", "low", 0, np.full((1, 3), 0.5), steps=(2,))
  mixed = write(tmp_path / "d", "low", 0, np.full((1, 4), 0.5), steps=(4,))
  (mixed.workdir / "eval" / "alignment_00000004.json").rename(write_more.workdir / "eval" / "alignment_00000004.json")
  with pytest.raises(DataError, match="at step 4 are of other prompts than those before"):
    comparison.read_curve(write_more, "alignment")


def test_captions_are_held_against_the_truth(tmp_path):
  """Half of the records have their true caption, half that of the next scene."""
  from mmdiff.data.scenes.source import scenes
  source = scenes(tier="T16", split="train", size=40)
  texts = [source[i]["captions"]["long"] for i in range(40)]
  file = tmp_path / "captions.jsonl"
  file.write_text("".join(json.dumps({"key": source[i]["key"], "long": texts[i if i % 2 else i + 1]}) + "\n" for i in range(40)))
  config = dict(base=BASE | dict(data=dict(sidecar=str(file), source=dict(name="scenes", tier="T16", split="train", size=40))))
  found = comparison.captions_used(config)["long"]
  assert found["captions"] == 40 and found["hallucination"] == found["perfect"] == 0.5 and 0.5 < found["fact_precision"] < 0.95
  assert comparison.captions_used(dict(base=BASE)) == {}


def test_what_was_prepared_is_told_with_its_scores(tmp_path):
  config = CONFIG | dict(prepare=dict(scorer=("train", "--x"), later=("caption", "--y")))
  (tmp_path / "prepare" / "scorer" / "eval").mkdir(parents=True)
  (tmp_path / "prepare" / "scorer" / "config.json").write_text(json.dumps(dict(evals=dict(retrieval={}))))
  (tmp_path / "prepare" / "scorer.json").write_text(json.dumps(dict(argv=["train", "--x"], seconds=3.5)))
  for step, value in ((1, 0.2), (2, 0.9)):
    (tmp_path / "prepare" / "scorer" / "eval" / f"retrieval_{step:08}.json").write_text(
      json.dumps(dict(name="retrieval", step=step, scalars=dict(recall_at_1=value))))
  found = comparison.prepared(config, tmp_path)
  assert found["scorer"] == dict(argv=["train", "--x"], seconds=3.5, scalars={"retrieval/recall_at_1": 0.9})
  assert found["later"] == dict(argv=["caption", "--y"], seconds=None, scalars={})


@pytest.mark.parametrize("where", ["run", "step"])
def test_runs_that_were_asked_otherwise_are_refused_by_name(runs, tmp_path, where):
  """Another number of sampling steps in all results of one run, or in one of them: after evals was changed half-way."""
  files = sorted((runs[0].workdir / "eval").glob("*.json"))
  for run in runs:
    for file in sorted((run.workdir / "eval").glob("*.json")):
      changed = run is runs[0] and (where == "run" or file == files[-1])
      asked = dict(evaluator=dict(name="alignment", steps=50 if changed else 20), config=dict(data=dict(image_size=16)))
      file.write_text(json.dumps(json.loads(file.read_text()) | asked))
  with pytest.raises(DataError, match=r"not alike in steps \((20, 50|50, 20)\).*--unlike=steps"):
    comparison.compare(CONFIG, runs, tmp_path)
  assert comparison.compare(CONFIG, runs, tmp_path, unlike=("steps",))["finished"] == 6
