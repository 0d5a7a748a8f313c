"""Options of a plan where they act: the first noise, the last noise, parts of a step; and constants of the papers."""
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.diffusion import guidance, plans, schedules
from mmdiff.diffusion.plans import COLUMN
from mmdiff.diffusion.weighting import TIME_SAMPLINGS


def column(plan, name):
  return np.asarray(plan.table)[:int(plan.rows), COLUMN[name]].astype(np.float64)


def test_the_noise_of_ddpm_is_beta_or_the_posteriors_and_none_at_the_end():
  """Ho 2020, §3.2: sigma² is beta ("large") or beta (1 - abar') / (1 - abar) ("small"), for steps of many levels."""
  small, large = (plans.plan("ddpm", schedules.schedule("linear"), steps=5, variance=variance) for variance in ("small", "large"))
  abar = np.append(column(small, "alpha") ** 2, 1.0)
  beta = 1 - abar[:-1] / abar[1:]
  np.testing.assert_allclose(column(large, "noise")[:-1], np.sqrt(beta[:-1]), rtol=1e-5)
  np.testing.assert_allclose(column(small, "noise")[:-1], np.sqrt(beta * (1 - abar[1:]) / (1 - abar[:-1]))[:-1], rtol=1e-5)
  assert column(large, "noise")[-1] == column(small, "noise")[-1] == 0
  np.testing.assert_allclose(column(large, "on_x"), column(small, "on_x"), rtol=1e-6)       # the mean is the same


@pytest.mark.parametrize("steps, strength, taken", [(10, 0.79, 7), (10, 0.7, 7), (3, 0.99, 2), (50, 0.8, 40), (4, 1.0, 4)])
def test_a_part_of_a_step_is_not_taken(steps, strength, taken):
  plan = plans.plan("euler", schedules.schedule("scaled_linear"), steps=steps, strength=strength)
  whole = plans.plan("euler", schedules.schedule("scaled_linear"), steps=steps)
  assert plan.rows == taken
  np.testing.assert_array_equal(column(plan, "time"), column(whole, "time")[-taken:])


@pytest.mark.parametrize("name, scale", [("linear", 1.0), ("cosine", 1.0), ("edm", schedules.SIGMA_MAX), ("flow", 1.0)])
def test_x_starts_at_the_noise_of_its_schedule(name, scale):
  assert plans.plan("euler", schedules.schedule(name), steps=4).start_scale == pytest.approx(scale, rel=1e-6)


def test_constants_are_the_papers():
  """Training noise: P_mean and P_std of Karras 2022, table 1, and c_noise = ln(sigma) / 4, in thousandths here; Imagen's percentile."""
  assert TIME_SAMPLINGS["lognormal"] == (-1.2, 1.2)
  level = schedules.level(schedules.schedule("edm"), np.asarray([0.0, 0.3, 1.0]))
  np.testing.assert_allclose(level.time, 1000 * np.log(level.sigma) / 4, rtol=1e-12)
  x = np.full((1, 1000), 0.5, np.float32)
  x[0, :8] = 4.0                        # less than a hundredth of the values, more than half of that
  np.testing.assert_allclose(guidance.dynamic_threshold(jnp.asarray(x))[0, [0, -1]], [1.0, 0.125], rtol=1e-6)
