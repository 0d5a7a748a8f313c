"""Where diffusers' schedulers place their levels, and where their steps go.

DDIM and PLMS step down by a fixed number of training levels, whatever the next time is; DPM-Solver++ and UniPC place one time more than
there are steps and drop the last; the others interpolate sigma at times that need not be whole; Karras' sigmas run between other ends. Of
spacing `trailing` diffusers makes one time too many, -1, at some numbers of steps (61, 103, …), and reads the last level for it; not here.

`said` is a config with every option of its class, as `schedulers.read` gives it.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import schedules
from mmdiff.diffusion.rows import Steps
from mmdiff.diffusion.schedules import Level

RAMPS = {"use_karras_sigmas": schedules.karras_ramp, "use_exponential_sigmas": schedules.exponential_ramp}


def steps_of(said: Mapping[str, Any], steps: int, *, kind: str, name: str, placed: str) -> Steps:
  """The steps of a whole loop; of PNDM (`name` "plms_in_parts") its evaluations, the second step's twice."""
  abar = alpha_bar(said, placed)
  return whole(said, abar, steps, name) if placed == "whole" else by_sigma(said, abar, steps, kind=kind, logarithmic=placed == "log")


def start_scale(said: Mapping[str, Any], first: Level, placed: str) -> float:
  """What unit noise is multiplied by: x starts with unit variance, or with sigma alone where the class starts from sigma times noise."""
  return first.sigma if placed == "sigma" and said["timestep_spacing"] in ("linspace", "trailing") else 1.0


def alpha_bar(said: Mapping[str, Any], placed: str = "whole") -> np.ndarray:
  """float64 [T] of a config's betas."""
  length = said["num_train_timesteps"]
  if said["trained_betas"] is not None:
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
    if placed != "whole":
      made[-1] = 2.0**-24               # sigma stays finite
  return made


def times(said: Mapping[str, Any], steps: int, *, more: int = 0) -> np.ndarray:
  """float64 [steps], descending; with `more` = 1 as one time more would be placed, without the last. Raises ConfigError."""
  length, n = said["num_train_timesteps"], steps + more
  if said["timestep_spacing"] == "linspace":
    return np.linspace(0, length - 1, n)[::-1][:steps]
  if said["timestep_spacing"] == "trailing":
    return np.round(np.arange(length, 0, -length / steps))[:steps] - 1
  t = (np.arange(n) * (length // n))[::-1][:steps].astype(np.float64) + said["steps_offset"]
  if t[0] >= length or t[-1] < 0:
    raise ConfigError(f"steps: {steps} steps with steps_offset {said['steps_offset']} begin at level {t[0]:g} of {length} and end at "
                      f"{t[-1]:g}; use fewer")
  return t


def whole(said: Mapping[str, Any], abar: np.ndarray, steps: int, name: str) -> Steps:
  """Steps between training levels. DDPM goes to the next time, DDIM and PLMS down by T // steps, PNDM's first parts by half of that."""
  t = np.round(times(said, steps)).astype(int)
  stride = len(abar) // steps
  then = np.append(t[1:], -1) if name == "ddpm" else t - stride
  if name == "plms_in_parts":
    t, then = np.insert(t, 1, t[1:2]), np.insert(then, 1, then[1:2])
  if name == "pndm":                    # each of the first three steps in four parts, then the fourth and so on
    begun, middle, last = t[:3, None], t[1:4, None] + stride // 2, t[1:4, None]
    parts = np.concatenate([begun, middle, middle, last], 1)
    ends = np.concatenate([begun - stride // 2, middle, middle - stride // 2, last], 1)
    t, then = np.concatenate([parts.ravel(), t[3:]]), np.concatenate([ends.ravel(), then[3:]])
  end = Level(1.0, 0.0, 0.0) if name == "ddpm" or said["set_alpha_to_one"] else level_at(abar, 0)
  return [(level_at(abar, now), level_at(abar, after) if after >= 0 else end) for now, after in zip(t, then)]


def repeated(pairs: Steps, said: Mapping[str, Any], steps: int) -> Steps:
  """PNDM's evaluations as `rows.plms_in_parts` takes them: the second, wherever a loop begins, steps from T // steps above its time to it.

  diffusers counts evaluations, not times: a loop that begins later has no time twice, and its third step starts a level too early.
  """
  if len(pairs) < 2:
    return pairs
  abar, (again, _) = alpha_bar(said), pairs[1]
  above = int(again.time) + said["num_train_timesteps"] // steps
  return [pairs[0], (level_at(abar, above), again), *pairs[2:]]


def level_at(abar: np.ndarray, n: int) -> Level:
  return Level(float(abar[n] ** 0.5), float((1 - abar[n]) ** 0.5), float(n))


def by_sigma(said: Mapping[str, Any], abar: np.ndarray, steps: int, *, kind: str, logarithmic: bool) -> Steps:
  """Steps in sigma / alpha: of the Euler family, or (`logarithmic`) of the solvers in its logarithm."""
  every = np.sqrt((1 - abar) / abar)
  ramp = next((key for key in RAMPS if said.get(key)), None)
  if ramp and logarithmic:
    low, high = every[0], every[-1]
  else:
    t = times(said, steps, more=int(logarithmic and said["timestep_spacing"] != "trailing"))
    t = np.round(t) if logarithmic else t
    sigma = np.interp(t, np.arange(len(every)), every)
    low, high = sigma[-1], sigma[0]
  if ramp:
    sigma = RAMPS[ramp](steps, low, high)
    t = np.interp(np.log(sigma), np.log(every), np.arange(len(every)))
    t = np.round(t) if logarithmic else t
  # A ramp of one sigma is the largest; where UniPC ends is its last one.
  low = sigma[-1] if ramp and kind == "UniPCMultistepScheduler" else every[0]
  last = low if said.get("final_sigmas_type") == "sigma_min" else 0.0
  levels = [Level(1 / np.sqrt(1 + s * s), s / np.sqrt(1 + s * s), float(time)) for s, time in zip([*sigma, last], [*t, 0.0])]
  return list(zip(levels, levels[1:]))

