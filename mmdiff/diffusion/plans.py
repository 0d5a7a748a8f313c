"""Samplers as tables of coefficients, computed on the host in float64.

Every sampler here is linear in what it has seen, once the network's opinion is expressed as the clean picture D(x_i):

  m_i     = keep_x · x_i + keep_d · D_i                                        what is remembered of this evaluation
  x_{i+1} = on_x · x_i + on_d · D_i + on_m1 · m_{i-1} + … + on_m12 · m_{i-12} + noise · z_i

so a sampler is a function from levels to rows of such coefficients, one row an evaluation of the network, and one compiled loop
(`samplers.sample`) runs them all: changing the sampler, the number of steps or the guidance changes arrays, not the program. A
method with several evaluations a step (Heun) is several rows; one that extrapolates eps (PLMS, LMS) remembers that, a combination of x
and D. The rows are made in `rows`.

| sampler           | step                                                      | source                                                |
|-------------------|-----------------------------------------------------------|-------------------------------------------------------|
| `ddpm`            | the posterior q(x' | x, D), variance beta-tilde or beta   | Ho 2020, https://arxiv.org/abs/2006.11239 eq. 6, 7    |
| `ddim`            | eq. 12 with noise eta; 0 is Euler, 1 is `ddpm`            | Song 2020, https://arxiv.org/abs/2010.02502           |
| `euler`           | algorithm 2 without churn                                 | Karras 2022, https://arxiv.org/abs/2206.00364         |
| `euler_ancestral` | Euler to sigma_down, then noise sigma_up                  | k-diffusion, sample_euler_ancestral                   |
| `heun`            | algorithm 1 without churn, two evaluations but for the last | Karras 2022                                         |
| `dpm++2m`         | second-order multistep on D, first and last step first order | Lu 2022, https://arxiv.org/abs/2211.01095 alg. 2   |
| `plms`            | fourth-order multistep on eps, the first step taken twice | Liu 2022, https://arxiv.org/abs/2202.09778            |
| `pndm`            | the same after three steps of Runge and Kutta's method; of `scheduler_config.json` only | Liu 2022, algorithm 2 |
| `lms`             | fourth-order multistep on eps over sigma / alpha          | k-diffusion, sample_lms                               |
| `unipc`           | second-order predictor and corrector on D                 | Zhao 2023, https://arxiv.org/abs/2302.04867           |

The first four are one formula: a step of DDIM, of Euler in sigma / alpha and of Euler on the flow's velocity is the same line.
"""
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import sampler_names, schedules
from mmdiff.diffusion.rows import Options, Rows, Steps, dpmpp_2m, heun, levels_of, linear, lms, plms, plms_in_parts, pndm, unipc
from mmdiff.diffusion.schedules import Level, Schedule

MAX_ROWS = 1000                         # evaluations that a plan holds; its arrays always have this size
MEMORY = 12                             # earlier evaluations that a row may combine: on_m1 to on_m12
INFERRED = "auto"

COLUMNS = ("alpha", "sigma", "time", "guidance", "keep_x", "keep_d", "on_x", "on_d",
           *(f"on_m{age}" for age in range(1, MEMORY + 1)), "noise")
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


class Plan(NamedTuple):
  """All that a sampling run needs besides the network, as arrays: safe to pass through `jit`, never a reason to compile again."""
  table: Any                            # float32 [MAX_ROWS, COLUMNS], the rows beyond `rows` are zero
  rows: Any                             # int32 []: network evaluations
  start_scale: Any                      # float32 []: the first x is this times unit noise
  rescale: Any                          # float32 []: guidance rescale phi
  clip: Any                             # float32 []: D is clipped to ±clip; inf = not at all


class _Sampler(NamedTuple):
  rows: Callable[[Steps, Options], Rows]
  eta: float = 0.0                      # its own noise, when the caller gives none
  spacing: str = INFERRED


SAMPLERS: dict[str, _Sampler] = {
  "ddpm": _Sampler(linear, eta=1.0),                        # ancestral, the chain that diffusion models are trained as
  "ddim": _Sampler(linear),                                 # deterministic, exact where the picture's estimate does not change
  "euler": _Sampler(linear),                                # the probability flow in straight steps, as k-diffusion takes them
  "euler_ancestral": _Sampler(linear, eta=1.0),             # the same with fresh noise at every step
  "heun": _Sampler(heun),                                   # second order, two evaluations a step
  "dpm++2m": _Sampler(dpmpp_2m),                            # second order from the step before, one evaluation: good at 20 to 30 steps
  "dpm++2m_karras": _Sampler(dpmpp_2m, spacing="karras"),   # the same at Karras' levels
  "plms": _Sampler(plms),                                   # pseudo linear multistep of order four, Stable Diffusion's first default
  "lms": _Sampler(lms),                                     # linear multistep of order four
  "unipc": _Sampler(unipc),                                 # predictor and corrector of order two: good at 10 to 20 steps
}

# Of `convert.schedulers` alone, whose steps list the parts that its first ones are taken in.
IN_PARTS = {"pndm": _Sampler(pndm), "plms_in_parts": _Sampler(plms_in_parts)}
ALIASES = {"pndm": "plms"}              # diffusers' name of it

SPACINGS = {                            # by kind of schedule; the first is "auto"
  "discrete": ("trailing", "leading", "linspace", "karras", "exponential"),
  "edm": ("karras", "exponential"),
  "flow": ("trailing",),
}


def named(name: str) -> str:
  """The name in `SAMPLERS` of what may be spelt as others do (`sampler_names`). Raises ConfigError with the nearest."""
  found = sampler_names.named(name, [*SAMPLERS, *ALIASES])
  return ALIASES.get(found, found)


def times(schedule: Schedule, steps: int, spacing: str = INFERRED) -> np.ndarray:
  """The t of each step's start, float64 [steps], descending (samplers end at data, which is not listed).

  Discrete levels n (t = (n + 1) / T) for T = 1000 and ten steps: `trailing` 999, 899, …, 99; `leading` 901, 801, …, 1 (LDM's, with its
  offset of one); `linspace` 999, 888, …, 0. `karras` and `exponential` space sigma / alpha between the schedule's ends. The first of
  `SPACINGS` for the schedule's kind is "auto".
  """
  known = SPACINGS[schedule.kind]
  spacing = known[0] if spacing == INFERRED else spacing
  if spacing not in known:
    raise ConfigError(f"spacing: a schedule of kind {schedule.kind!r} takes {', '.join(known)}, found {spacing!r}")
  if spacing in ("karras", "exponential"):
    if schedule.zero_terminal_snr:
      raise ConfigError(f"spacing {spacing!r} needs a finite largest sigma, which a zero terminal SNR does not have; use 'trailing'")
    ends = schedules.level(schedule, np.asarray([1.0 / max(schedule.length, 1) if schedule.kind == "discrete" else 0.0, 1.0]))
    low, high = ends.sigma / ends.alpha
    ramp = schedules.karras_ramp if spacing == "karras" else schedules.exponential_ramp
    return schedules.time_of(schedule, ramp(steps, low, high))
  if schedule.kind == "flow":
    return 1 - np.arange(steps) / steps
  length = schedule.length
  if steps > length:
    raise ConfigError(f"steps: this schedule has {length} levels, found {steps} steps; use at most {length}")
  n = {"trailing": lambda: np.round(np.arange(length, 0, -length / steps))[:steps] - 1,
       "leading": lambda: np.minimum(np.arange(steps)[::-1] * (length // steps) + (1 if steps < length else 0), length - 1),
       "linspace": lambda: np.round(np.linspace(0, length - 1, steps))[::-1] if steps > 1 else np.asarray([length - 1])}[spacing]()
  return (n + 1) / length


def coefficients(name: str, levels: Level, *, flow: bool = False, eta: float | None = None,
                 variance: str = "small") -> tuple[np.ndarray, np.ndarray]:
  """(table float64 [rows, COLUMNS] with guidance left 0, index [rows] of the level where each row evaluates the network).

  levels: alpha, sigma and time [steps + 1], from noise to data.
  """
  each = [Level(float(a), float(s), float(t)) for a, s, t in zip(*levels)]
  return tabulate(name, list(zip(each, each[1:])), flow=flow, eta=eta, variance=variance)


def tabulate(name: str, steps: Steps, *, flow: bool = False, eta: float | None = None, variance: str = "small",
             extrapolate: Literal["eps", "v"] = "eps") -> tuple[np.ndarray, np.ndarray]:
  """`coefficients` of steps that need not end where the next begins. extrapolate: see `rows.Options`."""
  sampler = (SAMPLERS | IN_PARTS)[name]
  if name not in IN_PARTS:
    check_levels(name, steps)
  rows = sampler.rows(steps, Options(sampler.eta if eta is None else eta, variance, flow, extrapolate))
  table, where = np.zeros((len(rows), len(COLUMNS))), np.asarray([row.pop("at", i) for i, row in enumerate(rows)])
  levels = levels_of(steps)
  for i, row in enumerate(rows):
    now = levels[where[i]]
    for key, value in (dict(keep_d=1.0, alpha=now.alpha, sigma=now.sigma, time=now.time) | row).items():
      table[i, COLUMN[key]] = value
  return table, where


def check_levels(name: str, steps: Steps) -> None:
  """Raises ConfigError for steps that go nowhere or back: the multistep methods divide by their length. The last may end where it is."""
  ratio = lambda level: level.sigma / (level.alpha + level.sigma)
  begins, ends = (np.asarray([ratio(level) for level in side]) for side in zip(*steps))
  if np.any(np.diff(begins) >= 0) or np.any(ends[:-1] >= begins[:-1]) or ends[-1] > begins[-1]:
    raise ConfigError(f"steps: {len(steps)} steps of this spacing repeat a noise level, which {name} can't step from; use fewer steps, "
                      "or another spacing")
  if ends[-1] == begins[0]:
    raise ConfigError(f"steps: {len(steps)} step of this spacing ends at the noise level where it begins; use more steps, or a final level "
                      "of zero")


def taken(steps: int, strength: float) -> int:
  """How many of a sampler's steps a strength takes: floor(steps · strength), as in diffusers. Raises ConfigError for none."""
  if not 0 < strength <= 1:
    raise ConfigError(f"strength: expected a number above 0, up to 1, found {strength}")
  if steps * strength < 1:
    raise ConfigError(f"strength: {strength} of {steps} steps is less than one; use at least {1 / steps:g}, or more steps")
  return int(steps * strength)


def packed(table: np.ndarray, *, start_scale: float, rescale: float = 0.0, clip: float = 0.0) -> Plan:
  """A plan of finished rows [rows, COLUMNS]; clip 0 = not at all. Raises ConfigError for too many, and for numbers that are none."""
  if len(table) > MAX_ROWS:
    raise ConfigError(f"steps: this sampler would evaluate the network {len(table)} times; the most is {MAX_ROWS}")
  padded = np.zeros((MAX_ROWS, len(COLUMNS)), np.float32)
  padded[:len(table)] = table
  if not (np.isfinite(padded).all() and np.isfinite(start_scale)):
    raise ConfigError(f"steps: the {len(table)} evaluations of this sampler need numbers that float32 does not have (row "
                      f"{np.flatnonzero(~np.isfinite(padded).all(1))[:1]}); use fewer steps, or another spacing")
  return Plan(padded, np.int32(len(table)), np.float32(start_scale), np.float32(rescale), np.float32(clip or np.inf))


def plan(name: str, schedule: Schedule, *, steps: int, eta: float | None = None, spacing: str = INFERRED, guidance: float = 1.0,
         rescale: float = 0.0, interval: Sequence[float] = (0.0, 1.0), clip: float = 0.0, variance: str = "small",
         final: str = "data", strength: float = 1.0) -> Plan:
  """The plan of a sampling run; every difference between two plans is in array values.

  Args:
    name: one of `SAMPLERS` or `ALIASES`, or what others call it (`sampler_names`).
    schedule: the one that the network was trained on.
    steps: of the sampler; `heun` evaluates the network 2 steps - 1 times.
    eta: noise share of `ddpm`, `ddim`, `euler` and `euler_ancestral`; None = the sampler's own (1, 0, 0, 1).
    spacing: see `times`; "auto" is trailing for discrete and flow schedules and karras for edm.
    guidance: scale s ≥ 1 (`guidance.guide`); 1 runs the network on the prompts alone.
    rescale: phi in [0, 1] of the guidance rescale.
    interval: (low, high) in t; guidance acts at levels with low ≤ t ≤ high (https://arxiv.org/abs/2404.07724).
    clip: D is clipped to ±clip (1 for pixels as in DDPM), 0 = not.
    variance: of `ddpm`, the posterior's ("small") or beta ("large").
    final: the end of the last step: data itself, or level 0 as in LDM's DDIM, which leaves sigma_0 of noise in the picture.
    strength: share of the steps that are taken, the last ones: 1 from noise, less from a noised picture.

  Raises:
    ConfigError: unknown names, numbers out of range, combinations that are not defined; the message names the fix.
  """
  name = named(name)
  if steps < 1:
    raise ConfigError(f"steps: expected at least 1, found {steps}")
  if eta and SAMPLERS[name].rows is not linear:
    raise ConfigError(f"eta: {name} adds no noise, found {eta}; leave it out, or use ddim or euler_ancestral")
  if eta is not None and not eta >= 0:
    raise ConfigError(f"eta: expected a number of at least 0, found {eta}")
  if not 0 <= rescale <= 1:
    raise ConfigError(f"rescale: expected a number in [0, 1], found {rescale}")
  if not clip >= 0:
    raise ConfigError(f"clip: expected a positive number, or 0 for none, found {clip}")
  if not np.isfinite(guidance):
    raise ConfigError(f"guidance: expected a finite number, found {guidance}")
  for key, value, known in (("variance", variance, ("small", "large")), ("final", final, ("data", "first"))):
    if value not in known:
      raise ConfigError(f"{key}: expected {' or '.join(map(repr, known))}, found {value!r:.60}")
  if len(interval) != 2 or not interval[0] <= interval[1]:
    raise ConfigError(f"interval: expected (low, high) with low ≤ high, found {interval!r:.60}: guidance would act nowhere")
  if final == "first" and schedule.kind != "discrete":
    raise ConfigError(f"final: only discrete schedules have a first level, found kind {schedule.kind!r}; use 'data'")
  own = SAMPLERS[name].spacing
  if INFERRED not in (own, spacing) and spacing != own:
    raise ConfigError(f"spacing: sampler {name} spaces its levels by {own!r}, found {spacing!r}; leave it out, or name the sampler alone")
  t = times(schedule, steps, own if spacing == INFERRED else spacing)[steps - taken(steps, strength):]
  levels = schedules.level(schedule, t)
  end = schedules.level(schedule, np.asarray(1 / schedule.length)) if final == "first" else Level(1.0, 0.0, 0.0)
  if final == "first" and levels.sigma[-1] <= end.sigma:
    end = Level(1.0, 0.0, 0.0)
  whole = Level(*(np.append(leaf, stop) for leaf, stop in zip(levels, end)))
  table, where = coefficients(name, whole, flow=schedule.kind == "flow", eta=eta, variance=variance)
  guided = (t[where] >= interval[0]) & (t[where] <= interval[1])
  table[:, COLUMN["guidance"]] = np.where(guided, guidance, 1.0)
  # A variance-preserving x_T has unit variance by construction, whatever is left of the picture in it.
  return packed(table, start_scale=1.0 if schedule.kind == "discrete" else whole.sigma[0], rescale=rescale, clip=clip)
