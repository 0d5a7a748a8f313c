from pathlib import Path

from mmdiff.convert import facts, pipelines, public
from mmdiff.models.clip import clip
from mmdiff.models.text import clip_states
from tests import toy_pipelines

FIXTURES = Path(__file__).parent / "fixtures"


def test_what_numbers_do_not_say_is_read_from_a_checkpoint_and_from_a_model_of_a_config():
  found = facts.of_loaded(public.load(FIXTURES / "hf_clip", quiet=True))
  model = public.load(FIXTURES / "hf_clip", quiet=True).config["objective"]["model"]
  assert found == facts.of_module(clip(**{key: value for key, value in model.items() if key != "name"}))
  assert {"image/act", "image/eps", "image/heads", "image/pool", "text/causal", "text/layers", "mean", "std"} <= set(found)
  other = facts.of_module(clip(**{key: value for key, value in model.items() if key != "name"} | dict(act="gelu", pixels="half")))
  assert {key for key in found if found[key] != other[key]} >= {"image/act", "mean", "std"}
  assert not {key for key in found if key.rpartition("/")[2] in ("dtype", "remat", "image_size", "width", "length")}


def test_the_layer_that_is_read_counts_and_not_how_many_there_are():
  short, long = clip_states(variant="sd2"), clip_states(variant="sd2", skip=0)
  assert facts.of_module(short, "text")["text/layers"] == 23 and facts.of_module(long, "text")["text/layers"] == 24


def test_a_pipeline_has_the_facts_of_its_parts_and_of_its_sampling(tmp_path):
  made = toy_pipelines.make(tmp_path, xl=True, scheduler=pipelines.XL_SCHEDULER | dict(
    prediction_type="v_prediction", rescale_betas_zero_snr=True))
  found = facts.of_pipeline(made)
  assert (found["prediction"], found["schedule"], found["zero_terminal_snr"], found["uncond"]) == ("v", "scaled_linear", True, "zeros")
  assert found["autoencoder/scale"] == 0.3 and found["denoiser/heads"] == 2 and found["text/second/norm"] is False
