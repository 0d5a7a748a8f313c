"""The ablations' configs: every arm is a valid experiment, and arms differ in their captions only."""
from pathlib import Path

import pytest

from mmdiff.commands import ablate, flags, train
from mmdiff.commands import demo as demo_command
from mmdiff.report.numbers import flat


@pytest.fixture
def demo(tmp_path):
  given = flags.parse(["--config=configs/ablations/caption_mix.py:demo", f"--workdir={tmp_path}"], ablate.FLAGS)
  return ablate.filled(given["config"], tmp_path), tmp_path


def test_arms_differ_in_their_captions_only(demo):
  config, workdir = demo
  runs = ablate.runs_of(config, workdir)
  assert [run.arm for run in runs if run.seed == 0] == ["original", "long65", "long80", "long95"]
  assert {run.seed for run in runs} == {0, 1, 2}
  plain = [flat(run.config) for run in runs]
  keys = set.union(*map(set, plain))
  differing = {key for key in keys if len({repr(one.get(key)) for one in plain}) > 1}
  assert differing == {"seed", "data.captions.long", "data.captions.original"}
  shares = {run.arm: dict(run.config["data"]["captions"]) for run in runs}
  assert shares["long65"] == dict(long=0.65, original=0.35) and shares["original"] == dict(original=1.0)


def test_what_is_prepared_is_what_the_arms_read(demo):
  config, workdir = demo
  lines = ablate.prepare_lines(config)
  assert list(lines) == ["scorer", "captioner", "captioner_long", "captions"]
  outs = {word.partition("=")[2] for line in lines.values() for word in line if word.startswith(("--workdir=", "--out="))}
  assert outs == {str(workdir / "prepare" / name) for name in lines}
  assert {config["base"]["data"]["sidecar"], config["base"]["evals"]["alignment"]["scorer"]} < outs
  assert f"--config.init.path={workdir / 'prepare' / 'captioner'}" in lines["captioner_long"]
  assert f"--model={workdir / 'prepare' / 'captioner_long'}" in lines["captions"] and "--kind=long" in lines["captions"]
  # The captioner sees gold long captions of 2,000 records only, the arms none.
  fine_tuned = flags.parse(lines["captioner_long"][1:], train.FLAGS)["config"]
  assert fine_tuned["data"]["source"]["size"] == 2_000 and fine_tuned["data"]["captions"] == dict(long=1.0)
  base = flags.parse(lines["captioner"][1:], train.FLAGS)["config"]
  assert base["data"]["captions"] == dict(original=1.0)
  tiers = {part["data"]["source"]["tier"] for part in (fine_tuned, base, config["base"])}
  assert tiers == {"T16"}


def test_halves_and_evaluations_fall_on_steps(demo):
  base = demo[0]["base"]
  entry = base["evals"]["alignment"]
  assert base["steps"] % (2 * entry["every_steps"]) == 0 and base["steps"] // entry["every_steps"] == 8
  assert Path("configs/ablations/caption_mix.py").read_text().count("mmdiff ablate --config=") >= 1


def test_the_tiny_form_is_the_same_path_in_a_few_steps(tmp_path):
  given = flags.parse(["--config=configs/ablations/caption_mix.py:demo,seeds=1,tiny", f"--workdir={tmp_path}"], ablate.FLAGS)
  config = ablate.filled(given["config"], tmp_path)
  runs, lines = ablate.runs_of(config, tmp_path), ablate.prepare_lines(config)
  assert {run.arm for run in runs} >= set(demo_command.ARMS) and max(run.config["steps"] for run in runs) <= 8
  assert list(lines) == ["scorer", "captioner", "captioner_long", "captions"]
  for name in ("scorer", "captioner", "captioner_long"):
    assert flags.parse(lines[name][1:], train.FLAGS)["config"]["steps"] <= 8
  # Every record that the arms train on is captioned.
  assert f"--data=name=scenes,tier=T16,split=train,size={config['base']['data']['source']['size']}" in lines["captions"]


def test_the_paper_has_seven_arms_of_its_schedule(tmp_path):
  given = flags.parse(["--config=configs/ablations/caption_mix.py", f"--workdir={tmp_path}"], ablate.FLAGS)
  runs = ablate.runs_of(given["config"], tmp_path)
  assert [run.arm for run in runs if run.seed == 0] == ["original", "short95", "long65", "long80", "long90", "long95", "long100"]
  assert {(run.config["steps"], run.config["batch_size"], run.config["data"]["image_size"]) for run in runs} == {(500_000, 2_048, 256)}
  objective = runs[0].config["objective"]
  assert objective["denoiser"]["variant"] == "dalle3" and objective["condition"]["variant"] == "xxl"
  assert runs[0].config["freeze"] == ("autoencoder/.*", "text/.*")
  assert dict(runs[1].config["data"]["captions"]) == dict(short=0.95, original=0.05)
  assert given["config"]["base"]["evals"]["alignment"]["limit"] == 50_000
