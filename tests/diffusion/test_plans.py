"""Coefficients against the published formulas, and orders of convergence in float64, where rounding does not hide them."""
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import plans, schedules
from mmdiff.diffusion.plans import COLUMN, coefficients, plan, times
from mmdiff.diffusion.schedules import Level, level, schedule

SD, EDM, FLOW = schedule("scaled_linear"), schedule("edm"), schedule("flow")
ZERO = schedule("scaled_linear", zero_terminal_snr=True)


def steps_of(n):
  """Levels of Stable Diffusion's indices."""
  return level(SD, (np.asarray(n) + 1) / 1000)


def column(table, name):
  return table[:, COLUMN[name]]


def run(table, x, denoise):
  """The loop of `samplers.sample` in float64, without noise; x is a number."""
  memory = [0.0] * 4
  for row in table:
    c = dict(zip(plans.COLUMNS, row))
    d = denoise(x, c["alpha"], c["sigma"])
    x, memory = (c["on_x"] * x + c["on_d"] * d + sum(c[f"on_m{k + 1}"] * memory[k] for k in range(4)),
                 [c["keep_x"] * x + c["keep_d"] * d, *memory[:3]])
  return x


def test_ddpm_posterior_of_stable_diffusion():
  small, _ = coefficients("ddpm", steps_of([500, 499]))
  np.testing.assert_allclose([column(small, "on_d")[0], column(small, "on_x")[0]], [0.00350604, 0.995747], rtol=2e-6)
  np.testing.assert_allclose(column(small, "noise")[0] ** 2, 0.00480606, rtol=2e-6)
  large, _ = coefficients("ddpm", steps_of([500, 499]), variance="large")
  np.testing.assert_allclose(column(large, "noise")[0] ** 2, 0.00481495, rtol=2e-6)
  np.testing.assert_allclose(column(large, "on_x"), column(small, "on_x"))


def test_ddim_noise_of_stable_diffusion():
  table, _ = coefficients("ddim", steps_of([501, 481]), eta=1.0)
  np.testing.assert_allclose(column(table, "noise"), 0.294785, rtol=2e-6)


def test_euler_ancestral_splits_sigma_as_k_diffusion():
  sigma, then, eta = 3.0, 2.0, 0.8
  table, _ = coefficients("euler_ancestral", Level(np.ones(2), np.asarray([sigma, then]), np.zeros(2)), eta=eta)
  up = min(then, eta * np.sqrt(then**2 * (sigma**2 - then**2) / sigma**2))
  down = np.sqrt(then**2 - up**2)
  x, d = 1.7, 0.3
  np.testing.assert_allclose(column(table, "noise"), up)
  np.testing.assert_allclose(run(table, x, lambda *_: d), x + (x - d) / sigma * (down - sigma))


def test_euler_on_flow_is_a_step_along_the_velocity():
  t, then, x, d = 0.8, 0.5, 1.3, -0.4
  table, _ = coefficients("euler", level(FLOW, np.asarray([t, then])), flow=True)
  np.testing.assert_allclose(run(table, x, lambda *_: d), x + (then - t) * (x - d) / t)


def test_heun_is_algorithm_1_of_edm():
  sigmas = np.asarray([5.0, 2.0, 0.7, 0.0])
  table, where = coefficients("heun", Level(np.ones(4), sigmas, np.zeros(4)))
  denoise = lambda x, a, s: np.tanh(x / (1 + s))
  x = expected = 4.0
  for s, s2 in zip(sigmas, sigmas[1:]):
    slope = (expected - denoise(expected, 1, s)) / s
    euler = expected + (s2 - s) * slope
    if s2:
      expected = expected + (s2 - s) * (slope + (euler - denoise(euler, 1, s2)) / s2) / 2
    else:
      expected = euler
  np.testing.assert_allclose(run(table, x, denoise), expected, rtol=1e-12)
  assert list(where) == [0, 1, 1, 2, 2]


def test_dpmpp_2m_is_k_diffusions():
  sigmas = np.asarray([5.0, 2.0, 0.7, 0.2, 0.0])
  denoise = lambda x, a, s: np.tanh(x / (1 + s))
  x = expected = 4.0
  before = None
  for i, (s, s2) in enumerate(zip(sigmas, sigmas[1:])):
    d = denoise(expected, 1, s)
    if s2 == 0:
      expected = d
      continue
    h = np.log(s / s2)
    use = d
    if before is not None:
      r = np.log(sigmas[i - 1] / s) / h
      use = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * before
    expected, before = s2 / s * expected - np.expm1(-h) * use, d
  table, _ = coefficients("dpm++2m", Level(np.ones(5), sigmas, np.zeros(5)))
  np.testing.assert_allclose(run(table, x, denoise), expected, rtol=1e-12)


def grid(kind, n):
  """n steps between two fixed noise levels, both above zero."""
  if kind == "edm":
    sigma = schedules.karras_ramp(n + 1, 0.2, 20.0)
    return Level(np.ones(n + 1), sigma, np.zeros(n + 1))
  if kind == "flow":
    return level(FLOW, np.linspace(0.95, 0.1, n + 1))
  half = np.linspace(-2.0, 1.5, n + 1)           # ln alpha / sigma
  return Level(1 / np.sqrt(1 + np.exp(-2 * half)), 1 / np.sqrt(1 + np.exp(2 * half)), np.zeros(n + 1))


@pytest.mark.parametrize("kind", ["edm", "flow", "vp"])
@pytest.mark.parametrize("name,order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm++2m", 2), ("plms", 2), ("unipc", 2)])
def test_order_of_convergence_on_a_gaussian(name, order, kind):
  """For data N(0, spread²) the ODE keeps x / sqrt(alpha² spread² + sigma²): halving the steps' size divides the error by 2^order."""
  spread = 0.6
  marginal = lambda a, s: np.sqrt(a**2 * spread**2 + s**2)
  denoise = lambda x, a, s: x * a * spread**2 / marginal(a, s) ** 2
  errors = []
  for n in (40, 80, 160):
    levels = grid(kind, n)
    table, _ = coefficients(name, levels, flow=kind == "flow")
    exact = marginal(levels.alpha[-1], levels.sigma[-1]) / marginal(levels.alpha[0], levels.sigma[0])
    errors.append(abs(run(table, 1.0, denoise) - exact))
  orders = np.log2(np.asarray(errors[:-1]) / errors[1:])
  np.testing.assert_allclose(orders, order, atol=0.25)


def test_lms_integrates_a_cubic_exactly():
  """eps is a polynomial of degree three in tau = sigma / alpha: after three steps to start with, the polynomial through four is it."""
  sigma = np.asarray([9.0, 7.0, 5.5, 4.0, 2.0, 1.0])
  cubic, x = np.poly1d([0.3, -1.0, 2.0, 0.5]), 1.7
  table, _ = coefficients("lms", Level(np.ones(6), sigma, np.zeros(6)))
  states = [x]
  for n in range(1, 6):
    states.append(run(table[:n], x, lambda x, a, s: x - s * cubic(s)))
  whole = cubic.integ()
  np.testing.assert_allclose(np.diff(states)[3:], np.diff(whole(sigma))[3:], rtol=1e-12)


def test_plms_of_a_constant_eps_is_ddims():
  levels = steps_of([900, 700, 500, 300, 100, 20])
  table, where = coefficients("plms", levels)
  assert where.tolist() == [0, 1, 1, 2, 3, 4]
  constant = lambda x, a, s: (x - s * 0.7) / a
  np.testing.assert_allclose(run(table, 1.3, constant), run(coefficients("ddim", levels)[0], 1.3, constant), rtol=1e-12)


@pytest.mark.parametrize("made", [SD, ZERO, EDM, FLOW], ids=["sd", "zero", "edm", "flow"])
@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral"])
def test_ancestral_samplers_reach_the_datas_variance(name, made):
  """On a Gaussian every row is linear, so the variance of what comes out is exact arithmetic."""
  spread = 0.6
  table = plan(name, made, steps=400).table[:400].astype(np.float64)
  variance = 1.0 if made.kind == "discrete" else table[0, COLUMN["sigma"]] ** 2
  for row in table:
    c = dict(zip(plans.COLUMNS, row))
    d = c["alpha"] * spread**2 / (c["alpha"] ** 2 * spread**2 + c["sigma"] ** 2)
    variance = (c["on_x"] + c["on_d"] * d) ** 2 * variance + c["noise"] ** 2
  np.testing.assert_allclose(np.sqrt(variance), spread, rtol=0.02)


def test_spacings():
  index = lambda t: np.round(t * 1000 - 1, 6)
  np.testing.assert_array_equal(index(times(SD, 10, "leading")), np.arange(901, 0, -100))
  np.testing.assert_array_equal(index(times(SD, 50, "leading")), np.arange(981, 0, -20))
  np.testing.assert_array_equal(index(times(SD, 10, "trailing")), np.arange(999, 0, -100))
  np.testing.assert_array_equal(index(times(SD, 10, "linspace")), np.arange(999, -1, -111))
  for spacing in ("leading", "trailing", "linspace"):
    np.testing.assert_array_equal(index(times(SD, 1000, spacing)), np.arange(999, -1, -1))
  karras = level(SD, times(SD, 10, "karras"))
  np.testing.assert_allclose(karras.sigma / karras.alpha, schedules.karras_ramp(10, 0.0291672, 14.6146), rtol=1e-5)
  np.testing.assert_allclose(level(EDM, times(EDM, 7)).sigma, schedules.karras_ramp(7, 0.002, 80.0), rtol=1e-9)
  np.testing.assert_allclose(times(FLOW, 4), [1.0, 0.75, 0.5, 0.25])


def test_final_level_of_ldm_leaves_the_first_levels_noise():
  table = plan("ddim", SD, steps=50, spacing="leading", final="first").table
  first = steps_of([0])
  a, s = table[49, COLUMN["alpha"]], table[49, COLUMN["sigma"]]
  np.testing.assert_allclose(table[49, COLUMN["on_x"]], first.sigma[0] / s, rtol=1e-5)
  np.testing.assert_allclose(table[49, COLUMN["on_d"]], first.alpha[0] - first.sigma[0] * a / s, rtol=1e-5)


def test_interval_and_padding():
  made = plan("euler", FLOW, steps=10, guidance=4.0, interval=(0.25, 0.65))
  np.testing.assert_array_equal(made.table[:10, COLUMN["guidance"]], [1, 1, 1, 1, 4, 4, 4, 4, 1, 1])
  assert made.rows == 10 and not made.table[10:].any()
  assert plan("heun", EDM, steps=18).rows == 35


def test_every_plan_has_the_same_shapes_and_no_nan():
  for name in plans.SAMPLERS:
    for made in (SD, ZERO, EDM, FLOW):
      if name == "dpm++2m_karras" and (made.kind == "flow" or made.zero_terminal_snr):
        continue
      if name in ("plms", "lms") and (made.kind == "flow" or made.zero_terminal_snr):
        with pytest.raises(ConfigError, match="says nothing at pure noise"):
          plan(name, made, steps=3)
        continue
      for steps in (1, 2, 3, 50):
        result = plan(name, made, steps=steps)
        assert [np.shape(x) for x in result] == [(plans.MAX_ROWS, len(plans.COLUMNS)), (), (), (), ()]
        assert result.table.dtype == np.float32 and np.isfinite(result.table).all(), (name, made.kind, steps)
        assert (result.table[:result.rows, COLUMN["noise"]] >= 0).all()


@pytest.mark.parametrize("arguments,says", [
  (dict(name="dpm"), "sampler"), (dict(steps=0), "steps"), (dict(steps=1001), "1000 levels"), (dict(name="heun", steps=501), "most"),
  (dict(name="heun", eta=0.5), "eta"), (dict(rescale=2.0), "rescale"), (dict(eta=-0.5), "eta: expected"),
  (dict(clip=-1.0), "clip"), (dict(interval=(0.6, 0.2)), "interval"), (dict(interval=(0.2,)), "interval"),
  (dict(variance="big"), "variance"), (dict(final="frist"), "final"),
  (dict(name="dpm++2m_karras", spacing="trailing"), "levels by 'karras'"),
  (dict(name="dpm++2m", spacing="linspace", steps=1000, strength=0.0), "strength"), (dict(spacing="uneven"), "spacing"),
  (dict(made=FLOW, spacing="karras"), "trailing"), (dict(made=ZERO, spacing="karras"), "zero terminal"),
  (dict(made=EDM, final="first"), "final")])
def test_refuses_what_is_not_defined(arguments, says):
  arguments = dict(name="ddim", made=SD, steps=10) | arguments
  with pytest.raises(ConfigError, match=says):
    plan(arguments.pop("name"), arguments.pop("made"), **arguments)


def test_a_sampler_has_its_other_name():
  one, other = (plans.plan(name, schedules.schedule("scaled_linear"), steps=7) for name in ("plms", "pndm"))
  np.testing.assert_array_equal(one.table, other.table)
