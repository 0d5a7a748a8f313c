"""The step: accumulation is exact, the guard leaves the state bitwise alone, averages and counts add up."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.objective import Aux, Objective, Variables
from mmdiff.train.setup import set_up
from mmdiff.train.state import WORD, add_counts, read_counts
from mmdiff.train.step import decay_at
from tests.train import toys


def run(objective, steps=5, devices=1, metrics_to=None, **changes):
  """(last state, losses, everything that a step may change before the first step and after each); `metrics_to` gathers the metrics."""
  config = toys.config(**changes)
  data = toys.Data()
  example = {k: v[0] for k, v in data.batch_at(0, batch_size=1).items()}
  setup = set_up(config, objective, example, devices=jax.devices()[:devices])
  state, losses = setup.state, []
  states = [jax.tree.map(np.asarray, (state.params, state.opt_state, dict(state.ema), state.extra))]
  batches = data.train_batches(batch_size=config["batch_size"], start_step=0, rows=setup.rows)
  with jax.set_mesh(setup.mesh):
    for _ in range(steps):
      state, metrics = setup.step(state, setup.put(next(batches)))
      losses.append(float(metrics["loss"]))
      if metrics_to is not None:
        metrics_to.append({name: float(value) for name, value in metrics.items()})
      states.append(jax.tree.map(np.asarray, (state.params, state.opt_state, dict(state.ema), state.extra)))
  return state, losses, states


@functools.cache
def plain():
  """Five steps of the toy on one device."""
  return run(toys.regression())


def test_accumulation_is_exact():
  whole, losses, _ = plain()
  parts, losses_in_parts, _ = run(toys.regression(), accumulate=4)
  np.testing.assert_allclose(losses, losses_in_parts, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole.params, parts.params)
  assert float(whole.extra["seen"]) == float(parts.extra["seen"]) == 5 * 16      # each microbatch goes on from the one before


@pytest.mark.parametrize("mesh", [dict(data=8, fsdp=1, tensor=1), dict(data=4, fsdp=2, tensor=1), dict(data=2, fsdp=2, tensor=2)])
def test_any_mesh_gives_the_same_losses(mesh):
  _, one, _ = plain()
  _, many, _ = run(toys.regression(), devices=8, mesh=mesh)
  np.testing.assert_allclose(one, many, rtol=1e-5)


@pytest.mark.parametrize("bad, where", [({0}, "poison"), ({3}, "poison"), ({1, 2}, "poison"), ({0, 2, 3}, "poison_gradient")])
def test_a_non_finite_step_changes_nothing_but_the_counters(bad, where):
  poison, metrics = lambda step: jnp.isin(step, jnp.array(sorted(bad))), []
  state, losses, states = run(toys.regression(**{where: poison}), steps=5, metrics_to=metrics)
  assert np.isfinite(losses).all() == (where == "poison_gradient")
  assert int(state.skipped) == len(bad) and int(state.step) == 5
  in_a_row = [next(n for n in range(step + 2) if step - n not in bad) for step in range(5)]
  assert [one["skipped_in_a_row"] for one in metrics] == in_a_row and int(state.skipped_in_a_row) == in_a_row[-1]
  assert [one["skipped"] for one in metrics] == [sum(step <= now for step in bad) for now in range(5)]
  for step in bad:
    jax.tree.map(np.testing.assert_array_equal, states[step], states[step + 1])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[-1]))


@jax.custom_jvp
def treacherous(x, slope):
  """0, with any derivative by x: a root at zero, a gradient that overflows."""
  return 0.0 * x


@treacherous.defjvp
def _treacherous_jvp(primals, tangents):
  return 0.0 * primals[0], primals[1] * tangents[0]


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_a_finite_loss_with_a_gradient_that_is_not_changes_nothing_either(wrong):
  made = toys.regression()

  def loss(params, context, batch):
    value, aux = made.loss(params, context, batch)
    slope = jnp.where(context.step == 2, jnp.float32(wrong), 0.0)
    return value + treacherous(params["text"]["proj"]["bias"][0], slope), aux

  state, losses, states = run(made._replace(loss=loss), steps=4)
  assert np.isfinite(losses).all() and int(state.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, states[2], states[3])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[-1]))


def test_frozen_groups_do_not_move_and_hold_no_moments():
  state, _, states = run(toys.regression(), freeze=("image/.*",), optim=dict(text=dict(name="adamw", lr=1e-2)))
  assert state.params["image"]["proj"]["kernel"] is None
  fresh = plain()[2][0][0]
  np.testing.assert_array_equal(state.frozen["image"]["proj"]["kernel"], fresh["image"]["proj"]["kernel"])
  assert not any("image" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path((state.opt_state, state.ema)))


def test_averages_follow_the_parameters():
  for warmup, decays in ((False, (0.9, 0.9, 0.9)), (True, (1 / 10, 2 / 11, 3 / 12))):
    state, _, states = run(toys.regression(statistics=True), steps=3, ema_warmup=warmup)
    average = (states[0][0], states[0][3])
    for (params, _, _, extra), decay in zip(states[1:], decays):
      average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, (params, extra))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), average, (state.ema["eval"], state.extra_of("eval")))
    assert state.extra_of()["seen"] == 48 and state.extra_of("eval")["seen"] < 48
  assert run(toys.regression(), steps=1)[0].ema_extra == {}


def test_the_decay_warms_up_to_what_was_asked_for_and_refused_updates_do_not_count():
  at = lambda updates, decay=0.999, warmup=True: float(decay_at(jnp.int32(updates), decay, warmup=warmup))
  assert at(0) == pytest.approx(0.1) and at(90) == pytest.approx(0.91) and at(10 ** 6) == pytest.approx(0.999)
  assert at(0, warmup=False) == 0.999 and at(0, decay=1.0) == 1.0
  state, _, states = run(toys.regression(lambda step: step < 2, statistics=True), steps=3)
  jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, 0.1 * b + 0.9 * c, rtol=1e-5, atol=1e-7), state.ema["eval"], states[2][0],
               states[3][0])
  assert state.ema_extra["eval"]["seen"] == pytest.approx(0.9 * 16)


def test_a_loss_sees_the_averages_as_they_were_before_its_step_and_a_key_of_its_own():
  metrics = []
  _, _, states = run(toys.regression(), steps=3, metrics_to=metrics, ema=dict(slow=0.99, fast=0.1))
  total = lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params))
  for name in ("slow", "fast"):
    np.testing.assert_allclose([one[f"teacher/{name}"] for one in metrics], [total(before[2][name]) for before in states[:3]], rtol=1e-5)
  assert len({float(total(params)) for params in (states[3][0], *states[3][2].values())}) == 3       # else the lines above say nothing
  assert len({one["draw"] for one in metrics}) == 3
  again = []
  run(toys.regression(), steps=3, metrics_to=again, accumulate=2)
  assert [one["draw"] for one in again] == [one["draw"] for one in metrics]


def test_counts_add_up_beyond_32_bits():
  state, _, _ = plain()
  assert read_counts(np.asarray(state.counts), toys.Data.count_names) == {"caption/long": 40, "caption/original": 40}
  totals = jnp.array([[WORD - 1, 5], [7, 0]], jnp.uint32)
  assert read_counts(np.asarray(add_counts(totals, jnp.array([2, 1]))), ("a", "b")) == {"a": 8 * WORD + 1, "b": 6}


def test_a_step_for_each_shape_announced_and_no_other():
  """Batches of two widths, as of two buckets: each compiles once, when it comes; a third is an error."""
  def init(key, batch):
    return Variables({"image": {"kernel": jnp.ones(())}})

  def loss(params, context, batch):
    return params["image"]["kernel"] * jnp.mean(batch["image"]), Aux({})

  rows = [dict(image=np.ones((width,), np.float32), id=np.uint32(0), counts=np.zeros((2,), np.int32)) for width in (3, 5, 7)]
  setup = set_up(toys.config(ema={}), Objective(init, loss, {}), rows[0], others=rows[1:2], devices=jax.devices()[:1])
  batch = lambda row: setup.put({name: np.stack([value] * 16) for name, value in row.items()})
  state, sizes = setup.state, []
  for row in (rows[0], rows[1], rows[0], rows[1]):
    state, _ = setup.step(state, batch(row))
    sizes.append(len(setup.step.compiled))
  assert sizes == [1, 2, 2, 2] and int(state.step) == 4
  with pytest.raises(TypeError, match="no step for a batch of"):
    setup.step(state, batch(rows[2]))


def test_another_rate_warm_up_decay_or_length_is_the_same_program():
  """So that the compilation cache has it; and what is given acts."""
  example = {name: value[0] for name, value in toys.Data().batch_at(0, batch_size=1).items()}

  def program(steps, **rule):
    config = toys.config(steps=steps, optim=dict(default=dict(name="adamw", lr=1e-2, warmup_steps=2, clip=1.0, weight_decay=0.01) | rule))
    made = set_up(config, toys.regression(), example, devices=jax.devices()[:1], compile_step=False)
    return made.step.lower(next(iter(made.step.known.values()))).as_text(), made
  text, one = program(6)
  other, two = program(600, lr=3e-4, warmup_steps=50, decay="wsd", final=0.1, weight_decay=0.2, clip=0.5)
  assert text == other and len(text) > 1000
  assert text != program(6, b1=0.5)[0] and text != program(6, weight_decay=0.0)[0]
  two.step.compiled = {key: one.step.compile(key) for key in one.step.known}
  moved = []
  for made in (one, two):
    state = made.state
    for step in range(2):
      state, metrics = made.step(state, made.put(toys.Data().batch_at(step, batch_size=16)))
    moved.append(float(metrics["update_norm"]))
  assert moved[0] == pytest.approx(1e-2 / 2 / (3e-4 / 50) * moved[1], rel=5e-2)       # Adam's first directions hardly depend on size
