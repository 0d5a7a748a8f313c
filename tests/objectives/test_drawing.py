"""Drawing and editing as functions of parameters: what is known comes back, what is asked for arrives at the denoiser."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import plans, schedules
from mmdiff.objectives.drawing import drawing, served
from tests.objectives.test_diffusion_latents import BATCH, Coder, Stub, Words

LEVELS = schedules.schedule("scaled_linear")
TOKENS, MASK, SEEDS = BATCH["tokens"][:2], BATCH["mask"][:2], np.arange(2, dtype=np.uint32)


class Concats(Stub):
  """A denoiser that reads further channels."""
  @nn.compact
  def __call__(self, x, time, text):
    more = nn.Dense(self.channels, name="more")(text["concat"]) if "concat" in text else 0
    return super().__call__(x + more, time, text)


class Numbers(nn.Module):
  """What it is told of sizes comes out."""
  image_size: int = 4
  channels: int = 4
  sizes: int = 5

  @nn.compact
  def __call__(self, x, time, text):
    return jnp.zeros_like(x) + text["size"][:, 4][:, None, None, None] + self.param("zero", nn.initializers.zeros, ())


def made(denoiser=None, **options):
  return drawing(**dict(denoiser=denoiser or Stub(), condition=Words(), encode=Coder(), prediction="eps", kind="discrete") | options)


@functools.cache
def params(denoiser=None, concat=0):
  denoiser = denoiser or Stub()
  k = jax.random.split(jax.random.key(0), 3)
  text = Words().init(k[0], TOKENS, MASK)["params"]
  told = Words().apply({"params": text}, TOKENS, MASK) | dict(size=jnp.zeros((2, 6), jnp.int32))
  told |= dict(concat=jnp.zeros((2, 4, 4, concat))) if concat else {}
  return dict(text=text, denoiser=denoiser.init(k[1], jnp.zeros((2, 4, 4, 4)), jnp.zeros(2), told)["params"],
              autoencoder=Coder().init(k[2], jnp.zeros((2, 8, 8, 3)))["params"])


def plan(steps=4, **options):
  return plans.plan("ddim", LEVELS, steps=steps, guidance=2.0, **options)


def test_services():
  assert set(served(made(), encodes=True)) == {"sample", "edit", "encode_text", "encode_image", "decode"}
  assert set(served(made(), encodes=False)) == {"sample", "edit", "encode_text"}


def test_a_mask_of_nothing_gives_the_picture_back():
  """Latents of the picture, since the known region is put back without noise at the end."""
  edit = jax.jit(functools.partial(made().edit, decode=False))
  image = BATCH["image"][:2]
  clean = made().encode_image(params(), image)[0]
  nothing, all_ = np.zeros((2, 8, 8), np.float32), np.ones((2, 8, 8), np.float32)
  np.testing.assert_allclose(edit(params(), TOKENS, MASK, SEEDS, plan(), image, where=nothing), clean, atol=1e-5)
  everything = edit(params(), TOKENS, MASK, SEEDS, plan(), image, where=all_, fresh=np.ones(2, bool))
  sample = jax.jit(functools.partial(made().sample, decode=False))
  np.testing.assert_allclose(everything, sample(params(), TOKENS, MASK, SEEDS, plan()), atol=1e-5)
  half = nothing.copy()
  half[:, :4] = 1
  some = np.asarray(edit(params(), TOKENS, MASK, SEEDS, plan(), image, where=half))
  np.testing.assert_allclose(some[:, 2:], clean[:, 2:], atol=1e-5)
  assert np.abs(some[:, :2] - clean[:, :2]).max() > 0.1


def test_strength_takes_the_last_steps():
  image = BATCH["image"][:2]
  edit = jax.jit(functools.partial(made().edit, decode=False))
  few, many = (edit(params(), TOKENS, MASK, SEEDS, plan(10, strength=s), image) for s in (0.1, 0.9))
  clean = made().encode_image(params(), image)[0]
  assert np.abs(few - clean).mean() < np.abs(many - clean).mean()
  assert int(plan(10, strength=0.35).rows) == 3
  given = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
  assert np.abs(edit(params(), TOKENS, MASK, SEEDS, plan(), image, latents=given) - edit(
    params(), TOKENS, MASK, SEEDS, plan(), image)).max() > 1e-3


def test_sides_that_do_not_fit_are_filled_up():
  for height, width in ((7, 8), (8, 5), (3, 3)):
    pictures = made().edit(params(), TOKENS, MASK, SEEDS, plan(2), BATCH["image"][:2, :height, :width])
    assert pictures.shape == (2, height, width, 3)


def test_a_model_of_more_channels_sees_mask_and_masked_picture():
  denoiser = Concats()
  draw = made(denoiser, more_channels=5)
  own = params(denoiser, 5)
  image, where = BATCH["image"][:2], np.zeros((2, 8, 8), np.float32)
  where[:, 2:6, 2:6] = 1
  one = draw.edit(own, TOKENS, MASK, SEEDS, plan(), image, where=where, fresh=np.ones(2, bool), decode=False)
  inside, outside = image.copy(), image.copy()
  inside[:, 3, 3] ^= 255
  outside[:, 0, 0] ^= 255
  again = lambda image: draw.edit(own, TOKENS, MASK, SEEDS, plan(), image, where=where, fresh=np.ones(2, bool), decode=False)
  np.testing.assert_array_equal(again(inside), one)          # what is masked can't be known
  assert np.abs(again(outside) - one).max() > 1e-4
  with pytest.raises(ConfigError, match="reads 5 channels beside the noisy 4: it fills masks; use inpaint"):
    draw.sample(own, TOKENS, MASK, SEEDS, plan())
  with pytest.raises(ConfigError, match="sampling it is not there"):
    made(more_channels=3).sample(params(), TOKENS, MASK, SEEDS, plan())


def test_long_captions_are_encoded_piece_by_piece():
  class Short(Words):
    length = 6
  draw = drawing(denoiser=Stub(), condition=Short(), encode=Coder(), prediction="eps", kind="discrete")
  twice = jnp.concatenate([TOKENS, TOKENS[::-1]], 1), jnp.concatenate([MASK, MASK[::-1]], 1)
  text, first, second = (draw.encode_text(params(), *given) for given in (twice, (TOKENS, MASK), (TOKENS[::-1], MASK[::-1])))
  np.testing.assert_allclose(text["tokens"], np.concatenate([first["tokens"], second["tokens"]], 1), atol=1e-6)
  np.testing.assert_allclose(text["pooled"], first["pooled"], atol=1e-6)


def test_a_refiner_is_told_two_aesthetic_scores():
  """Five numbers: the fifth is 6 with the prompt and 2.5 with what guidance points away from."""
  draw = made(Numbers(), aesthetics=(6.0, 2.5))
  one = plans.plan("ddim", LEVELS, steps=1, guidance=1.0)
  own = params() | dict(denoiser=dict(zero=jnp.zeros(())))
  start = np.zeros((2, 4, 4, 4), np.float32)
  level = one.table[0]
  x0 = lambda eps: -level[1] * eps / level[0]
  sample = lambda plan: draw.sample(own, TOKENS, MASK, SEEDS, plan, noisy=start, decode=False)
  np.testing.assert_allclose(sample(one), np.full((2, 4, 4, 4), x0(6.0)), rtol=1e-5)
  np.testing.assert_allclose(sample(plans.plan("ddim", LEVELS, steps=1, guidance=3.0)), np.full((2, 4, 4, 4), x0(2.5 + 3 * 3.5)), rtol=1e-5)
