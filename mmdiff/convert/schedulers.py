"""`scheduler_config.json` of diffusers as a plan: the levels, the order and the ends that its schedulers use.

They differ in more than the formula of a step. DDIM and PLMS step down by a fixed number of training levels, whatever the next time is;
DPM-Solver++ and UniPC place one time more than there are steps and drop the last; the others interpolate sigma at times that need not be
whole; Karras' sigmas run between other ends. All of it is read from the config, nothing from a name. The behaviour is that of diffusers
0.42, step by step.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmdiff.convert import edm_schedulers
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.diffusion import plans, schedules
from mmdiff.diffusion.plans import COLUMN, COLUMNS, Plan
from mmdiff.diffusion.rows import Steps
from mmdiff.diffusion.schedules import Level

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
NAMES = {ours: theirs for theirs, ours in PREDICTIONS.items()}
# Class -> (sampler, how its levels are placed).
CLASSES = {
  "DDPMScheduler": ("ddpm", "whole"), "DDIMScheduler": ("ddim", "whole"), "PNDMScheduler": ("plms", "whole"),
  "LMSDiscreteScheduler": ("lms", "sigma"), "EulerDiscreteScheduler": ("euler", "sigma"),
  "EulerAncestralDiscreteScheduler": ("euler_ancestral", "sigma"), "HeunDiscreteScheduler": ("heun", "sigma"),
  "DPMSolverMultistepScheduler": ("dpm++2m", "log"), "UniPCMultistepScheduler": ("unipc", "log"),
}
# (beta_schedule, beta_start, beta_end) -> name in `diffusion.schedules`.
SCHEDULES = {("linear", 0.0001, 0.02): "linear", ("scaled_linear", 0.00085, 0.012): "scaled_linear"}
# What every class takes for levels and output where the file does not say.
DDPM: dict[str, Any] = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="epsilon",
                            rescale_betas_zero_snr=False)
# What each class does where the file does not say; the rest of the keys have the same default in all.
DEFAULTS: dict[str, dict[str, Any]] = {
  "DDPMScheduler": dict(timestep_spacing="leading", clip_sample=True, variance_type="fixed_small"),
  "DDIMScheduler": dict(timestep_spacing="leading", clip_sample=True, set_alpha_to_one=True),
  "PNDMScheduler": dict(timestep_spacing="leading", skip_prk_steps=False),
  "HeunDiscreteScheduler": dict(beta_start=0.00085, beta_end=0.012),
}
# Options that change the pictures and that have no counterpart here, with the values that do nothing.
REFUSED: dict[str, tuple] = {
  "thresholding": (False,), "use_beta_sigmas": (False,), "use_exponential_sigmas": (False,), "use_lu_lambdas": (False,),
  "use_flow_sigmas": (False,), "interpolation_type": ("linear",), "timestep_type": ("discrete",), "algorithm_type": ("dpmsolver++",),
  "euler_at_final": (False,), "predict_x0": (True,), "disable_corrector": ([], ()), "solver_p": (None,), "lambda_min_clipped": (-np.inf,),
  "sigma_min": (None,), "sigma_max": (None,),
}


class Scheduler(NamedTuple):
  """What a sampling run takes from a scheduler's config."""
  plan: Plan
  prediction: str                       # eps, v, x0 or edm
  sampler: str


def plan_of(config: Mapping[str, Any], *, steps: int, sampler: str | None = None, eta: float | None = None, guidance: float = 1.0,
            rescale: float = 0.0, strength: float = 1.0, begin: float = 0.0, end: float = 1.0,
            where: str = "scheduler_config.json") -> Scheduler:
  """The plan of `steps` steps as the config's scheduler takes them; time is the number that the network receives.

  Args:
    config: as read from the file.
    sampler: None is the config's own; another name of `SAMPLERS` takes the config's levels in that class's way.
    eta: noise share of DDIM; the others have none or their own.
    guidance, rescale, strength: as of `plans.plan`.
    begin, end: which part of the noise the steps take away, from 0, all of it there, to 1, none left: a base model ends where its refiner
      begins (0.8 is usual). What is left at an end below 1 is x at the noise of the next step.

  Raises:
    DataError: a class or an option that mmdiff does not have; the message names it.
    ConfigError: steps that the schedule can't take.
  """
  if edm_schedulers.is_edm(config):
    return Scheduler(*edm_schedulers.plan_of(config, steps=steps, sampler=sampler, eta=eta, guidance=guidance, rescale=rescale,
                                             strength=strength, begin=begin, end=end, where=where))
  if sampler is not None:
    config = {**config, **sampled_by(sampler)}
  kind = config.get("_class_name")
  if kind not in CLASSES:
    raise DataError(f"{where}: _class_name: expected one of {', '.join(CLASSES)}, found {kind!r}")
  name, placed = CLASSES[kind]
  said = DDPM | dict(timestep_spacing="linspace", steps_offset=0, clip_sample=False, clip_sample_range=1.0, set_alpha_to_one=False,
                     final_sigmas_type="zero", use_karras_sigmas=False, solver_order=2, lower_order_final=True)
  said |= DEFAULTS.get(kind, {}) | dict(config)
  check(said, kind, where)
  if not 1 <= steps <= said["num_train_timesteps"]:
    raise ConfigError(f"steps: expected 1 to {said['num_train_timesteps']}, the levels of {where}, found {steps}")
  if eta and kind != "DDIMScheduler":
    raise ConfigError(f"eta: {kind} of {where} takes none, found {eta}; use DDIM")
  abar = alpha_bar(said)
  if kind == "PNDMScheduler" and not said["skip_prk_steps"]:
    name = "pndm"
    check_parts(steps, strength=strength, begin=begin, end=end, where=where)
  pairs = whole(said, abar, steps, name) if placed == "whole" else by_sigma(said, abar, steps, logarithmic=placed == "log")
  pairs, kept = part_of(pairs, said["num_train_timesteps"], strength=strength, begin=begin, end=end)
  variance = "large" if said.get("variance_type") == "fixed_large" else "small"
  prediction = PREDICTIONS[said["prediction_type"]]
  table, _ = plans.tabulate(name, pairs, eta=eta if kind == "DDIMScheduler" else None, variance=variance,
                            extrapolate="v" if prediction == "v" else "eps")
  if name == "ddpm" and variance == "large" and pairs[-1][0].time > 0:      # diffusers: noise at every time but 0, the end included
    table[-1, COLUMN["noise"]] = pairs[-1][0].sigma
  if placed == "log" and said["final_sigmas_type"] == "sigma_min" and name == "dpm++2m" and said["lower_order_final"] and steps < 15:
    last, _ = plans.tabulate("ddim", pairs[-1:])
    table[-1] = last[0]
  if kept < len(pairs):                 # the rows of the first steps, which know of what comes after
    table = table[:len(plans.tabulate(name, pairs[:kept])[0])]
  elif placed == "sigma":               # these work on x / alpha, so that is what they return
    table[-1, [COLUMN[key] for key in COLUMNS if key.startswith("on_")]] /= pairs[-1][1].alpha
  table[:, COLUMN["guidance"]] = guidance
  # x starts with unit variance, or with sigma alone where the class starts from sigma times unit noise.
  start = pairs[0][0].sigma if placed == "sigma" and said["timestep_spacing"] in ("linspace", "trailing") else 1.0
  clip = said["clip_sample_range"] if said["clip_sample"] else 0.0
  return Scheduler(plans.packed(table, start_scale=start, rescale=rescale, clip=clip), prediction, name)


def noise_at(config: Mapping[str, Any], n: int, *, most: int) -> tuple[float, float]:
  """(alpha, sigma) of level n of a config's schedule, such as an upscaler's `low_res_scheduler`. Raises ConfigError beyond `most`."""
  said = dict(DDPM, _class_name="DDPMScheduler") | dict(config)
  most = min(most, said["num_train_timesteps"] - 1)
  if not 0 <= n <= most:
    raise ConfigError(f"noise_level: expected a whole number from 0 to {most}, found {n}")
  level = level_at(alpha_bar(said), n)
  return level.alpha, level.sigma


def part_of(pairs: Steps, length: int, *, strength: float, begin: float, end: float) -> tuple[Steps, int]:
  """(The steps from where a loop begins, how many of them it takes). Raises ConfigError for none."""
  if not 0 <= begin < end <= 1:
    raise ConfigError(f"begin and end: expected 0 ≤ begin < end ≤ 1, found {begin} and {end}")
  count = len(pairs)
  pairs = pairs[count - plans.taken(count, strength):]
  first, last = (round(length * (1 - part)) for part in (begin, end))
  pairs = [pair for pair in pairs if pair[0].time < first] if begin > 0 else pairs
  kept = sum(pair[0].time >= last for pair in pairs) if end < 1 else len(pairs)
  if not kept:
    raise ConfigError(f"begin and end: none of {count} steps lies between {begin} and {end}; use more steps")
  return pairs, kept


def check_parts(steps: int, *, strength: float, begin: float, end: float, where: str) -> None:
  """Raises ConfigError for loops that Runge and Kutta's start is not made for: short ones, and parts of one."""
  if steps < 4 or (strength, begin, end) != (1.0, 0.0, 1.0):
    raise ConfigError(f"{where}: PNDM with a Runge-Kutta start (skip_prk_steps false) takes at least 4 steps, all of them: found {steps} "
                      f"steps, strength {strength}, from {begin} to {end}; set skip_prk_steps to true, or choose a sampler")


def sampled_by(sampler: str) -> dict[str, Any]:
  """The keys of a scheduler's config that make another class of it. Raises ConfigError."""
  if sampler == "dpm++2m_karras":
    return dict(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True)
  classes = {name: kind for kind, (name, _) in CLASSES.items()} | {"pndm": "PNDMScheduler"}
  if sampler not in classes:
    raise ConfigError(f"sampler: unknown value {sampler!r}; known: {', '.join([*classes, 'dpm++2m_karras'])}")
  return dict(_class_name=classes[sampler]) | (dict(skip_prk_steps=True) if classes[sampler] == "PNDMScheduler" else {})


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
  """What a network sampled by a config was trained for, in the words of `objectives.diffusion`: `prediction`, `kind` and name of the
  `schedule`, `zero_terminal_snr`. A schedule that no run trains on has its numbers for a name. Raises DataError."""
  if edm_schedulers.is_edm(config):
    prediction, kind = edm_schedulers.formulation(config)
    return dict(prediction=prediction, kind=kind, schedule="edm", zero_terminal_snr=False)
  said = DDPM | DEFAULTS.get(config.get("_class_name", ""), {}) | dict(config)
  if said["prediction_type"] not in PREDICTIONS:
    raise DataError(f"prediction_type: expected one of {', '.join(PREDICTIONS)}, found {said['prediction_type']!r}")
  key = (said["beta_schedule"], said["beta_start"], said["beta_end"])
  name = "cosine" if key[0] == "squaredcos_cap_v2" else SCHEDULES.get(key, "{} from {} to {}".format(*key))
  name = name if said.get("trained_betas") is None else f"{len(said['trained_betas'])} betas of its own"
  return dict(prediction=PREDICTIONS[said["prediction_type"]], kind="discrete", schedule=name,
              zero_terminal_snr=bool(said["rescale_betas_zero_snr"]))


def check(said: Mapping[str, Any], kind: str, where: str) -> None:
  """Raises DataError with everything that has no counterpart here."""
  problems = [f"{key}: {said[key]!r} is a variant that mmdiff does not have" for key, fine in REFUSED.items()
              if key in said and said[key] not in fine and not (key == "lambda_min_clipped" and str(said[key]) == "-inf")]
  choices: dict[str, tuple] = dict(
    prediction_type=tuple(PREDICTIONS), beta_schedule=("linear", "scaled_linear", "squaredcos_cap_v2"),
    timestep_spacing=("leading", "trailing", "linspace"), final_sigmas_type=("zero", "sigma_min"),
    variance_type=(None, "fixed_small", "fixed_large"), solver_order=(2,))
  problems += [f"{key}: expected one of {', '.join(map(str, known))}, found {said[key]!r}" for key, known in choices.items()
               if key in said and said[key] not in known]
  solver = {"DPMSolverMultistepScheduler": "midpoint", "UniPCMultistepScheduler": "bh2"}.get(kind)
  if solver and said.get("solver_type", solver) != solver:
    problems.append(f"solver_type: expected {solver}, found {said['solver_type']!r}")
  if kind == "PNDMScheduler" and said["prediction_type"] == "sample":
    problems.append("prediction_type: PLMS takes epsilon or v_prediction, found sample")
  betas = said.get("trained_betas")
  if betas is not None and not (isinstance(betas, list) and len(betas) == said["num_train_timesteps"]
                                and all(isinstance(beta, (int, float)) and 0 <= beta <= 1 for beta in betas)):
    problems.append(f"trained_betas: expected {said['num_train_timesteps']} numbers from 0 to 1, found {betas!r:.60}")
  if said["clip_sample"] and kind == "DDIMScheduler":
    problems.append("clip_sample: expected false, found true: diffusers' DDIM then clips x_0 and keeps the eps of the unclipped one")
  if problems:
    raise DataError(f"{where} ({kind}): " + "; ".join(problems))


def alpha_bar(said: Mapping[str, Any]) -> np.ndarray:
  """float64 [T] of a config's betas."""
  length = said["num_train_timesteps"]
  if said.get("trained_betas") is not None:
    betas = np.asarray(said["trained_betas"], np.float64)
  elif said["beta_schedule"] == "squaredcos_cap_v2":
    betas = schedules.cosine_betas(length)
  elif said["beta_schedule"] == "scaled_linear":
    betas = np.linspace(said["beta_start"] ** 0.5, said["beta_end"] ** 0.5, length) ** 2
  else:
    betas = np.linspace(said["beta_start"], said["beta_end"], length)
  made = np.cumprod(1 - betas)
  if said["rescale_betas_zero_snr"]:
    made = schedules.zero_terminal(made)
    if CLASSES[said["_class_name"]][1] != "whole":
      made[-1] = 2.0**-24               # sigma stays finite
  return made


def times(said: Mapping[str, Any], steps: int, *, more: int = 0) -> np.ndarray:
  """float64 [steps], descending; with `more` = 1 as one time more would be placed, without the last."""
  length, n = said["num_train_timesteps"], steps + more
  if said["timestep_spacing"] == "linspace":
    return np.linspace(0, length - 1, n)[::-1][:steps]
  if said["timestep_spacing"] == "leading":
    return (np.arange(n) * (length // n))[::-1][:steps].astype(np.float64) + said["steps_offset"]
  return np.round(np.arange(length, 0, -length / steps))[:steps] - 1


def whole(said: Mapping[str, Any], abar: np.ndarray, steps: int, name: str) -> Steps:
  """Steps between training levels. DDPM goes to the next time, DDIM and PLMS down by T // steps, PNDM's first parts by half of that."""
  t = np.round(times(said, steps)).astype(int)
  if t[0] >= len(abar):
    raise ConfigError(f"steps: {steps} steps with steps_offset {said['steps_offset']} begin at level {t[0]} of {len(abar)}; use fewer")
  stride = len(abar) // steps
  then = np.append(t[1:], -1) if name == "ddpm" else t - stride
  if name == "pndm":                    # each of the first three steps in four parts, then the fourth and so on
    begun, middle, last = t[:3, None], t[1:4, None] + stride // 2, t[1:4, None]
    parts = np.concatenate([begun, middle, middle, last], 1)
    ends = np.concatenate([begun - stride // 2, middle, middle - stride // 2, last], 1)
    t, then = np.concatenate([parts.ravel(), t[3:]]), np.concatenate([ends.ravel(), then[3:]])
  end = Level(1.0, 0.0, 0.0) if name == "ddpm" or said["set_alpha_to_one"] else level_at(abar, 0)
  return [(level_at(abar, now), level_at(abar, after) if after >= 0 else end) for now, after in zip(t, then)]


def level_at(abar: np.ndarray, n: int) -> Level:
  return Level(float(abar[n] ** 0.5), float((1 - abar[n]) ** 0.5), float(n))


def by_sigma(said: Mapping[str, Any], abar: np.ndarray, steps: int, *, logarithmic: bool) -> Steps:
  """Steps in sigma / alpha: of the Euler family, or (`logarithmic`) of the solvers in its logarithm."""
  every = np.sqrt((1 - abar) / abar)
  t = times(said, steps, more=int(logarithmic and said["timestep_spacing"] != "trailing"))
  t = np.round(t) if logarithmic else t
  sigma = np.interp(t, np.arange(len(every)), every)
  if said["use_karras_sigmas"]:
    low, high = (every[0], every[-1]) if logarithmic else (sigma[-1], sigma[0])
    sigma = schedules.karras_ramp(steps, low, high)
    t = np.interp(np.log(sigma), np.log(every), np.arange(len(every)))
    t = np.round(t) if logarithmic else t
  last = every[0] if said["final_sigmas_type"] == "sigma_min" else 0.0
  levels = [Level(1 / np.sqrt(1 + s * s), s / np.sqrt(1 + s * s), float(time)) for s, time in zip([*sigma, last], [*t, 0.0])]
  return list(zip(levels, levels[1:]))
