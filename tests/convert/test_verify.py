import json

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.convert import verify
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.models.autoencoder import Autoencoder
from mmdiff.models.text import TextTransformer
from tests import toy_pipelines


def test_a_difference_is_seen_and_none_is_zero():
  module = TextTransformer(vocab=20, length=6, width=16, depth=1, heads=2, mlp_dim=32)
  inputs = clip_inputs(8, 6)[1:]
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 6), jnp.int32), jnp.ones((1, 6), bool))["params"]
  assert verify.difference((module, params, ()), (module, params, ()), inputs) == 0
  other = jax.tree.map(lambda x: x * 1.01, params)
  assert 1e-4 < verify.difference((module, params, ()), (module, other, ()), inputs) < 1
  quick = module.clone(act="quick_gelu")
  assert verify.difference((module, params, ()), (quick, params, ()), inputs) > 1e-5


def test_the_scale_of_latents_is_seen():
  module = Autoencoder(widths=(8, 8), latent_channels=4, blocks=1, groups=4)
  inputs = (jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  assert verify.difference((module, params, ()), (module.clone(scale=1.1), params, ()), inputs) > 0.05


def test_what_a_pipeline_lacks_or_reads_otherwise(tmp_path):
  made = toy_pipelines.make(tmp_path / "tokenizer")
  text = made._replace(parts=dict(text=made.parts["text"]))
  assert verify.pipelines(text, text) == (dict(text=0.0), {})
  assert verify.pipelines(made._replace(parts={}), text)[1] == dict(text=("nothing", "ClipStates"))
  assert verify.pipelines(text._replace(parts=dict(text=made.parts["autoencoder"])), text)[1] == dict(text=("Autoencoder", "ClipStates"))
  words = toy_pipelines.WORDS
  (toy_pipelines.tokenizer(tmp_path / "b" / "tokenizer") / "vocab.json").write_text(
    json.dumps({word: i for i, word in enumerate([words[0], words[2], words[1], *words[3:]])}))
  (ids, others), = verify.tokens(text, text._replace(tokenizer=tmp_path / "b" / "tokenizer")).values()
  assert ids != others and len(ids) == len(others)
  assert not verify.tokens(text, text._replace(tokenizer=None))


def test_inputs_fit_the_model():
  image, tokens, mask = verify.random_inputs(clip_inputs(8, 6), {"embed": {"embedding": np.zeros((5, 2))}}, rows=3, seed=0)
  assert image.shape == (3, 8, 8, 3) and image.dtype == np.uint8 and tokens.max() < 5 and mask.dtype == bool and mask[:, :2].all()
  noise, = verify.random_inputs((jax.ShapeDtypeStruct((1, 4), jnp.float32),), {}, rows=2, seed=0)
  assert noise.shape == (2, 4)
