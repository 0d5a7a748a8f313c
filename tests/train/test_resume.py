"""Real objectives with the real loader: a run that was stopped, or killed between two saves, and went on is bit for bit the one that was
not."""
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.commands import train
from mmdiff.core.errors import Interrupted
from mmdiff.data import loader
from tests import toy_runs

STEPS = 5
TIMING = ("images_per_second", "data_wait", "seconds", "mfu")
# Frozen parameters, an average, two caption kinds, dropout and noise: all that a step draws or keeps.
CASES = {
  "contrastive": lambda: toy_runs.clip() | dict(
    freeze=("image/position",), init=dict(path="", params="", map={"image/position": ""}, parts={}, differs=())),
  "diffusion": lambda: toy_runs.t2i() | dict(accumulate=2),
  "coca": toy_runs.coca,
  "latent": toy_runs.latent,
}


class Killed(Exception):
  """Ends a run where it is, as SIGKILL would: nothing is saved."""


def config(name: str) -> dict:
  made = CASES[name]()
  augment = dict(crop=(0.8, 1.0), flip=True, sentences=False, position="centre")
  data = dict(made["data"], captions=dict(long=0.5, original=0.5), augment=augment)
  return made | dict(steps=STEPS, batch_size=16, mesh=dict(data=-1, fsdp=1, tensor=1), log_every_steps=1, data=data,
                     checkpoint=dict(every_steps=2, keep=2))


def run(name: str, workdir, monkeypatch, *, at: int | None = None, how: str = ""):
  """One start of the run, stopped or killed when the batch of step `at` is made."""
  batches = loader.Dataset.train_batches

  def ending(self, **options):
    for step, batch in enumerate(batches(self, **options), options["start_step"]):
      if step == at:
        if how == "killed":
          raise Killed
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch
  with monkeypatch.context() as patch:
    patch.setattr(loader.Dataset, "train_batches", ending)
    return train.run(config(name), workdir, argv=[])


def values(state):
  unkey = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  return [np.asarray(unkey(leaf)) for leaf in jax.tree.leaves(state)]


def lines(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def check(name, tmp_path, monkeypatch, ends):
  straight = run(name, tmp_path / "straight", monkeypatch)
  for at, how in ends:
    with pytest.raises(Killed if how == "killed" else Interrupted):
      run(name, tmp_path / "other", monkeypatch, at=at, how=how)
  resumed = run(name, tmp_path / "other", monkeypatch)
  assert int(resumed.step) == STEPS and all(map(np.array_equal, values(straight), values(resumed)))
  found = lines(tmp_path / "straight")
  assert found == lines(tmp_path / "other") and len({row["loss"] for row in found}) == STEPS


def test_a_run_that_was_killed_and_went_on_is_the_one_that_was_not(tmp_path, monkeypatch):
  check("contrastive", tmp_path, monkeypatch, [(3, "killed")])


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_ended_twice_too(tmp_path, monkeypatch, name):
  check(name, tmp_path, monkeypatch, [(1, "stopped"), (3, "killed")])
