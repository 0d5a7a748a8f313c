"""A run before its first step: the state in place on the mesh and the step compiled for it."""
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mmdiff import optim, parallel
from mmdiff.core import tree
from mmdiff.core.objective import Objective
from mmdiff.train.state import TrainState, init_state
from mmdiff.train.step import make_train_step


class Setup(NamedTuple):
  """A run before its first step: where everything lives and the compiled step."""
  state: TrainState
  step: Callable[[TrainState, Any], tuple[TrainState, Mapping]]      # compiled ahead of time: a second shape is an error, not a recompile
  mesh: jax.sharding.Mesh
  schedules: Mapping[str, optax.Schedule]
  put: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]
  rows: np.ndarray


def set_up(config, objective: Objective, example: Mapping[str, np.ndarray], *, devices=None, compile_step: bool = True) -> Setup:
  """Abstract first: shapes, then shardings, then one jitted init that lands every leaf in place, then the step compiled for them.

  example: one row of each array of a batch, without the batch axis.
  """
  mesh = parallel.make_mesh(**config["mesh"], devices=devices)
  sharding, size = parallel.batch_sharding(mesh), config["batch_size"]
  rows = parallel.process_rows(sharding, size)
  batch = {key: jax.ShapeDtypeStruct((size, *value.shape), value.dtype, sharding=sharding) for key, value in example.items()}
  key = jax.random.key(config["seed"])
  # Initialisation sees two rows of zeros: parameters depend on shapes, never on data.
  blank: dict[str, Any] = {name: np.zeros((2, *value.shape), value.dtype) for name, value in example.items() if name != "counts"}
  params = jax.eval_shape(lambda k: objective.init(k, blank).params, key)
  trained, _ = tree.partition(params, config["freeze"])
  groups = tuple(name for name, group in trained.items() if jax.tree.leaves(group))
  tx, schedules = optim.make(config["optim"], config["steps"], groups)
  init = functools.partial(init_state, objective, tx, tuple(config["freeze"]), tuple(config["ema"]), example["counts"].shape[0])
  with jax.set_mesh(mesh):
    shardings = parallel.shardings(jax.eval_shape(init, key, blank), mesh, config["sharding"])
    state = jax.jit(init, out_shardings=shardings)(key, blank)
    step = jax.jit(make_train_step(objective, tx, ema=dict(config["ema"]), microbatches=config["accumulate"]), donate_argnums=0,
                   out_shardings=(shardings, parallel.replicated(mesh)))
    compiled = step.lower(state, batch).compile() if compile_step else step
  return Setup(state, compiled, mesh, schedules, lambda rows_of: parallel.put_batch(rows_of, sharding, size), rows)
