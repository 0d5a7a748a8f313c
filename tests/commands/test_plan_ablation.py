"""A plan counts runs, evaluations and FLOPs, and knows what is done."""
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmdiff.commands import plan_ablation
from mmdiff.core.build import build
from mmdiff.core.files import write_json
from mmdiff.objectives import OBJECTIVES
from tests import toy_runs


def test_flops_are_those_of_the_objective_times_the_steps():
  config = toy_runs.t2i()
  once = plan_ablation.flops(config)
  per_step = build(OBJECTIVES, config["objective"]).predict["flops"](config["batch_size"], config["data"]["text_len"])
  assert once == pytest.approx(4 * per_step) and plan_ablation.flops(config | dict(steps=40)) == pytest.approx(10 * once)
  assert plan_ablation.flops(config | dict(batch_size=16)) == pytest.approx(2 * once)


def test_what_is_finished_begun_and_left_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(plan_ablation, "flops", lambda config: 9.89e14 * 3_600 * plan_ablation.SHARE)      # an hour of an H100
  runs = []
  for seed in (0, 1, 2):
    workdir = Path(tmp_path / "a" / str(seed))
    runs.append(SimpleNamespace(arm="a", seed=seed, workdir=workdir, finished=seed == 0))
    if seed < 2:
      write_json(workdir / "config.json", {})
  (runs[0].workdir / "metrics.jsonl").write_text('{"step": 4, "seconds": 90.0, "images_per_second": 8.0}\n')
  write_json(tmp_path / "prepare" / "one.json", {})
  base = toy_runs.t2i() | dict(evals=dict(alignment=dict(name="alignment", every_steps=3, limit=2_000, captions=("long",), steps=7),
                                          judge=dict(name="scenes_judge", every_steps=9, prompts=64)))
  config = dict(base=base, arms={"a": ("data.captions={'long': 1.0}",)}, seeds=(0, 1, 2), reference="a",
                prepare=dict(one=("train", "--x=a b"), two=("caption",)))
  text = "\n".join(plan_ablation.lines(config, runs, tmp_path))
  for part in (
      "1 arms × 3 seeds = 3 runs of 4 steps × 8 = 32 images each", "a  data.captions={'long': 1.0}  (finished: seeds 0; begun: seeds 1)",
      "one (done): mmdiff train '--x=a b'", "two: mmdiff caption", "alignment: 2 times a run, 2,000 pictures for each of long, 7 sampling",
      "judge: 1 times a run, prompts 64", "2 hours of one NVIDIA H100", "measured here: 1:30 a run; 3:00 for the 2 left"):
    assert part in text, (part, text)
