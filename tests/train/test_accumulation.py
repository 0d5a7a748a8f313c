"""Every objective takes microbatches through the one step, with the loss and the gradients of the whole batch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import optim
from mmdiff.core.objective import Context
from mmdiff.core.precision import objective_of
from mmdiff.objectives import OBJECTIVES
from mmdiff.train.state import init_state
from mmdiff.train.step import loss_and_grad, make_train_step
from tests import toy_runs
from tests.objectives.test_autoencoder import MODEL
from tests.objectives.test_autoencoder import objective as stub

KL = dict(name="autoencoder", model=dict(name="kl", variant="tiny", image_size=16, widths=(8, 8), groups=4))
PATCH = dict(name="patch", width=8, layers=1, norm="group")
CONFIGS = {
  "contrastive": toy_runs.clip, "coca": toy_runs.coca, "diffusion": toy_runs.t2i, "diffusion on latents": toy_runs.latent,
  "autoencoder": lambda: toy_runs.config(KL), "autoencoder against a critic": lambda: toy_runs.config(KL | dict(discriminator=PATCH)),
  "autoencoder against a critic, not adaptive": lambda: toy_runs.config(KL | dict(discriminator=PATCH, adaptive=False)),
}


def test_every_objective_is_here():
  assert {make()["objective"]["name"] for make in CONFIGS.values()} == set(OBJECTIVES)


LONG = ("diffusion on latents", "autoencoder against a critic, not adaptive")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in CONFIGS])
def test_the_step_traces_with_two_microbatches(name):
  """Shapes only: nothing is compiled."""
  config = CONFIGS[name]()
  objective = objective_of(OBJECTIVES, config)
  batch = dict(image=np.zeros((4, 16, 16, 3), np.uint8), tokens=np.zeros((4, 24), np.int32), mask=np.ones((4, 24), bool),
               id=np.arange(4, dtype=np.uint32), counts=np.zeros((4, 2), np.int32))
  params = jax.eval_shape(objective.init, jax.random.key(0), batch).params
  tx, _ = optim.make(config["optim"], 4, tuple(params))
  frozen = ("autoencoder/.*",) if name == "diffusion on latents" else ()
  state = jax.eval_shape(lambda batch: init_state(objective, tx, frozen, ("eval",), 2, jax.random.key(0), batch), batch)
  after, metrics = jax.eval_shape(make_train_step(objective, tx, ema=dict(eval=0.9), microbatches=2), state, batch)
  describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert describe(after) == describe(state) and all(metric.shape == () for metric in metrics.values())


def test_an_autoencoder_without_a_critic_accumulates_exactly():
  made = stub(discriminator=None)
  rng = np.random.default_rng(0)
  batch = dict(image=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), id=rng.integers(0, 2**31, 4).astype(np.uint32))
  params = jax.jit(made.init)(jax.random.key(0), batch).params
  context = Context((), {}, jnp.int32(0), jax.random.key(3))
  frozen = jax.tree.map(lambda _: None, params)
  run = lambda n: jax.jit(lambda params, batch: loss_and_grad(made, params, frozen, context, batch, n))(params, batch)
  ((loss, aux), grads), ((loss_2, aux_2), grads_2) = run(1), run(2)
  assert MODEL.image_size == 8 and not made.couples_batch
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), (loss, aux.metrics, grads),
               (loss_2, aux_2.metrics, grads_2))
