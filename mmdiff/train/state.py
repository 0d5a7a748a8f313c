"""The train state: everything that a checkpoint must hold for the next step to come out the same."""
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mmdiff.core import tree
from mmdiff.core.objective import Objective
from mmdiff.core.types import Array, Batch, Key, Tree


class TrainState(struct.PyTreeNode):
  """`params` and `frozen` have one structure, each with `None` where the other has the leaf."""
  step: Array                   # int32 [], batches seen
  params: Tree                  # what the optimiser moves
  frozen: Tree                  # what `config.freeze` holds still: no gradient, moment or average
  opt_state: Tree
  ema: Mapping[str, Tree]       # name -> average of `params`
  extra: Tree                   # the objective's non-gradient state
  key: Key                      # the run's key; step s uses fold_in(key, s)
  counts: jax.Array             # uint32 [2, K]: running totals of the batch's `counts`, as (low, high) words of 2**30
  skipped: Array                # int32 [], updates refused because the loss or a gradient was not finite
  skipped_in_a_row: Array       # int32 []
  ema_extra: Mapping[str, Tree] = struct.field(default_factory=dict)      # name -> average of `extra`, where that is statistics

  def full(self, ema: str = "") -> Tree:
    """All parameters, frozen ones merged in; `ema` names an average instead of the raw ones."""
    return tree.merge(self.ema[ema] if ema else self.params, self.frozen)

  def extra_of(self, ema: str = "") -> Tree:
    """What goes with `full(ema)`: the average's own statistics, where there are any."""
    return self.ema_extra.get(ema, self.extra)


def init_state(objective: Objective, tx: optax.GradientTransformation, freeze: Sequence[str], ema: Sequence[str], count_kinds: int,
               key: Key, batch: Batch) -> TrainState:
  """A fresh state. Pure, so that it can be traced abstractly first and then run with every leaf landing where it belongs."""
  k_run, k_init = jax.random.split(key)
  variables = objective.init(k_init, batch)
  params, frozen = tree.partition(variables.params, freeze)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero, params=params, frozen=frozen, opt_state=tx.init(params), ema={name: jax.tree.map(jnp.copy, params) for name in ema},
    extra=variables.extra, key=k_run, counts=jnp.zeros((2, count_kinds), jnp.uint32), skipped=zero, skipped_in_a_row=zero,
    ema_extra={name: jax.tree.map(jnp.copy, variables.extra) for name in ema} if objective.statistics else {})


WORD = 2 ** 30


def add_counts(totals: Array, counts: Array) -> Array:
  """Adds int32 [K] to totals [2, K]; a run may see more records than 32 bits can count."""
  low = totals[0] + counts.astype(jnp.uint32)
  return jnp.stack([low % WORD, totals[1] + low // WORD])


def read_counts(totals, names: Sequence[str]) -> dict[str, int]:
  """{name: total} on the host."""
  return {name: int(low) + WORD * int(high) for name, low, high in zip(names, *totals)}
