"""Runs of our own in public formats: what is read back computes the same."""
import numpy as np
import pytest

import mmdiff
from mmdiff.__main__ import main
from mmdiff.convert import exports, public
from mmdiff.core.errors import ConfigError
from tests import toy_runs

VAE = dict(name="kl", variant="sd", widths=(32, 32), blocks=1, image_size=16)


def stable(**objective):
  """A small Stable Diffusion of our own."""
  return toy_runs.config(dict(
    name="diffusion", schedule="scaled_linear", prediction="eps", encode=VAE,
    denoiser=dict(name="unet", variant="sd1", image_size=8, width=32, mults=(1, 2), depths=(1, 0), blocks=1, heads=2),
    condition=dict(name="clip_states", variant="tiny", vocab=320, text_len=24, dtype="float32")) | objective)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("sd"), stable())


def drawn(model, **options):
  return model.generate(["a red circle", "a blue square"], steps=4, guidance=3.0, output="float", **options)


@pytest.mark.long
def test_a_pipeline_draws_what_the_run_draws(run, tmp_path):
  assert main(["convert", f"--src={run}", "--to=diffusers", f"--out={tmp_path / 'out'}", "--verify"]) == 0
  ours, theirs = mmdiff.load(run), mmdiff.load(tmp_path / "out")
  np.testing.assert_allclose(drawn(theirs), drawn(ours), atol=1e-4)
  raw = mmdiff.load(run, params="raw")
  mmdiff.save(raw, tmp_path / "raw", format="diffusers")
  np.testing.assert_allclose(drawn(mmdiff.load(tmp_path / "raw")), drawn(raw), atol=1e-4)
  assert np.abs(drawn(raw) - drawn(ours)).max() > 1e-3


@pytest.mark.long
def test_zero_terminal_snr_and_v(tmp_path):
  run = toy_runs.make(tmp_path / "run", stable(prediction="v", zero_terminal_snr=True))
  mmdiff.save(mmdiff.load(run), tmp_path / "out", format="diffusers")
  np.testing.assert_allclose(drawn(mmdiff.load(tmp_path / "out")), drawn(mmdiff.load(run)), atol=1e-4)


@pytest.mark.long
def test_a_single_file_of_a_run(run, tmp_path):
  assert main(["convert", f"--src={run}", "--to=ldm", f"--out={tmp_path / 'out'}", "--dtype=float16"]) == 0
  found = public.load(tmp_path / "out" / "model.safetensors", part="unet", heads=2, quiet=True)
  wanted = exports.pipeline_of(stable(), mmdiff.load(run).params).parts["denoiser"]
  assert found.module.clone(image_size=8, unroll=False) == wanted.module.clone(dtype=found.module.dtype)
  a, b = public.flatten(found.params), public.flatten(wanted.params)
  assert a.keys() == b.keys() and all(np.allclose(a[name], b[name], rtol=2e-3, atol=1e-3) for name in a)


def test_an_autoencoder_of_its_own(tmp_path):
  config = toy_runs.config(dict(name="autoencoder", model=VAE, discriminator_weight=0.0))
  run = toy_runs.make(tmp_path / "run", config)
  mmdiff.save(mmdiff.load(run), tmp_path / "out", format="diffusers-vae")
  loaded = public.load(tmp_path / "out", quiet=True)
  values = public.flatten(mmdiff.load(run).params["autoencoder"])
  assert all(np.array_equal(value, values[name]) for name, value in public.flatten(loaded.params).items())


def test_what_has_no_place_is_said(tmp_path, run):
  with pytest.raises(ConfigError, match="a diffusion run has no public format of one model"):
    exports.model_of(stable(), {})
  for change, message in ((dict(schedule="flow", prediction="x0"), "have linear, scaled_linear, cosine with eps, v, x0, found 'flow'"),
                          (dict(encode=None), "only latent text-to-image runs")):
    with pytest.raises(ConfigError, match=message):
      exports.pipeline_of(toy_runs.config(stable()["objective"] | change) if "encode" not in change else dict(
        objective=stable()["objective"] | change), mmdiff.load(run).params)
  assert main(["convert", f"--src={run}", "--to=hf-clip", f"--out={tmp_path / 'x'}"]) == 64
