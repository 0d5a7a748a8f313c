"""What single files say of themselves: every mark is honoured, contradictions and damage are named."""
import json

import numpy as np
import pytest

from mmdiff.__main__ import main
from mmdiff.convert import marks, pipelines, schedulers, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.convert.containers import Container
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_pipelines
from tests.convert.test_ldm_formats import SCHEDULE

EMPTY = np.zeros((0,), np.float32)
XL, SD = pipelines.XL_SCHEDULER, pipelines.SD_SCHEDULER
MEAN, STD = np.asarray([-1.6, 1.1, -2.5, 0.3], np.float32), np.asarray([8.4, 5.9, 7.0, 6.4], np.float32)


def container(metadata=None, **named):
  return Container({name: tensors.of(np.asarray(value)) for name, value in named.items()}, metadata or {}, "safetensors")


def scheduler(made, assumed=XL, asked=None):
  return marks.scheduler(made, assumed, asked=asked, where="file")


@pytest.mark.parametrize("made, expected", [
  (container(v_pred=EMPTY, ztsnr=EMPTY), ("v", True)), (container(v_pred=EMPTY), ("v", False)), (container(), ("eps", False)),
  (container({"modelspec.prediction_type": "v"}), ("v", False)), (container({"modelspec.prediction_type": "epsilon"}), ("eps", False)),
  (container({"modelspec.architecture": "stable-diffusion-v2-768-v"}), ("v", False)),
  (container({"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}), ("v", True)),
  (container(global_step=np.asarray(875000)), ("eps", False)),
  (container(v_pred=EMPTY, alphas_cumprod=SCHEDULE.astype(np.float16)), ("v", False))])
def test_what_is_predicted_and_where_the_noise_ends(made, expected):
  found = {**XL, **scheduler(made).scheduler}
  facts = schedulers.facts(found)
  assert (facts["prediction"], facts["zero_terminal_snr"]) == expected and facts["schedule"] == "scaled_linear"
  plan = schedulers.plan_of(found, steps=4)
  assert plan.prediction == expected[0] and (plan.plan.table[0, 2] == 999) == expected[1]       # the last level is sampled


def test_marks_that_contradict_each_other_or_the_caller():
  with pytest.raises(DataError, match="contradicts itself: v by the tensor v_pred, eps by its metadata modelspec.prediction_type"):
    scheduler(container({"modelspec.prediction_type": "epsilon"}, v_pred=EMPTY))
  found = scheduler(container(v_pred=EMPTY), asked="eps")
  assert found.scheduler["prediction_type"] == "epsilon" and "took eps as asked, against the tensor v_pred" in found.notices[0]
  with pytest.raises(DataError, match='noise alone .* nothing says that it predicts v; give prediction="v"'):
    scheduler(container(ztsnr=EMPTY))
  assert scheduler(container(ztsnr=EMPTY), asked="v").scheduler["rescale_betas_zero_snr"]
  with pytest.raises(DataError, match="modelspec.prediction_type: expected epsilon or v, found 'flow'"):
    scheduler(container({"modelspec.prediction_type": "flow"}))
  with pytest.raises(DataError, match="a prediction of its own; leave out prediction"):
    scheduler(container(edm_mean=MEAN, edm_std=STD), asked="v")


def test_edm_of_playground_and_of_cosxl():
  found = scheduler(container(edm_mean=MEAN.reshape(1, 4, 1, 1), edm_std=STD.reshape(1, 4, 1, 1))).scheduler
  assert schedulers.facts(found)["prediction"] == schedulers.facts(found)["kind"] == "edm"
  assert found["sigma_max"] == 80 and found["_class_name"] == "EDMDPMSolverMultistepScheduler"
  lies = marks.latents(container(edm_mean=MEAN, edm_std=STD).tensors, 0.13025, "file")
  np.testing.assert_allclose(lies["shift"], MEAN)
  np.testing.assert_allclose(lies["scale"], 0.5 / STD)
  cos = scheduler(container(**{"edm_vpred.sigma_max": np.float32(120), "edm_vpred.sigma_min": np.float32(0.002)})).scheduler
  assert (cos["sigma_max"], cos["sigma_data"]) == (120, 1.0) and schedulers.facts(cos)["prediction"] == "v"
  with pytest.raises(DataError, match="edm_mean and edm_std belong together, found edm_mean alone"):
    marks.latents(container(edm_mean=MEAN).tensors, 0.13025, "file")
  with pytest.raises(DataError, match="sigma_min is there, and no"):
    scheduler(container(**{"edm_vpred.sigma_min": np.float32(1)}))


def test_a_schedule_of_its_own_is_sampled_by():
  linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  found = scheduler(container(alphas_cumprod=linear.astype(np.float32)), SD)
  sampled = schedulers.alpha_bar({**schedulers.DDPM, **SD, **found.scheduler})
  np.testing.assert_allclose(sampled, linear, rtol=1e-3)
  assert "a schedule of its own, of 1000 levels" in found.notices[0]
  level = schedulers.plan_of({**SD, **found.scheduler}, steps=10).plan.table[0, 0]
  assert level == pytest.approx(np.sqrt(linear[901]), rel=1e-3)
  assert scheduler(container(alphas_cumprod=SCHEDULE.astype(np.float32)), SD).scheduler == {}
  sigmas = np.sqrt((1 - SCHEDULE) / SCHEDULE)
  assert scheduler(container(**{"denoiser.sigmas": sigmas[::-1].astype(np.float32)})).scheduler == {}
  with pytest.raises(DataError, match="alphas_cumprod is no schedule"):
    scheduler(container(alphas_cumprod=np.zeros(1000) * np.nan), SD)
  for damaged in (np.zeros(0), np.zeros(1000), np.full(1000, 0.5)):
    with pytest.raises(DataError, match="is no schedule: expected falling numbers"):
      scheduler(container(alphas_cumprod=damaged.astype(np.float32)), SD)
  assert marks.resolution({"modelspec.resolution": "10²"}) is None
  assert marks.latents(container(scale_factor=np.float32(0.25)).tensors, 0.18215, "file") == dict(scale=0.25)
  for damaged in (np.zeros(0), np.float32(np.nan), np.ones(2)):
    with pytest.raises(DataError, match="scale_factor: expected a number above zero"):
      marks.latents(container(scale_factor=damaged).tensors, 0.18215, "file")


@pytest.mark.parametrize("part, field, value", [
  ("unet", "heads", "x"), ("unet", "heads", 0), ("unet", "image_size", 10 ** 9), ("vae", "scale", float("nan")), ("vae", "scale", 0),
  ("vae", "scale", "x"), ("vae", "shift", [float("inf")]), ("text", "act", "relu"), ("text", "act", ["gelu"]), ("text", "pad", 10 ** 8),
  ("text", "heads", 2.5)])
def test_hostile_fields_of_our_own_metadata_are_named(part, field, value):
  text = json.dumps(dict(parts={part: {field: value}}))
  with pytest.raises(DataError, match=f"file: metadata mmdiff.pipeline: parts.{part}.{field}: no such value is known, found"):
    marks.own_fields(container(metadata={marks.OWN: text}), part, "file")


def test_fields_of_our_own_metadata_come_back():
  fields = dict(heads=2, head_dim=None, conditioning="scale_shift", act="quick_gelu", scale=0.3, shift=[-1.5, 2.0], whole=True)
  made = marks.own_fields(container(metadata={marks.OWN: json.dumps(dict(parts=dict(unet=fields)))}), "unet", "file")
  assert made == fields | dict(shift=(-1.5, 2.0))


def test_what_is_left_to_the_caller_is_said():
  ema = {f"model_ema.{i}": tensors.of(np.zeros(1)) for i in range(3)}
  assert "ema=True" in marks.notices(ema, {}, "unet", "file")[0] and not marks.notices({}, {}, "unet", "file")
  assert "skip=1 (--skip)" in marks.notices({}, {"modelspec.encoder_layer": "2"}, "text", "file")[0]
  assert not marks.notices({}, {"modelspec.encoder_layer": "1", "ss_clip_skip": "None"}, "text", "file")
  ids = np.arange(77.0)[None]
  assert not marks.notices(container(position_ids=ids).tensors, {}, "text", "file")
  ids[0, 4] = 3
  assert "a conversion has damaged it" in marks.notices(container(position_ids=ids).tensors, {}, "text", "file")[0]
  assert marks.resolution({"modelspec.resolution": "1024x1024"}) == 1024 and marks.resolution({"modelspec.resolution": "832x1216"}) is None


def test_marks_of_whole_files(tmp_path):
  """Files as others write them, without metadata of ours, marks beside the weights."""
  single = toy_pipelines.file(tmp_path, xl=True)
  named, metadata = st.read(single)
  assert json.loads(metadata[marks.OWN])["parts"]["unet"]["heads"] == 2

  def sampling(more):
    return pipelines.sampling(Container(named | container(**more).tensors, {}, "safetensors"), where="file")
  plain = sampling({})
  assert plain.scheduler == XL and plain.zeros and not plain.said
  noob = sampling(dict(v_pred=EMPTY, ztsnr=EMPTY))
  assert noob.scheduler == XL | dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
  with pytest.raises(ConfigError, match="says how it is sampled .metadata mmdiff.pipeline.; leave out prediction"):
    pipelines.sampling(Container(named, metadata, "safetensors"), where="file", prediction="v")
  st.write(tmp_path / "b.safetensors", named | container(edm_mean=MEAN.reshape(1, 4, 1, 1), edm_std=STD.reshape(1, 4, 1, 1)).tensors)
  played = pipelines.load(tmp_path / "b.safetensors", quiet=True)
  assert played.scheduler["_class_name"] == "EDMDPMSolverMultistepScheduler" and played.parts["denoiser"].report.unexpected == []
  assert played.parts["autoencoder"].module.shift == pytest.approx(MEAN.tolist())
  # Written again, the marks are there for others, and what a file said before is not said beside what is so now.
  pipelines.save(tmp_path / "again", played, format="ldm")
  again, about = st.read(tmp_path / "again" / "model.safetensors")
  assert set(again) - set(named) == {"edm_mean", "edm_std"} and "modelspec.prediction_type" not in about
  np.testing.assert_allclose(again["edm_std"].read().reshape(-1), STD, rtol=1e-6)
  assert again["edm_mean"].shape == (1, 4, 1, 1)
  assert pipelines.sampling(Container(again, about, "safetensors"), where="again").scheduler == played.scheduler


def test_marks_are_written_for_others():
  before = container(v_pred=EMPTY, edm_mean=MEAN, alphas_cumprod=SCHEDULE).tensors
  assert set(marks.written(before, XL, None)) == {"alphas_cumprod"}
  v = XL | dict(prediction_type="v_prediction")
  assert set(marks.written({}, v, None)) == {"v_pred"} and marks.metadata_of(v) == {"modelspec.prediction_type": "v"}
  assert set(marks.written({}, v | dict(rescale_betas_zero_snr=True), None)) == {"v_pred", "ztsnr"}
  cos = scheduler(container(**{"edm_vpred.sigma_max": np.float32(120), "edm_vpred.sigma_min": np.float32(0.01)})).scheduler
  assert scheduler(Container(marks.written({}, cos, None), {}, "safetensors")).scheduler == cos


@pytest.mark.parametrize("kept", ["file", "folder"])
@pytest.mark.parametrize("marked, expected", [
  (dict(v_pred=EMPTY, ztsnr=EMPTY), ("v_prediction", True)),
  (dict(edm_mean=MEAN.reshape(1, 4, 1, 1), edm_std=STD.reshape(1, 4, 1, 1)), ("epsilon", None))], ids=["noobai", "playground"])
def test_marks_stay_from_a_file_to_what_is_written(tmp_path, marked, expected, kept):
  """Others' file -> what `convert` writes -> what Python loads, draws with and `info` says."""
  single = toy_pipelines.file(tmp_path, xl=True)
  st.write(single, st.read(single)[0] | container(**marked).tensors)
  assert main(["convert", f"--src={single}", f"--to={'ldm' if kept == 'file' else 'diffusers'}", f"--out={tmp_path / 'out'}"]) == 0
  where = tmp_path / "out" / ("model.safetensors" if kept == "file" else "")
  before, after = (pipelines.load(path, quiet=True) for path in (single, where))
  assert after.scheduler == before.scheduler and after.scheduler["prediction_type"] == expected[0]
  assert after.scheduler.get("rescale_betas_zero_snr") == expected[1]
  vae = after.parts["autoencoder"].module
  assert (vae.scale, vae.shift) == (pytest.approx(before.parts["autoencoder"].module.scale),
                                    pytest.approx(before.parts["autoencoder"].module.shift))
  if "edm_mean" in marked:
    np.testing.assert_allclose(vae.shift, MEAN, rtol=1e-6)
  assert main(["info", str(where), f"--json={tmp_path / 'info.json'}"]) == 0
  facts = json.loads((tmp_path / "info.json").read_text())
  assert (facts["scheduler"], facts["prediction"]) == (before.scheduler["_class_name"], expected[0])
  assert facts.get("zero_terminal_snr") == expected[1]
