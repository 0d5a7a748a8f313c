"""EDM's schedulers of diffusers: exact where the answer is known, refused where there is none. `tests/peers` compares every step."""
import numpy as np
import pytest

from mmdiff.convert import schedulers
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.diffusion import plans
from mmdiff.diffusion.plans import COLUMN

PLAYGROUND = dict(_class_name="EDMDPMSolverMultistepScheduler")
COSXL = dict(_class_name="EDMEulerScheduler", sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential")


def run(plan, deviation):
  """The end of a loop over data N(0, deviation²) by its exact denoiser, and what it should be."""
  rows = np.asarray(plan.table[:plan.rows], np.float64)
  x, memory = np.float64(plan.start_scale), [0.0] * plans.MEMORY
  for row in rows:
    c = dict(zip(plans.COLUMNS, row))
    d = x * c["alpha"] * deviation**2 / (c["alpha"] ** 2 * deviation**2 + c["sigma"] ** 2)
    new = c["on_x"] * x + c["on_d"] * d + sum(c[f"on_m{k}"] * kept for k, kept in enumerate(memory, 1))
    x, memory = new, [c["keep_x"] * x + c["keep_d"] * d, *memory[:-1]]
  return x


@pytest.mark.parametrize("config, deviation", [(PLAYGROUND, 0.5), (COSXL, 1.0)])
@pytest.mark.parametrize("sampler", [None, "euler", "heun", "unipc", "lms", "plms", "dpm++2m_karras"])
def test_every_sampler_ends_in_the_data(config, deviation, sampler):
  """The probability flow of a Gaussian takes noise of deviation √(d² + s²) to d; the last step, to sigma 0, is exact."""
  found = schedulers.plan_of(config, steps=400, sampler=sampler)
  assert run(found.plan, deviation) == pytest.approx(deviation, rel=2e-2)
  assert found.prediction == ("edm" if config is PLAYGROUND else "v")


@pytest.mark.parametrize("config", [PLAYGROUND, COSXL])
@pytest.mark.parametrize("steps", [1, 2, 20, 999, 1000])
def test_short_and_long_loops_are_finite(config, steps):
  for sampler in (None, "ddim", "euler_ancestral", "unipc"):
    plan = schedulers.plan_of(config, steps=steps, sampler=sampler).plan
    assert np.isfinite(plan.table).all() and plan.rows == steps and plan.table[0, COLUMN["time"]] == pytest.approx(
      np.log(config.get("sigma_max", 80.0)) / 4)


def test_what_is_not_there_is_named():
  refuse = lambda more, **options: schedulers.plan_of({**PLAYGROUND, **more}, steps=10, **options)
  for more, message in ((dict(solver_type="heun"), "solver_type: expected 'midpoint', found 'heun'"),
                        (dict(sigma_data=1.0), "prediction_type 'epsilon' with sigma_data 1.0"),
                        (dict(algorithm_type="sde-dpmsolver++"), "algorithm_type"), (dict(sigma_min=90.0), "0 < sigma_min < sigma_max")):
    with pytest.raises(DataError, match=message):
      refuse(more)
  for options, message in ((dict(sampler="fast"), "unknown value 'fast'"), (dict(end=0.8), "no levels to count parts of the noise by"),
                           (dict(eta=0.5), "adds no noise")):
    with pytest.raises(ConfigError, match=message):
      refuse({}, **options)
  with pytest.raises(ConfigError, match="ends at sigma_min"):
    refuse(dict(final_sigmas_type="sigma_min"), sampler="unipc")
  assert np.isfinite(refuse(dict(final_sigmas_type="sigma_min")).plan.table).all()
  with pytest.raises(ConfigError, match="steps: expected 1 to 1000, found 1001"):
    schedulers.plan_of(COSXL, steps=1001)
