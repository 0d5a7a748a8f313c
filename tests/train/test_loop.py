"""The loop: stopping and going on changes no bit, trouble ends a run the right way."""
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import DataError, GaveUp, Interrupted
from mmdiff.train.checkpoint import available_steps, restore_params
from mmdiff.train.loop import train
from tests.train import toys


def lines(workdir):
  timing = ("images_per_second", "data_wait", "seconds", "mfu")
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{key: value for key, value in row.items() if key not in timing} for row in rows]


def same(a, b):
  unkey = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(unkey(x), unkey(y)), a, b)


def run(workdir, data=None, objective=None, **changes):
  config = toys.config(log_every_steps=1, **changes)
  return train(config, workdir, objective=objective or toys.regression(), dataset=data or toys.Data(), devices=jax.devices()[:1])


class Stopping(toys.Data):
  """Sends a signal to this process while a given step's batch is made."""

  def __init__(self, step, number=signal.SIGTERM):
    self.stop_at, self.number = step, number

  def train_batches(self, *, batch_size, start_step, rows=None):
    for step, batch in enumerate(super().train_batches(batch_size=batch_size, start_step=start_step, rows=rows), start_step):
      if step == self.stop_at:
        os.kill(os.getpid(), self.number)
      yield batch


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """(last state, lines of the log) of a run that nothing interrupts."""
  workdir = tmp_path_factory.mktemp("straight")
  return run(workdir, steps=8), lines(workdir)


def test_stop_and_resume_is_bitwise_the_uninterrupted_run(tmp_path, straight):
  with pytest.raises(Interrupted, match="the same command goes on"):
    run(tmp_path / "c", data=Stopping(4), steps=8)
  resumed = run(tmp_path / "c", steps=8)
  same(straight[0], resumed)
  assert lines(tmp_path / "c") == straight[1]
  assert lines(tmp_path / "c")[-1]["count/caption/long"] == 8 * 16 // 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_and_the_keyboard_save_too(tmp_path, number):
  before = signal.signal(number, signal.SIG_DFL)             # a suite in the background may be told to ignore the keyboard
  try:
    with pytest.raises(Interrupted, match="stopped at step ., saved") as stopped:
      run(tmp_path, data=Stopping(3, number), steps=8)
  finally:
    signal.signal(number, before)
  assert f"step {available_steps(tmp_path)[-1]}," in str(stopped.value)


def test_a_crash_loses_only_what_came_after_the_last_save(tmp_path, straight):
  class Crash(toys.Data):
    def train_batches(self, *, batch_size, start_step, rows=None):
      for step, batch in enumerate(super().train_batches(batch_size=batch_size, start_step=start_step, rows=rows), start_step):
        if step == 5:
          raise OSError("disk gone")
        yield batch
  with pytest.raises(OSError, match="disk gone"):
    run(tmp_path / "b", data=Crash(), steps=8)
  same(straight[0], run(tmp_path / "b", steps=8))
  assert lines(tmp_path / "b") == straight[1]


def test_other_data_under_an_old_run_is_refused(tmp_path):
  class Other(toys.Data):
    def fingerprint(self):
      return "other"
  run(tmp_path, steps=3)
  with pytest.raises(DataError, match="not those that this run began with"):
    run(tmp_path, data=Other(), steps=6)


def test_it_gives_up_when_nothing_is_finite(tmp_path):
  with pytest.raises(GaveUp, match="3 updates in a row"):
    run(tmp_path, objective=toys.regression(lambda step: step >= 2), steps=50)


def test_evaluators_see_the_average_they_ask_for(tmp_path):
  seen = {}

  class Result:
    scalars, images, tables = {"kernel": 1.5}, {}, {}

  class Evaluator:
    every_steps, params = 4, "eval"

    def run(self, params, step, extra=()):
      seen[step] = np.asarray(params["text"]["proj"]["kernel"]), float(extra["seen"])
      return Result

  config, kept = toys.config(), []
  state = train(config, tmp_path, objective=toys.regression(statistics=True), dataset=toys.Data(), evaluators={"probe": Evaluator()},
                devices=jax.devices()[:1],
                save_result=lambda name, step, result: kept.append((name, step)))
  assert sorted(seen) == [4, 6] and kept == [("probe", 4), ("probe", 6)]
  np.testing.assert_array_equal(seen[6][0], state.ema["eval"]["text"]["proj"]["kernel"])
  assert seen[6][1] == float(state.ema_extra["eval"]["seen"]) != float(state.extra["seen"])
  loaded = {ema: restore_params(tmp_path, ema=ema)[1]["seen"] for ema in ("", "eval")}
  assert loaded == {"": state.extra["seen"], "eval": state.ema_extra["eval"]["seen"]}
  assert {"step": 4, "probe/kernel": 1.5} in [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_killed_between_save_and_evaluation_makes_up_for_it(tmp_path):
  class Probe:
    every_steps, params = 4, ""

    def __init__(self, dies_at=0):
      self.seen, self.dies_at = [], dies_at

    def run(self, params, step, extra=()):
      if step == self.dies_at:
        raise KeyboardInterrupt
      self.seen.append(step)
      return type("Result", (), dict(scalars={"x": 1.0}, images={}, tables={}))

  kept, objective = set(), toys.regression()

  def go(probe):
    train(toys.config(steps=6, checkpoint=dict(every_steps=2, keep=2)), tmp_path, objective=objective, dataset=toys.Data(),
          evaluators={"probe": probe}, devices=jax.devices()[:1], save_result=lambda name, step, result: kept.add((name, step)),
          has_result=lambda name, step: (name, step) in kept)
    return probe.seen
  for dies_at in (4, 6):
    with pytest.raises(KeyboardInterrupt):
      go(Probe(dies_at))
  assert go(Probe()) == [6] and go(Probe()) == [] and kept == {("probe", 4), ("probe", 6)}
  assert available_steps(tmp_path) == [4, 6]                     # of three saves the newest two: `checkpoint.keep` as the config says
  steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "probe/x" in line]
  assert steps == [4, 6]
