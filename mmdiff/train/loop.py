"""The train loop. There is one: what is trained is an argument."""
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mmdiff import optim, parallel
from mmdiff.core import signals, tree
from mmdiff.core.errors import DataError, GaveUp, Interrupted
from mmdiff.core.objective import Objective
from mmdiff.core.terminal import one_line
from mmdiff.train.checkpoint import Checkpoints
from mmdiff.train.feed import ahead
from mmdiff.train.headlines import headline
from mmdiff.train.profiling import Trace
from mmdiff.train.progress import Clock, say, status_line
from mmdiff.train.setup import Setup, set_up
from mmdiff.train.state import TrainState, read_counts
from mmdiff.train.trackers import OWN, Trackers, captions
from mmdiff.train.trackers import check as check_trackers
from mmdiff.train.writer import Writer

OFFENDERS_SAID = 3          # bad records between two lines of the log


class Stop:
  """Set by the first of `signals.SIGNALS`; a second one leaves at once. With several processes jax.distributed's own handler hears SIGTERM,
  which the others are turned into, and its sync point makes all processes stop at one step."""

  def __init__(self):
    self.asked = False
    self.previous = {}

  def __enter__(self):
    several = jax.process_count() > 1
    self.previous = signals.handle(self._pass_on if several else self._ask, *([signal.SIGTERM] if several else []))
    signals.LISTENER.patient = True
    return self

  def _ask(self, number, frame):
    if self.asked:
      signals.LISTENER.stop(number, frame)
    self.asked = True

  def _pass_on(self, number, frame):
    if self.asked:
      signals.LISTENER.stop(number, frame)
    self.asked = True
    os.kill(os.getpid(), signal.SIGTERM)

  def __exit__(self, *exc):
    signals.LISTENER.patient = False
    for number, handler in self.previous.items():
      signal.signal(number, handler)

  def reached(self, step: int) -> bool:
    return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self.asked


def train(config, workdir: Path, *, objective: Objective, dataset, evaluators: Mapping[str, Any] | None = None,
          save_result: Callable | None = None, has_result: Callable[[str, int], bool] | None = None,
          on_start: Callable[[Setup], None] | None = None, initialise: Callable[[TrainState], TrainState] | None = None,
          on_evaluated: Callable[[int], None] | None = None, started: float | None = None, devices=None) -> TrainState:
  """Trains until `config.steps`, from the newest checkpoint in `workdir` if there is one. Returns the final state.

  config: a mapping of the keys of `core.experiment.Experiment`. evaluators: name -> `evaluators.base.Evaluator`. save_result(name, step,
  result) keeps what an evaluator found, and has_result(name, step) says whether it was kept: a run that was killed between a save and its
  evaluation makes up for it. on_start sees the set-up before the first step and before anything is logged, and may refuse it; initialise
  changes the state of a run that has no checkpoint yet; on_evaluated(step) is called when all that was due at a step is kept. started: when
  the command began, of `time.perf_counter`. devices: all of them by default.

  Raises Interrupted after a signal (the state is saved), DataError when too many records are bad, GaveUp when `max_bad_steps` updates in
  a row were not finite.
  """
  chief, evaluators = jax.process_index() == 0, evaluators or {}
  total, every = config["steps"], config["log_every_steps"]
  trace = Trace(config["profile"], workdir, total=total, say=lambda line: say(line, active=chief))
  check_trackers(config["trackers"])
  example, *others = dataset.variants()
  started = time.perf_counter() if started is None else started
  setup = set_up(config, objective, example, others=others, devices=devices)
  state, flops = setup.state, objective.predict.get("flops")
  flops_per_step = flops(config["batch_size"], example["tokens"].shape[0]) if flops else None
  named: list[Any] = []
  checkpoints = Checkpoints(workdir, keep=config["checkpoint"]["keep"])
  restored = checkpoints.restore(state)
  if restored:
    state, meta = restored
    if meta["data"]["fingerprint"] != dataset.fingerprint():
      raise DataError("the data are not those that this run began with (their fingerprint differs); restore them or choose another "
                      "--workdir")
    say(f"resuming at step {meta['step']}", active=chief)
  elif initialise:
    state = initialise(state)
  first = int(state.step)
  if not restored:
    say(f"{tree.count(state.params):,} parameters trained, {tree.count(state.frozen):,} frozen, on mesh "
        f"{dict(setup.mesh.shape)}; ready in {time.perf_counter() - started:.1f} s", active=chief)
  if on_start:
    on_start(setup._replace(state=state))
  trackers = Trackers(config["trackers"], workdir, config, active=chief)
  writer = Writer(workdir, resume_step=first, vouched=restored[1].get("metrics") if restored else None, active=chief, trackers=trackers,
                  events=OWN in config["trackers"])

  def save(state: TrainState, *, wait: bool = False) -> None:
    counts = read_counts(parallel.fetch(state.counts), dataset.count_names)
    position = dict(next_index=int(state.step) * config["batch_size"], fingerprint=dataset.fingerprint(), counts=counts)
    checkpoints.save(state, dict(data=position, versions=dict(jax=jax.__version__), metrics=writer.vouch()), wait=wait)

  def report(step: int, metrics: Mapping, counts, steps_since: int) -> None:
    values: dict[str, Any] = {name: np.float32(value) for name, value in jax.device_get(dict(metrics)).items()}
    counted = read_counts(parallel.fetch(counts), dataset.count_names)
    rates = clock.rates(steps_since, config["batch_size"], flops_per_step)
    writer.write_scalars(step, {"loss": values.pop("loss"), **values, **rates, **optim.learning_rates(setup.numbers, step - 1),
                                **{f"count/{name}": count for name, count in counted.items()}})
    seconds = config["batch_size"] / rates["images_per_second"]
    say(status_line(step, total, {**rates, **values, "loss": float(metrics["loss"])}, seconds), active=chief)
    name_offenders()
    dataset.check_counts(counted)
    if values["skipped_in_a_row"] >= config["max_bad_steps"]:
      raise GaveUp(f"{int(values['skipped_in_a_row'])} updates in a row were not finite; lower the learning rate or look at the data "
                   f"around step {step} (the last good checkpoint is kept)")

  def name_offenders() -> None:
    """The bad records met since the last time, by name; the first few of a kind of trouble say what there is to say."""
    new = list(dataset.offenders.values())[len(named):]
    for offence in new[:OFFENDERS_SAID]:
      say(f"  bad record, replaced by another: {one_line(offence.key)} ({offence.kind}: {one_line(offence.detail)})", active=chief)
    if len(new) > OFFENDERS_SAID:
      say(f"  and {len(new) - OFFENDERS_SAID} more; `mmdiff data validate` lists them all", active=chief)
    named.extend(new)

  def due(step: int) -> list[str]:
    return [name for name, evaluator in evaluators.items() if step and (step % evaluator.every_steps == 0 or step == total)]

  def evaluate(step: int, state: TrainState, names: Sequence[str]) -> None:
    jax.block_until_ready(state.step)           # steps still under way belong to training's time, not to evaluation's
    paused = time.perf_counter()
    for name in names:
      result = evaluators[name].run(state.full(evaluators[name].params), step, extra=state.extra_of(evaluators[name].params))
      writer.write_scalars(step, {f"{name}/{key}": value for key, value in result.scalars.items()})
      writer.write_images(step, {f"{name}_{key}" if key else name: image for key, image in result.images.items()}, captions(result.tables))
      if save_result and chief:
        save_result(name, step, result)
      score = headline(config["evals"].get(name, {}).get("name", name), result.scalars)
      say(f"  {name}: {score.said() if score else 'no scores'}", active=chief)
    if names and on_evaluated and chief:
      on_evaluated(step)
    clock.pause(time.perf_counter() - paused)

  def missed(step: int) -> list[str]:
    """What a run that was killed meanwhile did not evaluate at the step that it saved; the first process's files decide for all."""
    lacking = np.array([not has_result(name, step) for name in due(step)]) if has_result and restored else np.zeros(len(due(step)), bool)
    lacking = multihost_utils.broadcast_one_to_all(lacking) if jax.process_count() > 1 else lacking
    return [name for name, lacks in zip(due(step), lacking) if lacks]

  batches = ahead(dataset.train_batches(batch_size=config["batch_size"], start_step=first, rows=setup.rows), setup.put)
  clock, late, logged = Clock(started), None, first
  with Stop() as stop, jax.set_mesh(setup.mesh):
    try:
      evaluate(first, state, missed(first))
      for step in range(first + 1, total + 1):
        batch = clock.timed_next(batches)
        trace.before(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
          state, metrics = setup.step(state, batch)
        trace.after(step, lambda: jax.block_until_ready(metrics))     # noqa: B023 - called at once
        if late:                                # metrics are read one step late, so that dispatch never waits for the device
          report(*late)
          late = None
        if step % every == 0 or step == total:
          late, logged = (step, metrics, jnp.copy(state.counts), step - logged), step
        stopping = stop.reached(step)
        evaluating = due(step)
        if late and (evaluating or stopping or step == total):
          report(*late)
          late = None
        if step % config["checkpoint"]["every_steps"] == 0 or step == total or stopping:
          save(state, wait=stopping or step == total)
        if evaluating:                          # after the save: a run that is killed meanwhile has lost nothing
          evaluate(step, state, evaluating)
        if stopping and step < total:
          raise Interrupted(f"stopped at step {step}, saved; the same command goes on from there")
    finally:
      trace.close()
      batches.close()
      checkpoints.close()
      writer.close()
  return state

