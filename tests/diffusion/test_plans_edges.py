"""Every sampler, schedule and spacing at the ends of what they take: pictures are finite, or the run is refused by name."""
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion.plans import COLUMN, SAMPLERS, SPACINGS, plan
from mmdiff.diffusion.rows import linear
from mmdiff.diffusion.schedules import schedule
from tests.diffusion.loops import SPREAD, run

MADE = {"scaled_linear": schedule("scaled_linear"), "zero": schedule("scaled_linear", zero_terminal_snr=True), "edm": schedule("edm"),
        "flow": schedule("flow")}
START = np.linspace(-2, 2, 3)
FEW, MANY = (1, 2, 20), (999, 1000)
# What can't be, with the words that say so.
REFUSED = [
  (lambda name, kind, spacing, steps: name == "heun" and steps > 500, "the most is 1000"),
  (lambda name, kind, spacing, steps: name == "plms" and steps == 1000, "the most is 1000"),
  (lambda name, kind, spacing, steps: name in ("plms", "lms") and kind in ("zero", "flow") and (
    spacing != "leading" or steps in MANY), "says nothing at pure noise"),
  (lambda name, kind, spacing, steps: name == "dpm++2m_karras" and spacing != "karras", "spaces its levels by 'karras'"),
  (lambda name, kind, spacing, steps: kind == "zero" and spacing in ("karras", "exponential"), "finite largest sigma"),
]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", MADE)
def test_few_steps_are_finite_or_refused(kind, name):
  for steps in FEW:
    check(name, steps, kind, SPACINGS[MADE[kind].kind])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", MANY)
def test_all_steps_are_finite_or_refused(steps, name):
  check(name, steps, "scaled_linear", SPACINGS["discrete"])
  if steps == 1000:
    for kind in ("zero", "edm", "flow"):
      check(name, steps, kind, SPACINGS[MADE[kind].kind][:1])


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", MADE)
def test_all_steps_of_every_schedule(kind, name):
  for steps in MANY:
    check(name, steps, kind, SPACINGS[MADE[kind].kind])


def check(name, steps, kind, spacings):
  for spacing in spacings:
    known = [words for holds, words in REFUSED if holds(name, kind, spacing, steps)]
    if known:
      with pytest.raises(ConfigError, match="|".join(known)):
        plan(name, MADE[kind], steps=steps, spacing=spacing)
      continue
    made = plan(name, MADE[kind], steps=steps, spacing=spacing)
    # Samplers that add noise end narrower without it; the others at the data's spread, the closer the more steps.
    found = run(made, START)
    assert np.isfinite(found).all() and (steps < 20 or np.abs(found).max() < 3), (spacing, found)
    if SAMPLERS[name].rows is linear and SAMPLERS[name].eta:
      assert np.isfinite(made.table[:, COLUMN["noise"]]).all()
    elif steps >= 20 and name != "lms":
      np.testing.assert_allclose(found, SPREAD * START, atol=0.2 if steps == 20 else 0.02, err_msg=spacing)
