"""Every key of an objective's config reaches the place where it acts, and acts by as much as it says; likewise of the optimisers."""
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import optim
from mmdiff.objectives.autoencoder import autoencoder
from mmdiff.objectives.coca import coca
from mmdiff.objectives.contrastive import contrastive
from tests.objectives import test_autoencoder as kl
from tests.objectives import test_coca as captions
from tests.objectives import test_contrastive as pairs

VALUES = 8 * 8 * 3                # of a picture of the stub
HEARD = 3                         # step from which its discriminator is heard


def value_of(made, params, batch, step=HEARD):
  value, aux = jax.jit(lambda params, step: made.loss(params, kl.context()._replace(step=step), batch))(params, step)
  return float(value), {name: float(metric) for name, metric in aux.metrics.items()}


def keys_of(factory):
  return {name for name, parameter in inspect.signature(factory).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


# Key -> (its other value, what the loss changes by, of the metrics before): 0.7 × perceptual, KL × 0.01, adversarial term × 0.5.
# Before the discriminator is heard, or after: the error's own keys move its adaptive weight as well.
AUTOENCODER = {
  "pixel": (0, "l2", lambda m: m["mse"] - m["l1"]),
  "perceptual": (0, None, lambda m: -0.7 * m["perceptual"]),
  "perceptual_weight": (0, 1.7, lambda m: m["perceptual"]),
  "kl_weight": (0, 1.01, lambda m: m["kl"] / VALUES),
  "discriminator": (HEARD, None, lambda m: -(0.5 * m["adaptive_weight"] * m["generator"] + m["discriminator"])),
  "discriminator_weight": (HEARD, 1.5, lambda m: m["adaptive_weight"] * m["generator"]),
  "discriminator_start": (HEARD, HEARD + 1, lambda m: -(0.5 * m["adaptive_weight"] * m["generator"] + m["discriminator"])),
  "adaptive": (HEARD, False, lambda m: 0.5 * (1 - m["adaptive_weight"]) * m["generator"]),
}


@pytest.mark.parametrize("key", [pytest.param(key, marks=[pytest.mark.long] * (row[1] is None)) for key, row in AUTOENCODER.items()])
def test_autoencoder(key):
  step, other, change = AUTOENCODER[key]
  before, metrics = value_of(unchanged(), kl.initial(), kl.make_batch(), step)
  after, _ = value_of(kl.objective(**{key: other}), kl.initial(), kl.make_batch(), step)
  assert after - before == pytest.approx(change(metrics), rel=2e-3, abs=1e-5) and abs(after - before) > 1e-4


@functools.cache
def unchanged():
  return kl.objective()


def test_autoencoder_learned_scale():
  """exp(−s) of the error, and s: of a parameter that is trained, nought at the start."""
  made = kl.objective(learned_scale=True)
  assert jax.eval_shape(made.init, jax.random.key(0), kl.make_batch()).params["log_scale"].shape == ()
  plain, metrics = value_of(made, kl.initial() | {"log_scale": jnp.float32(0.0)}, kl.make_batch(), 0)
  scaled, _ = value_of(made, kl.initial() | {"log_scale": jnp.float32(0.3)}, kl.make_batch(), 0)
  error = metrics["l1"] + 0.7 * metrics["perceptual"]
  assert scaled - plain == pytest.approx(error * (math.exp(-0.3) - 1) + 0.3, rel=1e-3)


class Towers:
  """Two towers that have made up their minds: six pairs of fixed embeddings."""
  has_statistics = False

  def __init__(self, **fields):
    self.fields = fields

  def clone(self, **fields):
    return Towers(**fields)

  def init(self, *inputs):
    return {"params": {"logit_scale": self.fields["scale_init"]} | {"logit_bias": self.fields["bias_init"]}}

  def apply(self, variables, **rows):
    return tuple(jnp.asarray(np.random.default_rng(seed).normal(size=(6, 4)), jnp.float32) for seed in (1, 2))


def test_contrastive_loss_scale_and_bias():
  """The two losses written out."""
  batch = dict(image=jnp.zeros((6, 1)), tokens=jnp.zeros((6, 1)), mask=jnp.ones((6, 1)))
  image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.asarray, Towers().apply({})))
  for loss, options, scale in (("softmax", {}, 1 / 0.07), ("softmax", dict(scale_init=20.0), 20.0), ("sigmoid", {}, 10.0),
                               ("sigmoid", dict(scale_init=5.0, bias_init=-3.0), 5.0)):
    made = contrastive(model=Towers(), loss=loss, **options)
    params = made.init(None, batch).params
    bias = options.get("bias_init", -10.0) if loss == "sigmoid" else 0.0
    assert math.exp(params["logit_scale"]) == pytest.approx(scale, rel=1e-5) and (params["logit_bias"] or 0.0) == bias
    logits = scale * (image @ text.T).astype(np.float64) + bias
    of_rows = lambda x: (np.log(np.exp(x).sum(1)) - np.diag(x)).mean()
    expected = 0.5 * (of_rows(logits) + of_rows(logits.T)) if loss == "softmax" else np.log1p(
      np.exp(-(2 * np.eye(6) - 1) * logits)).sum() / 6
    params = {name: jnp.float32(value) for name, value in params.items() if value is not None}
    assert float(made.loss(params, pairs.context(), batch)[0]) == pytest.approx(expected, rel=1e-4)


def test_coca_weights_and_scale(monkeypatch):
  params = {"logit_scale": jnp.log(3.0), "decoder": {"project_vocab": {"kernel": jnp.zeros((8, 20))}}}

  def one(**options):
    value, aux = coca(model=captions.Fixed(), **options).loss(params, pairs.context(), captions.batch_of(4))
    return float(value), {name: float(metric) for name, metric in aux.metrics.items()}
  (base, metrics), (con, _), (cap, _) = one(), one(lambda_con=1.5), one(lambda_cap=2.5)
  assert metrics["loss_caption"] == pytest.approx(math.log(20), rel=1e-5) and metrics["logit_scale"] == pytest.approx(3, rel=1e-5)
  assert metrics["loss_contrastive"] == pytest.approx(math.log1p(3 * math.exp(-3)), rel=1e-4)
  assert base == pytest.approx(metrics["loss_contrastive"] + 2 * metrics["loss_caption"], rel=1e-5)
  assert con - base == pytest.approx(0.5 * metrics["loss_contrastive"], rel=1e-3)
  assert cap - base == pytest.approx(0.5 * metrics["loss_caption"], rel=1e-3)
  started = []
  monkeypatch.setattr(captions.Fixed, "clone", lambda self, **fields: started.append(fields) or self)
  assert coca(model=captions.Fixed()) and coca(model=captions.Fixed(), scale_init=30.0)
  assert [math.exp(fields["scale_init"]) for fields in started] == pytest.approx([1 / 0.07, 30.0])


def held(fn, *args):
  """The shapes of everything that a function computes, inner programs too."""
  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (var.aval.shape for var in eqn.outvars)
      for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
          yield from walk(getattr(inner, "jaxpr", inner))
  return set(walk(jax.make_jaxpr(fn)(*args).jaxpr))


@pytest.mark.parametrize("key,whole,part", [("chunk", (12, 12), (3, 12)), ("logits_chunk", (12, 5, 20), (12, 2, 20))])
def test_chunks_bound_what_is_held(key, whole, part):
  """All similarities, or all logits, exist without a chunk and not with one."""
  batch, model = captions.batch_of(12), captions.tiny()
  params = jax.eval_shape(coca(model=model).init, pairs.KEY, batch).params
  shapes = lambda made: held(lambda params: made.loss(params, pairs.context(), batch)[0], params)
  without, having = shapes(coca(model=model)), shapes(coca(model=model, **{key: part[0] if key == "chunk" else part[1]}))
  assert whole in without and part not in without and part in having and whole not in having


def test_every_key_is_tested_here():
  assert keys_of(autoencoder) == {"model", "learned_scale", *AUTOENCODER}
  assert keys_of(coca) == {"model", "lambda_con", "lambda_cap", "scale_init", "chunk", "logits_chunk"}
  assert keys_of(contrastive) == {"model", "loss", "chunk", "scale_init", "bias_init"}


PARAMS = {"image": {"stack": {"up": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}}, "proj": {"kernel": jnp.ones((4, 4))}}}
COMMON = dict(lr=0.2, warmup_steps=3, decay="linear", final=0.5, b1=0.5, weight_decay=0.3, decay_times="schedule", decayed=(".*bias",),
              clip=0.1)
OTHER = {
  "adamw": COMMON | dict(b2=0.5, eps=0.1, mu_dtype="bfloat16", layer_decay=0.5),
  "lion": COMMON | dict(b2=0.5, mu_dtype="bfloat16", layer_decay=0.5),
  "adafactor": COMMON | dict(b2_cap=0.1, update_clip=0.01, min_factored=4),
}


@pytest.mark.parametrize("name", OTHER)
def test_every_key_of_an_optimiser_changes_what_it_does(name):
  """Five updates of uneven gradients, only some of which any clip touches, differ as soon as one key has another value."""
  draw = np.random.default_rng(0)
  grads = [jax.tree.map(lambda x: jnp.asarray(size * draw.normal(size=x.shape), jnp.float32), PARAMS)      # noqa: B023
           for size in (10.0, 0.02, 10.0, 0.02, 1.0)]

  def moved(**options):
    base = dict(name=name, lr=0.1, warmup_steps=2, b1=0.9, weight_decay=0.1, clip=1.0)
    tx, _ = optim.make(dict(default=base | options), 8, ("image",))
    state, found = tx.init(PARAMS), []
    for grad in grads:
      updates, state = tx.update(grad, state, PARAMS)
      found += [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(updates)]
    return np.concatenate(found), [leaf.dtype for leaf in jax.tree.leaves(state)]
  before, dtypes = moved()
  assert keys_of(getattr(optim, name)) == set(OTHER[name])
  for key, other in OTHER[name].items():
    after, kept = moved(**{key: other})
    assert kept != dtypes if key == "mu_dtype" else np.abs(after - before).max() > 1e-6, key
