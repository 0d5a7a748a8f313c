import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.models.discriminator import patch


def test_the_published_size_and_its_grid_of_patches():
  """pix2pix's 70×70 discriminator for three channels: 2,765,633 parameters, 30×30 logits of a picture of 256."""
  model, image = patch(), jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)
  assert tree.count(params) == 2_765_633
  assert jax.eval_shape(model.apply, params, image).shape == (2, 30, 30, 1)


def test_a_logit_sees_its_patch_alone():
  model = patch(width=4, layers=1, norm="none")
  image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)
  params = jax.jit(model.init)(jax.random.key(0), image)
  pull = jax.jit(jax.grad(lambda x: model.apply(params, x)[0, 7, 7, 0]))(image)
  rows = np.flatnonzero(np.abs(np.asarray(pull)).sum((0, 2, 3)))
  assert rows.max() - rows.min() + 1 == 16                      # 1 layer: 4 + 2·3 + 2·3 pixels


@pytest.mark.parametrize("norm,couples", [("batch", True), ("group", False)])
def test_which_norm_couples_rows(norm, couples):
  model = patch(width=16, layers=1, norm=norm)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
  params = jax.jit(model.init)(jax.random.key(0), image)
  apply = jax.jit(model.apply)
  changed = np.abs(apply(params, image)[0] - apply(params, image.at[1].mul(3.0))[0]).max() > 1e-6
  assert changed == couples == model.couples_rows


def test_small_pictures_are_refused():
  with pytest.raises(ConfigError, match="3 layers needs pictures of 24×24, found 16×16"):
    jax.eval_shape(patch().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_what_is_negative_passes_at_a_fifth():
  """pix2pix's leaky ReLUs, one after each convolution but the last: a bias of −1 comes out as −0.2 · 0.2."""
  model, image = patch(width=1, layers=1, norm="none"), jnp.zeros((1, 16, 16, 3))
  params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), image)["params"])
  params["conv0"]["bias"] = jnp.full((1,), -1.0)
  for name in ("conv1", "conv_out"):
    params[name]["kernel"] = params[name]["kernel"].at[1, 1, 0].set(1.0)
  np.testing.assert_allclose(model.apply({"params": params}, image)[0, 2:4, 2:4, 0], -0.04, rtol=1e-6)
