"""The ablation command: arms that differ in what they change and in nothing else, runs that are trained once, a report of what is there."""
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mmdiff.commands import ablate, flags, train
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError, Interrupted
from mmdiff.core.files import write_json
from mmdiff.objectives import OBJECTIVES
from mmdiff.train.setup import set_up
from tests import toy_runs

MIXES = {"original": {"original": 1.0}, "long65": {"long": 0.65, "original": 0.35}, "long95": {"long": 0.95, "original": 0.05}}


def ablation(folder: Path, **changes) -> list[str]:
  """Writes a tiny ablation with a scorer to prepare; the flags that name it."""
  base = toy_runs.t2i() | dict(mesh=dict(data=-1))
  base["objective"]["denoiser"] = dict(name="dit", variant="tiny", image_size=16, width=16, depth=1, heads=2)
  base["evals"] = dict(alignment=dict(name="alignment", source=dict(name="scenes", tier="T16", split="val_iid"), every_steps=2, limit=3,
                                      scorer="{workdir}/prepare/scorer", params="eval", steps=2, shown=2, columns=2))
  (folder / "clip.json").write_text(json.dumps(toy_runs.clip() | dict(steps=1, mesh=dict(data=-1))))
  config = dict(base=base, arms={arm: [f"data.captions={mix}"] for arm, mix in MIXES.items() if arm != "long65"}, seeds=[0, 1],
                reference="long95",
                prepare=dict(scorer=["train", f"--config={folder / 'clip.json'}", "--workdir={workdir}/prepare/scorer"]))
  file = folder / "ablation.json"
  file.write_text(json.dumps(config | changes))
  return [f"--config={file}", f"--workdir={folder / 'out'}"]


def numbers(workdir: Path) -> dict:
  """The report without what the clock says."""
  report = json.loads((workdir / "report.json").read_text())
  for arm in report["arms"].values():
    for seed in arm["seeds"].values():
      del seed["seconds"], seed["images_per_second"]
  return {key: report[key] for key in ("arms", "comparisons")}


def pretend(config, workdir, *, argv):
  """`train.run` without training: what a run leaves behind, from numbers that depend on the arm and the seed."""
  for step in (2, 4):
    share = config["data"]["captions"].get("long", 0.0)
    scores = np.random.default_rng([config["seed"], step]).random(3) + share
    rows = [dict(kind="long", prompt=i, clip_similarity=10 * float(x), right=bool(x > 1), parseable=True) for i, x in enumerate(scores)]
    rows += [dict(kind="original", prompt=i, clip_similarity=float(x)) for i, x in enumerate(scores)]
    scalars = dict(all_facts=float((scores > 1).mean()), unparseable=0.0, clipscore_long=10 * float(scores.mean()),
                   clipscore_original=float(scores.mean()))
    protocol = dict(scorer="clip", shown=dict(long=["a red circle"], original=["clipart"]))
    write_json(workdir / "eval" / f"alignment_{step:08}.json", dict(
      name="alignment", step=step, scalars=scalars, tables=dict(pictures=rows, protocol=[protocol]), config=config))
    (workdir / "samples").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((16, 34, 3), np.uint8)).save(workdir / "samples" / f"alignment_{step:08}.png")
  write_json(workdir / "config.json", config)
  write_json(workdir / "checkpoints" / "4" / "manifest.json", {})
  (workdir / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0, "seconds": 30.0, "images_per_second": 8.0}\n')


def test_every_run_is_trained_once_and_what_is_there_is_reported(tmp_path, monkeypatch, capsys):
  given, out, trained = ablation(tmp_path), tmp_path / "out", []

  def run(config, workdir, *, argv):
    if (workdir.name, len(trained)) == ("1", 4):
      raise Interrupted("stopped")
    trained.append(f"{workdir.parent.name}/{workdir.name}")
    pretend(config, workdir, argv=argv)
  monkeypatch.setattr(train, "run", run)
  with pytest.raises(Interrupted):
    ablate.main(given)
  assert trained == ["prepare/scorer", "original/0", "long95/0", "original/1"]
  assert json.loads((out / "report.json").read_text())["finished"] == 3
  trained.append("")
  assert ablate.main([*given, "--arm=long95", "--seed=1"]) == ablate.main(given) == ablate.main([*given, "--report"]) == 0
  assert trained[5:] == ["long95/1"]
  report = json.loads((out / "report.json").read_text())
  assert set(report["arms"]) == {"original", "long95"} and report["finished"] == report["runs"] == 4
  for arm in report["arms"].values():
    assert set(arm["seeds"]) == {"0", "1"}
    for seed in arm["seeds"].values():
      assert seed["steps"] == [2, 4]
      assert all(len(seed[key]) == 2 for key in ("all_facts", "clipscore_long", "clipscore_original", "unparseable"))
  assert report["prepare"]["scorer"]["argv"][0] == "train" and report["argv"][0] == "ablate" and report["versions"]["jax"]
  page = (out / "report.html").read_text()
  assert "Paired differences" in page and page.count("<svg") >= 4 and page.count("<script") == 1
  assert page.count("data:image/png") == 4
  assert "a red circle" in page and "long95 − " not in page and "original − long95" in page
  assert "original: all_facts" in capsys.readouterr().out
  assert ablate.main([*given, "--plan"]) == 0
  shown = capsys.readouterr().out
  assert "finished: seeds 0, 1" in shown and "measured here: 0:30 a run; 0:00 for the 0 left" in shown and "scorer (done)" in shown


@pytest.mark.long
def test_a_killed_ablation_ends_like_one_that_was_not(tmp_path, monkeypatch, capsys):
  for name in ("straight", "killed"):
    (tmp_path / name).mkdir()
  assert ablate.main(ablation(tmp_path / "straight")) == 0
  straight = tmp_path / "straight" / "out"
  assert capsys.readouterr().out.count("ablate: prepare scorer") == 1
  assert json.loads((straight / "report.json").read_text())["protocol"]["scorer"] == str(straight / "prepare" / "scorer")
  for run in ("original/0", "long95/1"):
    assert (straight / run / "report.html").exists() and json.loads((straight / run / "config.json").read_text())["seed"] == int(run[-1])

  from mmdiff.evaluators import alignment
  draw, calls = alignment.draw, []

  def dies(*args, **options):
    calls.append(1)
    if len(calls) in (3, 12):
      raise KeyboardInterrupt
    return draw(*args, **options)
  monkeypatch.setattr(alignment, "draw", dies)
  given = ablation(tmp_path / "killed")
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      ablate.main(given)
  assert ablate.main(given) == 0
  assert numbers(tmp_path / "killed" / "out") == numbers(straight)


def test_arms_of_a_seed_share_initialisation_order_and_noise(tmp_path):
  """Only the captions differ, and where a share is larger, the records that get a long one are more, not others."""
  given = ablation(tmp_path, arms={arm: [f"data.captions={mix}"] for arm, mix in MIXES.items()})
  parsed = flags.parse(given, ablate.FLAGS)
  runs = ablate.runs_of(ablate.filled(parsed["config"], tmp_path), tmp_path)
  assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for seed in (0, 1) for arm in MIXES]
  seen = {}
  for run in runs:
    data = train.make_dataset(run.config, run.workdir)
    batches = [data.batch_at(step, batch_size=8) for step in (0, 1, 7)]
    example = {key: value[0] for key, value in batches[0].items()}
    if run.seed == 0:
      state = set_up(run.config, build(OBJECTIVES, run.config["objective"]), example, devices=jax.devices()[:1], compile_step=False).state
    kinds = {(step, row): data.example_at(step * 8 + row)[0].kind for step in range(12) for row in range(8)}
    seen[run.arm, run.seed] = (jax.tree.leaves(state.params), np.asarray(jax.random.key_data(state.key)),
                               np.concatenate([batch["id"] for batch in batches]), np.concatenate([batch["image"] for batch in batches]),
                               {place for place, kind in kinds.items() if kind == "long"})
  for seed in (0, 1):
    params, key, ids, images, _ = seen["original", seed]
    for arm in ("long65", "long95"):
      other = seen[arm, seed]
      assert all(np.array_equal(a, b) for a, b in zip(params, other[0]))
      assert np.array_equal(key, other[1]) and np.array_equal(ids, other[2]) and np.array_equal(images, other[3])
    assert not seen["original", seed][4] and seen["long65", seed][4] < seen["long95", seed][4]
  assert not np.array_equal(seen["long95", 0][2], seen["long95", 1][2])


def test_a_plan_trains_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(train, "run", None)
  assert ablate.main([*ablation(tmp_path), "--plan"]) == 0
  out = capsys.readouterr().out
  assert "2 arms × 2 seeds = 4 runs of 4 steps × 8 = 32 images each" in out and "data.captions={'original': 1.0}" in out
  assert "scorer: mmdiff train" in out and "alignment: 2 times a run, 3 pictures for each of long, original" in out and "FLOPs" in out
  assert not (tmp_path / "out").exists()
  assert ablate.main([*ablation(tmp_path), "--report"]) == 0 and "no run in" in capsys.readouterr().out


def test_every_mistake_is_named_before_anything_runs(tmp_path):
  wrong = dict(reference="none", read="judge", seeds=[0, 0], arms={
    "a/b": ["data.captions={'long': 1.0}"], "typo": ["data.captoins={'long': 1.0}"], "sum": ["data.captions={'long': 0.5}"],
    "longer": ["steps=8"]})
  with pytest.raises(ConfigError) as error:
    ablate.main(ablation(tmp_path, **wrong))
  said = str(error.value)
  for part in ("config.arms.a/b: a name of letters", "config.arms.typo: data.captoins: unknown key; did you mean data.captions?",
               "config.arms.sum: data.captions: shares must sum to 1", "config.arms.longer: steps: arms differ in neither",
               "config.reference: expected an arm", "config.read: expected an entry of base.evals (alignment), found 'judge'",
               "config.seeds: expected different seeds"):
    assert part in said, (part, said)
  with pytest.raises(ConfigError, match="--arm=lon95: no such arm; did you mean long95"):
    ablate.main([*ablation(tmp_path), "--arm=lon95"])
  with pytest.raises(ConfigError, match="--seed=7: the config's seeds are 0, 1"):
    ablate.main([*ablation(tmp_path), "--seed=7"])
  with pytest.raises(ConfigError, match=r"config.prepare.a: expected one of train, caption.*\n.*prepare.b: --wordkir: unknown flag"):
    ablate.main(ablation(tmp_path, prepare=dict(a=["trian"], b=["train", f"--config={tmp_path / 'clip.json'}", "--wordkir=x"])))
  with pytest.raises(ConfigError, match=r"--config.base.step: unknown key; did you mean --config.base.steps"):
    ablate.main([*ablation(tmp_path), "--config.base.step=5"])


def test_what_was_prepared_otherwise_is_refused(tmp_path):
  given = ablation(tmp_path)
  write_json(tmp_path / "out" / "prepare" / "scorer.json", dict(argv=["train", "--config=other"]))
  with pytest.raises(ConfigError, match=r"scorer.json was made by another command line(.|\n)*then: mmdiff train --config=other"):
    ablate.main(given)


def test_captions_of_two_hands_are_not_mixed(tmp_path):
  """The side-car lacks records, and the source has captions of that kind of its own."""
  config = toy_runs.t2i()
  keys = [f"T16-train-{i:07d}" for i in range(40)]
  for kind, count in (("long", 40), ("rich", 30), ("long", 39)):
    file = tmp_path / f"{kind}{count}.jsonl"
    file.write_text("".join(json.dumps({"key": key, kind: "words"}) + "\n" for key in keys[:count]))
    config["data"]["sidecar"] = str(file)
    if count != 39:
      ablate.check_sidecar(config)
  with pytest.raises(DataError, match=r"captions for 39 of 40 records; the others have captions of kind long by another hand"):
    ablate.check_sidecar(config)
