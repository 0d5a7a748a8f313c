"""What a scheduler's config means, without its library; `tests/peers/test_schedulers.py` compares whole loops."""
import numpy as np
import pytest

from mmdiff.convert import schedulers
from mmdiff.convert.schedulers import CLASSES, plan_of
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.diffusion.plans import COLUMN, COLUMNS, MEMORY, plan
from mmdiff.diffusion.schedules import schedule

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1, skip_prk_steps=True)


def config(name, **options):
  return SD | dict(_class_name=f"{name}Scheduler", timestep_spacing="leading") | options


def times(made):
  return made.plan.table[:made.plan.rows, COLUMN["time"]]


def test_stable_diffusions_ddim_is_ldms():
  found = plan_of(config("DDIM", set_alpha_to_one=False), steps=50, guidance=7.5)
  own = plan("ddim", schedule("scaled_linear"), steps=50, spacing="leading", final="first", guidance=7.5)
  np.testing.assert_allclose(found.plan.table, own.table, rtol=2e-6, atol=1e-6)
  assert found.plan.rows == own.rows and found.plan.start_scale == own.start_scale and found.prediction == "eps"


@pytest.mark.parametrize("name, options, expected", [
  ("DDIM", dict(), [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]), ("DDIM", dict(timestep_spacing="trailing"), [*range(999, 0, -100)]),
  ("EulerDiscrete", dict(timestep_spacing="linspace"), [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
  ("PNDM", dict(), [901, 801, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
  ("PNDM", dict(skip_prk_steps=False), [901, 851, 851, 801, 801, 751, 751, 701, 701, 651, 651, 601, *range(601, 0, -100)]),
  ("DPMSolverMultistep", dict(), [901, 811, 721, 631, 541, 451, 361, 271, 181, 91]),
  ("HeunDiscrete", dict(), [901] + [t for t in range(801, 0, -100) for _ in range(2)])])
def test_where_the_network_is_asked(name, options, expected):
  np.testing.assert_allclose(times(plan_of(config(name, **options), steps=10)), expected)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("steps", [2, 7, 30])
def test_every_class_makes_a_plan(kind, steps):
  made = plan_of(config("", _class_name=kind), steps=steps).plan
  assert np.isfinite(made.table).all() and made.rows >= steps and made.start_scale == 1
  # A network that knows the picture, 0.3 everywhere, ends with it, but for the noise that the first level has.
  x, memory = 1.3, [0.0] * MEMORY
  for row in made.table[:made.rows].astype(np.float64):
    c = dict(zip(COLUMNS, row))
    x, memory = (c["on_x"] * x + c["on_d"] * 0.3 + sum(c[f"on_m{k}"] * kept for k, kept in enumerate(memory, 1)),
                 [c["keep_x"] * x + c["keep_d"] * 0.3, *memory[:-1]])
  assert x == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("options, says", [
  (dict(_class_name="KarrasVeScheduler"), "_class_name: expected one of DDPMScheduler"), (dict(thresholding=True), "thresholding: True"),
  (dict(prediction_type="flow"), "prediction_type: expected one of epsilon"), (dict(beta_schedule="exp"), "beta_schedule"),
  (dict(clip_sample=True), "clips x_0"), (dict(_class_name=[]), "_class_name: expected one of"),
  (dict(beta_start="x"), "beta_start: expected a number from 0 to 1, found 'x'"), (dict(beta_end=None), "beta_end: expected a number"),
  (dict(beta_end=float("nan")), "beta_end"), (dict(beta_start=-1), "beta_start"), (dict(beta_end=2), "beta_end"),
  (dict(num_train_timesteps=10.5), "num_train_timesteps: expected a whole number from 1"), (dict(steps_offset=True), "steps_offset"),
  (dict(rescale_betas_zero_snr="yes"), "rescale_betas_zero_snr: expected true or false, found 'yes'"),
  (dict(_class_name="EulerDiscreteScheduler", use_karras_sigmas="no"), "use_karras_sigmas: expected true or false"),
  (dict(_class_name="DDPMScheduler", clip_sample=True, clip_sample_range=-1), "clip_sample_range: expected a number from"),
  (dict(_class_name="DPMSolverMultistepScheduler", solver_order=3), "solver_order"),
  (dict(_class_name="DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"), "algorithm_type"),
  (dict(_class_name="UniPCMultistepScheduler", solver_type="bh1"), "solver_type: expected bh2")])
def test_what_is_not_there_is_named(options, says):
  with pytest.raises(DataError, match=says):
    plan_of(config("DDIM") | options, steps=10)


def test_numbers_that_do_not_fit():
  for options, steps, says in ((dict(), 0, "steps: expected 1 to 1000"), (dict(), 1001, "steps"), (dict(steps_offset=1), 1000, "begin at")):
    with pytest.raises(ConfigError, match=says):
      plan_of(config("DDIM", **options), steps=steps)
  with pytest.raises(ConfigError, match="eta: EulerDiscreteScheduler"):
    plan_of(config("EulerDiscrete"), steps=5, eta=0.5)
  for given in (dict(steps=3), dict(steps=10, strength=0.5), dict(steps=10, end=0.8), dict(steps=10, begin=0.2)):
    with pytest.raises(ConfigError, match="Runge-Kutta start .* set skip_prk_steps to true"):
      plan_of(config("PNDM", skip_prk_steps=False), **given)


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep", "PNDM", "LMSDiscrete"])
def test_a_loop_in_two_parts_is_the_whole(name):
  """Methods without memory go on exactly where they were stopped; all begin and end at the same levels."""
  config = SD | dict(_class_name=f"{name}Scheduler", skip_prk_steps=True, timestep_spacing="leading")
  whole, first, rest = (plan_of(config, steps=10, **part).plan for part in ({}, dict(end=0.6), dict(begin=0.6)))
  time = COLUMN["time"]
  assert first.table[first.rows - 1, time] >= 400 > rest.table[0, time] or name == "HeunDiscrete"
  assert set(whole.table[:whole.rows, time]) == {*first.table[:first.rows, time], *rest.table[:rest.rows, time]}
  if name in ("DDIM", "EulerDiscrete"):
    np.testing.assert_array_equal(np.concatenate([first.table[:first.rows], rest.table[:rest.rows]]), whole.table[:whole.rows])


def test_strength_takes_the_last_steps():
  config = SD | dict(_class_name="DDIMScheduler", timestep_spacing="leading")
  whole, part = plan_of(config, steps=10).plan, plan_of(config, steps=10, strength=0.45).plan
  np.testing.assert_array_equal(part.table[:part.rows], whole.table[6:10])
  with pytest.raises(ConfigError, match="0.05 of 10 steps is less than one"):
    plan_of(config, steps=10, strength=0.05)
  for wrong in (dict(begin=0.5, end=0.5), dict(begin=-0.1), dict(end=1.2)):
    with pytest.raises(ConfigError, match="begin and end: expected"):
      plan_of(config, steps=10, **wrong)
  with pytest.raises(ConfigError, match="none of 2 steps lies between"):
    plan_of(config, steps=2, end=0.01)


@pytest.mark.parametrize("sampler, kind", [("euler", "EulerDiscrete"), ("pndm", "PNDM"), ("plms", "PNDM"), ("unipc", "UniPCMultistep"),
                                           ("dpm++2m_karras", "DPMSolverMultistep")])
def test_another_sampler_on_the_same_levels(sampler, kind):
  config = SD | dict(_class_name="DDIMScheduler", timestep_spacing="leading")
  wanted = SD | dict(_class_name=f"{kind}Scheduler", timestep_spacing="leading", skip_prk_steps=True, use_karras_sigmas="karras" in sampler)
  found = plan_of(config, steps=7, sampler=sampler).plan
  np.testing.assert_array_equal(found.table, plan_of(wanted, steps=7).plan.table)
  with pytest.raises(ConfigError, match="sampler: unknown value 'ancestral'; known: ddpm"):
    plan_of(config, steps=7, sampler="ancestral")


def test_why_nothing_is_sampled_by_a_config():
  fine = SD | dict(_class_name="DDIMScheduler")
  assert schedulers.refusal(fine) == schedulers.refusal(fine | dict(num_train_timesteps=20)) == schedulers.refusal(fine, noise=True) == ""
  for odd, said in ((dict(_class_name="FlowMatchEulerDiscreteScheduler"), "found 'FlowMatchEulerDiscreteScheduler'"),
                    (dict(_class_name=["x"]), "found ['x']"), (dict(thresholding=True), "thresholding: True is a variant"),
                    (dict(beta_start=1, beta_end=1), "repeat a noise level"),
                    (dict(num_train_timesteps="x"), "num_train_timesteps: expected"),
                    (dict(_class_name="EDMEulerScheduler", prediction_type={}), "prediction_type {} with sigma_data")):
    assert said in schedulers.refusal(fine | odd)
  assert "beta_end: expected a number from 0 to 1" in schedulers.refusal(fine | dict(beta_end=7), noise=True)


def test_facts_of_values_that_have_no_hash():
  for odd in (dict(_class_name=["x"]), dict(beta_schedule=["x"]), dict(trained_betas=5)):
    assert schedulers.facts(SD | dict(prediction_type="epsilon") | odd)["prediction"] == "eps"
