"""Vision transformers: pooling forms and published sizes."""
import jax
import jax.numpy as jnp
import pytest

from mmdiff.core.tree import count
from mmdiff.models.vit import VARIANTS, ViT, vit

IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


@pytest.mark.parametrize("pool", ["cls", "map", "avg"])
def test_pooling_forms(pool):
  model = ViT(width=16, depth=1, heads=2, mlp_dim=32, patch=8, pool=pool, embed_dim=None if pool == "map" else 6)
  params = jax.jit(model.init)(jax.random.key(1), IMAGE)
  out = jax.jit(model.apply)(params, IMAGE)
  assert out.shape == (2, 16 if pool == "map" else 6) and out.dtype == jnp.float32
  assert params["params"]["position"].shape == (5 if pool == "cls" else 4, 16)
  assert ("class_token" in params["params"]) == ("norm_pre" in params["params"]) == (pool == "cls")


def test_without_positions_an_averaged_vit_sees_a_bag_of_patches():
  model = ViT(width=16, depth=1, heads=2, mlp_dim=32, patch=8, pool="avg")
  params = jax.jit(model.init)(jax.random.key(1), IMAGE)["params"]
  mirrored = IMAGE.reshape(2, 2, 8, 16, 3)[:, ::-1].reshape(IMAGE.shape)
  apply = lambda params, x: model.apply({"params": params}, x)
  blind = params | {"position": jnp.zeros_like(params["position"])}
  assert jnp.abs(apply(blind, IMAGE) - apply(blind, mirrored)).max() <= 1e-5
  assert jnp.abs(apply(params, IMAGE) - apply(params, mirrored)).max() > 1e-3


def test_a_size_is_a_row_of_the_table():
  model = vit("B/16", depth=2)
  assert (model.width, model.depth, model.patch) == (VARIANTS["B"]["width"], 2, 16)
  # ViT-B/16 of Dosovitskiy et al. has 86.57 M parameters with a 1000-class head (769 k) and a patch bias; CLIP's adds a norm.
  params = jax.eval_shape(vit("B/16").init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
  assert count(params) == 86_567_656 - 769_000 - 768 + 2 * 768
