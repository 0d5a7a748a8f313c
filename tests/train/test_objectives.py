"""Every objective through the one step: any mesh, with and without accumulation, frozen groups and all, does what a few lines of optax do
on one device; nothing recompiles."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmdiff.commands import flags
from mmdiff.commands.train import make_dataset
from mmdiff.core import tree
from mmdiff.core.build import build
from mmdiff.core.objective import Context
from mmdiff.objectives import OBJECTIVES
from mmdiff.train.setup import set_up
from tests.train import small

STEPS = 20
SMALL = ["--config.batch_size=32", "--config.data.threads=1", "--config.log_every_steps=1", f"--config.steps={STEPS}"]
CONFIGS = {
  # At the config's own rate twenty steps of this small model magnify float rounding beyond what is compared.
  "autoencoder": ["--config=configs/kl_f8.py:tiny", "--config.objective.model.widths=(8,)", "--config.objective.model.groups=4",
                  "--config.optim.default.lr=5e-4",
                  "--config.objective.model.image_size=16", "--config.data.image_size=16", "--config.data.source.tier=T16",
                  "--config.objective.discriminator.name=patch", "--config.objective.discriminator.width=16",
                  "--config.objective.discriminator.layers=1", "--config.objective.discriminator.norm=group",
                  "--config.objective.discriminator_start=0"],
  "contrastive": ["--config=configs/clip.py:tiny", "--config.objective.model.image_width=48", "--config.objective.model.text_width=48",
                  "--config.objective.model.text_heads=3"],
  "diffusion": ["--config=configs/t2i_pixels.py:tiny", "--config.objective.denoiser.width=32", "--config.objective.denoiser.heads=2"],
}
MESHES = {"1": None, "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}


@functools.cache
def losses(name: str, mesh: str, accumulate: int, tmp: str) -> tuple[float, ...]:
  from pathlib import Path
  sizes = MESHES[mesh] or (1, 1, 1)
  overrides = [f"--config.mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), sizes)]
  config = flags.load_config([*CONFIGS[name], *SMALL, *overrides, f"--config.accumulate={accumulate}"])
  dataset = make_dataset(config, Path(tmp))
  example = {key: value[0] for key, value in dataset.batch_at(0, batch_size=1).items()}
  setup = set_up(config, build(OBJECTIVES, config["objective"]), example, devices=jax.devices()[:int(np.prod(sizes))])
  state, found = setup.state, []
  batches = dataset.train_batches(batch_size=config["batch_size"], start_step=0, rows=setup.rows)
  with jax.set_mesh(setup.mesh):
    for _ in range(STEPS):
      # The step is compiled ahead of time: a second compilation is impossible, and another shape would raise here.
      state, metrics = setup.step(state, setup.put(next(batches)))
      found.append(float(metrics["loss"]))
  assert int(state.skipped) == 0
  return tuple(found)


@pytest.mark.long
@pytest.mark.parametrize("mesh, accumulate", [("1", 4), ("8x1x1", 1), ("2x2x2", 4)])
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_do_not_depend_on_mesh_or_accumulation(name, mesh, accumulate, tmp_path_factory):
  tmp = str(tmp_path_factory.getbasetemp())
  np.testing.assert_allclose(losses(name, mesh, accumulate, tmp), losses(name, "1", 1, tmp), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_training_lowers_the_loss(name, tmp_path):
  found = losses(name, "1", 1, str(tmp_path))
  assert np.isfinite(found).all() and np.mean(found[-5:]) < np.mean(found[:5])


@functools.cache
def start_of(name: str) -> tuple[dict, jax.Array]:
  """(parameters, the run's key) of a case on one device."""
  case = small.CASES[name]
  example = {key: value[0] for key, value in small.batch(0, rows=1).items()}
  state = set_up(small.config(case), build(OBJECTIVES, case.objective), example, devices=jax.devices()[:1]).state
  return jax.tree.map(np.asarray, state.full()), jax.random.wrap_key_data(np.asarray(jax.random.key_data(state.key)))


@functools.cache
def by_hand(name: str, steps: int) -> tuple[list[float], dict]:
  """(losses, parameters) of a case's objective computed the plain way, by optax alone on one device: AdamW, clipped by the global norm of
  each group that has parameters to train, decaying kernels and embeddings, with everything that is frozen as a constant."""
  case = small.CASES[name]
  objective, (params, key) = build(OBJECTIVES, case.objective | case.plain), start_of(name)
  held = lambda path: tree.matches(path, case.freeze)
  decayed = lambda params: tree.map_with_path(lambda path, _: path.endswith(("kernel", "embedding")), params)
  tx = optax.masked(optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.1, decayed),
                                optax.scale(-case.rate)), lambda params: tree.map_with_path(lambda path, _: not held(path), params))
  state, found = tx.init(params), []

  @jax.jit
  def step(params, state, batch, i):
    def loss(params):
      params = tree.map_with_path(lambda path, leaf: jax.lax.stop_gradient(leaf) if held(path) else leaf, params)
      return objective.loss(params, Context((), {}, i, jax.random.fold_in(key, i)), batch)[0]
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    updates = tree.map_with_path(lambda path, leaf: 0 * leaf if held(path) else leaf, updates)
    return value, optax.apply_updates(params, updates), state

  for i in range(steps):
    batch = {name: value for name, value in small.batch(i, rows=case.rows).items() if name != "counts"}
    value, params, state = step(params, state, batch, jnp.int32(i))
    found.append(float(value))
  return found, params


# In the default suite the one that has most to get wrong: the ring of devices, with a part of a tower frozen.
DEFAULT = {("ring", (2, 2, 2), 1)}
# Of the long ones each case has the next mesh in turn: all of them together take half an hour.
WAYS = (((4, 2, 1), 2), ((2, 2, 2), 1), ((1, 1, 1), 2), ((1, 4, 2), 1), ((8, 1, 1), 2))
EVERY = sorted(DEFAULT | {(name, *WAYS[i % len(WAYS)]) for i, name in enumerate(small.CASES)})


@pytest.mark.parametrize("name, mesh, accumulate", [
  pytest.param(*case, marks=[] if case in DEFAULT else pytest.mark.long, id="-".join(map(str, case))) for case in EVERY])
def test_the_step_on_a_mesh_is_a_few_lines_of_optax_on_one_device(name, mesh, accumulate):
  case, steps = small.CASES[name], 3
  config = small.config(case, mesh=dict(zip(("data", "fsdp", "tensor"), mesh)), accumulate=accumulate)
  example = {key: value[0] for key, value in small.batch(0, rows=1).items()}
  setup = set_up(config, build(OBJECTIVES, case.objective), example, devices=jax.devices()[:int(np.prod(mesh))])
  start = jax.tree.map(np.asarray, setup.state.full())
  jax.tree.map(np.testing.assert_array_equal, start, start_of(name)[0])
  wanted, params = by_hand(name, steps)
  state, found = setup.state, []
  with jax.set_mesh(setup.mesh):
    for i in range(steps):
      state, metrics = setup.step(state, setup.put(small.batch(i, rows=case.rows)))
      found.append(float(metrics["loss"]))
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  pairs = zip(tree.paths(start), jax.tree.leaves(start), jax.tree.leaves(params))
  moved = {path.split("/")[0] for path, a, b in pairs if not np.array_equal(a, b)}
  assert moved == {path.split("/")[0] for path in tree.paths(start) if not tree.matches(path, case.freeze)}
  # Adam's first steps are the gradient's sign: a leaf whose gradient is all rounding may go either way.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-2), jax.tree.map(np.asarray, state.full()), params)
  held = tree.map_with_path(lambda path, a, b: not tree.matches(path, case.freeze) or np.array_equal(a, b), start, state.full())
  assert all(jax.tree.leaves(held))
