import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import parallel
from mmdiff.core import tree
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.models import AUTOENCODERS
from mmdiff.models.autoencoder import draw_latents, from_depth, kl, to_depth

SMALL = dict(name="kl", variant="tiny", widths=(8, 16), groups=4, image_size=16, scale=0.5)
# The first is the published count of Stable Diffusion's VAE; the others follow `by_hand` below.
COUNTS = {"sd": 83_653_863, "sdxl": 83_653_863, "f8": 83_653_863, "f4": 55_312_063, "f16": 69_610_963, "f32": 103_880_131}


def shapes_of(model):
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32))


def by_hand(widths, z, blocks=2, attention_levels=()):
  """Parameters counted from the paper's description, layer by layer."""
  conv = lambda a, b, size=3: size * size * a * b + b
  attention = lambda c: 4 * conv(c, c, 1) + 2 * c
  res = lambda a, b: 2 * a + conv(a, b) + 2 * b + conv(b, b) + (conv(a, b, 1) if a != b else 0)
  top = widths[-1]
  total = 2 * (2 * res(top, top) + attention(top)) + conv(3, widths[0]) + conv(top, 2 * z) + conv(z, top) + conv(widths[0], 3)
  total += 2 * top + 2 * widths[0] + conv(2 * z, 2 * z, 1) + conv(z, z, 1)
  down, up = widths[0], top
  for i, width in enumerate(widths):
    total += res(down, width) + (blocks - 1) * res(width, width) + (conv(width, width) if i < len(widths) - 1 else 0)
    total += (2 * blocks + 1) * attention(width) if i in attention_levels else 0
    down = width
  for i, width in reversed(list(enumerate(widths))):
    total += res(up, width) + blocks * res(width, width) + (conv(width, width) if i else 0)
    up = width
  return total


@functools.cache
def small():
  model = build(AUTOENCODERS, SMALL)
  return model, jax.jit(model.init)(jax.random.key(0), pictures())


@functools.cache
def run(method):
  """A method of the small model, compiled: (params, array) -> arrays."""
  return jax.jit(functools.partial(small()[0].apply, method=method))


def pictures(n=3, size=16):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, size, size, 3)), jnp.float32)


@pytest.mark.parametrize("variant", COUNTS)
def test_published_sizes(variant):
  model = kl(variant=variant)
  shapes = shapes_of(model)
  assert tree.count(shapes) == COUNTS[variant] == by_hand(model.widths, model.latent_channels, attention_levels=model.attention_levels)
  assert (variant not in ("sd", "sdxl")) or len(jax.tree.leaves(shapes)) == 248
  mesh = parallel.make_mesh(data=2, fsdp=4)
  parallel.shardings(shapes["params"], mesh)              # raises where a large leaf has no rule


@pytest.mark.parametrize("variant,latent", [("f4", (64, 3)), ("f16", (16, 16)), ("tiny", (16, 4))])
def test_latent_sizes(variant, latent):
  model = kl(variant=variant)
  params = shapes_of(model)
  image = jax.ShapeDtypeStruct((2, model.image_size, model.image_size, 3), jnp.float32)
  mean, std = jax.eval_shape(functools.partial(model.apply, method="encode"), params, image)
  assert mean.shape == std.shape == (2, latent[0], latent[0], latent[1]) and model.latent_size == latent[0]
  assert jax.eval_shape(functools.partial(model.apply, method="decode"), params, mean).shape == image.shape


def test_a_random_model_reconstructs_finite_pictures_and_latents_carry_the_scale():
  _, params = small()
  image = pictures()
  mean, std = run("encode")(params, image)
  bare_mean, log_variance = run("posterior")(params, image)
  np.testing.assert_allclose(mean, 0.5 * bare_mean, rtol=1e-6)
  np.testing.assert_allclose(std, 0.5 * jnp.exp(log_variance / 2), rtol=1e-6)
  made = run("decode")(params, mean)
  assert made.dtype == mean.dtype == std.dtype == jnp.float32 and made.shape == image.shape and np.isfinite(made).all()
  np.testing.assert_allclose(made, jnp.clip(run("__call__")(params, image), -1, 1), atol=1e-5)


def test_log_variances_are_clamped():
  _, params = small()
  inner = dict(params["params"], quant_conv=dict(params["params"]["quant_conv"], bias=jnp.asarray([0.0] * 4 + [1e4, -1e4, 1e4, -1e4])))
  _, std = run("encode")({"params": inner}, pictures())
  np.testing.assert_allclose(std[0, 0, 0], 0.5 * np.exp([10, -15, 10, -15]), rtol=1e-4)


def test_rows_are_independent():
  _, params = small()
  image = pictures()
  changed = run("__call__")(params, image.at[0].set(0.0))
  np.testing.assert_allclose(changed[1:], run("__call__")(params, image)[1:], atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_outputs():
  _, params = small()
  half = build(AUTOENCODERS, SMALL | dict(dtype="bfloat16", remat="full"))
  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), pictures()))} == {jnp.dtype("float32")}
  made = jax.jit(half.apply)(params, pictures())
  assert made.dtype == jnp.float32
  assert np.abs(made - run("__call__")(params, pictures())).mean() < 0.02


def test_the_posterior_is_sampled_by_key_and_record():
  mean, std = jnp.zeros((3, 2, 2, 4)), jnp.ones((3, 2, 2, 4))
  ids = jnp.asarray([7, 8, 9], jnp.uint32)
  key = lambda: jax.random.key(1)
  drawn = draw_latents(mean, std, key(), ids)
  np.testing.assert_array_equal(draw_latents(mean[:1], std[:1], key(), ids[1:2])[0], drawn[1])
  assert not np.allclose(drawn[0], drawn[1])
  np.testing.assert_array_equal(draw_latents(mean, 0 * std, key(), ids), mean)


def test_pixel_blocks_and_their_inverse():
  x = pictures(2, 8)
  blocks = to_depth(x, 4)
  assert blocks.shape == (2, 2, 2, 48)
  np.testing.assert_array_equal(blocks[0, 1, 0].reshape(4, 4, 3), x[0, 4:, :4])
  np.testing.assert_array_equal(from_depth(blocks, 4), x)


def test_sides_that_do_not_divide_are_refused():
  with pytest.raises(ConfigError, match="reduces its pictures 4 times; 16×18"):
    jax.eval_shape(small()[0].apply, small()[1], jnp.zeros((1, 16, 18, 3)))
