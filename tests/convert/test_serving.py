import jax
import numpy as np

from mmdiff.convert import serving
from mmdiff.models.text import ClipStates
from mmdiff.models.vit import ViT

FIELDS = dict(width=16, depth=1, heads=2, mlp_dim=32)


def test_a_text_encoder_gives_states_and_embeds_where_it_projects():
  tokens, mask = np.zeros((2, 4), np.int32), np.ones((2, 4), bool)
  for embed_dim in (None, 6):
    module = ClipStates(vocab=9, length=4, embed_dim=embed_dim, **FIELDS)
    predict = serving.predict("text", module, {})
    assert set(predict) == {"text_states"} | ({"embed_text"} if embed_dim else set())
    params = jax.jit(module.init)(jax.random.key(0), tokens, mask)["params"]
    states, seen = predict["text_states"](params, tokens, mask)
    assert states.shape == (2, 4, 16) and seen.all()
  np.testing.assert_allclose(np.linalg.norm(predict["embed_text"](params, tokens, mask), axis=1), 1, rtol=1e-5)


def test_an_image_encoder_normalises_pixels():
  module = ViT(patch=4, embed_dim=6, **FIELDS)
  predict = serving.predict("image", module, dict(model=dict(mean=(0.5,) * 3, std=(0.5,) * 3)))
  image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
  params = jax.jit(module.init)(jax.random.key(0), image.astype(np.float32))["params"]
  made = predict["embed_image"](params, image)
  np.testing.assert_allclose(made, predict["embed_image"](params, image / np.float32(127.5) - 1), atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
