import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.diffusion import predictions
from mmdiff.diffusion.schedules import Level, level, schedule

SCHEDULES = {"linear": schedule("linear"), "zero_snr": schedule("scaled_linear", zero_terminal_snr=True), "edm": schedule("edm"),
             "flow": schedule("flow")}
KINDS = {"linear": ("eps", "x0", "v"), "zero_snr": ("x0", "v"), "edm": ("eps", "x0", "edm"), "flow": ("x0", "v", "flow")}
CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]


def example(name):
  k_x, k_eps = jax.random.split(jax.random.key(0))
  x0, eps = jax.random.normal(k_x, (5, 4, 4, 2)), jax.random.normal(k_eps, (5, 4, 4, 2))
  at = level(SCHEDULES[name], jnp.asarray([0.1, 0.3, 0.5, 0.7, 0.9]))
  return x0, eps, at, predictions.add_noise(x0, eps, at)


@pytest.mark.parametrize("name,kind", CASES)
def test_target_implies_the_picture(name, kind):
  x0, eps, at, x = example(name)
  out = predictions.target(kind, x0, eps, at)
  scale = float(jnp.abs(x).max() / jnp.min(jnp.maximum(at.alpha, 0.01)))
  np.testing.assert_allclose(predictions.to_x0(kind, out, x, at), x0, atol=2e-6 * scale)


@pytest.mark.parametrize("name,kind", CASES)
def test_outputs_convert_both_ways(name, kind):
  _, _, at, x = example(name)
  out = jax.random.normal(jax.random.key(1), x.shape)
  for to in KINDS[name]:
    there = predictions.convert(out, x, at, source=kind, to=to)
    back = predictions.convert(there, x, at, source=to, to=kind)
    magnitude = float(jnp.maximum(jnp.abs(there).max(), jnp.abs(x).max()) * jnp.max(at.sigma / at.alpha) / jnp.min(at.sigma))
    np.testing.assert_allclose(back, out, atol=1e-6 * magnitude + 1e-5)
    np.testing.assert_allclose(predictions.to_x0(to, there, x, at), predictions.to_x0(kind, out, x, at), rtol=1e-3, atol=2e-6 * magnitude)


@pytest.mark.parametrize("name,kind", CASES)
def test_error_scale_is_the_ratio_of_squared_errors(name, kind):
  _, _, at, x = example(name)
  a, b = (jax.random.normal(jax.random.key(i), x.shape) for i in (2, 3))
  square = lambda d: jnp.square(d).mean((1, 2, 3))
  ratio = square(a - b) / square(predictions.to_x0(kind, a, x, at) - predictions.to_x0(kind, b, x, at))
  np.testing.assert_allclose(predictions.error_scale(kind, at), ratio, rtol=2e-3)


def test_no_nan_at_pure_noise_and_at_data():
  x, out = jnp.ones((2, 3)), jnp.full((2, 3), 0.5)
  for at in (Level(jnp.zeros(2), jnp.ones(2), jnp.zeros(2)), Level(jnp.ones(2), jnp.zeros(2), jnp.zeros(2))):
    for kind in ("eps", "x0", "v", "flow"):
      for to in ("eps", "x0", "v", "flow"):
        assert np.isfinite(predictions.convert(out, x, at, source=kind, to=to)).all(), (kind, to)
  noise = Level(jnp.zeros(2), jnp.ones(2), jnp.zeros(2))
  np.testing.assert_array_equal(predictions.to_x0("v", out, x, noise), -out)
  np.testing.assert_array_equal(predictions.convert(out, x, noise, source="v", to="eps"), x)


def test_gradient_is_finite_at_pure_noise():
  at = Level(jnp.zeros(2), jnp.ones(2), jnp.zeros(2))
  gradient = jax.grad(lambda out: predictions.to_x0("eps", out, jnp.ones((2, 3)), at).sum())(jnp.ones((2, 3)))
  assert np.isfinite(gradient).all()


def test_edm_preconditioning_of_the_paper():
  np.testing.assert_allclose(predictions.edm(1.0), (0.2, 0.447214, 0.894427, 0.0), atol=1e-6)
  np.testing.assert_allclose(predictions.edm(80.0), (3.906e-5, 0.49999, 0.0125, 1.09551), rtol=2e-4)


def test_edm_keeps_input_and_target_at_unit_variance():
  k_x, k_eps = jax.random.split(jax.random.key(0))
  x0, eps = 0.5 * jax.random.normal(k_x, (40_000,)), jax.random.normal(k_eps, (40_000,))
  for sigma in (0.01, 0.5, 20.0):
    at = Level(jnp.asarray(1.0), jnp.asarray(sigma), jnp.asarray(0.0))
    assert abs(predictions.network_input(x0 + sigma * eps, at, "edm").std() - 1) < 0.02
    assert abs(predictions.target("edm", x0, eps, at).std() - 1) < 0.02


def test_edm_scales_by_the_deviation_that_it_is_told():
  """Latents of deviation one, input and target at unit variance, and back."""
  k_x, k_eps = jax.random.split(jax.random.key(0))
  x0, eps = jax.random.normal(k_x, (1, 40_000)), jax.random.normal(k_eps, (1, 40_000))
  for sigma in (0.1, 1.0, 10.0):
    at = Level(jnp.ones(1), jnp.full(1, sigma), jnp.zeros(1))
    x = x0 + sigma * eps
    target = predictions.target("edm", x0, eps, at, 1.0)
    assert abs(predictions.network_input(x, at, "edm", 1.0).std() - 1) < 0.02 and abs(target.std() - 1) < 0.02
    np.testing.assert_allclose(predictions.to_x0("edm", target, x, at, 1.0), x0, atol=2e-5 * (1 + sigma))
    np.testing.assert_allclose(predictions.from_x0("edm", x0, x, at, 1.0), target, atol=2e-4)
    np.testing.assert_allclose(predictions.error_scale("edm", at, 1.0), (sigma**2 + 1) / sigma**2, rtol=1e-5)
