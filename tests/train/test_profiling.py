"""A profile is of the steps asked for, and of none beyond the run."""
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.train import profiling


def traced(monkeypatch, tmp_path, profile, steps, first=1):
  """What was asked of JAX: ("start" or "stop", step)."""
  asked, now = [], []
  monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda folder: asked.append(("start", now[-1])))
  monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: asked.append(("stop", now[-1])))
  trace = profiling.Trace(profile, tmp_path, total=steps, say=lambda line: None)
  for step in range(first, steps + 1):
    now.append(step)
    trace.before(step)
    trace.after(step, lambda: None)
  trace.close()
  return asked


@pytest.mark.parametrize("profile, first, expected", [
  (dict(start=0, steps=5), 1, []), (dict(start=3, steps=2), 1, [("start", 3), ("stop", 4)]),
  (dict(start=9, steps=5), 1, [("start", 9), ("stop", 10)]),
  (dict(start=3, steps=2), 5, [])])
def test_the_steps_asked_for(monkeypatch, tmp_path, profile, first, expected):
  assert traced(monkeypatch, tmp_path, profile, 10, first) == expected


def test_a_start_beyond_the_run_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="profile: expected a start from 1 to 10 .* found"):
    profiling.Trace(dict(start=11, steps=1), tmp_path, total=10, say=print)
