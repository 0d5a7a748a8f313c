"""The train step. There is one: every objective is trained by it."""
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from mmdiff.core import tree
from mmdiff.core.objective import Aux, Context, Objective, split_chunks
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array, Batch, Tree
from mmdiff.optim import Numbers
from mmdiff.train.state import TrainState, add_counts


def loss_and_grad(objective: Objective, params: Tree, frozen: Tree, context: Context, batch: Batch,
                  microbatches: int) -> tuple[tuple[Array, Aux], Tree]:
  """((loss, aux), gradients of `params`) of the global batch, with the activations of one microbatch alive at a time.

  A loss that is a mean over examples is averaged over equal microbatches, which is exact; one that couples the batch chunks its own
  towers (`core.objective.in_chunks`), which is exact too.
  """
  def loss_fn(params, context, batch):
    return objective.loss(tree.merge(params, frozen), context, batch)

  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  if microbatches == 1 or objective.couples_batch:
    return value_and_grad(params, context._replace(microbatches=microbatches), batch)

  chunks = jax.tree.map(lambda x: pin(split_chunks(x, microbatches), None, BATCH), dict(batch))

  def one(carry, chunk):
    extra, total = carry
    (loss, aux), grads = value_and_grad(params, context._replace(extra=extra), chunk)
    new = (loss, dict(aux.metrics), grads)
    return (aux.extra, jax.tree.map(lambda t, x: t + x / microbatches, total, new)), None

  # The context stays outside: as an argument its `microbatches` would be traced, and no objective could branch on it.
  shapes = jax.eval_shape(lambda params, chunk: value_and_grad(params, context, chunk), params, jax.tree.map(lambda x: x[0], chunks))
  (loss, aux), grads = shapes
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, dict(aux.metrics), grads))
  (extra, (loss, metrics, grads)), _ = jax.lax.scan(one, (context.extra, zeros), chunks)
  return (loss, Aux(metrics, extra)), grads


def decay_at(updates: Array, decay: float, *, warmup: bool) -> Array | float:
  """The decay of an average after so many updates, int32 []: with a warm-up at most (1 + t) / (10 + t), so that an early average is one of
  what has been learned and not of the initial values (`num_updates` of TensorFlow's ExponentialMovingAverage). A decay of 1 stays."""
  t = updates.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + t) / (10.0 + t)) if warmup and decay < 1 else decay


def make_train_step(objective: Objective, tx: optax.GradientTransformationExtraArgs, *, ema: Mapping[str, float], warmup: bool = True,
                    microbatches: int = 1) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """`(state, batch, numbers) -> (state, metrics)`, pure; `numbers` are those of `optim.make`, which by default stand in the program.

  Guard: when the loss or the gradient norm is not finite, parameters, moments, averages and `extra` stay bit for bit as they were, as if
  the update had not been asked for; the step, the data accounting and `skipped` move on.
  Averages: `e <- decay * e + (1 - decay) * params` (Polyak & Juditsky 1992), after the update, with the decay of `decay_at`; likewise of
  `extra` where it is statistics.
  """
  def train_step(state: TrainState, batch: Batch, numbers: Mapping[str, Numbers] | None = None) -> tuple[TrainState, dict[str, Array]]:
    batch = dict(batch)
    counts = batch.pop("counts").sum(axis=0)
    context = Context(extra=state.extra, ema={name: state.full(name) for name in state.ema}, step=state.step,
                      key=jax.random.fold_in(state.key, state.step))
    (loss, aux), grads = loss_and_grad(objective, state.params, state.frozen, context, batch, microbatches)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, numbers=numbers)
    params = objective.project(optax.apply_updates(state.params, updates))
    share = {name: 1.0 - decay_at(state.step - state.skipped, decay, warmup=warmup) for name, decay in ema.items()}
    averages = {name: optax.incremental_update(params, state.ema[name], share[name]) for name in ema}
    statistics = {name: optax.incremental_update(aux.extra, old, share[name]) for name, old in state.ema_extra.items()}

    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new = (params, opt_state, averages, aux.extra, statistics)
    old = (state.params, state.opt_state, dict(state.ema), state.extra, dict(state.ema_extra))
    params, opt_state, averages, extra, statistics = tree.select(good, new, old)
    bad = 1 - good.astype(jnp.int32)
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, ema=averages, extra=extra, ema_extra=statistics,
      counts=add_counts(state.counts, counts), skipped=state.skipped + bad, skipped_in_a_row=(state.skipped_in_a_row + 1) * bad)
    metrics = dict(aux.metrics, loss=loss, grad_norm=grad_norm, update_norm=optax.tree.norm(updates), param_norm=optax.tree.norm(params),
                   skipped=state.skipped, skipped_in_a_row=state.skipped_in_a_row)
    return state, metrics
  return train_step
