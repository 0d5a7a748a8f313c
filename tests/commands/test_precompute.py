"""`mmdiff data precompute`: training on what it wrote is training on the pictures, and on nothing but the run's own encoders."""
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmdiff import parallel
from mmdiff.__main__ import main
from mmdiff.commands import precompute, train
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.objective import Context
from mmdiff.core.precision import objective_of
from mmdiff.data import captions, decode
from mmdiff.data.latents import Features
from mmdiff.data.quarantine import BadRecord
from mmdiff.objectives import OBJECTIVES
from tests import toy_runs

FREEZE = ("autoencoder/.*", "text/.*")
ROUNDING = 4e-6                      # the toy's sums of 192 products are of size 14, two of whose float32 steps are 2e-6
MEANT = dict(map={"autoencoder": "", "text": ""})       # the encoders stay as they are made


ROOT = Path(__file__).parent.parent.parent
TOY = dict(name="toy_latents")
REAL = dict(name="diffusion", schedule="flow", prediction="flow",
            encode=dict(name="kl", variant="tiny", image_size=16, widths=(8, 8), blocks=1, groups=4),
            denoiser=dict(name="dit", variant="tiny", image_size=4, channels=4, patch=2, width=32, heads=2),
            condition=dict(name="conv_text", vocab=320, text_len=24, width=16))


@pytest.fixture(autouse=True, scope="module")
def toy():
  patch = pytest.MonkeyPatch()
  patch.setitem(OBJECTIVES, "toy_latents", "tests.commands.toy_latents:objective")
  yield
  patch.undo()


def config(objective=TOY, **more) -> dict:
  data = dict(source=toy_runs.SCENES, captions=dict(long=0.7, original=0.3), tokenizer=dict(name="bpe", vocab=320, sample=20),
              image_size=16, text_len=24)
  made = toy_runs.config(REAL, data=data | more.pop("data", {}), **dict(freeze=FREEZE, mesh=dict(data=-1), init=MEANT) | more)
  return made | dict(objective=objective)


def write(out, run, **given):
  given = dict(out=str(out), parts=(), dtype="float32", batch_size=8, per_unit=16, threads=2) | given
  return precompute.run(run, given, {"argv": ["data", "precompute"]})


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory):
  """The features of `config()`."""
  folder = tmp_path_factory.mktemp("features") / "f"
  write(folder, config())
  return folder


def start(run):
  """(the objective, its parameters as training starts with them, the data) of a config."""
  objective = objective_of(OBJECTIVES, run)
  dataset = train.make_dataset(run, Path("no run"))
  blank = {name: value[None] for name, value in dataset.variants()[0].items()}
  return objective, jax.jit(objective.init)(jax.random.split(jax.random.key(run["seed"]))[1], blank).params, dataset


def test_what_is_written(written):
  features = Features(written)
  made = json.loads((written / "manifest.json").read_text())
  assert made["latents"] == 40 and made["texts"] >= 80 and sorted(features.identity["encoders"]) == ["autoencoder", "text"]
  assert features.identity["text"]["kinds"] == ["long", "original"] and features.identity["dtype"] == "float32"
  assert json.loads((written / "job.json").read_text())["started"]["argv"][:2] == ["data", "precompute"]


def same_on_features(objective, features):
  """Latents and loss of a batch, online and from features."""
  build_of, params, online = start(config(objective))
  ahead = start(config(objective, data=dict(features=str(features))))[2]
  batches = [ds.batch_at(0, batch_size=8) for ds in (online, ahead)]
  assert "image" in batches[0] and "image" not in batches[1] and np.array_equal(batches[0]["id"], batches[1]["id"])
  mean, std = jax.jit(build_of.predict["encode_image"])(params, batches[0]["image"])
  assert np.abs(mean - batches[1]["latent_mean"]).max() < ROUNDING and np.abs(std - batches[1]["latent_std"]).max() < ROUNDING
  context = Context(extra=(), ema={}, step=np.int32(0), key=jax.random.key(1))
  losses = [float(jax.jit(build_of.loss)(params, context, {name: part for name, part in batch.items() if name != "counts"})[0])
            for batch in batches]
  assert abs(losses[0] - losses[1]) <= 1e-6 * max(1, abs(losses[0]))


def test_the_loss_on_features_is_that_on_pictures(written):
  same_on_features(TOY, written)


@pytest.mark.long
def test_the_loss_of_latent_diffusion_on_features_is_that_on_pictures(tmp_path):
  write(tmp_path / "f", config(REAL))
  same_on_features(REAL, tmp_path / "f")


def test_any_batch_size_and_a_restart_write_the_same(written, tmp_path):
  rows = lambda folder: {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}
  write(tmp_path / "f", config(), batch_size=16)
  first = rows(tmp_path / "f")
  assert all(np.array_equal(part, first[name]) or np.abs(part - first[name]).max() < ROUNDING for name, part in rows(written).items())
  (tmp_path / "f" / "00001.json").unlink()
  kept = (tmp_path / "f" / "00000.json").stat().st_mtime_ns
  write(tmp_path / "f", config(), batch_size=16)
  assert (tmp_path / "f" / "00000.json").stat().st_mtime_ns == kept
  assert all(np.array_equal(part, first[name]) for name, part in rows(tmp_path / "f").items())
  with pytest.raises(ConfigError, match="dtype: that job has 'float32', now 'float16'"):
    write(tmp_path / "f", config(), dtype="float16")


def test_buckets_have_tables_of_their_own(tmp_path):
  run = config(data=dict(buckets=("16x16", "8x24")))
  write(tmp_path / "f", run, parts=("latents",))
  assert {path.name.split(".")[1] for path in (tmp_path / "f").glob("*.npy")} == {"16x16"}
  batch = start(config(data=dict(buckets=("16x16", "8x24"), features=str(tmp_path / "f"))))[2].batch_at(0, batch_size=4)
  assert batch["latent_mean"].shape == (4, 2, 2, 4) and batch["size"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4


def test_another_encoder_is_refused(written):
  features, (objective, params, data) = Features(written), start(config())
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])

  def check(params=params, run=None, objective=objective, features=features):
    precompute.check_encoders(features, params, run or config(), objective=objective, dataset=data, mesh=mesh)
  check()
  check(features=None, run=config(freeze=()))
  with pytest.raises(ConfigError, match="was computed by another 'autoencoder'"):
    check(start(config(seed=1))[1])
  with pytest.raises(ConfigError, match="this run trains it; add .text/"):
    check(run=config(freeze=FREEZE[:1]))
  with pytest.raises(ConfigError, match="this run has none"):
    check({"text": params["text"]})
  with pytest.raises(ConfigError, match="same parameters that do something else with them: latent_mean of one picture.*a latent scale"):
    check(objective=build(OBJECTIVES, TOY | dict(scale=0.9)))
  silent = Features(written)
  silent.probe = {}
  check(objective=build(OBJECTIVES, TOY | dict(scale=0.9)), features=silent)          # of a folder that says nothing: with a warning


@pytest.mark.parametrize("dtype, breaks", [("float32", float("nan")), ("float16", 1e6)])
def test_what_is_not_finite_is_not_stored(tmp_path, dtype, breaks):
  """Records that an encoder fails on, or whose features float16 can't hold, are named and left out, and training counts them as bad."""
  run = config(TOY | dict(breaks=breaks))
  pictures = start(run)[2].source
  wrong = [pictures[i]["key"] for i in range(len(pictures)) if decode.pixels(pictures[i]["image"])[0, 0].min() > 200]
  assert 0 < len(wrong) < len(pictures) / 2
  with pytest.raises(DataError, match=f"what the encoders made of {len(wrong)} records is not finite, first {wrong[0]}"):
    write(tmp_path / "f", run, dtype=dtype, parts=("latents",))
  made, features = json.loads((tmp_path / "f" / "manifest.json").read_text()), Features(tmp_path / "f")
  assert made["bad"] == {"non_finite": len(wrong)} and made["latents"] == len(pictures) - len(wrong)
  for i in range(len(pictures)):
    key = pictures[i]["key"]
    if key in wrong:
      with pytest.raises(BadRecord, match="no latents of this record"):
        features.of(key, "long", "")
    else:
      assert np.isfinite(features.of(key, "long", "")["latent_mean"]).all()


@pytest.mark.long
def test_training_on_features_learns_what_training_on_pictures_learns(tmp_path):
  """The command itself, on one device: precompute, then train with and without, then with another seed's encoders."""
  def run(*argv, **more):
    (tmp_path / "config.json").write_text(json.dumps(config(REAL, **more)))
    return subprocess.run([sys.executable, "-m", "mmdiff", *argv, f"--config={tmp_path / 'config.json'}"], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  stored, losses = str(tmp_path / "f"), []
  assert run("data", "precompute", f"--out={stored}", "--batch_size=8").returncode == 0
  for name, features in (("online", ""), ("ahead", stored)):
    assert run("train", f"--workdir={tmp_path / name}", data=dict(features=features)).returncode == 0
    losses.append([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
  assert np.allclose(*losses, rtol=1e-5)
  other = run("train", f"--workdir={tmp_path / 'other'}", data=dict(features=stored), seed=1)
  assert other.returncode == 64 and "was computed by another 'autoencoder'" in other.stderr


def test_what_can_not_be_computed_ahead():
  made = lambda **more: precompute.chosen((), build(OBJECTIVES, config()["objective"]), config(**more))
  assert made() == ["latents", "texts"] and made(freeze=FREEZE[1:]) == ["texts"]
  with pytest.raises(ConfigError, match="freeze it, e.g. freeze=..autoencoder"):
    made(freeze=())
  objective = build(OBJECTIVES, config()["objective"])
  with pytest.raises(ConfigError, match="unknown part 'latent'"):
    precompute.chosen(("latent",), objective, config())
  with pytest.raises(ConfigError, match="texts can't be computed ahead"):
    precompute.chosen(("texts",), objective, config(freeze=FREEZE[:1]))


def test_every_caption_that_training_may_draw_is_encoded():
  record = {"captions": {"original": ["a", "b", "a"], "long": "c", "other": "d", "short": "\x00"}}

  def texts(record, shares, on_missing):
    mix = captions.mix(shares, on_missing=on_missing)
    return precompute.texts_of(record, precompute.wanted_kinds(mix), mix, key="k", allow_empty=False)
  originals = [("original", "a"), ("original", "b")]
  assert texts(record, {"long": 1.0}, "any") == [("long", "c")]
  assert texts(record, {"long": 0.5, "dense": 0.5}, "any") == [*originals, ("long", "c"), ("other", "d")]
  assert texts(record, {"long": 1.0}, "original") == [("long", "c"), *originals]
  assert texts({}, {"long": 1.0}, "any") == []


def test_flags(capsys):
  assert main(["data", "precompute", "--out=x"]) == 64 and "--config: required" in capsys.readouterr().err
  assert main(["data", "precompute", "--config=configs/t2i_pixels.py:tiny", "--out=x", "--batch_size=0", "--source.size=3"]) == 64
  said = capsys.readouterr().err
  assert "--batch_size" in said and "--config.data.source.size" in said


def test_a_model_that_is_told_sizes_gets_each_records_own(written, tmp_path):
  """In training on pictures and on what was computed ahead, which is refused without them."""
  told = TOY | dict(denoiser=dict(name="unet", variant="sdxl", image_size=2))
  online = train.make_dataset(config(told), tmp_path).batch_at(0, batch_size=4)
  assert online["size"].shape == (4, 6) and (online["size"][:, 4:] == 16).all()
  write(tmp_path / "f", config(told), parts=("latents",))
  ahead = train.make_dataset(config(told, data=dict(features=str(tmp_path / "f"))), tmp_path).batch_at(0, batch_size=4)
  np.testing.assert_array_equal(ahead["size"], online["size"])
  with pytest.raises(ConfigError, match="does not say how its pictures were scaled and cropped"):
    train.make_dataset(config(told, data=dict(features=str(written))), tmp_path)
  assert "size" not in train.make_dataset(config(), tmp_path).batch_at(0, batch_size=4)
