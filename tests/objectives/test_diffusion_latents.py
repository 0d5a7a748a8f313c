"""Diffusion on latents: what is computed online and what was computed before are one; decoding inside the sampler."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Context
from mmdiff.models import flops
from mmdiff.models.unet import unet
from mmdiff.objectives.diffusion import _time_options, diffusion

SIZE, FACTOR, CHANNELS, LENGTH = 8, 2, 4, 6


class Coder(nn.Module):
  """Patches of two pixels, projected; the smallest module that `encode=` takes."""
  latent_channels: int = CHANNELS
  factor: int = FACTOR

  def setup(self):
    self.down, self.up = nn.Dense(self.latent_channels), nn.Dense(3 * FACTOR**2)

  def encode(self, x):
    b, h, w, c = x.shape
    mean = self.down(x.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c))
    return mean, 0.1 + jnp.abs(mean)

  def decode(self, z):
    b, h, w, _ = z.shape
    return self.up(z).reshape(b, h, w, 2, 2, 3).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, 3)

  def __call__(self, x):
    return self.decode(self.encode(x)[0])


class Stub(nn.Module):
  """Reads everything that a UNet reads, and keeps what it makes of the text."""
  image_size: int = SIZE // FACTOR
  channels: int = CHANNELS
  sizes: int = 6
  keeps_text = True

  @nn.compact
  def __call__(self, x, time, text):
    if self.has_variable("cache", "words"):
      words = self.get_variable("cache", "words")
    else:
      seen = jnp.where(text["mask"][..., None], text["tokens"], 0).sum(1)
      words = nn.Dense(self.channels, name="words")(jnp.concatenate([seen, text["pooled"]], -1))
      if self.is_mutable_collection("cache") and not self.is_initializing():
        self.put_variable("cache", "words", words)
    size = nn.Dense(self.channels, name="size")(text["size"].astype(jnp.float32) / 8)
    h = jnp.tanh(x + (words + size)[:, None, None] + 0.001 * time[:, None, None, None])
    return nn.Dense(self.channels, name="out")(h)


class Words(nn.Module):
  """A text encoder with an empty caption of its own, that sees padding as CLIP's does."""
  width: int = 8
  empty = (18, 19)
  sees_padding = True

  @nn.compact
  def __call__(self, tokens, mask):
    states = jnp.cumsum(nn.Embed(20, self.width, name="embed")(jnp.where(mask, tokens, 0)), 1)
    return {"tokens": states, "mask": jnp.ones_like(mask), "pooled": nn.Dense(6, name="projection")(states[:, -1])}


def objective(**options):
  return diffusion(**dict(denoiser=Stub(), condition=Words(), encode=Coder(), schedule="scaled_linear", prediction="eps") | options)


RNG = np.random.default_rng(0)
BATCH = dict(image=RNG.integers(0, 256, (8, SIZE, SIZE, 3), np.uint8), tokens=RNG.integers(1, 18, (8, LENGTH)).astype(np.int32),
             mask=np.arange(LENGTH)[None] < RNG.integers(2, LENGTH + 1, (8, 1)), id=np.arange(8, dtype=np.uint32))


def context():
  return Context((), {}, jnp.int32(0), jax.random.key(3))


@functools.cache
def params():
  return jax.jit(objective().init)(jax.random.key(0), BATCH).params


def test_groups_and_services():
  made = objective()
  assert set(params()) == {"denoiser", "text", "autoencoder"}
  assert {"sample", "plan", "denoise", "loss", "flops", "encode_text", "encode_image", "decode"} <= set(made.predict)
  from_latents = dict(latent_mean=np.zeros((2, 4, 4, 4), np.float32), latent_std=np.zeros((2, 4, 4, 4), np.float32), mask=BATCH["mask"])
  shapes = jax.eval_shape(made.init, jax.random.key(0), from_latents).params
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params())


@pytest.mark.parametrize("uncond", ["empty", "zeros"])
def test_online_is_precomputed(uncond):
  """The loss to 1e-6 and its gradients, with captions dropped; encoders that are frozen by rule get none."""
  made = objective(caption_dropout=0.5, uncond=uncond)
  mean, std = jax.jit(made.predict["encode_image"])(params(), BATCH["image"])
  text = jax.jit(made.predict["encode_text"])(params(), BATCH["tokens"], BATCH["mask"])
  before = dict(latent_mean=mean, latent_std=std, text_states=text["tokens"], text_pooled=text["pooled"], mask=BATCH["mask"],
                id=BATCH["id"])
  step = jax.jit(jax.value_and_grad(lambda p, batch: made.loss(p, context(), batch)[0]))
  one, other = step(params(), BATCH), step(params(), before)
  np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one[1]["denoiser"], other[1]["denoiser"])
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves((one[1]["autoencoder"], other[1]["autoencoder"])))


def test_latents_are_drawn_by_record_and_step():
  made = objective(caption_dropout=0.0)
  loss = jax.jit(lambda batch, key: made.loss(params(), context()._replace(key=key), batch)[0])
  halves = [loss({name: value[part] for name, value in BATCH.items()}, jax.random.key(3)) for part in (slice(0, 4), slice(4, 8))]
  np.testing.assert_allclose(sum(halves) / 2, loss(BATCH, jax.random.key(3)), rtol=1e-6)
  assert not np.allclose(loss(BATCH, jax.random.key(4)), loss(BATCH, jax.random.key(3)))


def test_the_noise_around_latents_may_be_left_out():
  mean = jax.jit(objective().predict["encode_image"])(params(), BATCH["image"])[0]
  of = lambda made, std: made.loss(params(), context(), {name: BATCH[name] for name in ("tokens", "mask", "id")} | dict(
    latent_mean=mean, latent_std=jnp.full_like(mean, std)))[0]
  sampled, alone = jax.jit(functools.partial(of, objective())), jax.jit(functools.partial(of, objective(latents="mean")))
  assert alone(0.5) == alone(0.0) and abs(sampled(0.0) - alone(0.0)) <= 1e-6 and abs(sampled(0.5) - alone(0.5)) > 1e-3


def test_sizes_are_whole_pictures_unless_given():
  made = objective()
  loss = jax.jit(lambda batch: made.loss(params(), context(), batch)[0])
  whole = np.tile(np.asarray([[SIZE, SIZE, 0, 0, SIZE, SIZE]], np.int32), (8, 1))
  np.testing.assert_allclose(loss(BATCH | dict(size=whole)), loss(BATCH), rtol=1e-6)
  assert not np.allclose(loss(BATCH | dict(size=whole + 8)), loss(BATCH))


def test_pictures_are_decoded_inside():
  made = objective()
  plan = made.predict["plan"](steps=3, guidance=2.0)
  assert np.isinf(plan.clip)
  tokens, mask, seeds = BATCH["tokens"][:2], BATCH["mask"][:2], np.arange(2, dtype=np.uint32)
  sample = lambda **options: jax.jit(functools.partial(made.predict["sample"], **options))(params(), tokens, mask, seeds, plan)
  pictures, latents = sample(), sample(decode=False)
  assert pictures.shape == (2, SIZE, SIZE, 3) and latents.shape == (2, 4, 4, 4) and np.abs(pictures).max() <= 1
  np.testing.assert_allclose(made.predict["decode"](params(), latents), pictures, atol=1e-5)
  assert sample(height=4, width=12).shape == (2, 4, 12, 3)


def test_text_is_kept_over_the_loop():
  """The same latents as without keeping, with guidance and without."""
  made, plain = objective(), objective(denoiser=type("Plain", (Stub,), {"keeps_text": False})())
  for guidance in (1.0, 3.0):
    plan = made.predict["plan"](steps=3, guidance=guidance)
    one, other = (jax.jit(functools.partial(each.predict["sample"], decode=False))(
      params(), BATCH["tokens"], BATCH["mask"], BATCH["id"], plan) for each in (made, plain))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_null_is_the_encoders_empty_text_or_zeros():
  made, zeros = objective(), objective(uncond="zeros")
  nothing = np.zeros((1, LENGTH), bool)
  told = made.predict["encode_text"](params(), BATCH["tokens"][:1], nothing)
  start_end = np.asarray([[18, 19, 0, 0, 0, 0]], np.int32)
  said = made.predict["encode_text"](params(), start_end, np.arange(LENGTH)[None] < 2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), told, said)
  blank = zeros.predict["encode_text"](params(), BATCH["tokens"][:1], nothing)
  assert not np.asarray(blank["tokens"]).any() and not np.asarray(blank["pooled"]).any() and blank["mask"].all()


@pytest.mark.long
def test_a_unet_on_latents():
  """Built parts fit together: shapes by tracing alone."""
  denoiser = unet(variant="tiny", image_size=4, width=8, groups=4, text_width=16, heads=2, mults=(1, 2), depths=(0, 1), blocks=1)
  made = diffusion(denoiser=denoiser, condition=Words(), encode=Coder())
  shapes = jax.eval_shape(made.init, jax.random.key(0), BATCH).params
  pictures = jax.eval_shape(made.predict["sample"], shapes, BATCH["tokens"], BATCH["mask"], BATCH["id"], made.predict["plan"](steps=2))
  assert pictures.shape == (8, SIZE, SIZE, 3)
  assert made.predict["flops"](2, LENGTH) == flops.TRAIN * 2 * flops.text_to_image(denoiser, Words(), text_len=LENGTH)


class Input(nn.Module):
  """What it sees comes out."""
  image_size: int = 4
  channels: int = 4

  @nn.compact
  def __call__(self, x, time, text):
    return x + self.param("zero", nn.initializers.zeros, ())


@pytest.mark.parametrize("given, deviation", [(None, 1.0), (0.5, 0.5)])
def test_edm_goes_by_the_latents_deviation(given, deviation):
  """1 unless said otherwise, in training (input, target, weight, times) and in drawing alike; of pixels it is 0.5."""
  made = objective(denoiser=Input(), schedule="edm", prediction="edm", sigma_data=given, latents="mean")
  own = dict(params(), denoiser=dict(zero=jnp.zeros(())))
  n, at = 64, {name: np.resize(BATCH[name], (64, *BATCH[name].shape[1:])) for name in ("tokens", "mask")}
  latents = deviation * np.random.default_rng(0).normal(size=(n, 4, 4, 4)).astype(np.float32)
  batch = at | dict(latent_mean=latents, latent_std=np.zeros_like(latents), id=np.arange(n, dtype=np.uint32))
  value, aux = jax.jit(made.loss)(own, context(), batch)
  # Input and target have unit variance, and are independent at every level: (a - b)² is 2 on average. The weight of this loss is 1.
  np.testing.assert_allclose(aux.metrics["mse"], 2.0, atol=0.1)
  np.testing.assert_allclose(value, aux.metrics["mse"], rtol=1e-4)
  sigma = 3.0
  total = sigma**2 + deviation**2
  x = np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32)
  wanted = (deviation**2 / total + sigma * deviation / total) * x        # c_skip + c_out c_in
  t = float(np.log(sigma / 0.002) / np.log(80 / 0.002))
  tokens, mask = BATCH["tokens"][:2], BATCH["mask"][:2]
  np.testing.assert_allclose(made.predict["denoise"](own, x, jnp.full(2, t), tokens, mask), wanted, rtol=1e-4, atol=1e-5)
  plan = made.predict["plan"]("euler", steps=1)
  total = 80.0**2 + deviation**2
  drawn = made.predict["sample"](own, tokens, mask, np.arange(2, dtype=np.uint32), plan, noisy=80 * x, decode=False)
  np.testing.assert_allclose(drawn, (deviation**2 / total + 80 * deviation / total) * 80 * x, rtol=1e-4, atol=1e-4)


def test_edms_training_times_follow_the_deviation():
  """ln sigma is as far from the data's deviation as in EDM, whose data have 0.5: -1.2 + ln 2 for 1."""
  assert _time_options("lognormal", None, None, sigma_data=0.5) == (-1.2, 1.2)
  np.testing.assert_allclose(_time_options("lognormal", None, None, sigma_data=1.0), (-1.2 + np.log(2), 1.2))
  assert _time_options("lognormal", -0.4, 1.0, sigma_data=1.0) == (-0.4, 1.0)
  assert _time_options("logit_normal", None, None, sigma_data=1.0) == (0.6, 1.3)


def test_channels_must_fit():
  with pytest.raises(ConfigError, match="latents of this encode have 4 channels"):
    objective(denoiser=Stub(channels=3))
  with pytest.raises(ConfigError, match="set objective.encode"):
    objective(encode=None)
