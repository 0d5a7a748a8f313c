"""Public checkpoints as models in Python."""
from pathlib import Path

import numpy as np
import pytest

import mmdiff
from mmdiff.core.errors import ConfigError, DataError

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
  with pytest.raises(AttributeError, match="is a contrastive model: it has embed_image, embed_text, logit_scale, not generate"):
    model.generate(["a"])


def test_a_model_is_saved_as_it_was_loaded(tmp_path):
  model = mmdiff.load(FIXTURES / "open_clip_vit", quiet=True)
  mmdiff.save(model, tmp_path, dtype="float16")
  again = mmdiff.load(tmp_path, quiet=True)
  np.testing.assert_allclose(again.embed_image(EXPECTED["image"]), EXPECTED["clip_image"], atol=1e-5)
  assert again.origin.format == "open_clip" and again.config == model.config


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
