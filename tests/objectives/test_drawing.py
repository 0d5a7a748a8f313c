"""Drawing and editing as functions of parameters: what is known comes back, what is asked for arrives at the denoiser."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import plans, schedules
from mmdiff.diffusion.guidance import guide
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
  assert set(served(made(), encodes=True)) == {"sample", "edit", "text_states", "encode_text", "encode_image", "encode", "decode"}
  assert set(served(made(), encodes=False)) == {"sample", "edit", "text_states", "encode_text"}


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


def test_a_caption_depends_on_its_own_pieces():
  """Pictures of a short caption are the same beside one of several pieces, as prompt and as what guidance points away from."""
  class Short(Words):
    length = 6
  draw = drawing(denoiser=Stub(), condition=Short(), encode=Coder(), prediction="eps", kind="discrete")
  longer = lambda tokens, mask: (np.pad(tokens, ((0, 0), (0, 12))), np.pad(mask, ((0, 0), (0, 12))))
  beside = longer(TOKENS, MASK)
  text = draw.encode_text(params(), *beside)
  assert text["mask"][:, :6].all() and not text["mask"][:, 6:].any()
  nothing = draw.encode_text(params(), *longer(TOKENS, np.zeros_like(MASK)))
  assert nothing["mask"][:, :6].all() and not nothing["mask"][:, 6:].any()
  beside[1][1, :12] = True                               # the second caption has a piece more
  beside[0][1, 6:12] = 3
  assert draw.encode_text(params(), *beside)["mask"].sum(1).tolist() == [6, 12]
  sample = lambda words, away: draw.sample(params(), *words, SEEDS, plan(2), negative=away, decode=False)
  alone = sample((TOKENS, MASK), (TOKENS[::-1], MASK[::-1]))
  there = sample(beside, longer(TOKENS[::-1], MASK[::-1]))
  np.testing.assert_allclose(there[0], alone[0], atol=1e-5)
  assert np.abs(there[1] - alone[1]).max() > 1e-3
  away = sample((TOKENS[::-1], MASK[::-1]), (TOKENS, MASK))
  np.testing.assert_allclose(sample(longer(TOKENS[::-1], MASK[::-1]), beside)[0], away[0], atol=1e-5)


class Two(nn.Module):
  """One number for prompts and another for what guidance points away from, over a picture that tells them apart."""
  image_size: int = 4
  channels: int = 4

  @nn.compact
  def __call__(self, x, time, text):
    word = text["pooled"][:, 0][:, None, None, None]
    return jnp.tanh(word + jnp.arange(x[0].size, dtype=jnp.float32).reshape(1, *x.shape[1:]) / 64) + self.param(
      "zero", nn.initializers.zeros, ())


def test_guidance_and_its_rescale_reach_the_loop():
  """One step of DDIM is (x - sigma eps) / alpha with the guided eps of `guidance.guide`."""
  draw = made(Two())
  own = params() | dict(denoiser=dict(zero=jnp.zeros(())))
  start = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
  told = [draw.encode_text(own, TOKENS, MASK), draw.encode_text(own, jnp.zeros_like(TOKENS), jnp.zeros_like(MASK))]
  prompt, nothing = (draw.output(own, start, schedules.Level(*jnp.ones((3, 2))), text) for text in told)
  seen = []
  for scale, rescale in ((1.0, 0.0), (4.0, 0.0), (4.0, 0.7)):
    one = plans.plan("ddim", LEVELS, steps=1, guidance=scale, rescale=rescale)
    alpha, sigma = one.table[0, :2]
    found = draw.sample(own, TOKENS, MASK, SEEDS, one, noisy=start, decode=False)
    np.testing.assert_allclose(found, (start - sigma * guide(prompt, nothing, scale, rescale)) / alpha, rtol=1e-4, atol=1e-3)
    seen.append(np.asarray(found))
  assert min(np.abs(seen[0] - seen[1]).max(), np.abs(seen[1] - seen[2]).max()) > 0.1


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


def test_sizes_are_six_numbers_and_noise_has_the_denoisers_layout():
  drawn = lambda size, **more: made(Numbers()).sample(params(Numbers()), TOKENS, MASK, SEEDS, plan(), size=size, decode=False, **more)
  assert drawn(jnp.zeros((2, 6))).shape == (2, 4, 4, 4)
  with pytest.raises(ConfigError, match=r"size: expected \[6\] for each picture, found \[4\]"):
    drawn(jnp.zeros((2, 4)))
  with pytest.raises(ConfigError, match=r"noisy latents: expected \[h, w, 4\] for each picture, found \[4, 4, 8\]"):
    drawn(None, noisy=jnp.zeros((2, 4, 4, 8)))
