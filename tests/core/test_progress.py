import io
import sys

import jax
import pytest

from mmdiff.core import progress
from mmdiff.core.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def test_a_log_gets_count_rate_and_time_left(capsys, clock):
  told = Progress("judge", "pictures")
  for _ in range(5):
    clock[0] += 2
    told(16, 256)
  assert capsys.readouterr().err == "judge: 64 of 256 pictures · 8.0/s · 0:24 left\n"


def test_a_new_pass_starts_anew_and_short_work_is_silent(capsys):
  told = Progress("x")
  told(8, 8)
  told(8, 8)
  assert (told.done, told.total) == (8, 8)
  told(3, None)
  assert (told.done, told.total) == (3, None) and not capsys.readouterr().err


def test_a_log_of_ten_hours_has_a_hundred_lines(capsys, clock):
  told = Progress("caption", "records")
  for _ in range(36_000):
    clock[0] += 1
    told(10, 360_000)
  lines = capsys.readouterr().err.splitlines()
  assert 50 < len(lines) < 100 and "10.0/s" in lines[-1]
  counts = [int(line.split(" of ")[0].split(": ")[1].replace(",", "")) for line in lines]
  assert counts[1] - counts[0] < 100 and max(b - a for a, b in zip(counts, counts[1:])) < 36_000      # never an hour of silence


def test_a_terminal_has_one_line_that_is_rewritten_and_cleared(monkeypatch, clock):
  monkeypatch.setattr(sys, "stderr", screen := Terminal())
  told = Progress("validate", "records")
  for done in (0, 500, 1000, 8):
    clock[0] += 1
    told.at(done, 1000)
  told.close()
  text = screen.getvalue()
  assert "\n" not in text and "validate: 500 of 1,000 records · 500/s · 0:01 left" in text
  assert text.count("\r") == 8 and not text.split("\r")[-2].strip() and len(text.split("\r")[-2]) >= len("validate: 8 of 1,000 records")


def test_work_that_tells_nothing_still_shows_that_it_goes_on(monkeypatch):
  """Compiling is said until the program of that name is there; then the time, and what is left of what it took before."""
  monkeypatch.setattr(sys, "stderr", screen := Terminal())
  monkeypatch.setattr(progress, "REWRITE_SECONDS", 0.01)
  told = Progress("generate, 30 steps", "pictures", total=4, expected=60.0)
  with told.running(compiles="drawn_here"):
    assert told.phase.startswith("compiling, seconds to minutes")
    jax.jit(lambda x: x + 1)(1)
    assert told.phase
    def drawn_here(x):
      return x * 3
    jax.jit(drawn_here)(2)
    assert not told.phase
    for _ in range(200):
      if "left" in screen.getvalue():
        break
      progress.time.sleep(0.01)
  assert "\rgenerate, 30 steps: 0 of 4 pictures · 0:00 · 0:5" in screen.getvalue() and screen.getvalue().endswith("\r")
  monkeypatch.setattr(sys, "stderr", quiet := Terminal())
  with Progress("x", active=False).running(compiles="x"):
    pass
  assert not quiet.getvalue()
