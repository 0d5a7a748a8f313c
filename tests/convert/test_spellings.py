import numpy as np
import pytest

from mmdiff.convert import spellings, tensors
from mmdiff.core.errors import DataError


def names(*found):
  return {name: tensors.of(np.zeros(1)) for name in found}


@pytest.mark.parametrize("style, middle, expected", [
  ("diffusers", "encoder.mid_block.attentions.0", ("to_q", "to_k", "to_v", "to_out.0", "group_norm")),
  ("ldm", "decoder.mid.attn_1", ("q", "k", "v", "proj_out", "norm"))])
def test_every_spelling_of_an_autoencoders_attention_becomes_one(style, middle, expected):
  for spelling in (("to_q", "to_k", "to_v", "to_out.0", "group_norm"), ("query", "key", "value", "proj_attn", "group_norm"),
                   ("q", "k", "v", "proj_out", "norm")):
    for prefix in ("", "first_stage_model."):
      found = spellings.autoencoder(names(*(f"{prefix}{middle}.{name}.weight" for name in spelling)), style, prefix)
      assert list(found) == [f"{prefix}{middle}.{name}.weight" for name in expected]
  with pytest.raises(DataError, match="by another spelling, and both are there"):
    spellings.autoencoder(names(f"{middle}.q.bias", f"{middle}.query.bias"), style)


def test_a_text_encoder_with_and_without_its_group():
  assert spellings.start(["text_model.embeddings.token_embedding.weight", "text_projection.weight"], spellings.TEXT) == "text_model."
  assert spellings.start(["embeddings.token_embedding.weight"], spellings.TEXT) == ""
  assert spellings.start(["a.transformer.encoder.layers.0.mlp.fc1.bias"], spellings.TEXT, "a.transformer.") == ""
