"""Rates, durations and the status line."""
import time

import pytest

from mmdiff.core.progress import duration
from mmdiff.train import progress


def test_durations():
  assert [duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_rates_leave_out_pauses_and_count_waiting():
  clock = progress.Clock()
  slow = iter(lambda: time.sleep(0.05) or 1, None)
  clock.timed_next(slow)
  time.sleep(0.1)
  clock.pause(0.05)
  rates = clock.rates(steps=1, batch_size=10, flops_per_step=None)
  assert 5 < rates["images_per_second"] <= 100.1 and 0.02 < rates["data_wait"] < 0.9 and "mfu" not in rates


def test_status_line():
  line = progress.status_line(50, 200, dict(loss=1.5, images_per_second=1234.5, data_wait=0.02, mfu=0.4, skipped=2), 2.0)
  assert line == "step 50/200 25 % · loss 1.5000 · 1,234 images/s · MFU 40 % · data wait 2 % · 2 steps skipped · 5:00 left"


def test_the_machine_can_multiply():
  assert progress.measured_matmul_flops(size=256) > 1e8
  assert progress.peak_flops() == pytest.approx(progress.measured_matmul_flops())


def test_a_compilation_says_how_long_it_took_and_whether_it_was_kept(capsys):
  import jax

  from mmdiff.core.compilation import CACHE_HIT
  with progress.compiling("the step"):
    pass
  with progress.compiling("the step"):
    jax.monitoring.record_event(CACHE_HIT)
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(" in ")[0].strip() for line in lines[1::2]] == ["compiled", "found"]
  assert jax.config.values["jax_compilation_cache_dir"] in lines[0]
