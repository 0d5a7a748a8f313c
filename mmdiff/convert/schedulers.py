"""`scheduler_config.json` of diffusers as a plan: the levels, the order and the ends that its schedulers use.

They differ in more than the formula of a step, see `scheduler_levels`. All of it is read from the config, nothing from a name. What a class
has no option for it leaves unread, as diffusers does: files carry what other classes left in them. An option that a class has and that is
not here is an error, and so is one that no class has. The behaviour is that of diffusers 0.42, step by step.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmdiff.convert import edm_schedulers, scheduler_levels
from mmdiff.convert.scheduler_levels import alpha_bar
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.diffusion import plans, sampler_names
from mmdiff.diffusion.plans import COLUMN, COLUMNS, Plan
from mmdiff.diffusion.rows import Steps

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

# Facts of the model, which every sampler of it takes, with DDPM's values for a file that does not say.
DDPM: dict[str, Any] = dict(
  num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None, prediction_type="epsilon",
  rescale_betas_zero_snr=False, timestep_spacing="linspace", steps_offset=0)

RAMPS: dict[str, Any] = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
CLIPPED: dict[str, Any] = dict(clip_sample=True, clip_sample_range=1.0)
SOLVER: dict[str, Any] = RAMPS | dict(solver_order=2, thresholding=False, lower_order_final=True, final_sigmas_type="zero",
                                      use_flow_sigmas=False, use_dynamic_shifting=False)
# The options of each class beside its levels, and where its levels differ, with what it does when the file does not say.
OPTIONS: dict[str, dict[str, Any]] = {
  "DDPMScheduler": CLIPPED | dict(timestep_spacing="leading", variance_type="fixed_small", thresholding=False),
  "DDIMScheduler": CLIPPED | dict(timestep_spacing="leading", set_alpha_to_one=True, thresholding=False),
  "PNDMScheduler": dict(timestep_spacing="leading", skip_prk_steps=False, set_alpha_to_one=False),
  "LMSDiscreteScheduler": RAMPS,
  "EulerDiscreteScheduler": RAMPS | dict(interpolation_type="linear", sigma_min=None, sigma_max=None, timestep_type="discrete",
                                         final_sigmas_type="zero"),
  "EulerAncestralDiscreteScheduler": {},
  "HeunDiscreteScheduler": RAMPS | CLIPPED | dict(clip_sample=False, beta_start=0.00085, beta_end=0.012),
  "DPMSolverMultistepScheduler": SOLVER | dict(
    algorithm_type="dpmsolver++", solver_type="midpoint", euler_at_final=False, use_lu_lambdas=False, lambda_min_clipped=-np.inf,
    variance_type=None),
  "UniPCMultistepScheduler": SOLVER | dict(
    predict_x0=True, solver_type="bh2", disable_corrector=[], solver_p=None, sigma_min=None, sigma_max=None, shift_terminal=None),
}
# What an option may be, where not all that its class takes has a counterpart here.
ACCEPTED: dict[str, tuple] = {
  "prediction_type": tuple(PREDICTIONS), "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
  "timestep_spacing": ("leading", "trailing", "linspace"), "final_sigmas_type": ("zero", "sigma_min"),
  "variance_type": (None, "fixed_small", "fixed_large"), "solver_order": (2,), "thresholding": (False,), "use_beta_sigmas": (False,),
  "use_lu_lambdas": (False,), "use_flow_sigmas": (False,), "use_dynamic_shifting": (False,), "interpolation_type": ("linear",),
  "timestep_type": ("discrete",), "algorithm_type": ("dpmsolver++",), "predict_x0": (True,), "disable_corrector": ([], ()),
  "solver_p": (None,), "lambda_min_clipped": (-np.inf, "-inf"), "shift_terminal": (None,),
}
# The same for one class alone.
ACCEPTED_BY: dict[str, dict[str, tuple]] = {
  "PNDMScheduler": dict(prediction_type=("epsilon", "v_prediction")),
  "EulerDiscreteScheduler": dict(sigma_min=(None,), sigma_max=(None,)),
  # diffusers cuts the times of these two off to whole ones, by rounding errors to one or the other.
  "DPMSolverMultistepScheduler": dict(solver_type=("midpoint",), variance_type=(None,), use_exponential_sigmas=(False,)),
  "UniPCMultistepScheduler": dict(solver_type=("bh2",), lower_order_final=(True,), sigma_min=(None,), sigma_max=(None,),
                                  use_exponential_sigmas=(False,)),
}
# What the rest may be: kinds of value, and the least and most of a number. A number of steps is whole.
NUMBERS: dict[str, tuple[float, float]] = {
  "num_train_timesteps": (1, 100_000), "beta_start": (0, 1), "beta_end": (0, 1), "steps_offset": (-100_000, 100_000),
  "clip_sample_range": (1e-6, 1e6)}
WHOLE = ("num_train_timesteps", "steps_offset")
SWITCHES = ("rescale_betas_zero_snr", "clip_sample", "set_alpha_to_one", "skip_prk_steps", "use_karras_sigmas", "use_exponential_sigmas",
            "euler_at_final", "lower_order_final")
# Of options that are off.
IDLE = ("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type")
USUAL_STEPS = 50
# What another sampler of the same model takes of a file, beside its levels: how far the last step goes, where samplers differ in it.
SHARED = (*DDPM, "set_alpha_to_one")


class Scheduler(NamedTuple):
  """What a sampling run takes from a scheduler's config."""
  plan: Plan
  prediction: str                       # eps, v, x0 or edm
  sampler: str


@np.errstate(divide="ignore", invalid="ignore", over="ignore")             # what is no number in the end, `packed` refuses
def plan_of(config: Mapping[str, Any], *, steps: int, sampler: str | None = None, eta: float | None = None, guidance: float = 1.0,
            rescale: float = 0.0, strength: float = 1.0, begin: float = 0.0, end: float = 1.0,
            where: str = "scheduler_config.json") -> Scheduler:
  """The plan of `steps` steps as the config's scheduler takes them; time is the number that the network receives.

  Args:
    config: as read from the file.
    sampler: None is the config's own, with all its options; another name of `SAMPLERS` takes the config's levels (`SHARED`) in that
      class's way, without the options that were written for the config's own.
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
  config = config if sampler is None else sampled_by(sampler, config, where)
  kind = config.get("_class_name")
  if not isinstance(kind, str) or kind not in CLASSES:
    raise DataError(f"{where}: _class_name: expected one of {', '.join([*CLASSES, *edm_schedulers.CLASSES])}, found {kind!r}")
  (name, placed), said = CLASSES[kind], read(config, kind, where)
  length = said["num_train_timesteps"]
  if not 1 <= steps <= length:
    raise ConfigError(f"steps: expected 1 to {length}, the levels of {where}, found {steps}")
  if not 0 <= rescale <= 1:
    raise ConfigError(f"rescale: expected a number in [0, 1], found {rescale}")
  if eta is not None and not eta >= 0:
    raise ConfigError(f"eta: expected a number of at least 0, found {eta}")
  if eta and kind != "DDIMScheduler":
    raise ConfigError(f"eta: {kind} of {where} takes none, found {eta}; use DDIM")
  if kind == "PNDMScheduler":
    name = "plms_in_parts" if said["skip_prk_steps"] else "pndm"
  if name == "pndm":
    check_parts(steps, strength=strength, begin=begin, end=end, where=where)
  whole = scheduler_levels.steps_of(said, steps, kind=kind, name=name, placed=placed)
  count = plans.taken(steps, strength)
  pairs, kept = part_of(whole, steps, steps - count, length, begin=begin, end=end)
  if name == "plms_in_parts":
    pairs = scheduler_levels.repeated(pairs, said, steps)
  prediction = PREDICTIONS[said["prediction_type"]]
  variance = "large" if said.get("variance_type") == "fixed_large" else "small"
  table, _ = plans.tabulate(name, pairs, eta=eta if kind == "DDIMScheduler" else None, variance=variance,
                            extrapolate="v" if prediction == "v" else "eps")
  if name == "ddpm" and variance == "large" and pairs[-1][0].time > 0:      # diffusers: noise at every time but 0, the end included
    table[-1, COLUMN["noise"]] = pairs[-1][0].sigma
  if name == "dpm++2m" and said.get("final_sigmas_type") == "sigma_min" and (
      said["euler_at_final"] or said["lower_order_final"] and steps < 15):
    last, _ = plans.tabulate("ddim", pairs[-1:])
    table[-1] = last[0]
  if kept < len(pairs):                 # the rows of the first steps, which know of what comes after
    table = table[:len(plans.tabulate(name, pairs[:kept])[0])]
  elif placed == "sigma":               # these work on x / alpha, so that is what they return
    table[-1, [COLUMN[key] for key in COLUMNS if key.startswith("on_")]] /= pairs[-1][1].alpha
  table[:, COLUMN["guidance"]] = guidance
  start = scheduler_levels.start_scale(said, pairs[0][0], placed)
  clip = said["clip_sample_range"] if said.get("clip_sample") else 0.0
  return Scheduler(plans.packed(table, start_scale=start, rescale=rescale, clip=clip), prediction, name.removesuffix("_in_parts"))


def refusal(config: Mapping[str, Any], *, noise: bool = False, where: str = "scheduler_config.json") -> str:
  """Why nothing is sampled by a config, "" if it is: what `plan_of` says of as many steps as are usual, or of half the levels.

  noise: of one that only says how noise is added, what `noise_at` says.
  """
  length = config.get("num_train_timesteps")
  steps = max(1, min(USUAL_STEPS, length // 2)) if isinstance(length, int) else USUAL_STEPS
  try:
    if noise:
      noise_at(config, 0, most=0)
    else:
      plan_of(config, steps=steps, where=where)
  except (ConfigError, DataError) as error:
    return str(error)
  return ""


def noise_at(config: Mapping[str, Any], n: int, *, most: int) -> tuple[float, float]:
  """(alpha, sigma) of level n of a config's schedule, such as an upscaler's `low_res_scheduler`. Raises ConfigError beyond `most`."""
  said = read({"_class_name": "DDPMScheduler"} | dict(config), "DDPMScheduler", "low_res_scheduler")
  most = min(most, said["num_train_timesteps"] - 1)
  if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or not 0 <= n <= most:
    raise ConfigError(f"noise_level: expected a whole number from 0 to {most}, found {n!r:.60}")
  level = scheduler_levels.level_at(alpha_bar(said), n)
  return level.alpha, level.sigma


def part_of(pairs: Steps, steps: int, skipped: int, length: int, *, begin: float, end: float) -> tuple[Steps, int]:
  """(The steps from where a loop begins, how many of them it takes). Raises ConfigError for none.

  Of PNDM `pairs` lists one evaluation more than `steps`, and the first `skipped` evaluations are left out, as in diffusers, not steps.
  """
  if not 0 <= begin < end <= 1:
    raise ConfigError(f"begin and end: expected 0 ≤ begin < end ≤ 1, found {begin} and {end}")
  pairs = pairs[skipped:]
  first, last = (round(length * (1 - part)) for part in (begin, end))
  pairs = [pair for pair in pairs if pair[0].time < first] if begin > 0 else pairs
  kept = sum(pair[0].time >= last for pair in pairs) if end < 1 else len(pairs)
  if not kept:
    raise ConfigError(f"begin and end: none of {steps} steps lies between {begin} and {end}; use more steps")
  return pairs, kept


def check_parts(steps: int, *, strength: float, begin: float, end: float, where: str) -> None:
  """Raises ConfigError for loops that Runge and Kutta's start is not made for: short ones, and parts of one."""
  if steps < 4 or (strength, begin, end) != (1.0, 0.0, 1.0):
    raise ConfigError(f"{where}: PNDM with a Runge-Kutta start (skip_prk_steps false) takes at least 4 steps, all of them: found {steps} "
                      f"steps, strength {strength}, from {begin} to {end}; set skip_prk_steps to true, or choose a sampler")


def sampled_by(sampler: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The scheduler's config that draws with a sampler the user chose. A file of that very sampler keeps its options.

  Raises ConfigError for an unknown name, DataError where the file is of a class that mmdiff does not know and has no such levels.
  """
  classes = {name: kind for kind, (name, _) in CLASSES.items()} | {"pndm": "PNDMScheduler"}
  classes |= {"dpm++2m_karras": "DPMSolverMultistepScheduler"}
  sampler = sampler_names.named(sampler, list(classes))
  if config.get("_class_name") not in CLASSES and "beta_schedule" not in config:
    raise DataError(f"{where}: _class_name {config.get('_class_name')!r} is unknown here, and the file has no beta_schedule, whose levels "
                    f"{sampler} could take")
  kind = classes[sampler]
  asked: dict[str, Any] = dict(_class_name=kind)
  asked |= dict(use_karras_sigmas=sampler.endswith("_karras")) if kind == "DPMSolverMultistepScheduler" else {}
  asked |= dict(skip_prk_steps=True) if kind == "PNDMScheduler" else {}
  if config.get("_class_name") == kind and not problems({**config, **asked}, kind):
    return {**config, **asked}
  shared = {key: config[key] for key in SHARED if key in config}
  return shared | asked | (dict(clip_sample=False) if "clip_sample" in OPTIONS[kind] else {})


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
  """What a network sampled by a config was trained for, in the words of `objectives.diffusion`: `prediction`, `kind` and name of the
  `schedule`, `zero_terminal_snr`. A schedule that no run trains on has its numbers for a name. Raises DataError."""
  if edm_schedulers.is_edm(config):
    prediction, kind = edm_schedulers.formulation(config)
    return dict(prediction=prediction, kind=kind, schedule="edm", zero_terminal_snr=False)
  kind = config.get("_class_name")
  said = said_of(config, kind if isinstance(kind, str) else "")
  if not isinstance(said["prediction_type"], str) or said["prediction_type"] not in PREDICTIONS:
    raise DataError(f"prediction_type: expected one of {', '.join(PREDICTIONS)}, found {said['prediction_type']!r}")
  key = (said["beta_schedule"], said["beta_start"], said["beta_end"])
  name = "cosine" if key[0] == "squaredcos_cap_v2" else next(
    (name for known, name in SCHEDULES.items() if known == key), "{} from {} to {}".format(*key))
  name = f"{len(said['trained_betas'])} betas of its own" if isinstance(said["trained_betas"], list) else name
  return dict(prediction=PREDICTIONS[said["prediction_type"]], kind="discrete", schedule=name,
              zero_terminal_snr=bool(said["rescale_betas_zero_snr"]))


def read(config: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
  """Every option of the class with its value. Raises DataError with everything that has no counterpart here."""
  found = problems(config, kind)
  if found:
    raise DataError(f"{where} ({kind}): " + "; ".join(found))
  return said_of(config, kind)


def said_of(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """The same without looking; of a class that is not here its levels."""
  own = DDPM | OPTIONS.get(kind, {})
  return own | {key: value for key, value in config.items() if key in own}


def fits(value: Any, low: float, high: float, whole: bool) -> bool:
  """Whether a value of a file is a number within bounds."""
  return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and low <= value <= high


def problems(config: Mapping[str, Any], kind: str) -> list[str]:
  """What of a config has no counterpart here, in words."""
  said, known = said_of(config, kind), {*DDPM, *IDLE, *(key for options in OPTIONS.values() for key in options)}
  found = [f"{key}: unknown to every scheduler that mmdiff has, found {value!r}" for key, value in config.items()
           if key not in known and key[:1] != "_" and value not in (None, False, [], {})]
  for key, choices in (ACCEPTED | ACCEPTED_BY.get(kind, {})).items():
    if key in said and not any(said[key] is choice or said[key] == choice for choice in choices):
      listed = ", ".join(choice for choice in choices if isinstance(choice, str) and choice != "-inf")
      found.append(f"{key}: expected {'one of ' * (len(choices) > 1)}{listed}, found {said[key]!r}" if listed
                   else f"{key}: {said[key]!r} is a variant that mmdiff does not have")
  found += [f"{key}: expected a {'whole ' * (key in WHOLE)}number from {low:g} to {high:g}, found {said[key]!r:.60}"
            for key, (low, high) in NUMBERS.items() if key in said and not fits(said[key], low, high, key in WHOLE)]
  found += [f"{key}: expected true or false, found {said[key]!r:.60}" for key in SWITCHES if said.get(key) not in (None, False, True)]
  if sum(bool(said.get(key)) for key in RAMPS) > 1:
    found.append(f"{', '.join(key for key in RAMPS if said.get(key))}: expected one of them, found several")
  if said.get("use_karras_sigmas") and said["beta_schedule"] == "squaredcos_cap_v2" and CLASSES.get(kind, ("", ""))[1] == "log":
    found.append("use_karras_sigmas: expected false with beta_schedule squaredcos_cap_v2, found true: diffusers loses its place among "
                 "equal times")
  betas = said["trained_betas"]
  if betas is not None and not (isinstance(betas, list) and len(betas) == said["num_train_timesteps"]
                                and all(isinstance(beta, (int, float)) and 0 <= beta <= 1 for beta in betas)):
    found.append(f"trained_betas: expected {said['num_train_timesteps']} numbers from 0 to 1, found {betas!r:.60}")
  if said.get("clip_sample") and kind == "DDIMScheduler":
    found.append("clip_sample: expected false, found true: diffusers' DDIM then clips x_0 and keeps the eps of the unclipped one")
  return found
