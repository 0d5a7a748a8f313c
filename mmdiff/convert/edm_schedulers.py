"""diffusers' schedulers of EDM's formulation (Karras 2022, https://arxiv.org/abs/2206.00364, table 1) as plans: EDMEulerScheduler and
EDMDPMSolverMultistepScheduler, as Playground 2.5 and CosXL are sampled with. The behaviour is that of diffusers 0.42, step by step.

Their network sees ln(sigma) / 4. What "epsilon" names there is EDM's own output F, D = c_skip x + c_out F, which is our prediction "edm".
"v_prediction" turns the sign of c_out: for data of deviation 1, D = x / (1 + s²) - s / √(1 + s²) F is what v means at
alpha = 1 / √(1 + s²), sigma = s alpha of the picture x / √(1 + s²), so that it is sampled there.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.diffusion import plans, schedules
from mmdiff.diffusion.plans import COLUMN, COLUMNS, Plan
from mmdiff.diffusion.predictions import SIGMA_DATA
from mmdiff.diffusion.schedules import Level

CLASSES = {"EDMEulerScheduler": "euler", "EDMDPMSolverMultistepScheduler": "dpm++2m"}
DEFAULTS: dict[str, Any] = dict(
  sigma_min=schedules.SIGMA_MIN, sigma_max=schedules.SIGMA_MAX, sigma_data=0.5, sigma_schedule="karras", rho=7.0, num_train_timesteps=1000,
  prediction_type="epsilon", final_sigmas_type="zero", solver_order=2, solver_type="midpoint", algorithm_type="dpmsolver++",
  lower_order_final=True, euler_at_final=False, thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0)
# Options with the only value that we do, or those that we do.
FIXED: dict[str, tuple] = {
  "sigma_schedule": ("karras", "exponential"), "final_sigmas_type": ("zero", "sigma_min"), "solver_order": (2,),
  "solver_type": ("midpoint",), "algorithm_type": ("dpmsolver++",), "euler_at_final": (False,), "thresholding": (False,)}
# (prediction_type, deviation of the data) -> (our prediction, kind of the levels).
FORMULATIONS = {("epsilon", SIGMA_DATA): ("edm", "edm"), ("v_prediction", 1.0): ("v", "discrete")}


def is_edm(config: Mapping[str, Any]) -> bool:
  return config.get("_class_name") in tuple(CLASSES)


def formulation(config: Mapping[str, Any], where: str = "scheduler_config.json") -> tuple[str, str]:
  """(prediction, kind) as `objectives.drawing` takes them. Raises DataError for another pair of output and deviation."""
  said = DEFAULTS | dict(config)
  key = (said["prediction_type"], said["sigma_data"])
  found = next((made for known, made in FORMULATIONS.items() if known == key), None)        # a list in a file's place has no hash
  if found is None:
    raise DataError(f"{where}: prediction_type {key[0]!r} with sigma_data {key[1]!r}: expected one of "
                    + ", ".join(f"{name} with {deviation}" for name, deviation in FORMULATIONS))
  return found


def sampler_of(config: Mapping[str, Any], sampler: str | None) -> str:
  """The sampler of a plan: the config's own, or another of `diffusion.plans.SAMPLERS` on its levels. Raises ConfigError."""
  return plans.named(sampler) if sampler else CLASSES[config["_class_name"]]


def plan_of(config: Mapping[str, Any], *, steps: int, sampler: str | None = None, eta: float | None = None, guidance: float = 1.0,
            rescale: float = 0.0, strength: float = 1.0, begin: float = 0.0, end: float = 1.0,
            where: str = "scheduler_config.json") -> tuple[Plan, str, str]:
  """(plan, prediction, sampler) of `steps` steps. Arguments as of `schedulers.plan_of`.

  Raises:
    DataError: an option that mmdiff does not have; the message names it.
    ConfigError: steps that can't be taken; parts of the noise, which others count in levels that these schedulers do not have.
  """
  said = DEFAULTS | dict(config)
  prediction, kind = formulation(config, where)
  problems = [f"{key}: expected {' or '.join(map(repr, fine))}, found {said[key]!r}" for key, fine in FIXED.items()
              if said[key] not in fine]
  numbers = [said[key] for key in ("sigma_min", "sigma_max", "rho")]
  if not all(type(value) in (int, float) for value in numbers) or not (0 < numbers[0] < numbers[1] < float("inf") and 0 < numbers[2] < 100):
    problems.append(f"sigma_min, sigma_max and rho: expected 0 < sigma_min < sigma_max and 0 < rho < 100, found {said['sigma_min']}, "
                    f"{said['sigma_max']} and {said['rho']}")
  if problems:
    raise DataError(f"{where} ({said['_class_name']}): " + "; ".join(problems))
  if not 1 <= steps <= plans.MAX_ROWS:
    raise ConfigError(f"steps: expected 1 to {plans.MAX_ROWS}, found {steps}")
  if (begin, end) != (0.0, 1.0):
    raise ConfigError(f"begin and end: {said['_class_name']} of {where} has no levels to count parts of the noise by, found {begin} and "
                      f"{end}")
  name = sampler_of(said, sampler)
  karras = said["sigma_schedule"] == "karras" or name == "dpm++2m_karras"
  ends = said["sigma_min"], said["sigma_max"]
  sigma = schedules.karras_ramp(steps, *ends, rho=said["rho"]) if karras else schedules.exponential_ramp(steps, *ends)
  last = said["sigma_min"] if said["final_sigmas_type"] == "sigma_min" else 0.0
  if last and name not in CLASSES.values():           # the last step leads nowhere, which only these two are made for
    raise ConfigError(f"sampler: {where} ends at sigma_min (final_sigmas_type), which takes {' or '.join(CLASSES.values())}, found {name}")
  if eta and plans.SAMPLERS[name].eta == 0 and name != "ddim":
    raise ConfigError(f"eta: {name} adds no noise, found {eta}; leave it out, or use ddim or euler_ancestral")
  alpha = (lambda s: 1.0) if kind == "edm" else (lambda s: 1 / np.sqrt(1 + s * s))
  levels = [Level(alpha(s), s * alpha(s), time) for s, time in zip([*sigma, last], [*np.log(sigma) / 4, 0.0])]
  pairs = list(zip(levels, levels[1:]))
  pairs = pairs[steps - plans.taken(steps, strength):]
  table, _ = plans.tabulate(name, pairs, eta=eta, extrapolate="v" if prediction == "v" else "eps")
  if last and name.startswith("dpm++2m") and said["lower_order_final"] and steps < 15:
    table[-1] = plans.tabulate("ddim", pairs[-1:])[0][0]
  table[-1, [COLUMN[key] for key in COLUMNS if key.startswith("on_")]] /= pairs[-1][1].alpha
  table[:, COLUMN["guidance"]] = guidance
  start = np.sqrt(said["sigma_max"] ** 2 + 1) * alpha(said["sigma_max"])          # diffusers' init_noise_sigma
  return plans.packed(table, start_scale=float(start), rescale=rescale), prediction, name
