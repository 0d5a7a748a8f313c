"""Where the levels of every scheduler lie, at the ends of what it takes: pictures are finite, or the run is refused by name."""
import itertools

import numpy as np
import pytest

from mmdiff.convert import edm_schedulers
from mmdiff.convert.schedulers import CLASSES, OPTIONS, facts, plan_of, problems
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.diffusion import plans
from tests.convert.test_schedulers import SD
from tests.diffusion.loops import run

START = np.linspace(-2, 2, 3)
SPACINGS = ("leading", "trailing", "linspace")
VARIANTS = [dict(), dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True), dict(final_sigmas_type="sigma_min"),
            dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"), dict(steps_offset=0, set_alpha_to_one=True)]


def variants(kind):
  """The configs of a class that differ in what it reads."""
  for spacing, variant in itertools.product(SPACINGS, VARIANTS):
    options = set(variant) & {"use_karras_sigmas", "use_exponential_sigmas", "final_sigmas_type"}
    if options <= set(OPTIONS[kind]) and not (CLASSES[kind][1] == "log" and "use_exponential_sigmas" in options):
      yield SD | dict(_class_name=kind, timestep_spacing=spacing) | variant


def check(config, steps, **options):
  """Draws, or says why it can't: either with a number for every coefficient or with a sentence."""
  try:
    made = plan_of(config, steps=steps, **options).plan
  except ConfigError as error:
    assert any(words in str(error) for words in (
      "repeat a noise level", "begin at level", "the most is 1000", "says nothing at pure noise", "at least 4 steps",
      "ends at the noise level where it begins")), error
    return None
  found = run(made, START)
  assert np.isfinite(made.table).all() and np.isfinite(found).all() and (steps < 20 or np.abs(found).max() < 5), (config, options, found)
  return made


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_few_steps_are_finite(kind, steps):
  drawn = [check(config, steps) is not None for config in variants(kind)]
  assert sum(drawn) >= len(drawn) - 6                    # all but pure noise for PLMS, and one step to where it begins


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("steps", [999, 1000])
def test_all_steps_are_finite_or_refused(kind, steps):
  for spacing in SPACINGS:
    made = check(SD | dict(_class_name=kind, timestep_spacing=spacing), steps)
    if CLASSES[kind][1] == "log":
      assert (made is None) == (spacing == "leading" or spacing == "linspace" and steps == 1000)


@pytest.mark.long
@pytest.mark.parametrize("kind", CLASSES)
def test_all_steps_of_every_variant(kind):
  for config in variants(kind):
    for steps in (500, 501, 999, 1000):
      check(config, steps)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_chosen_sampler_takes_the_levels_and_its_own_options(kind):
  """Whatever the folder's own scheduler is told, another sampler is the same; the folder's own keeps what it was told."""
  told = dict(use_karras_sigmas=True, final_sigmas_type="sigma_min", thresholding=True, clip_sample=True, solver_order=3,
              algorithm_type="sde-dpmsolver++", use_lu_lambdas=True, variance_type="learned", skip_prk_steps=False, lower_order_final=False,
              predict_x0=False, timestep_type="continuous", euler_at_final=True)
  plain = SD | dict(_class_name=kind, timestep_spacing="trailing")
  loaded = plain | {key: value for key, value in told.items() if key in OPTIONS[kind]}
  own = {CLASSES[kind][0]} | ({"pndm"} if kind == "PNDMScheduler" else {"dpm++2m_karras"} if "DPM" in kind else set())
  for sampler in (*plans.SAMPLERS, *plans.ALIASES):
    if sampler not in own or problems(loaded, kind):
      wanted, found = (plan_of(config, steps=9, sampler=sampler) for config in (plain, loaded))
      np.testing.assert_array_equal(found.plan.table, wanted.plan.table, err_msg=sampler)
      assert found.plan.clip == wanted.plan.clip == np.inf
  if problems(loaded, kind):
    with pytest.raises(DataError):
      plan_of(loaded, steps=9)


def test_the_folders_own_sampler_keeps_its_options():
  euler = SD | dict(_class_name="EulerDiscreteScheduler", use_karras_sigmas=True)
  ddim = SD | dict(_class_name="DDPMScheduler", clip_sample=True, clip_sample_range=0.7)
  for config, sampler in ((euler, "euler"), (ddim, "ddpm")):
    named, own = (plan_of(config, steps=9, sampler=name).plan for name in (sampler, None))
    np.testing.assert_array_equal(named.table, own.table)
    assert named.clip == own.clip
  two = SD | dict(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True)
  tables = [plan_of(two, steps=9, sampler=name).plan.table for name in (None, "dpm++2m_karras", "dpm++2m")]
  np.testing.assert_array_equal(tables[0], tables[1])
  assert np.abs(tables[0] - tables[2]).max() > 0.1


def test_a_class_that_is_not_here_may_have_levels_that_are():
  lcm = SD | dict(_class_name="LCMScheduler", original_inference_steps=50, timestep_spacing="trailing")
  np.testing.assert_array_equal(plan_of(lcm, steps=4, sampler="ddim").plan.table, plan_of(
    SD | dict(_class_name="DDIMScheduler", timestep_spacing="trailing"), steps=4).plan.table)
  flow = dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0)
  for config, sampler, says in ((lcm, None, "_class_name: expected one of"), (flow, "euler", "the file has no beta_schedule")):
    with pytest.raises(DataError, match=says):
      plan_of(config, steps=4, sampler=sampler)


def test_what_another_class_left_in_the_file_is_not_read():
  left = dict(use_karras_sigmas=True, final_sigmas_type="sigma_min", thresholding=True, clip_sample=True, solver_order=3,
              variance_type="fixed_large", lower_order_final=False)
  for kind in ("EulerAncestralDiscreteScheduler", "PNDMScheduler"):
    plain = SD | dict(_class_name=kind)
    np.testing.assert_array_equal(plan_of(plain | left, steps=9).plan.table, plan_of(plain, steps=9).plan.table)
    assert plan_of(plain | left, steps=9).plan.clip == np.inf
  with pytest.raises(DataError, match="sharpness: unknown to every scheduler that mmdiff has, found 3"):
    plan_of(plain | dict(sharpness=3), steps=9)


def test_img2img_begins_where_diffusers_does():
  """At `timesteps[(n - int(n · strength)) · order]`; PNDM's list has the second time twice, so that its loops begin a time earlier."""
  begins = lambda kind, strength: plan_of(SD | dict(_class_name=kind, timestep_spacing="leading"), steps=50, strength=strength).plan
  for kind in CLASSES:
    for strength, skipped in ((0.5, 25), (0.8, 10), (1.0, 0), (0.02, 49)):
      stride, top = (1000 // 51, 50) if CLASSES[kind][1] == "log" else (20, 49)
      at = skipped - (kind == "PNDMScheduler" and skipped > 0)
      made = begins(kind, strength)
      assert made.table[0, plans.COLUMN["time"]] == (top - at) * stride + 1, (kind, strength)
      assert made.rows == {"HeunDiscreteScheduler": 2 * (50 - skipped) - 1, "PNDMScheduler": 51 - skipped}.get(kind, 50 - skipped)
    with pytest.raises(ConfigError, match="strength: 0.01 of 50 steps is less than one"):
      begins(kind, 0.01)
  assert begins("PNDMScheduler", 0.8).table[0, plans.COLUMN["time"]] == 801


def test_edm_configs_are_told_apart():
  for kind in edm_schedulers.CLASSES:
    assert facts(dict(_class_name=kind))["kind"] == "edm"
    for steps in (1, 2, 20, 999, 1000):
      assert check(dict(_class_name=kind), steps) is not None
