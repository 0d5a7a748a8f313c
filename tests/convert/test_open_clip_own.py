"""What open_clip wrote and computed itself (fixtures/make_open_clip.py): texts and pictures give its numbers, and go back as they were."""
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import mmdiff
from mmdiff.convert import containers, public
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import tokenizers
from tests.convert.test_clip_formats import copied

OWN = Path(__file__).parent / "fixtures" / "open_clip_own"
EXPECTED = dict(np.load(OWN / "expected.npz"))
TEXTS = ["a photo of a cat", "", "A Photo of a CAT.", "it's two_small  red circles!?", "naïve &amp; “curly” CAFÉ", "two 😀 cats",
         "cat " * 30]


@pytest.mark.parametrize("name", ["clip", "resnet", "coca"])
def test_texts_and_pictures(name, tmp_path):
  model = mmdiff.load(OWN / name, quiet=True)
  tokens, mask = model.tokenize(TEXTS)
  assert np.array_equal(np.where(mask, tokens, 0), np.where(mask, EXPECTED[f"{name}_tokens"], 0))
  assert not np.where(mask, 0, EXPECTED[f"{name}_tokens"]).any()              # the mask is just what is not their padding
  images = EXPECTED["large" if name == "resnet" else "image"]
  np.testing.assert_allclose(model.embed_text(TEXTS), EXPECTED[f"{name}_text"], atol=1e-5)
  np.testing.assert_allclose(model.embed_image(images), EXPECTED[f"{name}_image"], atol=1e-5)
  mmdiff.save(model, tmp_path, dtype="float16")
  before, after = (containers.read(containers.find(folder)).tensors for folder in (OWN / name, tmp_path))
  assert set(before) == set(after)
  for key, value in before.items():
    np.testing.assert_array_equal(value.read(), after[key].read(), err_msg=key)
  said, written = (json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] for folder in (OWN / name, tmp_path))
  assert {key: written["text_cfg"].get(key) for key in said["text_cfg"]} == said["text_cfg"]
  again = mmdiff.load(tmp_path, quiet=True)
  assert np.array_equal(again.tokenize(TEXTS)[0], tokens) and again.tokenizer.facts == model.tokenizer.facts


def test_the_captioners_logits():
  loaded = public.load(OWN / "coca", quiet=True)
  tokens = EXPECTED["coca_tokens"][:2]
  *_, hidden = jax.jit(loaded.module.apply)({"params": loaded.params}, EXPECTED["image"][:2], tokens, tokens != 0)
  logits = np.asarray(hidden) @ loaded.params["decoder"]["project_vocab"]["kernel"]
  theirs, own = EXPECTED["coca_logits"], (tokens != 0)[:, :-1]
  np.testing.assert_allclose(logits[..., ::37][own], theirs[own], atol=1e-4)


def test_a_captioner_of_other_padding_is_not_open_clips(tmp_path):
  """Its class token sees the first token behind a text."""
  loaded = public.load(OWN / "coca", quiet=True)
  keep = dict(format="open_clip-coca", module=loaded.module, config=loaded.config, params=loaded.params)
  with pytest.raises(ConfigError, match="open_clip pads texts with token 0.*this model's tokenizer pads with 525"):
    public.save(tmp_path / "x", **keep, tokenizer=tokenizers.clip(path=str(OWN / "coca")))
  public.save(tmp_path / "y", **keep, tokenizer=tokenizers.clip(path=str(OWN / "coca"), pad="zero"))
  assert public.load(tmp_path / "y", quiet=True).module == loaded.module


def test_facts_go_to_another_format_and_back(tmp_path):
  """BERT's texts, made canonical by open_clip's key, in a folder of transformers: our key keeps what its own keys can't say."""
  model = mmdiff.load(OWN / "clip", quiet=True)
  mmdiff.save(model, tmp_path / "hf", format="hf-clip")
  hf = mmdiff.load(tmp_path / "hf", quiet=True)
  assert hf.tokenizer.facts.clean == model.tokenizer.facts.clean
  np.testing.assert_allclose(hf.embed_text(TEXTS), EXPECTED["clip_text"], atol=1e-5)
  bert = mmdiff.load(OWN / "resnet", quiet=True)
  assert bert.tokenizer.facts.clean[:2] == ("fix", "underscores")
  bert.tokenizer.save(tmp_path / "tokenizer.json")
  run = tokenizers.file(path=str(tmp_path / "tokenizer.json"))
  assert np.array_equal(run.batch(TEXTS, 12)[0], bert.tokenize(TEXTS)[0])


@pytest.mark.parametrize("change, message", [
  (dict(tokenizer_kwargs=dict(strip_sep_token=True)), "strip_sep_token True: texts are not treated like that"),
  (dict(tokenizer_kwargs=dict(clean="scrub")), "unknown clean 'scrub'"), (dict(tokenizer_mode="clips"), "tokenizer_mode 'clips'"),
  (dict(pool_type="last"), "pool_type: 'last'"), (dict(eos_id=7), "the model reads a text where token 7 is, and this tokenizer ends")])
def test_texts_that_are_treated_otherwise_are_refused(tmp_path, change, message):
  edit = lambda config: config["model_cfg"]["text_cfg"].update(change)
  name = "open_clip_own/resnet"
  with pytest.raises(DataError, match=message):
    mmdiff.load(copied(name, tmp_path / "x", edit, "open_clip_config.json"), quiet=True)
