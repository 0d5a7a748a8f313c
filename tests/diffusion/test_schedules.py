import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import schedules
from mmdiff.diffusion.schedules import level, schedule

INDICES = (0, 100, 250, 500, 750, 999)
ABAR = {          # published schedules, computed independently in float64
  ("linear", False): (0.9999, 0.895142, 0.521423, 0.0777967, 0.00330016, 4.03583e-5),
  ("scaled_linear", False): (0.99915, 0.894223, 0.673793, 0.276333, 0.0561698, 0.0046601),
  ("scaled_linear", True): (0.99915, 0.886761, 0.652457, 0.241019, 0.0327991, 0.0),
  ("cosine", False): (0.999959, 0.971576, 0.845888, 0.492285, 0.143179, 2.42877e-9),
}
ALL = [schedule("linear"), schedule("scaled_linear"), schedule("cosine"), schedule("scaled_linear", zero_terminal_snr=True),
       schedule("edm"), schedule("flow"), schedule("flow", shift=3.0)]


@pytest.mark.parametrize("name,zero", ABAR)
def test_published_alpha_bar(name, zero):
  made = schedule(name, zero_terminal_snr=zero)
  n = np.asarray(INDICES)
  np.testing.assert_allclose(level(made, (n + 1) / 1000).alpha ** 2, ABAR[name, zero], rtol=5e-6)
  device = level(made, jnp.asarray((n + 1) / 1000, jnp.float32))
  np.testing.assert_allclose(device.alpha ** 2, ABAR[name, zero], rtol=2e-5)
  np.testing.assert_array_equal(device.time, n)


def test_stable_diffusion_sigmas():
  at = level(schedule("scaled_linear"), (np.asarray([0, 250, 500, 750, 999]) + 1) / 1000)
  np.testing.assert_allclose(at.sigma / at.alpha, [0.0291672, 0.695799, 1.61828, 4.09916, 14.6146], rtol=1e-5)


def test_linear_schedule_of_other_lengths_is_scaled():
  np.testing.assert_allclose(schedules.linear_betas(500)[[0, -1]], [2e-4, 0.04])


def test_every_float32_time_is_its_own_level():
  """(n + 1) / T rounded to float32 must not fall to a neighbour."""
  for made in ALL[:4]:
    n = np.arange(1000)
    np.testing.assert_array_equal(level(made, jnp.asarray((n + 1) / 1000, jnp.float32)).time, n)
    np.testing.assert_array_equal(level(made, np.asarray((n + 1) / 1000)).time, n)


@pytest.mark.parametrize("made", ALL, ids=lambda s: f"{s.kind}{s.shift}{s.zero_terminal_snr}")
def test_noise_grows_with_time(made):
  t = np.linspace(0.001, 1.0, 777)
  at = level(made, t)
  assert np.all(np.diff(schedules.noise_share(at)) > 0)
  assert np.all(np.diff(at.time) > 0)
  if made.kind == "discrete":
    np.testing.assert_allclose(at.alpha**2 + at.sigma**2, 1.0, rtol=1e-12)
  device = level(made, jnp.asarray(t, jnp.float32))
  finite = at.alpha > 1e-3          # near a zero terminal SNR one float32 time step is most of alpha
  np.testing.assert_allclose(np.asarray(device.alpha)[finite], at.alpha[finite], rtol=2e-3)
  np.testing.assert_allclose(device.sigma, at.sigma, rtol=2e-3)


@pytest.mark.parametrize("made", ALL, ids=lambda s: f"{s.kind}{s.shift}{s.zero_terminal_snr}")
def test_time_of_inverts_level(made):
  t = np.linspace(0.01, 0.99, 50)
  at = level(made, t)
  np.testing.assert_allclose(schedules.time_of(made, at.sigma / at.alpha), t, rtol=1e-9)


def test_zero_terminal_snr_has_an_end_and_no_nan():
  made = schedule("scaled_linear", zero_terminal_snr=True)
  for t in (np.asarray([0.9985, 0.9995, 1.0]), jnp.asarray([0.9985, 0.9995, 1.0])):
    at = level(made, t)
    assert not np.isnan(np.asarray(at)).any()
    assert at.alpha[-1] == 0 and at.sigma[-1] == 1
  np.testing.assert_allclose(level(made, np.asarray(0.999)).alpha ** 2, 1.97e-7, rtol=2e-3)


def test_flow_shift_moves_towards_noise():
  at = level(schedule("flow", shift=3.0), np.asarray([0.0, 0.5, 1.0]))
  np.testing.assert_allclose(at.sigma, [0.0, 0.75, 1.0])


def test_karras_ramp():
  np.testing.assert_allclose(schedules.karras_ramp(10, 0.0292, 14.6146),
                             [14.6146, 9.1034, 5.479, 3.1692, 1.7499, 0.9144, 0.4471, 0.2015, 0.082, 0.0292], atol=6e-5)
  np.testing.assert_allclose(schedules.karras_ramp(18, 0.002, 80.0),
                             [80.0, 57.586, 40.786, 28.375, 19.353, 12.910, 8.401, 5.315, 3.257, 1.923, 1.088, 0.5853, 0.2964, 0.1395,
                              0.0599, 0.0229, 0.0075, 0.002], rtol=8e-4, atol=5e-5)


@pytest.mark.parametrize("arguments", [dict(name="quadratic"), dict(name="flow", zero_terminal_snr=True), dict(name="edm", shift=3.0),
                                       dict(name="flow", shift=0.0)])
def test_refuses_what_it_does_not_have(arguments):
  with pytest.raises(ConfigError):
    schedule(arguments.pop("name"), **arguments)
