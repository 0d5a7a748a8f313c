"""What is known of the weights that a run starts from, beside their numbers."""
import pytest

from mmdiff.commands import train
from mmdiff.core.errors import ConfigError
from mmdiff.data import tokenizers
from mmdiff.train import init, sources
from tests import toy_pipelines, toy_runs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("source"), toy_runs.clip())


@pytest.mark.parametrize("key, value, fact", [
  ("act", "gelu", "image/act"), ("eps", 1e-3, "text/eps"), ("image_heads", 4, "image/heads"), ("text_heads", 4, "text/heads"),
  ("pixels", "half", "image/mean"), ("pool", "avg", "image/pool"), ("masked", True, "text/masked")])
def test_every_field_of_a_clip_that_keeps_its_shapes_is_a_fact(key, value, fact):
  config = toy_runs.clip()
  before, after = (sources.facts_of(one) for one in (config, toy_runs.changed(config, **{key: value})))
  assert before[fact] != after[fact] and {"image/mean", "image/std", "text/pool", "text/causal"} <= before.keys()


def test_the_facts_of_a_latent_run():
  config = toy_runs.latent()
  facts = sources.facts_of(config)
  assert facts["denoiser/prediction"] == "x0" and facts["denoiser/schedule"] == "flow" and facts["autoencoder/scale"] == 1.0
  assert facts["denoiser/heads"] == 2
  objective = config["objective"] | dict(schedule="linear", prediction="v", zero_terminal_snr=True)
  told = sources.facts_of(config | dict(objective=objective))
  assert (told["denoiser/prediction"], told["denoiser/schedule"], told["denoiser/zero_terminal_snr"]) == ("v", "linear", True)


def test_what_the_text_tower_starts_from_brings_its_tokenizer(source, tmp_path, capsys):
  clip, own = toy_runs.clip(), tokenizers.file(path=str(source / "tokenizer.json")).fingerprint()
  given = lambda **init_block: train.given_tokenizer(clip | dict(init=dict(path="", map={}, parts={}) | init_block))
  assert given(parts={"text": str(source)}).fingerprint() == own
  assert f"init: texts are read with the tokenizer of {source}, not with data.tokenizer" in capsys.readouterr().err
  assert given(path=str(source)).fingerprint() == own
  assert given(path=str(source), map={"text": ""}) is given(parts={"image": str(source)}) is given() is None
  folder = toy_pipelines.folder(tmp_path / "sd")
  assert given(path=str(folder)).vocab_size == len(toy_pipelines.WORDS) and given(parts={"text": str(folder / "text_encoder")}) is None
  with pytest.raises(ConfigError, match="read texts with different tokenizers"):
    given(parts={"text/first": str(source), "text/second": str(folder)})


def test_a_pipeline_says_what_its_parts_were_trained_for(tmp_path):
  folder = toy_pipelines.folder(tmp_path / "sd", scheduler=toy_pipelines.pipelines.SD_SCHEDULER | dict(prediction_type="v_prediction"))
  found = sources.weights_of(str(folder))
  learned = {key: found.facts[f"denoiser/{key}"] for key in sources.LEARNED}
  assert learned == dict(prediction="v", schedule="scaled_linear", zero_terminal_snr=False, uncond="empty")
  assert (found.facts["autoencoder/scale"], found.facts["text/act"], found.facts["text/layers"]) == (0.3, "quick_gelu", 2)
  leaf = next(name for name in found.leaves if name.startswith("denoiser/"))
  full = {"denoiser": {leaf.removeprefix("denoiser/"): found.leaves[leaf]}}
  for facts, told, key in (({"denoiser/prediction": "eps"}, "denoiser/prediction is eps here and v in ", "prediction"),
                           ({"denoiser/heads": 1}, "denoiser/heads is 1 here and 2 in ", "denoiser.heads")):
    with pytest.raises(ConfigError, match=f"{told}.*; set --config.objective.{key} to that"):
      init.found(full, path=str(folder), facts=facts)
  assert init.found(full, path=str(folder), facts={"denoiser/prediction": "v", "denoiser/heads": 2, "text/act": "gelu"}).values
  alone = sources.weights_of(str(folder / "text_encoder"))
  assert alone.facts["act"] == "quick_gelu" and not {"layers", "norm", "pad"} & alone.facts.keys()


def test_a_single_file_does_not_say_eps_or_v_by_itself(tmp_path):
  file = toy_pipelines.file(tmp_path / "sd")
  assert sources.weights_of(str(file)).facts["denoiser/prediction"] == "eps"        # a Stable Diffusion 1
  whole = toy_pipelines.make(tmp_path / "tokens")
  silent = whole._replace(notices=("model.safetensors does not say what it predicts: took eps; …",))
  assert "denoiser/prediction" in sources.of_pipeline(whole) and "denoiser/prediction" not in sources.of_pipeline(silent)
