"""The UNet: published sizes, what it reads, text computed once."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import parallel
from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.models.unet import unet

SMALL = dict(image_size=8, width=8, mults=(1, 2), depths=(0, 1), blocks=1, heads=2, groups=4)
RNG = np.random.default_rng(0)
TEXT = {name: jnp.asarray(value) for name, value in {
  "tokens": RNG.normal(size=(2, 5, 12)).astype(np.float32), "pooled": RNG.normal(size=(2, 6)).astype(np.float32),
  "mask": np.arange(5)[None] < np.asarray([[3], [5]]), "size": np.asarray([[64, 64, 0, 0, 64, 64]] * 2, np.int32),
  "level": np.asarray([1, 20], np.int32)}.items()}
X, TIME = jnp.asarray(RNG.normal(size=(2, 8, 8, 4)), jnp.float32), jnp.asarray([100.0, 900.0])


def small(variant="tiny", **options):
  return unet(**SMALL | dict(variant=variant) | (dict(text_width=16) if variant in ("tiny", "dalle3") else {}) | options)


@functools.cache
def everything():
  """A model that reads all that any variant reads, with every parameter away from its initial zero, and its compiled call.

  The parameters are numpy's: compiling an initialisation costs more than compiling the model.
  """
  model = small("dalle3", text_layers=1).clone(sizes=6, levels=30)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, TIME, TEXT)["params"]
  rng = np.random.default_rng(1)
  draw = lambda path, leaf: (rng.normal(size=leaf.shape) * 0.3 + path.endswith("scale")).astype(np.float32)
  return model, {"params": tree.map_with_path(draw, shapes)}, jax.jit(model.apply)


@functools.cache
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
  for variant in (("sdxl", 2048, 1280, 0), ("dalle3", 4096, 8, 0), ("x4", 1024, 8, 3)):
    parallel.shardings(abstract(*variant), mesh)


def test_starts_at_zero_and_takes_any_size():
  model = small()
  out = jax.jit(lambda key: model.init(key, X, TIME, TEXT)["params"]["conv_out"])(jax.random.key(0))
  assert not any(np.asarray(leaf).any() for leaf in out.values())
  params = jax.eval_shape(model.init, jax.random.key(0), X, TIME, TEXT)
  made = jax.eval_shape(small(dtype="bfloat16").apply, params, X[:, :, :6], TIME, TEXT)
  assert made.shape == (2, 8, 6, 4) and made.dtype == jnp.float32
  with pytest.raises(ConfigError, match="multiples of 2"):
    jax.eval_shape(model.apply, params, X[:, :7], TIME, TEXT)


def test_reads_all_that_it_is_given():
  _, params, apply = everything()
  before = apply(params, X, TIME, TEXT)
  change = lambda x, index, by: np.asarray(x + by * np.isin(np.arange(x.shape[1]), index).reshape(1, -1, *[1] * (x.ndim - 2)), x.dtype)
  differs = lambda **other: (np.abs(apply(params, X, TIME, TEXT | other) - before).max(axis=(1, 2, 3)) > 1e-4).tolist()
  flipped = lambda index: np.where((np.arange(5) == index)[None, :, None], -TEXT["tokens"], TEXT["tokens"])
  assert (np.abs(apply(params, X, TIME + 50, TEXT) - before).max(axis=(1, 2, 3)) > 1e-4).all()
  assert differs(tokens=flipped(2)) == [True, True]
  assert differs(tokens=flipped(4)) == [False, True]                           # the first text has three tokens
  assert differs(pooled=-TEXT["pooled"]) == [True, True]
  assert differs(level=np.asarray([1, 7], np.int32)) == [False, True]
  assert all(differs(size=change(TEXT["size"], i, 16)) == [True, True] for i in range(6))


def test_text_is_computed_once():
  """With the cache of a first call neither the text nor what is computed from it alone is read, and the output stays."""
  model, params, apply = everything()
  _, cache = jax.jit(lambda p: model.apply(p, X * 0, TIME * 0, TEXT, mutable=["cache"]))(params)
  names = tree.paths(cache)
  assert "cache/text_states" in names and "cache/middle_attention/stack/cross_attention/key" in names
  assert not any("/attention/" in name for name in names)
  text_only = ("project_text/", "text/", "norm_text")
  gone = lambda path, leaf: leaf * 0 if path.startswith(text_only) or re.search("cross_attention/(key|value)", path) else leaf
  blind = {"params": tree.map_with_path(gone, params["params"])}
  np.testing.assert_allclose(apply(blind | cache, X, TIME, TEXT | {"tokens": TEXT["tokens"] * 0}), apply(params, X, TIME, TEXT), atol=1e-5)


def test_the_times_of_a_loop_are_embedded_once():
  model, params, apply = everything()
  text = TEXT | {"times": jnp.asarray([100.0, 500.0, 900.0])}
  _, cache = jax.jit(lambda p: model.apply(p, X * 0, TIME * 0, text, mutable=["cache"]))(params)
  assert cache["cache"]["times"].shape == (3, 32)
  blind = {"params": tree.map_with_path(lambda path, leaf: leaf * 0 if path.startswith("project_time") else leaf, params["params"])}
  np.testing.assert_allclose(apply(blind | cache, X, TIME, text), apply(params, X, TIME, TEXT), atol=1e-5)
  assert np.abs(apply(blind, X, TIME, TEXT) - apply(params, X, TIME, TEXT)).max() > 1e-3


def test_small_models_may_start_open_and_know_where():
  model = small(position_std=0.4, open_start=True)
  shapes = jax.eval_shape(model.init, jax.random.key(0), X, TIME, TEXT)
  assert shapes["params"]["position"].shape == (8, 8, 8)
  with pytest.raises(ConfigError, match="position_std=0"):
    jax.eval_shape(model.apply, shapes, X[:, :6], TIME, TEXT)
  started = lambda model: jax.jit(lambda key: model.init(key, X, TIME, TEXT)["params"]["middle_attention"]["project_out"]["kernel"])(
    jax.random.key(0))
  assert np.asarray(started(model)).any() and not np.asarray(started(small())).any()


def test_further_input_channels():
  params = jax.eval_shape(small().init, jax.random.key(0), X, TIME, TEXT | {"concat": X[..., :3]})["params"]
  assert params["conv_in"]["kernel"].shape == (3, 3, 7, 8) and params["conv_out"]["kernel"].shape == (3, 3, 8, 4)


def test_remat_wraps_every_block():
  count = lambda **options: str(jax.make_jaxpr(lambda p: small(**options).apply(p, X, TIME, TEXT))(
    jax.eval_shape(small().init, jax.random.key(0), X, TIME, TEXT))).count("remat")
  assert count() == 0 and count(remat="full") >= 12                            # 8 residual blocks, 4 transformers


@pytest.mark.parametrize("options,says", [(dict(variant="huge"), "sdxl"), (dict(depths=(1,)), "2 levels")])
def test_impossible_models_are_named(options, says):
  with pytest.raises(ConfigError, match=says):
    small(**options)
