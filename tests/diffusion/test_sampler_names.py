import numpy as np
import pytest

from mmdiff.convert import pipelines, schedulers
from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import plans, schedules

SPELT = {
  "dpm++2m": ("dpmpp_2m", "sample_dpmpp_2m", "k_dpmpp_2m", "DPM++ 2M", "DPMSolverMultistepScheduler", "DPMSolverMultistep"),
  "dpm++2m_karras": ("DPM++ 2M Karras", "dpmpp_2m_karras", "dpmpp_2m_k"),
  "euler": ("Euler", "k_euler", "sample_euler", "EulerDiscreteScheduler"),
  "euler_ancestral": ("Euler a", "k_euler_a", "k_euler_ancestral", "sample_euler_ancestral", "EulerAncestralDiscreteScheduler"),
  "heun": ("Heun", "k_heun", "HeunDiscreteScheduler"), "lms": ("LMS", "k_lms", "LMSDiscreteScheduler"),
  "ddim": ("DDIM", "DDIMScheduler"), "ddpm": ("DDPM", "DDPMScheduler"), "unipc": ("UniPC", "UniPCMultistepScheduler"),
  "plms": ("PLMS", "pndm", "PNDMScheduler"),
}
SCHEDULE = schedules.schedule("scaled_linear")


@pytest.mark.parametrize("ours", SPELT)
def test_a_sampler_goes_by_what_others_call_it(ours):
  """Of models trained here and of public ones, whose plans are made apart."""
  for name in (ours, *SPELT[ours]):
    for plan in (lambda sampler: plans.plan(sampler, SCHEDULE, steps=4),
                 lambda sampler: schedulers.plan_of(pipelines.SD_SCHEDULER, sampler=sampler, steps=4).plan):
      for found, wanted in zip(plan(name), plan(ours)):
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("name, meant", [("DPM++ SDE Karras", "dpm++2m_karras"), ("DPM++ 3M", "dpm++2m"), ("eulr", "euler"),
                                         ("EulerAncestralScheduler2", "euler_ancestral")])
def test_what_is_not_here_is_refused_with_the_nearest(name, meant):
  for call in (lambda: plans.named(name), lambda: schedulers.plan_of(pipelines.SD_SCHEDULER, sampler=name, steps=4)):
    with pytest.raises(ConfigError) as error:
      call()
    assert str(error.value).startswith(f"sampler: unknown value {name!r}; known: ddpm, ddim, ")
    assert str(error.value).endswith(f"did you mean {meant}?")


def test_what_is_no_name_at_all():
  for name in ("", "?", "my own"):
    with pytest.raises(ConfigError, match="sampler: unknown value"):
      plans.named(name)
