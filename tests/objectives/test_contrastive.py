"""The contrastive objective: one global-batch loss however the batch is divided, and what predictions return."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmdiff import optim
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Context, Variables
from mmdiff.models.clip import clip
from mmdiff.nn import pool
from mmdiff.objectives.contrastive import at_most, contrastive
from mmdiff.train.state import init_state
from mmdiff.train.step import make_train_step

KEY = jax.random.key(2)


class Towers(nn.Module):
  """The smallest two towers: they compile in a tenth of a transformer's time. `tests/train/test_objectives.py` has real ones."""
  scale_init: float = 0.0
  bias_init: float | None = None
  has_statistics = False

  def setup(self):
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(self.scale_init), ())
    if self.bias_init is not None:
      self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.bias_init), ())
    self.image = nn.Sequential([nn.Dense(256), nn.tanh, nn.Dense(16)])
    self.text = nn.Embed(32, 16)

  def encode_image(self, image):
    return self.image(image.reshape(image.shape[0], -1) / 255)

  def encode_text(self, tokens, mask):
    return pool.average(self.text(tokens), mask)

  def __call__(self, image, tokens, mask):
    return self.encode_image(image), self.encode_text(tokens, mask)


def batch_of(rows, seed=0):
  r = np.random.default_rng(seed)
  return dict(image=jnp.asarray(r.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)),
              tokens=jnp.asarray(r.integers(0, 32, (rows, 6), dtype=np.int32)),
              mask=jnp.asarray(np.arange(6)[None] < r.integers(1, 7, (rows, 1))), id=jnp.arange(rows, dtype=jnp.uint32))


@functools.cache
def start(loss="softmax"):
  return jax.jit(contrastive(model=Towers(), loss=loss).init)(KEY, batch_of(2)).params


def context(extra=(), microbatches=1):
  return Context(extra, {}, jnp.int32(0), KEY, microbatches)


def value_and_grads(objective, params, batch, microbatches=1):
  fn = lambda params, batch: objective.loss(params, context(microbatches=microbatches), batch)
  (loss, aux), grads = jax.jit(jax.value_and_grad(fn, has_aux=True))(params, batch)
  return loss, grads, dict(aux.metrics)


def assert_close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * max(1.0, np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_1024_pairs_are_the_same_step_however_they_are_divided(loss):
  """1 × 1024 = 4 microbatches of 256 = 8 devices × 128, and chunked = dense, in the loss and every gradient."""
  dense, chunked = (contrastive(model=Towers(), loss=loss, chunk=chunk) for chunk in (0, 64))
  batch, params = batch_of(1024), start(loss)
  expected = value_and_grads(dense, params, batch)
  assert_close(value_and_grads(chunked, params, batch, microbatches=4), expected)

  mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    placed = jax.device_put(batch, NamedSharding(mesh, P(("data", "fsdp"))))
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    assert_close(value_and_grads(chunked, whole, placed, microbatches=1 if loss == "softmax" else 4), expected)


def test_microbatches_hold_one_chunk_of_activations():
  objective = contrastive(model=Towers(), chunk=64)
  batch, params = batch_of(1024), start()

  def temporaries(microbatches):
    fn = jax.grad(lambda params, batch: objective.loss(params, context(microbatches=microbatches), batch)[0])
    return jax.jit(fn).lower(params, batch).compile().memory_analysis().temp_size_in_bytes
  assert temporaries(8) < 0.4 * temporaries(1)


@pytest.mark.parametrize("loss,scale,bias", [("softmax", 1 / 0.07, None), ("sigmoid", 10.0, -10.0)])
def test_losses_bring_their_own_start(loss, scale, bias):
  objective, batch, params = contrastive(model=Towers(), loss=loss), batch_of(4), start(loss)
  assert params.get("logit_bias") == bias and abs(objective.predict["logit_scale"](params) - scale) <= 1e-4
  metrics = jax.jit(objective.predict["loss"])(params, batch, KEY)
  assert set(metrics) == {"loss", "accuracy_image_to_text", "accuracy_text_to_image", "logit_scale"} | ({"logit_bias"} if bias else set())


def scales(objective, start, steps, gradient):
  """exp of the logit scale after each of `steps` updates with Lion at a rate of 1, the gradient of the scale fixed by hand."""
  params = {"logit_scale": jnp.float32(start), "image": {"kernel": jnp.zeros((2,))}}
  tx, _ = optim.make(dict(default=dict(name="lion", lr=1.0, decay="constant")), 10, ("image", "logit_scale"))
  state, found = tx.init(params), []
  for step in range(steps):
    grads = {"logit_scale": jnp.float32(gradient(step)), "image": {"kernel": jnp.zeros((2,))}}
    updates, state = tx.update(grads, state, params)
    params = objective.project(optax.apply_updates(params, updates))
    found.append(float(jnp.exp(params["logit_scale"])))
  return found


def test_the_scale_is_never_above_100_and_comes_back_at_once():
  """The parameter itself, after every update, so that no momentum carries it away; with the sigmoid it has no limit."""
  model = Towers()
  softmax, sigmoid = contrastive(model=model), contrastive(model=Towers(), loss="sigmoid")
  outward = lambda step: -1.0
  found = scales(softmax, 2.0, 20, outward)
  assert max(found) <= 100.0 and found[-1] == pytest.approx(100, rel=1e-6)
  back = scales(softmax, 2.0, 30, lambda step: -1.0 if step < 10 else 1.0)
  assert max(back) <= 100.0 and back[-1] < 1.0
  assert scales(sigmoid, 2.0, 20, outward)[-1] > 1e6
  assert softmax.project({"logit_scale": None, "image": {}}) == {"logit_scale": None, "image": {}}         # frozen: left as it is


def test_the_step_holds_the_scale_at_100():
  """Through the one step, with a loss that pulls it up and a rate of Lion's that would carry it to exp(9) in five."""
  objective = contrastive(model=Towers())
  start = {"logit_scale": jnp.float32(4.0), "image": {"kernel": jnp.ones((2,))}}
  pulled = objective._replace(init=lambda key, batch: Variables(start),
                              loss=lambda params, context, batch: (-params["logit_scale"], Aux({})))
  tx, _ = optim.make(dict(default=dict(name="lion", lr=1.0, decay="constant")), 10, ("image", "logit_scale"))
  batch = dict(counts=np.zeros((4, 1), np.int32))
  state, step = init_state(pulled, tx, (), ("eval",), 1, KEY, batch), jax.jit(make_train_step(pulled, tx, ema=dict(eval=0.5)))
  for _ in range(5):
    state, _ = step(state, batch)
    assert jnp.exp(state.params["logit_scale"]) <= 100 and jnp.exp(state.ema["eval"]["logit_scale"]) <= 100
  assert float(objective.predict["logit_scale"](state.params)) == pytest.approx(100, rel=1e-6)


def test_a_start_beyond_the_limit_counts_as_100():
  """Weights that come from elsewhere; the gradient is the parameter's own on both sides."""
  limit = float(np.log(100))
  assert at_most(jnp.float32(5.0), limit) == pytest.approx(limit, rel=1e-6) and at_most(jnp.float32(1.0), limit) == 1
  assert jax.grad(lambda x: at_most(x, limit))(5.0) == 1 and jax.grad(lambda x: -at_most(x, limit))(5.0) == -1
  objective, batch, params = contrastive(model=Towers()), batch_of(4), start() | {"logit_scale": jnp.float32(7.0)}
  assert jax.jit(objective.predict["loss"])(params, batch, KEY)["logit_scale"] <= 100.001
  assert objective.predict["logit_scale"](params) == 100


def test_predictions_are_unit_vectors_and_agree_with_the_loss():
  objective, batch, params = contrastive(model=Towers(), chunk=2), batch_of(6), start()
  image = jax.jit(objective.predict["embed_image"])(params, batch["image"])
  text = jax.jit(objective.predict["embed_text"])(params, batch["tokens"], batch["mask"])
  assert jnp.abs(jnp.linalg.norm(image, axis=-1) - 1).max() <= 1e-5 and image.shape == text.shape == (6, 16)
  evaluate = jax.jit(objective.predict["loss"])
  metrics = evaluate(params, batch, KEY)
  assert abs(metrics["loss"] - value_and_grads(objective, params, batch)[0]) <= 1e-5
  padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch) | {"valid": jnp.arange(8) < 6}
  assert abs(evaluate(params, padded, KEY)["loss"] - metrics["loss"]) <= 1e-5


def test_resnet_statistics_go_through_extra_and_refuse_microbatches():
  model = clip(variant="tiny-rn", image_width=8, image_heads=2, blocks=(1, 1, 1, 1), text_len=6, text_width=16, text_depth=1, text_heads=2,
               embed_dim=16, vocab=32)
  objective, batch = contrastive(model=model), batch_of(4) | {"image": np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)}
  params, extra = jax.eval_shape(objective.init, KEY, batch)
  drawn = np.random.default_rng(1)
  kernel = lambda shape: drawn.normal(size=shape) * np.prod(shape[:-1]) ** -0.5
  value = lambda x: jnp.asarray(kernel(x.shape) if x.ndim > 1 else drawn.uniform(0.5, 1.5, x.shape), jnp.float32)
  params, extra = jax.tree.map(value, (params, extra))

  @jax.jit
  def both(params, extra):
    _, aux = objective.loss(params, context(extra), batch)
    embed = lambda extra: objective.predict["embed_image"](params, batch["image"], extra=extra)
    return aux.extra, embed(extra), embed(aux.extra)
  later, before, after = both(params, extra)
  assert jax.tree.structure(later) == jax.tree.structure(extra)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.any(a != b)), later, extra)) and np.abs(before - after).max() > 1e-3
  with pytest.raises(ConfigError, match="accumulate > 1 is not exact with batch statistics"):
    objective.loss(params, context(extra, microbatches=2), batch)


def test_options_that_mean_nothing_are_refused():
  with pytest.raises(ConfigError, match="bias_init"):
    contrastive(model=Towers(), bias_init=-10.0)
  with pytest.raises(ConfigError, match="chunk"):
    contrastive(model=Towers(), chunk=-1)


def test_the_sigmoid_has_no_limit():
  objective = contrastive(model=Towers(), loss="sigmoid")
  params = {"logit_scale": jnp.float32(5.0)}
  assert float(objective.predict["logit_scale"](params)) == pytest.approx(float(np.exp(5.0)), rel=1e-5)
