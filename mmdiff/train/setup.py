"""A run before its first step: the state in place on the mesh and the step compiled for it."""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmdiff import optim, parallel
from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.core.memory import host_memory, nbytes, size
from mmdiff.core.objective import Objective
from mmdiff.train.progress import compiling
from mmdiff.train.state import TrainState, init_state
from mmdiff.train.step import make_train_step


class Setup(NamedTuple):
  """A run before its first step: where everything lives and the compiled step."""
  state: TrainState
  step: "Steps"                 # compiled for the batches announced: another shape is an error
  mesh: jax.sharding.Mesh
  numbers: Mapping[str, optim.Numbers]
  put: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]
  rows: np.ndarray


def signature(batch: Mapping[str, Any]) -> tuple:
  """What a compiled step depends on."""
  return tuple((name, tuple(value.shape), str(value.dtype)) for name, value in sorted(batch.items()))


class Steps:
  """`(state, batch) -> (state, metrics)` for each of the shapes that batches have, compiled when the first such batch comes (on all hosts
  at one step). A batch of any other shape is an error, not a recompile. `numbers` are inputs of the program, so that a run with another
  learning rate, warm-up or length finds it in the compilation cache."""

  def __init__(self, lower: Callable[[Any], Any], batches: Sequence[Mapping[str, Any]], numbers: Mapping[str, optim.Numbers]):
    self.lower, self.known, self.numbers = lower, {signature(batch): batch for batch in batches}, numbers
    self.compiled: dict[tuple, jax.stages.Compiled] = {}

  def compile(self, key: tuple) -> jax.stages.Compiled:
    if key not in self.compiled:
      shapes = ", ".join(f"{name} {list(shape)}" for name, shape, _ in key if name in ("image", "latent_mean"))
      which = f" {len(self.compiled) + 1} of {len(self.known)}: {shapes}" if len(self.known) > 1 else ""
      with compiling(f"the train step{which}", active=jax.process_index() == 0):
        self.compiled[key] = self.lower(self.known[key]).compile()
    return self.compiled[key]

  def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Mapping]:
    key = signature(batch)
    if key not in self.known:
      raise TypeError(f"no step for a batch of {key}; known: {list(self.known)}")
    return self.compile(key)(state, batch, self.numbers)


class Plan(NamedTuple):
  """A run without its arrays: shapes and layouts of its state, and the step and the init that would make them."""
  state: Any                    # abstract TrainState, each leaf with its sharding
  shardings: Any
  init: Callable[..., TrainState]      # of `inputs`, under jit
  inputs: tuple
  step: Any                     # jitted, of the state, a batch and the numbers
  batches: Sequence[Mapping[str, jax.ShapeDtypeStruct]]
  numbers: Mapping[str, optim.Numbers]


def plan(config, objective: Objective, example: Mapping[str, np.ndarray], *, mesh: jax.sharding.Mesh,
         others: Sequence[Mapping[str, np.ndarray]] = ()) -> Plan:
  """What `set_up` makes, abstractly. Raises ConfigError for sizes that don't fit each other, groups of `optim` and patterns of `freeze`
  that name nothing, and a large leaf without a layout."""
  sharding, size = parallel.batch_sharding(mesh), config["batch_size"]
  batches = [{key: jax.ShapeDtypeStruct((size, *value.shape), value.dtype, sharding=sharding) for key, value in one.items()}
             for one in (example, *others)]
  key = jax.random.key(config["seed"])
  # Initialisation sees two rows of zeros: parameters depend on shapes, never on data.
  blank: dict[str, Any] = {name: np.zeros((2, *value.shape), value.dtype) for name, value in example.items() if name != "counts"}
  params = jax.eval_shape(lambda k, batch: objective.init(k, batch).params, key, blank)
  try:
    trained, _ = tree.partition(params, config["freeze"])
  except ValueError as error:
    raise ConfigError(f"config.freeze: {error}") from None
  groups = tuple(name for name, group in trained.items() if jax.tree.leaves(group))
  if not groups:
    raise ConfigError(f"config.freeze: {tuple(config['freeze'])} hold every parameter, and nothing is left to train")
  if wrong := optim.problems(config["optim"], trained):
    raise ConfigError("\n".join(wrong))
  tx, numbers = optim.make(config["optim"], config["steps"], groups)
  init = functools.partial(init_state, objective, tx, tuple(config["freeze"]), tuple(config["ema"]), example["counts"].shape[0])
  with jax.set_mesh(mesh):
    state = jax.eval_shape(init, key, blank)
    shardings = parallel.shardings(state, mesh, config["sharding"])
    step = jax.jit(make_train_step(objective, tx, ema=dict(config["ema"]), warmup=config["ema_warmup"], microbatches=config["accumulate"]),
                   donate_argnums=0, out_shardings=(shardings, parallel.replicated(mesh)))
  placed = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state, shardings)
  return Plan(placed, shardings, init, (key, blank), step, batches, numbers)


def check_memory(made: Plan) -> None:
  """Raises ConfigError for a state that has no room on this machine's devices, rather than to run out of memory half-way."""
  leaves, local = jax.tree.leaves(made.state), jax.local_devices()
  each, limit = sum(nbytes(leaf, leaf.sharding) for leaf in leaves), (local[0].memory_stats() or {}).get("bytes_limit")
  room = limit or host_memory()[1] / len(local)
  if each > room:
    raise ConfigError(f"the state takes {size(each)} of each device ({size(sum(map(nbytes, leaves)))} in all) and there are {size(room)}: "
                      "raise config.mesh.fsdp to split it over more devices, or choose a smaller model; `mmdiff doctor` lists its parts")


def set_up(config, objective: Objective, example: Mapping[str, np.ndarray], *, others: Sequence[Mapping[str, np.ndarray]] = (),
           devices=None, compile_step: bool = True) -> Setup:
  """Abstract first: shapes, then shardings, then one jitted init that lands every leaf in place, then the step compiled for them.

  example: one row of each array of a batch, without the batch axis. others: the same for batches of other shapes, whose steps are
  compiled when they come.
  """
  mesh = parallel.make_mesh(**config["mesh"], devices=devices)
  sharding, size = parallel.batch_sharding(mesh), config["batch_size"]
  rows = parallel.process_rows(sharding, size)
  made = plan(config, objective, example, mesh=mesh, others=others)
  check_memory(made)
  with jax.set_mesh(mesh):
    state = jax.jit(made.init, out_shardings=made.shardings)(*made.inputs)
    numbers = jax.tree.map(lambda number: parallel.put_replicated(number, mesh), made.numbers)
    steps = Steps(lambda batch: made.step.lower(made.state, batch, numbers), made.batches, numbers)
    if compile_step:
      steps.compile(next(iter(steps.known)))
  return Setup(state, steps, mesh, made.numbers, lambda rows_of: parallel.put_batch(rows_of, sharding, size), rows)
