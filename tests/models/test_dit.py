import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import parallel
from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.models.dit import PRESETS, dit


def text_of(batch=2, length=5, width=12):
  k_tokens, k_pooled = jax.random.split(jax.random.key(7))
  return {"tokens": jax.random.normal(k_tokens, (batch, length, width)), "pooled": jax.random.normal(k_pooled, (batch, width)),
          "mask": jnp.arange(length)[None] < jnp.asarray([[3], [5]])}


def small(**options):
  return dit(**(dict(variant="tiny", image_size=8, patch=4, width=16, depth=2, heads=2) | options))


X, TIME = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.asarray([100.0, 900.0])


@functools.cache
def trained(**options):
  """A model with every parameter away from its initial zero, and its compiled call."""
  model = small(**options)
  params = jax.jit(model.init)(jax.random.key(0), X, TIME, text_of())
  keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
  params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)
  return params, jax.jit(model.apply)


def formula(depth, width, patch, channels, text, position, side, cross=False):
  d, values = width, patch**2 * channels
  blocks = depth * (18 * d * d + 15 * d + (4 * d * d + 6 * d if cross else 0))
  ends = 256 * d + d * d + 2 * d + 2 * (text * d + d + 2 * text) + values * d + d + 2 * d * d + 2 * d + values * d + values
  return blocks + ends + ((side // patch) ** 2 * d if position == "learned" else 0)


@pytest.mark.parametrize("variant", PRESETS)
def test_parameter_counts(variant):
  depth, width, _, patch, position = PRESETS[variant]
  text = {"tokens": jnp.zeros((1, 4, 768)), "mask": jnp.ones((1, 4), bool), "pooled": jnp.zeros((1, 768))}
  for kind in ("joint", "cross"):
    model = dit(variant=variant, image_size=32, channels=4, text=kind)
    abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), text)
    assert tree.count(abstract) == formula(depth, width, patch, 4, 768, position, 32, kind == "cross")


def test_published_sizes():
  """DiT's own: 33, 130, 458 and 675 M with label embedding and learned variance; ours differ by those and the text projections."""
  for variant, millions in (("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)):
    depth, width, _, patch, position = PRESETS[variant]
    own = formula(depth, width, patch, 4, 768, position, 32)
    published = own - 2 * (768 * width + width + 2 * 768) + 1001 * width + patch**2 * 4 * (width + 1)
    assert round(published / 1e6) in (millions, millions + 1)


def test_it_starts_by_predicting_zero():
  model = small()
  out = jax.jit(model.init_with_output)(jax.random.key(0), X, TIME, text_of())[0]
  assert out.shape == X.shape and out.dtype == jnp.float32 and not np.asarray(out).any()


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_gates_start_where_they_are_told(start):
  model = small(gate_init=start)
  bias = jax.jit(model.init)(jax.random.key(0), X, TIME, text_of())["params"]["stack"]["modulation"]["bias"]
  np.testing.assert_array_equal(bias.reshape(2, 6, 16)[:, :, 0], [[0, 0, start, 0, 0, start]] * 2)


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_text_and_time_reach_every_pixel(kind):
  params, apply = trained(text=kind)
  text = text_of()
  out = np.asarray(apply(params, X, TIME, text))
  other = dict(text, tokens=text["tokens"].at[0, 1].multiply(-1.0))
  assert (np.abs(apply(params, X, TIME, other)[0] - out[0]) > 0).mean() > 0.9
  assert (np.abs(apply(params, X, TIME, dict(text, pooled=text["pooled"] + 0.1 * text["pooled"][::-1])) - out) > 0).mean() > 0.9
  assert (np.abs(apply(params, X, TIME + 30, text) - out) > 0).mean() > 0.9
  np.testing.assert_allclose(apply(params, X, TIME, other)[1], out[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_hidden_text_does_not_count(kind):
  params, apply = trained(text=kind)
  text = text_of()
  hidden = jnp.where(text["mask"][..., None], text["tokens"], 9.0)
  np.testing.assert_allclose(apply(params, X, TIME, dict(text, tokens=hidden)), apply(params, X, TIME, text), atol=1e-5)


def test_sincos_takes_other_sizes_and_learned_refuses():
  params, apply = trained(position="sincos")
  assert apply(params, jnp.zeros((2, 8, 16, 3)), TIME, text_of()).shape == (2, 8, 16, 3)
  params, apply = trained()
  with pytest.raises(ValueError, match="learned positions are for 8 px"):
    apply(params, jnp.zeros((2, 8, 16, 3)), TIME, text_of())


def test_remat_and_unroll_change_nothing():
  params, apply = trained()
  expected = apply(params, X, TIME, text_of())
  for options in (dict(remat="full"), dict(unroll=2)):
    np.testing.assert_allclose(jax.jit(small(**options).apply)(params, X, TIME, text_of()), expected, atol=1e-5)


def test_bfloat16_stays_close():
  params, apply = trained()
  expected = np.asarray(apply(params, X, TIME, text_of()))
  got = jax.jit(small(dtype="bfloat16").apply)(params, X, TIME, text_of())
  assert got.dtype == jnp.float32
  assert np.abs(got - expected).mean() < 0.05 * np.abs(expected).mean()


def test_every_large_kernel_has_a_sharding_rule():
  mesh = parallel.make_mesh(data=1, fsdp=4, tensor=2)
  text = {"tokens": jnp.zeros((1, 4, 1024)), "mask": jnp.ones((1, 4), bool), "pooled": jnp.zeros((1, 1024))}
  for kind in ("joint", "cross"):
    model = dit(variant="XL/2", image_size=32, channels=4, text=kind)
    abstract = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), text)
    placed = parallel.shardings(abstract, mesh)
    spec = placed["params"]["stack"]["modulation"]["kernel"].spec
    assert tuple(spec) == (None, "fsdp", None)


@pytest.mark.parametrize("options,says", [(dict(variant="XXL"), "variant"), (dict(image_size=9), "patches of 4"), (dict(heads=3), "heads")])
def test_refuses_what_does_not_fit(options, says):
  with pytest.raises(ConfigError, match=says):
    small(**options)
