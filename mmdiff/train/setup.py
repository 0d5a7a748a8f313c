"""A run before its first step: the state in place on the mesh and the step compiled for it."""
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mmdiff import optim, parallel
from mmdiff.core import tree
from mmdiff.core.objective import Objective
from mmdiff.train.progress import say
from mmdiff.train.state import TrainState, init_state
from mmdiff.train.step import make_train_step


class Setup(NamedTuple):
  """A run before its first step: where everything lives and the compiled step."""
  state: TrainState
  step: Callable[[TrainState, Any], tuple[TrainState, Mapping]]      # compiled for the batches announced: another shape is an error
  mesh: jax.sharding.Mesh
  schedules: Mapping[str, optax.Schedule]
  put: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]
  rows: np.ndarray


def signature(batch: Mapping[str, Any]) -> tuple:
  """What a compiled step depends on."""
  return tuple((name, tuple(value.shape), str(value.dtype)) for name, value in sorted(batch.items()))


class Steps:
  """A step for each of the shapes that batches have, compiled when the first such batch comes (on all hosts at one step). A batch of any
  other shape is an error, not a recompile."""

  def __init__(self, lower: Callable[[Any], Any], batches: Sequence[Mapping[str, Any]]):
    self.lower, self.known = lower, {signature(batch): batch for batch in batches}
    self.compiled: dict[tuple, Callable] = {}
    self.compile(next(iter(self.known)))

  def compile(self, key: tuple) -> Callable:
    if key not in self.compiled:
      started = time.perf_counter()
      self.compiled[key] = self.lower(self.known[key]).compile()
      if len(self.known) > 1:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape, _ in key if name in ("image", "latent_mean"))
        say(f"step {len(self.compiled)} of {len(self.known)} compiled in {time.perf_counter() - started:.1f} s: {shapes}",
            active=jax.process_index() == 0)
    return self.compiled[key]

  def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Mapping]:
    key = signature(batch)
    if key not in self.known:
      raise TypeError(f"no step for a batch of {key}; known: {list(self.known)}")
    return self.compile(key)(state, batch)


def set_up(config, objective: Objective, example: Mapping[str, np.ndarray], *, others: Sequence[Mapping[str, np.ndarray]] = (),
           devices=None, compile_step: bool = True) -> Setup:
  """Abstract first: shapes, then shardings, then one jitted init that lands every leaf in place, then the step compiled for them.

  example: one row of each array of a batch, without the batch axis. others: the same for batches of other shapes, whose steps are
  compiled when they come.
  """
  mesh = parallel.make_mesh(**config["mesh"], devices=devices)
  sharding, size = parallel.batch_sharding(mesh), config["batch_size"]
  rows = parallel.process_rows(sharding, size)
  batches = [{key: jax.ShapeDtypeStruct((size, *value.shape), value.dtype, sharding=sharding) for key, value in one.items()}
             for one in (example, *others)]
  key = jax.random.key(config["seed"])
  # Initialisation sees two rows of zeros: parameters depend on shapes, never on data.
  blank: dict[str, Any] = {name: np.zeros((2, *value.shape), value.dtype) for name, value in example.items() if name != "counts"}
  params = jax.eval_shape(lambda k, batch: objective.init(k, batch).params, key, blank)
  trained, _ = tree.partition(params, config["freeze"])
  groups = tuple(name for name, group in trained.items() if jax.tree.leaves(group))
  tx, schedules = optim.make(config["optim"], config["steps"], groups)
  init = functools.partial(init_state, objective, tx, tuple(config["freeze"]), tuple(config["ema"]), example["counts"].shape[0])
  with jax.set_mesh(mesh):
    shardings = parallel.shardings(jax.eval_shape(init, key, blank), mesh, config["sharding"])
    state = jax.jit(init, out_shardings=shardings)(key, blank)
    one = make_train_step(objective, tx, ema=dict(config["ema"]), warmup=config["ema_warmup"], microbatches=config["accumulate"])
    step = jax.jit(one, donate_argnums=0, out_shardings=(shardings, parallel.replicated(mesh)))
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    compiled: Any = step
    if compile_step:
      compiled = Steps(lambda batch: step.lower(shape, batch), batches) if others else step.lower(shape, batches[0]).compile()
  return Setup(state, compiled, mesh, schedules, lambda rows_of: parallel.put_batch(rows_of, sharding, size), rows)
