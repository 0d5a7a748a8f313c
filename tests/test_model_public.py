"""Public checkpoints as models in Python."""
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import mmdiff
from mmdiff.commands import convert, evaluate, flags, info, train
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.model import computing
from mmdiff.train import sources
from tests import toy_pipelines
from tests.data.test_sentencepiece import model as sentencepiece_model

FIXTURES = Path(__file__).parent / "convert" / "fixtures"
EXPECTED = dict(np.load(FIXTURES / "clip_expected.npz"))


def test_a_public_clip_embeds_what_its_maker_computed():
  model = mmdiff.load(FIXTURES / "hf_clip", quiet=True)
  np.testing.assert_allclose(model.embed_image(EXPECTED["image"]), EXPECTED["clip_image"], atol=1e-5)
  assert model.embed_image([]).shape == (0, 20)
  assert model.report["format"] == "hf-clip" and len(model.report["loaded"]) == 78 and set(model.report["parameters"]) == {
    "image", "text", "logit_scale"}
  with pytest.raises(DataError, match="there is no tokenizer beside the weights: put tokenizer.json"):
    model.embed_text(["a"])
  with pytest.raises(AttributeError, match="is a contrastive model: it has embed_image, .*, similarity, classify, not generate"):
    model.generate(["a"])


def test_a_report_is_a_summary():
  """The names of tensors are there, and are not shown."""
  report = mmdiff.load(FIXTURES / "hf_clip", quiet=True).report
  assert len(repr(report)) < 1500 and repr(report["loaded"]).startswith("<78 names, ") and report["missing"] == []
  assert len(json.loads(json.dumps(report))["loaded"]) == 78


def test_a_public_clip_computes_in_bfloat16(tmp_path):
  model = mmdiff.load(FIXTURES / "hf_clip", quiet=True, dtype="bfloat16")
  made = model.embed_image(EXPECTED["image"])
  assert made.dtype == np.float32 and 1e-6 < np.abs(made - EXPECTED["clip_image"]).max() < 0.05
  np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=0.01)
  mmdiff.save(model, tmp_path / "out", format="open_clip")           # the weights stay what they were
  np.testing.assert_allclose(mmdiff.load(tmp_path / "out", quiet=True).embed_image(EXPECTED["image"]), EXPECTED["clip_image"], atol=1e-5)
  with pytest.raises(ConfigError, match="dtype: expected float32 or bfloat16, found 'int8'"):
    mmdiff.load(FIXTURES / "hf_clip", dtype="int8")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
  """JAX reads NaN beyond a table: every score of it would be one of NaN, and a recall a number."""
  tokens = toy_pipelines.tokenizer(tmp_path / "tokenizer")
  with pytest.raises(DataError, match="the tokenizer has 55 tokens and the model was trained with 40: it belongs to another model"):
    mmdiff.load(FIXTURES / "hf_clip", quiet=True, tokenizer=tokens)


def test_a_model_is_saved_as_it_was_loaded(tmp_path):
  model = mmdiff.load(FIXTURES / "open_clip_vit", quiet=True)
  mmdiff.save(model, tmp_path, dtype="float16")
  again = mmdiff.load(tmp_path, quiet=True)
  np.testing.assert_allclose(again.embed_image(EXPECTED["image"]), EXPECTED["clip_image"], atol=1e-5)
  assert again.origin.format == "open_clip" and again.config == model.config


@pytest.mark.parametrize("length", [8, 6])
def test_siglips_texts_are_cleaned_padded_and_cut_as_its_files_say(tmp_path, length):
  """SigLIP reads out the last position: each of these shows in every embedding."""
  shutil.copytree(FIXTURES / "hf_siglip", tmp_path / "a")
  (tmp_path / "a" / "spiece.model").write_bytes(sentencepiece_model())
  (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(dict(
    tokenizer_class="SiglipTokenizer", pad_token="</s>", eos_token="</s>", model_max_length=length)))
  model = mmdiff.load(tmp_path / "a", quiet=True)
  ids = np.asarray([[4, 5, 6, 1], [1, 1, 1, 1]], np.int32)
  rows = np.concatenate([ids, np.ones((2, length - 4), np.int32)], 1)
  encode = jax.jit(lambda tokens: model.origin.module.apply({"params": model.params}, tokens, tokens == tokens, method="encode_text"))
  unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
  texts = ["RED, Circles!", ""]
  made = model.embed_text(texts)
  np.testing.assert_allclose(made, unit(encode(rows)), atol=1e-6)
  assert np.abs(made - unit(encode(np.where(np.arange(length) > [[3], [0]], 0, rows)))).max() > 1e-2
  images = np.zeros((1, 8, 8, 3), np.uint8)
  odds = model.logit_scale * model.similarity(images, ["a photo of a red.", "a photo of a cat."]) + float(model.params["logit_bias"])
  np.testing.assert_allclose(model.classify(images, ["red", "cat"]), 1 / (1 + np.exp(-odds)), atol=1e-6)
  assert any("cut and padded to 6 tokens" in notice for notice in model.report["notices"]) == (length == 6)
  mmdiff.save(model, tmp_path / "again")
  again = mmdiff.load(tmp_path / "again", quiet=True)
  assert again.tokenize(texts)[0].tolist() == rows.tolist() and again.tokenizer.facts == model.tokenizer.facts


def test_options_belong_to_their_kind(tmp_path):
  with pytest.raises(ConfigError, match="is a public checkpoint: it has no step"):
    mmdiff.load(FIXTURES / "hf_clip", step=3)
  with pytest.raises(ConfigError, match="is no public checkpoint, which alone take image_size"):
    mmdiff.load(tmp_path, image_size=32)
  (tmp_path / "model_index.json").write_text("{}")
  (tmp_path / "unet").mkdir()
  (tmp_path / "unet" / "config.json").write_text("{}")
  with pytest.raises(DataError, match="unet: no weights in this folder; expected one of model.safetensors"):
    mmdiff.load(tmp_path)


@pytest.mark.parametrize("where", ["load", "load with options", "info", "convert", "evaluate", "init", "tokenizer of init", "train"])
def test_a_name_that_means_nothing_is_said_everywhere(where, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  name = "openai/clip-vit-base-patch32"
  begin = [f"--config={flags.ROOT}/configs/clip.py:tiny", "--workdir=run"]
  asked = {"load": lambda: mmdiff.load(name), "load with options": lambda: mmdiff.load(name, image_size=32),
           "info": lambda: info.main([name]),
           "convert": lambda: convert.main([f"--src={name}", "--to=open_clip", "--out=out", "--act=gelu"]),
           "evaluate": lambda: evaluate.main([f"--model={name}", "--task=loss"]), "init": lambda: sources.weights_of(name),
           "tokenizer of init": lambda: sources.tokenizer_of(name), "train": lambda: train.main([*begin, f"--config.init.path={name}"])}
  with pytest.raises(DataError, match=r"openai/clip-vit-base-patch32: no such file or folder, and it is not in the Hugging Face cache "
                                      r"\(.*cache\)\. `mmdiff get openai/clip-vit-base-patch32` fetches it"):
    asked[where]()


def test_weights_in_the_cache_of_the_hub_go_by_their_id(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  stored = tmp_path / "cache" / "models--toy--clip"
  shutil.copytree(FIXTURES / "hf_clip", stored / "snapshots" / "c0ffee")
  (stored / "refs").mkdir()
  (stored / "refs" / "main").write_text("c0ffee")
  for name in ("toy/clip", "toy/clip@c0ffee", stored):
    assert mmdiff.load(name).report["format"] == "hf-clip"


def test_a_text_encoder_with_its_tokenizer_is_saved_as_it_was_loaded(tmp_path):
  """The tokenizer's start token is no part of the tensors' names."""
  toy_pipelines.folder(tmp_path / "sd")
  model = mmdiff.load(tmp_path / "sd" / "text_encoder", quiet=True)
  assert model.tokenizer
  mmdiff.save(model, tmp_path / "out", format="hf-clip-text")
  again = mmdiff.load(tmp_path / "out", quiet=True)
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  assert [ids.tolist() for ids in again.tokenize(["a cat", ""])] == [ids.tolist() for ids in model.tokenize(["a cat", ""])]


def test_both_encoders_of_sdxl_compute_in_the_type_asked_for():
  from mmdiff.models.text import SideBySide, clip_states
  pair = SideBySide(*(clip_states(variant=name, dtype="float32") for name in ("tiny", "tiny-pooled")))
  made = computing(pair, "bfloat16")
  assert made.first.dtype == made.second.dtype == "bfloat16" and made.width == pair.width
  with pytest.raises(ConfigError, match="dtype: Nothing computes in its own type"):
    computing(type("Nothing", (nn.Module,), {})(), "bfloat16")
