"""T5's encoder beside transformers': loaded here, the same states, written back equal, and loaded there again."""
import numpy as np
import pytest

from tests.peers.test_clip_formats import close, random_weights, round_trip

pytestmark = pytest.mark.peers


def test_encoder(tmp_path):
  import torch
  from transformers import T5Config, T5EncoderModel
  config = T5Config(vocab_size=50, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
                    tie_word_embeddings=False)
  peer = random_weights(T5EncoderModel(config))
  loaded, written = round_trip(peer, tmp_path)
  tokens = np.random.default_rng(0).integers(2, 50, (3, 40)).astype(np.int32)
  mask = np.arange(40)[None] < np.asarray([40, 7, 22])[:, None]
  ours = loaded.module.apply({"params": loaded.params}, tokens, mask)
  with torch.no_grad():
    theirs = peer(input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long()).last_hidden_state
  close(np.where(mask[..., None], ours, 0), theirs * torch.from_numpy(mask)[..., None])
  again = T5EncoderModel.from_pretrained(written)
  assert all(torch.equal(value, again.state_dict()[name]) for name, value in peer.state_dict().items())


def test_half_of_a_whole(tmp_path):
  from transformers import T5Config, T5ForConditionalGeneration

  from mmdiff.convert import public
  peer = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=24, d_kv=5, d_ff=40, num_layers=2, num_heads=4,
                                             feed_forward_proj="gated-gelu", tie_word_embeddings=False))
  peer.save_pretrained(tmp_path)
  loaded = public.load(tmp_path, quiet=True)
  assert all(name.startswith(("decoder.", "lm_head")) for name in loaded.report.ignored) and loaded.report.ignored
  np.testing.assert_array_equal(loaded.params["embed"]["embedding"], peer.shared.weight.detach().numpy())
