"""Every published variant of SigLIP starts: its pictures, texts and tokenizer fit its model."""
import jax
import pytest

from configs import siglip
from mmdiff.commands import flags
from mmdiff.convert import formats
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.data import tokenizers
from mmdiff.models.clip import PRESETS, clip
from tests.data.test_sentencepiece import PIECES, model

PARAMETERS = {"SigLIP-B/16": 203, "SigLIP-L/16": 652, "SigLIP-So400m/14": 877}         # millions


@pytest.mark.parametrize("name", siglip.VARIANTS)
def test_every_variant_starts(name):
  config, problems = flags.read_config(f"configs/siglip.py:variant={name}", [])
  assert not problems
  data, options = config["data"], {key: value for key, value in config["objective"]["model"].items() if key != "name"}
  module = clip(**options)
  assert (module.image_size, module.text.length) == (data["image_size"], data["text_len"])
  assert module.text.pool == "last" and not module.text.masked and module.image.pool == "map" and module.bias_init == -10.0
  assert module.text.vocab == (250_000 if name.endswith("i18n") else 32_000)
  shapes = formats.variables(module, clip_inputs(data["image_size"], data["text_len"]))
  assert shapes["text/position"][0] == data["text_len"]
  side = data["image_size"] // module.image.patch
  assert shapes["image/position"][0] == side * side
  if name in PARAMETERS:
    assert round(sum(jax.numpy.prod(jax.numpy.array(shape)).item() for shape in shapes.values()) / 1e6) == PARAMETERS[name]


def test_every_preset_is_a_variant_and_others_are_refused():
  assert {name for name in PRESETS if name.startswith("SigLIP")} <= set(siglip.VARIANTS)
  assert "SigLIP-B/61" in flags.read_config("configs/siglip.py:variant=SigLIP-B/61", [])[1][0]


def test_the_tokenizer_has_no_more_tokens_than_the_model(tmp_path):
  """c4_en has 32,000 pieces and the model 32,000 rows: T5's hundred sentinels behind them would not fit."""
  (tmp_path / "spiece.model").write_bytes(model())
  config, _ = flags.read_config("configs/siglip.py", [("data.tokenizer.path", str(tmp_path))])
  made = tokenizers.siglip(**{key: value for key, value in config["data"]["tokenizer"].items() if key != "name"})
  assert made.vocab_size == len(PIECES) and made.batch(["RED."], 4)[0].tolist() == [[4, 1, 1, 1]]
