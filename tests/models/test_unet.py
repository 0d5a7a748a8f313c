"""The UNet: published sizes, what it reads, text computed once."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import parallel
from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.models.unet import unet

SMALL = dict(image_size=8, width=8, mults=(1, 2), depths=(0, 1), blocks=1, heads=2, groups=4)


def text_of(batch=2, length=5, width=12, seed=7):
  k_tokens, k_pooled = jax.random.split(jax.random.key(seed))
  return {"tokens": jax.random.normal(k_tokens, (batch, length, width)), "pooled": jax.random.normal(k_pooled, (batch, width)),
          "mask": jnp.arange(length)[None] < jnp.asarray([[3], [5]]), "size": jnp.asarray([[64, 64, 0, 0, 64, 64]] * batch),
          "level": jnp.asarray([1, 20])}


X, TIME = jax.random.normal(jax.random.key(1), (2, 8, 8, 4)), jnp.asarray([100.0, 900.0])


def small(variant="tiny", **options):
  return unet(**SMALL | dict(variant=variant) | (dict(text_width=16) if variant in ("tiny", "dalle3") else {}) | options)


@functools.cache
def trained(variant="tiny"):
  """A model with every parameter away from its initial zero, and its compiled call."""
  model = small(variant, **dict(text_layers=1) if variant == "dalle3" else {})
  params = jax.jit(model.init)(jax.random.key(0), X, TIME, text_of())["params"]
  keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
  return model, {"params": jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)}, jax.jit(model.apply)


def abstract(variant, context, pooled=8, concat=0, **options):
  shape = jax.ShapeDtypeStruct
  text = {"tokens": shape((1, 77, context), jnp.float32), "mask": shape((1, 77), bool), "pooled": shape((1, pooled), jnp.float32),
          "size": shape((1, 6), jnp.int32), "level": shape((1,), jnp.int32)}
  if concat:
    text["concat"] = shape((1, 64, 64, concat), jnp.float32)
  model = unet(variant=variant, image_size=64, **options)
  return jax.eval_shape(model.init, jax.random.key(0), shape((1, 64, 64, 4), jnp.float32), shape((1,), jnp.float32), text)["params"]


# Counts of the released models; the fifth is the inpainting one with nine input channels, the sixth the upscaler with seven.
@pytest.mark.parametrize("variant,context,pooled,concat,parameters", [
  ("sd1", 768, 8, 0, 859_520_964), ("sd2", 1024, 8, 0, 865_910_724), ("sdxl", 2048, 1280, 0, 2_567_463_684),
  ("refiner", 1280, 1280, 0, 2_259_526_660), ("sd1", 768, 8, 5, 859_535_364), ("x4", 1024, 8, 3, 473_398_020),
])
def test_published_sizes(variant, context, pooled, concat, parameters):
  assert tree.count(abstract(variant, context, pooled, concat)) == parameters


def test_every_large_leaf_has_a_layout():
  mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
  for variant, context, pooled in (("sdxl", 2048, 1280), ("dalle3", 4096, 8), ("x4", 1024, 8)):
    parallel.shardings(abstract(variant, context, pooled), mesh)


def test_starts_at_zero_and_takes_any_size():
  model = small()
  params = jax.jit(model.init)(jax.random.key(0), X, TIME, text_of())
  out = jax.jit(model.apply)(params, X[:, :, :6], TIME, text_of())
  assert out.shape == (2, 8, 6, 4) and out.dtype == jnp.float32 and not np.asarray(out).any()
  with pytest.raises(ConfigError, match="multiples of 2"):
    jax.eval_shape(model.apply, params, X[:, :7], TIME, text_of())


@pytest.mark.parametrize("variant", ["tiny", "dalle3", "sdxl", "x4"])
def test_reads_all_that_it_is_given(variant):
  model, params, apply = trained(variant)
  text = text_of()
  before = apply(params, X, TIME, text)
  differs = lambda **other: np.abs(apply(params, X, TIME, text | other) - before).max(axis=(1, 2, 3)) > 1e-5
  assert (np.abs(apply(params, X, TIME + 50, text) - before).max(axis=(1, 2, 3)) > 1e-5).all()
  assert differs(tokens=text["tokens"].at[:, 2].add(1.0)).all()
  assert differs(tokens=text["tokens"].at[:, 4].add(1.0)).tolist() == [False, True]        # the first text has three tokens
  assert differs(size=text["size"].at[0, 2].add(8)).tolist() == [variant == "sdxl", False]
  assert differs(pooled=text["pooled"] + 1).any() == (variant == "sdxl")
  assert differs(level=text["level"] + 1).any() == (variant == "x4")


@pytest.mark.parametrize("variant", ["dalle3", "x4"])
def test_text_is_computed_once(variant):
  """With the cache of a first call the text's states and kernels are no longer read, and the output stays."""
  model, params, apply = trained(variant)
  text = text_of()
  blank = jnp.zeros_like(X)
  _, cache = jax.jit(lambda p: model.apply(p, blank, TIME, text, mutable=["cache"]))(params)
  names = tree.paths(cache)
  assert any(name.endswith("cross_attention/key") for name in names) and not any("/attention/" in name for name in names) or variant == "x4"
  gone = {"params": tree.map_with_path(lambda path, leaf: leaf * 0 if "cross_attention/key" in path or "cross_attention/value" in path
                                       or path.startswith(("text", "project_text")) else leaf, params["params"])}
  np.testing.assert_allclose(apply(gone | cache, X, TIME, text), apply(params, X, TIME, text), atol=1e-5)


def test_further_input_channels():
  model, text = small(), text_of()
  params = jax.jit(model.init)(jax.random.key(0), X, TIME, text | {"concat": X[..., :3]})["params"]
  assert params["conv_in"]["kernel"].shape == (3, 3, 7, 8) and params["conv_out"]["kernel"].shape == (3, 3, 8, 4)


def test_remat_changes_nothing():
  model, params, apply = trained()
  loss = lambda model: jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, X, TIME, text_of())).sum()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), loss(model)(params), loss(small(remat="full"))(params))


def test_bfloat16_stays_close():
  model, params, apply = trained()
  narrow = jax.jit(small(dtype="bfloat16").apply)(params, X, TIME, text_of())
  assert narrow.dtype == jnp.float32
  np.testing.assert_allclose(narrow, apply(params, X, TIME, text_of()), atol=0.2, rtol=0.1)


@pytest.mark.parametrize("options,says", [(dict(variant="huge"), "sdxl"), (dict(depths=(1,)), "2 levels")])
def test_impossible_models_are_named(options, says):
  with pytest.raises(ConfigError, match=says):
    small(**options)
