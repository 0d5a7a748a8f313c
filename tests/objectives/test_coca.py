"""The coca objective: one loss however the batch is divided, weights that switch its halves off, and captions from predict."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmdiff import decode
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Context
from mmdiff.models import flops
from mmdiff.models.coca import coca as captioner
from mmdiff.objectives.coca import coca

KEY = jax.random.key(2)


def tiny(**options):
  return captioner(**(dict(variant="tiny", image_size=8, patch=4, image_width=16, image_depth=1, image_heads=2, text_width=16, text_heads=2,
                           unimodal_depth=1, multimodal_depth=1, queries=3, embed_dim=8, vocab=20, text_len=6) | options))


def batch_of(rows, seed=0):
  r = np.random.default_rng(seed)
  lengths = r.integers(2, 7, (rows, 1))
  return dict(image=jnp.asarray(r.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)),
              tokens=jnp.asarray(r.integers(0, 20, (rows, 6), dtype=np.int32)), mask=jnp.asarray(np.arange(6)[None] < lengths))


@functools.cache
def start(model):
  """Drawn by numpy, since an initialisation takes as long to compile as the model."""
  shapes, r = jax.eval_shape(coca(model=model).init, KEY, batch_of(2)).params, np.random.default_rng(0)
  drawn = jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape) * (0.6 if x.ndim > 1 else 0.3), jnp.float32), shapes)
  return drawn | {"logit_scale": jnp.float32(np.log(1 / 0.07))}


def loss_of(objective, params, batch):
  return objective.loss(params, Context((), {}, jnp.int32(0), KEY), batch)


def value_and_grads(objective, params, batch, microbatches=1):
  context = Context(extra=(), ema={}, step=jnp.int32(0), key=KEY, microbatches=microbatches)
  loss = lambda params, batch: objective.loss(params, context, batch)
  (value, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
  return value, aux.metrics, grads


@pytest.mark.long
@pytest.mark.parametrize("lambda_con", [1.0, 0.0])
def test_the_loss_is_the_same_step_however_it_is_divided(lambda_con):
  """1 × 64 = 4 microbatches of 16 = 8 devices × 8, and chunked = dense, though captions differ in length."""
  model = tiny()
  dense = coca(model=model, lambda_con=lambda_con)
  chunked = coca(model=model, lambda_con=lambda_con, chunk=8, logits_chunk=2)
  batch = batch_of(64)
  params = start(model)
  expected = value_and_grads(dense, params, batch)

  def assert_close(found):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
      assert jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max() <= 1e-5 + 1e-4 * jnp.abs(b).max()
  assert chunked.couples_batch
  assert_close(value_and_grads(chunked, params, batch, microbatches=4))
  if not lambda_con:
    return
  mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    placed = jax.device_put(batch, NamedSharding(mesh, P(("data", "fsdp"))))
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    assert_close(value_and_grads(chunked, whole, placed))


def test_the_caption_loss_is_the_mean_over_real_next_tokens():
  model = tiny()
  objective = coca(model=model, lambda_con=0.0, lambda_cap=1.0)
  batch = batch_of(5)
  params = start(model)
  other = dict(batch, tokens=jnp.where(batch["mask"], batch["tokens"], 7))

  @jax.jit
  def computed(params):
    hidden = model.apply({"params": params}, batch["image"], batch["tokens"], batch["mask"])[2]
    value, aux = loss_of(objective, params, batch)
    return value, dict(aux.metrics), hidden, objective.predict["loss"](params, other, KEY)["loss"]
  value, metrics, hidden, of_other = computed(params)
  log_probs = np.asarray(jax.nn.log_softmax(hidden @ params["decoder"]["project_vocab"]["kernel"]))
  each = [-log_probs[row, at, batch["tokens"][row, at + 1]] for row in range(5) for at in range(5) if batch["mask"][row, at + 1]]
  assert abs(value - np.mean(each)) <= 1e-5 and abs(metrics["loss_caption"] - value) <= 1e-6
  assert set(metrics) == {"loss_caption", "accuracy_token"}
  assert abs(of_other - value) <= 1e-5


@pytest.mark.long
def test_weights_switch_the_halves_off():
  batch = batch_of(6)
  model = tiny()
  both = coca(model=model, lambda_con=0.5, lambda_cap=3.0)
  params = start(model)
  value, metrics, _ = value_and_grads(both, params, batch)
  assert abs(value - (0.5 * metrics["loss_contrastive"] + 3 * metrics["loss_caption"])) <= 1e-5
  _, _, grads = value_and_grads(coca(model=model, lambda_con=0.0), params, batch)
  idle = {"text": ("class_token", "projection", "norm_post"), "pool": ("contrast", "projection", "norm_post")}
  for group, names in idle.items():
    assert all(not jnp.any(leaf) for name in names for leaf in jax.tree.leaves(grads[group][name]))
  _, _, grads = value_and_grads(coca(model=model, lambda_cap=0.0), params, batch)
  assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(grads["decoder"])) and jnp.any(grads["text"]["class_token"])
  with pytest.raises(ConfigError, match="one of the weights is positive"):
    coca(model=model, lambda_con=0.0, lambda_cap=0.0)


def test_predictions():
  model = tiny()
  objective = coca(model=model)
  batch = batch_of(6)
  params = start(model)
  predict = objective.predict
  padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch) | {"valid": jnp.arange(8) < 6}

  @jax.jit
  def computed(params):
    return (predict["embed_image"](params, batch["image"]), predict["embed_text"](params, batch["tokens"], batch["mask"]),
            loss_of(objective, params, batch), predict["loss"](params, batch, KEY), predict["loss"](params, padded, KEY))
  image, text, (value, aux), metrics, without_padding = computed(params)
  assert image.shape == text.shape == (6, 8) and jnp.abs(jnp.linalg.norm(image, axis=-1) - 1).max() <= 1e-5
  assert abs(predict["logit_scale"](params) - 1 / 0.07) <= 1e-3
  assert abs(metrics["loss"] - value) <= 1e-5
  assert all(abs(a - b) <= 1e-5 for a, b in zip(jax.tree.leaves(without_padding), jax.tree.leaves(metrics)))
  steep = computed(params | {"logit_scale": jnp.float32(7.0)})                # beyond the limit the loss is that of the limit
  at_limit = computed(params | {"logit_scale": jnp.float32(np.log(100.0))})
  assert abs(steep[2][1].metrics["logit_scale"] - 100) <= 1e-2 and abs(steep[2][0] / at_limit[2][0] - 1) <= 1e-4

  made = jax.jit(predict["caption"])(params, batch["image"], jnp.arange(6, dtype=jnp.uint32), decode.settings(start=1, end=2, max_len=5))
  assert made.tokens.shape == (6, 5) and jnp.all((made.lengths >= 1) & (made.lengths <= 5))
  assert predict["flops"](2, 6) == 2 * predict["flops"](1, 6) == flops.TRAIN * 2 * flops.coca(model, text_len=6)


class Fixed:
  """A captioner that has seen nothing: four pairs, each like itself alone."""
  def clone(self, **fields):
    return self

  def apply(self, variables, *inputs):
    return jnp.eye(4), jnp.eye(4), jnp.zeros((4, 5, 8))


def test_the_logit_scale_stops_at_100():
  """After an update, in the loss and in what is served; a captioner alone keeps the limit too."""
  for objective in (coca(model=Fixed()), coca(model=Fixed(), lambda_con=0.0)):
    assert jnp.exp(objective.project({"logit_scale": jnp.float32(9.0)})["logit_scale"]) == pytest.approx(100, rel=1e-6)
    assert jnp.exp(objective.project({"logit_scale": jnp.float32(9.0)})["logit_scale"]) <= 100
    assert objective.project({"logit_scale": jnp.float32(1.0)})["logit_scale"] == 1
  beyond = {"logit_scale": jnp.float32(9.0), "decoder": {"project_vocab": {"kernel": jnp.zeros((8, 20))}}}
  objective = coca(model=Fixed())
  assert objective.predict["logit_scale"](beyond) == 100
  metrics = objective.loss(beyond, Context((), {}, jnp.int32(0), KEY), batch_of(4))[1].metrics
  assert metrics["logit_scale"] == pytest.approx(100, rel=1e-5)
