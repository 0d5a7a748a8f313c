import json

import numpy as np
import pytest

from mmdiff.convert import public, rules, t5_formats, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.convert.formats import variables
from mmdiff.core.errors import DataError
from mmdiff.models.t5 import t5

CONFIG = dict(model_type="t5", vocab_size=20, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
              tie_word_embeddings=True)


def folder(path, config=CONFIG, **more):
  module = t5_formats.T5Encoder(20, 8, 2, 2, 3, 12)
  bindings = rules.bind(t5_formats.TABLE, variables(module, clip_inputs(8, 8)[1:]))
  rng = np.random.default_rng(0)
  values = {binding.theirs: rng.normal(size=binding.shape).astype(np.float32) for binding in bindings} | more
  st.write_sharded(path, "model", {name: tensors.of(value) for name, value in values.items() if value is not None})
  (path / "config.json").write_text(json.dumps(config))
  return path, values


def test_the_published_size():
  shapes = variables(t5(variant="xxl"), clip_inputs(8, 8)[1:])
  bindings = rules.bind(t5_formats.TABLE, shapes)
  assert (len(bindings), sum(tensors.size(binding.shape) for binding in bindings)) == (219, 4_762_310_656)


def test_an_encoder_alone_and_as_half_of_a_whole(tmp_path):
  path, values = folder(tmp_path / "a")
  loaded = public.load(path, quiet=True)
  np.testing.assert_array_equal(loaded.params["stack"]["mlp"]["gate"]["kernel"][1],
                                values["encoder.block.1.layer.1.DenseReluDense.wi_0.weight"].T)
  more = {"decoder.block.0.x": np.zeros(2), "lm_head.weight": np.zeros((20, 8)), "encoder.embed_tokens.weight": values["shared.weight"]}
  whole = public.load(folder(tmp_path / "b", **more)[0], quiet=True)
  assert sorted(whole.report.ignored) == sorted(more)
  moved = {"shared.weight": None, "encoder.embed_tokens.weight": values["shared.weight"]}
  renamed = public.load(folder(tmp_path / "c", **moved)[0], quiet=True)
  np.testing.assert_array_equal(renamed.params["embed"]["embedding"], values["shared.weight"])
  public.save(tmp_path / "out", format="hf-t5", module=loaded.module, config=loaded.config, params=loaded.params, style={})
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["tie_word_embeddings"] is False and config["scale_decoder_outputs"] is False
  np.testing.assert_array_equal(public.load(tmp_path / "out", quiet=True).params["position_bias"], loaded.params["position_bias"])


@pytest.mark.parametrize("change, message", [(dict(feed_forward_proj="relu"), "expected 'gated-gelu'.*found 'relu'"),
                                             (dict(relative_attention_num_buckets=16), "mmdiff's T5 has 32, found 16")])
def test_older_forms_are_refused(tmp_path, change, message):
  with pytest.raises(DataError, match=message):
    public.load(folder(tmp_path / "a", CONFIG | change)[0], quiet=True)
