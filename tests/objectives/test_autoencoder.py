import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Context
from mmdiff.losses import reconstruction as losses
from mmdiff.models import AUTOENCODERS, flops
from mmdiff.models.autoencoder import draw_latents
from mmdiff.models.discriminator import patch
from mmdiff.models.perceptual import STAGES, Perceptual, gradients
from mmdiff.nn.conv import nearest
from mmdiff.objectives import OBJECTIVES
from mmdiff.objectives.autoencoder import autoencoder, last


class Painter(nn.Module):
  """The stub's decoder."""
  def setup(self):
    self.conv_out = nn.Conv(3, (3, 3))

  def __call__(self, features):
    return self.conv_out(features)


class Stub(nn.Module):
  """The smallest model with an autoencoder's methods: it compiles in a twentieth of a real one's time."""
  image_size: int = 8
  scale: float = 0.5

  def setup(self):
    self.encoder, self.up, self.decoder = nn.Conv(8, (2, 2), (2, 2)), nn.Conv(6, (1, 1)), Painter()

  def posterior(self, image):
    return tuple(jnp.split(self.encoder(image), 2, axis=-1))

  def features(self, z):
    return jnp.tanh(self.up(nearest(z)))

  def paint(self, features):
    return self.decoder(features)

  def encode(self, image):
    mean, log_variance = self.posterior(image)
    return self.scale * mean, self.scale * jnp.exp(log_variance / 2)

  def decode(self, latents):
    return jnp.clip(self.paint(self.features(latents / self.scale)), -1, 1)

  def __call__(self, image):
    return self.paint(self.features(self.posterior(image)[0]))


PATCH = dict(name="patch", width=8, layers=1, norm="group")
REAL = dict(name="autoencoder", model=dict(name="kl", variant="tiny", widths=(8, 8), groups=4, image_size=8, patch=1),
            perceptual=dict(name="lpips"), discriminator=PATCH, learned_scale=True)
MODEL, JUDGE, DISTANCE = Stub(), patch(width=4, layers=1, norm="none"), gradients(scales=2)


def objective(**options):
  return autoencoder(**dict(model=MODEL, perceptual=DISTANCE, perceptual_weight=0.7, kl_weight=0.01, discriminator=JUDGE,
                            discriminator_weight=0.5, discriminator_start=3) | options)


def make_batch(n=4, seed=0):
  rng = np.random.default_rng(seed)
  return dict(image=rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), id=rng.integers(0, 2**31, n).astype(np.uint32))


def context(step=3, microbatches=1):
  return Context((), {}, jnp.int32(step), jax.random.key(3), microbatches)


def value_and_gradient(made, microbatches=1):
  """(params, batch, step) -> ((value, aux), gradient), compiled."""
  return jax.jit(lambda params, batch, step: jax.value_and_grad(made.loss, has_aux=True)(params, context(step, microbatches), batch))


@functools.cache
def initial():
  """Parameters whose discriminator has an opinion: it starts so faint that the adaptive weight would stand at its limit."""
  params = jax.jit(objective().init)(jax.random.key(0), make_batch()).params
  return params | {"discriminator": jax.tree.map(lambda leaf: 8 * leaf, params["discriminator"])}


@functools.cache
def whole():
  return value_and_gradient(objective())


@functools.cache
def heard():
  """((value, aux), gradient) of the whole scalar with the discriminator on."""
  return whole()(initial(), make_batch(), 3)


def close(a, b, rtol=1e-4):
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5 * scale), a, b)


def players():
  """The two players written down apart, from the published losses: (generator's terms (nll, −D(x̂), KL) of its parameters, D's loss)."""
  model, judge, distance, batch = MODEL, JUDGE, DISTANCE.distance, make_batch()
  image, fixed = batch["image"] / np.float32(127.5) - 1, initial()

  def draw(weights):
    mean, log_variance = model.apply({"params": weights}, image, method="posterior")
    z = draw_latents(mean, jnp.exp(log_variance / 2), jax.random.key(3), batch["id"])
    return model.apply({"params": weights}, model.apply({"params": weights}, z, method="features"), method="paint"), mean, log_variance

  def generator(weights):
    made, mean, log_variance = draw(weights)
    nll = (jnp.abs(image - made).mean((1, 2, 3)) + 0.7 * distance({}, made, image)).mean()
    return nll, -judge.apply({"params": fixed["discriminator"]}, made).mean(), losses.kl_to_normal(mean, log_variance).mean()

  def discriminator(weights):
    made = draw(fixed["autoencoder"])[0]
    logits = [judge.apply({"params": weights}, x) for x in (image, made)]
    return 0.5 * (jax.nn.relu(1 - logits[0]).mean() + jax.nn.relu(1 + logits[1]).mean())
  return generator, discriminator


@functools.cache
def apart():
  """Gradients of the generator's three terms by its parameters, and of the discriminator's loss by its own."""
  generator, discriminator = players()
  terms = jax.jit(lambda weights: [jax.grad(lambda w, i=i: generator(w)[i])(weights) for i in range(3)])
  return terms(initial()["autoencoder"]), jax.jit(jax.grad(discriminator))(initial()["discriminator"])


def test_one_scalar_gives_both_players_their_own_gradients():
  (_, aux), gradient = heard()
  (nll, adversarial, kl), discriminator = apart()
  weight = float(aux.metrics["adaptive_weight"])
  close(gradient["autoencoder"], jax.tree.map(lambda a, b, c: a + weight * 0.5 * b + 0.01 / 192 * c, nll, adversarial, kl))
  close(gradient["discriminator"], discriminator)


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_kernel():
  (_, aux), _ = heard()
  (nll, adversarial, _), _ = apart()
  norm = lambda tree: float(jnp.linalg.norm(last(tree).ravel()))
  np.testing.assert_allclose(aux.metrics["adaptive_weight"], norm(nll) / (norm(adversarial) + 1e-4), rtol=1e-4)


def test_before_its_start_the_discriminator_neither_learns_nor_is_heard():
  (value, aux), gradient = whole()(initial(), make_batch(), 2)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["discriminator"]))
  without = {name: part for name, part in initial().items() if name != "discriminator"}
  (alone, _), gradient_alone = value_and_gradient(objective(discriminator=None))(without, make_batch(), 2)
  np.testing.assert_allclose(value, alone, rtol=1e-6)
  close(gradient["autoencoder"], gradient_alone["autoencoder"])
  assert float(heard()[0][0]) != float(value) and np.isfinite(aux.metrics["adaptive_weight"])


def test_microbatches_change_nothing_or_are_refused():
  """The adaptive weight couples the batch; it is that of the whole batch."""
  assert objective().couples_batch and not objective(adaptive=False).couples_batch and not objective(discriminator=None).couples_batch
  (value, aux), gradient = value_and_gradient(objective(), microbatches=2)(initial(), make_batch(), 3)
  np.testing.assert_allclose(value, heard()[0][0], rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["adaptive_weight"], heard()[0][1].metrics["adaptive_weight"], rtol=1e-4)
  close(gradient, heard()[1])
  with pytest.raises(ConfigError, match="batch norm.*accumulate=1"):
    objective(discriminator=patch(width=4, layers=1, norm="batch")).loss(initial(), context(microbatches=2), make_batch())


def test_built_from_a_config_with_its_groups():
  made = build(OBJECTIVES, REAL)
  params = jax.eval_shape(made.init, jax.random.key(0), make_batch()).params
  assert set(params) == {"autoencoder", "discriminator", "perceptual", "log_scale"}
  assert set(initial()) == {"autoencoder", "discriminator"}
  loss = lambda params, batch: made.loss(params, context(), batch)
  value, aux = jax.eval_shape(loss, params, dict(make_batch(), image=jnp.zeros((4, 16, 16, 3))))
  assert value.shape == () and {"l1", "perceptual", "kl", "generator", "discriminator", "adaptive_weight"} <= set(aux.metrics)


def test_the_learned_scale_and_a_held_network():
  weighted = Perceptual(lambda key: {"weight": jnp.ones(())}, lambda params, a, b: params["weight"] * losses.mse(a, b))
  made = objective(discriminator=None, learned_scale=True, perceptual=weighted)
  params = {"autoencoder": initial()["autoencoder"], "log_scale": jnp.float32(0.3), "perceptual": {"weight": jnp.ones(())}}
  (value, aux), gradient = value_and_gradient(made)(params, make_batch(), 3)
  error = float(aux.metrics["l1"] + 0.7 * aux.metrics["perceptual"])
  np.testing.assert_allclose(value, error / np.exp(0.3) + 0.3 + 0.01 / 192 * float(aux.metrics["kl"]), rtol=1e-5)
  np.testing.assert_allclose(gradient["log_scale"], 1 - error / np.exp(0.3), rtol=1e-4)
  assert float(gradient["perceptual"]["weight"]) == 0 and np.asarray(last(gradient["autoencoder"])).any()


def test_predictions():
  made, batch = objective(), make_batch()
  predict = {name: jax.jit(made.predict[name]) for name in ("encode", "decode", "reconstruct", "loss")}
  mean, std = predict["encode"](initial(), batch["image"])
  assert mean.shape == std.shape == (4, 4, 4, 4) and mean.dtype == std.dtype == jnp.float32 and (np.asarray(std) > 0).all()
  bare, _ = MODEL.apply({"params": initial()["autoencoder"]}, batch["image"] / np.float32(127.5) - 1, method="posterior")
  np.testing.assert_allclose(mean, 0.5 * bare, rtol=1e-5, atol=1e-6)
  again = predict["reconstruct"](initial(), batch["image"])
  np.testing.assert_allclose(predict["decode"](initial(), mean), again, atol=1e-5)
  assert np.abs(again).max() <= 1 and again.shape == (4, 8, 8, 3)
  found = predict["loss"](initial(), batch, jax.random.key(3))
  trained = heard()[0][1].metrics
  for name in ("l1", "perceptual", "kl", "mse"):
    np.testing.assert_allclose(found[name], trained[name], rtol=1e-4)
  squared = jax.jit(objective(pixel="l2").predict["loss"])(initial(), batch, jax.random.key(3))
  np.testing.assert_allclose(squared["loss"] - found["loss"], found["mse"] - found["l1"], rtol=1e-4)
  part = predict["loss"](initial(), batch | dict(valid=np.arange(4) < 2), jax.random.key(3))
  few = predict["loss"](initial(), {name: value[:2] for name, value in batch.items()}, jax.random.key(3))
  np.testing.assert_allclose(part["loss"], few["loss"], rtol=1e-5)


def test_flops_of_a_step_are_three_passes_of_each_network():
  """The perceptual network sees both pictures and goes back to one's pixels; the discriminator sees both, and the generator goes back
  through it once more."""
  made = build(OBJECTIVES, REAL | dict(model=dict(REAL["model"], image_size=64)))
  model, image = build(AUTOENCODERS, REAL["model"]), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  one = flops.traced(model.apply, jax.eval_shape(model.init, jax.random.key(0), image), image)
  sides, widths = (64, 64, 32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4), [3] + [width for stage in STAGES for width in stage]
  vgg = 2 * 9 * sum(side**2 * a * b for side, a, b in zip(sides, widths, widths[1:]))
  judge = 2 * 16 * (32**2 * 3 * 8 + 31**2 * 8 * 16 + 30**2 * 16)
  assert made.predict["flops"](5, 0) == 5 * (3 * one + 3 * vgg + 7 * judge)


def test_negative_weights_are_refused():
  with pytest.raises(ConfigError, match="not negative, found 1.0, -1.0"):
    objective(perceptual_weight=1.0, kl_weight=-1.0)
