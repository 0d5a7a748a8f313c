import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.diffusion import predictions, schedules
from mmdiff.diffusion.schedules import level, schedule
from mmdiff.diffusion.weighting import TIME_SAMPLINGS, WEIGHTINGS, sample_time, snr, weight

SD = schedule("scaled_linear")


def at(n):
  return level(SD, (jnp.asarray(n) + 1) / 1000)


def test_min_snr_of_stable_diffusion():
  np.testing.assert_allclose(weight("min_snr", at([100, 0, 147, 999]), prediction="eps"), [0.591443, 0.004254, 1.0, 1.0], rtol=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_by_prediction(gamma):
  here = at([10, 300, 900])
  s = np.asarray(snr(here))
  np.testing.assert_allclose(weight("min_snr", here, prediction="eps", gamma=gamma), np.minimum(s, gamma) / s, rtol=1e-5)
  np.testing.assert_allclose(weight("min_snr", here, prediction="x0", gamma=gamma), np.minimum(s, gamma), rtol=1e-5)
  np.testing.assert_allclose(weight("min_snr", here, prediction="v", gamma=gamma), np.minimum(s, gamma) / (s + 1), rtol=1e-5)


def test_edm_weight_makes_the_preconditioned_loss_uniform():
  here = level(schedule("edm"), jnp.asarray([0.1, 0.5, 0.9]))
  np.testing.assert_allclose(weight("edm", here, prediction="edm"), 1.0, rtol=1e-5)
  for d in (0.5, 1.0):
    s = here.sigma
    np.testing.assert_allclose(weight("edm", here, prediction="x0", sigma_data=d), (s**2 + d**2) / (s * d) ** 2, rtol=1e-5)
    np.testing.assert_allclose(weight("edm", here, prediction="edm", sigma_data=d), 1.0, rtol=1e-5)


def test_inverse_time_of_the_small_recipe():
  here = level(schedule("flow"), jnp.asarray([0.01, 0.1, 0.5, 1.0]))
  np.testing.assert_allclose(weight("inverse_time", here, prediction="x0"), [10, 10, 2, 1], rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_one_name_is_one_loss_whatever_is_predicted(name, prediction):
  """Weight times error scale, the weight on x0's error, does not depend on the prediction; `uniform` alone is the output's MSE."""
  here = at([1, 200, 950])
  on_x0 = weight(name, here, prediction=prediction) * predictions.error_scale(prediction, here)
  if name != "uniform":
    np.testing.assert_allclose(on_x0, weight(name, here, prediction="x0"), rtol=1e-4)
  pure = level(schedule("linear", zero_terminal_snr=True), jnp.asarray([1.0]))
  assert np.isfinite(weight(name, pure, prediction=prediction)).all()


ENDS = {"linear": ("eps", "x0", "v"), "scaled_linear": ("eps", "x0", "v"), "zero": ("x0", "v"), "edm": ("eps", "x0", "edm"),
        "flow": ("x0", "v", "flow")}


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_both_ends_count(name, kind):
  """Finite at t = 0, and at t = 1, where sampling starts, above 0, whatever is predicted; and no NaN in between."""
  made = schedule("scaled_linear", zero_terminal_snr=True) if kind == "zero" else schedule(kind)
  if name == "edm" and kind != "edm":
    return                                               # refused by the objective: it belongs to that schedule
  for prediction in ENDS[kind]:
    found = np.asarray(weight(name, level(made, jnp.linspace(0.0, 1.0, 101)), prediction=prediction,
                              from_pure_noise=made.from_pure_noise))
    assert np.isfinite(found).all() and (found >= 0).all() and found[-1] > 0, prediction
    if made.from_pure_noise:                             # the start is no lesser level than those after it
      assert found[-1] >= 0.5 * np.median(found[50:]), prediction


def test_min_snr_at_pure_noise_counts_as_v_needs_it():
  """min(SNR + 1, gamma) / (SNR + 1) of v: 1 up to SNR = gamma - 1."""
  made = schedule("scaled_linear", zero_terminal_snr=True)
  assert made.from_pure_noise and schedule("flow").from_pure_noise and not SD.from_pure_noise
  here = level(made, (jnp.asarray([10, 100, 300, 900, 999]) + 1) / 1000)
  s = np.asarray(snr(here), np.float64)
  assert s[-1] == 0
  options = dict(from_pure_noise=True, gamma=5.0)
  np.testing.assert_allclose(weight("min_snr", here, prediction="v", **options), np.minimum(s + 1, 5) / (s + 1), rtol=1e-5)
  np.testing.assert_allclose(weight("min_snr", here, prediction="x0", **options), np.minimum(s + 1, 5), rtol=1e-5)


def test_sigmoid_is_its_formula():
  here = at([1, 200, 950])
  s = np.asarray(snr(here), np.float64)
  wanted = 1 / (1 + np.exp(np.log(s) - 2))
  np.testing.assert_allclose(weight("sigmoid", here, prediction="eps"), wanted, rtol=1e-4)
  np.testing.assert_allclose(weight("sigmoid", here, prediction="x0"), s * wanted, rtol=1e-4)


@pytest.mark.parametrize("name", TIME_SAMPLINGS)
def test_times_follow_their_distribution(name):
  keys = jax.random.split(jax.random.key(0), 20_000)
  mean, std = TIME_SAMPLINGS[name]
  made = schedule("edm" if name == "lognormal" else "flow")
  t = np.asarray(sample_time(name, made, keys, mean=mean, std=std))
  if name == "uniform":
    assert abs(t.mean() - 0.5) < 0.01 and 0 <= t.min() and t.max() <= 1
  else:
    values = np.log(t / (1 - t)) if name == "logit_normal" else np.log(schedules.level(made, jnp.asarray(t)).sigma)
    assert abs(values.mean() - mean) < 0.05 and abs(values.std() - std) < 0.05


def test_discrete_times_are_levels_and_cover_all():
  t = sample_time("uniform", SD, jax.random.split(jax.random.key(0), 20_000), mean=0.0, std=1.0)
  n = np.asarray(level(SD, t).time)
  np.testing.assert_array_equal(n, np.round(n))
  assert n.min() == 0 and n.max() == 999 and len(np.unique(n)) == 1000


def test_a_time_depends_on_its_own_key_only():
  keys = lambda seeds: jax.vmap(jax.random.key)(jnp.asarray(seeds))
  draw = lambda seeds: sample_time("logit_normal", SD, keys(seeds), mean=0.0, std=1.0)
  np.testing.assert_allclose(draw([0, 1, 2, 3])[2:3], draw([2]), rtol=1e-6)
