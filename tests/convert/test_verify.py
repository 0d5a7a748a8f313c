import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.convert import verify
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.models.text import TextTransformer


def test_a_difference_is_seen_and_none_is_zero():
  module = TextTransformer(vocab=20, length=6, width=16, depth=1, heads=2, mlp_dim=32)
  inputs = clip_inputs(8, 6)[1:]
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 6), jnp.int32), jnp.ones((1, 6), bool))["params"]
  assert verify.difference((module, params, ()), (module, params, ()), inputs) == 0
  other = jax.tree.map(lambda x: x * 1.01, params)
  assert 1e-4 < verify.difference((module, params, ()), (module, other, ()), inputs) < 1
  quick = module.clone(act="quick_gelu")
  assert verify.difference((module, params, ()), (quick, params, ()), inputs) > 1e-5


def test_inputs_fit_the_model():
  image, tokens, mask = verify.random_inputs(clip_inputs(8, 6), {"embed": {"embedding": np.zeros((5, 2))}}, rows=3, seed=0)
  assert image.shape == (3, 8, 8, 3) and image.dtype == np.uint8 and tokens.max() < 5 and mask.dtype == bool and mask[:, :2].all()
  noise, = verify.random_inputs((jax.ShapeDtypeStruct((1, 4), jnp.float32),), {}, rows=2, seed=0)
  assert noise.shape == (2, 4)
