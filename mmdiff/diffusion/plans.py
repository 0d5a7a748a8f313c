"""Samplers as tables of coefficients, computed on the host in float64.

Every sampler here is linear in what it has seen, once the network's opinion is expressed as the clean picture D(x_i):

  m_i     = keep_x · x_i + keep_d · D_i                                        what is remembered of this evaluation
  x_{i+1} = on_x · x_i + on_d · D_i + on_m1 · m_{i-1} + on_m2 · m_{i-2} + on_m3 · m_{i-3} + noise · z_i

so a sampler is a function from levels to rows of such coefficients, one row an evaluation of the network, and one compiled loop
(`samplers.sample`) runs them all: changing the sampler, the number of steps or the guidance changes arrays, not the program. A
method with several evaluations a step (Heun) or with corrections (UniPC) is a few rows; one that extrapolates eps (PNDM) or
dx/dsigma (LMS) remembers those, which are combinations of x and D.

| sampler           | step                                                      | source                                                |
|-------------------|-----------------------------------------------------------|-------------------------------------------------------|
| `ddpm`            | the posterior q(x' | x, D), variance beta-tilde or beta   | Ho 2020, https://arxiv.org/abs/2006.11239 eq. 6, 7    |
| `ddim`            | eq. 12 with noise eta; 0 is Euler, 1 is `ddpm`            | Song 2020, https://arxiv.org/abs/2010.02502           |
| `euler`           | algorithm 2 without churn                                 | Karras 2022, https://arxiv.org/abs/2206.00364         |
| `euler_ancestral` | Euler to sigma_down, then noise sigma_up                  | k-diffusion, sample_euler_ancestral                   |
| `heun`            | algorithm 1 without churn, two evaluations but for the last | Karras 2022                                         |
| `dpm++2m`         | second-order multistep on D, first and last step first order | Lu 2022, https://arxiv.org/abs/2211.01095 alg. 2   |

The first four are one formula: a step of DDIM, of Euler in sigma / alpha and of Euler on the flow's velocity is the same line.
"""
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion import schedules
from mmdiff.diffusion.schedules import Level, Schedule

MAX_ROWS = 1000                         # evaluations that a plan holds; its arrays always have this size
INFERRED = "auto"

COLUMNS = ("alpha", "sigma", "time", "guidance", "keep_x", "keep_d", "on_x", "on_d", "on_m1", "on_m2", "on_m3", "noise")
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


class Plan(NamedTuple):
  """All that a sampling run needs besides the network, as arrays: safe to pass through `jit`, never a reason to compile again."""
  table: Any                            # float32 [MAX_ROWS, COLUMNS], the rows beyond `rows` are zero
  rows: Any                             # int32 []: network evaluations
  start_scale: Any                      # float32 []: the first x is this times unit noise
  rescale: Any                          # float32 []: guidance rescale phi
  clip: Any                             # float32 []: D is clipped to ±clip; inf = not at all


class _Options(NamedTuple):
  eta: float
  variance: str
  flow: bool


Rows = list[dict[str, float | int]]     # coefficients by column; `at`: index of the level where the row evaluates, if not the row's own


def _ratio(a: float, b: float) -> float:
  return a / b if b else np.inf


def _single(now: Level, then: Level, eta: float, variance: str = "small") -> dict[str, float]:
  """DDIM's step (Song 2020, eq. 12 and 16) for any alpha, sigma: x' = a' D + sqrt(s'² - n²) eps + n z, eps = (x - a D) / s.

  `variance="large"` adds the noise of beta instead of the posterior's, with the same mean (Ho 2020, §3.2); not at the last step.
  """
  a, s, a2, s2 = now.alpha, now.sigma, then.alpha, then.sigma
  beta = max(s**2 - (a / a2) ** 2 * s2**2, 0.0)                  # variance that one step of the forward process adds
  small = eta * s2 / s * np.sqrt(beta)
  on_eps = np.sqrt(max(s2**2 - small**2, 0.0))
  noise = eta * np.sqrt(beta) if variance == "large" and s2 > 0 else small
  return dict(on_x=on_eps / s, on_d=a2 - on_eps * a / s, noise=noise)


def _linear(levels: list[Level], options: _Options) -> Rows:
  return [_single(now, then, options.eta, options.variance) for now, then in zip(levels, levels[1:])]


def _heun(levels: list[Level], options: _Options) -> Rows:
  """Heun's method in sigma / alpha, in the flow's time for flow schedules (where sigma / alpha starts at infinity).

  With y = x / c, tau = s / c and r = tau' / tau, the correction after the Euler step to y_e is y' = y_e + (1 - r) / (2 r) (D' - D).
  A step to sigma = 0, and one from alpha = 0, is Euler's.
  """
  rows = []
  for i, (now, then) in enumerate(zip(levels, levels[1:])):
    scale = (lambda level: level.alpha + level.sigma) if options.flow else (lambda level: level.alpha)
    rows.append(_single(now, then, 0.0) | dict(at=i))
    if then.sigma > 0 and scale(now) > 0:
      r = (then.sigma / scale(then)) / (now.sigma / scale(now))
      correction = scale(then) * (1 - r) / (2 * r)
      rows.append(dict(at=i + 1, on_x=1.0, on_d=correction, on_m1=-correction))
  return rows


def _dpmpp_2m(levels: list[Level], options: _Options) -> Rows:
  """x' = (s'/s) x - a' expm1(-h) ((1 + 1/(2r)) D - 1/(2r) D_before), h = lambda' - lambda, r = h_before / h, lambda = ln(a / s)."""
  rows: Rows = []
  before = None
  for now, then in zip(levels, levels[1:]):
    with np.errstate(divide="ignore"):
      h = np.log(_ratio(then.alpha, then.sigma)) - np.log(_ratio(now.alpha, now.sigma))
    row = _single(now, then, 0.0)
    if before is not None and np.isfinite(before) and np.isfinite(h):
      total, extra = row["on_d"], h / (2 * before)
      row |= dict(on_d=total * (1 + extra), on_m1=-total * extra)
    rows.append(row)
    before = h
  return rows


class _Sampler(NamedTuple):
  rows: Callable[[list[Level], _Options], Rows]
  eta: float = 0.0                      # its own noise, when the caller gives none
  spacing: str = INFERRED


SAMPLERS: dict[str, _Sampler] = {
  "ddpm": _Sampler(_linear, eta=1.0),
  "ddim": _Sampler(_linear),
  "euler": _Sampler(_linear),
  "euler_ancestral": _Sampler(_linear, eta=1.0),
  "heun": _Sampler(_heun),
  "dpm++2m": _Sampler(_dpmpp_2m),
  "dpm++2m_karras": _Sampler(_dpmpp_2m, spacing="karras"),
}

SPACINGS = {                            # by kind of schedule; the first is "auto"
  "discrete": ("trailing", "leading", "linspace", "karras", "exponential"),
  "edm": ("karras", "exponential"),
  "flow": ("trailing",),
}


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
                 variance: Literal["small", "large"] = "small") -> tuple[np.ndarray, np.ndarray]:
  """(table float64 [rows, COLUMNS] with time and guidance left 0, index [rows] of the level where each row evaluates the network).

  levels: alpha and sigma [steps + 1], from noise to data.
  """
  each = [Level(float(a), float(s), 0.0) for a, s in zip(levels.alpha, levels.sigma)]
  sampler = SAMPLERS[name]
  rows = sampler.rows(each, _Options(sampler.eta if eta is None else eta, variance, flow))
  table, where = np.zeros((len(rows), len(COLUMNS))), np.asarray([row.pop("at", i) for i, row in enumerate(rows)])
  for i, row in enumerate(rows):
    for key, value in (dict(keep_d=1.0, alpha=each[where[i]].alpha, sigma=each[where[i]].sigma) | row).items():
      table[i, COLUMN[key]] = value
  return table, where


def plan(name: str, schedule: Schedule, *, steps: int, eta: float | None = None, spacing: str = INFERRED, guidance: float = 1.0,
         rescale: float = 0.0, interval: tuple[float, float] = (0.0, 1.0), clip: float = 0.0,
         variance: Literal["small", "large"] = "small", final: Literal["data", "first"] = "data") -> Plan:
  """The plan of a sampling run; every difference between two plans is in array values.

  Args:
    name: one of `SAMPLERS`.
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

  Raises:
    ConfigError: unknown names, numbers out of range, combinations that are not defined; the message names the fix.
  """
  if name not in SAMPLERS:
    raise ConfigError(f"sampler: unknown value {name!r}; known: {', '.join(SAMPLERS)}")
  if steps < 1:
    raise ConfigError(f"steps: expected at least 1, found {steps}")
  if eta and SAMPLERS[name].rows is not _linear:
    raise ConfigError(f"eta: {name} adds no noise, found {eta}; leave it out, or use ddim or euler_ancestral")
  if not 0 <= rescale <= 1:
    raise ConfigError(f"rescale: expected a number in [0, 1], found {rescale}")
  if final == "first" and schedule.kind != "discrete":
    raise ConfigError(f"final: only discrete schedules have a first level, found kind {schedule.kind!r}; use 'data'")
  own = SAMPLERS[name].spacing
  t = times(schedule, steps, own if spacing == INFERRED else spacing)
  levels = schedules.level(schedule, t)
  if np.any(np.diff(levels.sigma / (levels.alpha + levels.sigma)) >= 0):
    raise ConfigError(f"steps: {steps} steps of spacing {spacing!r} repeat a level; use fewer")
  end = schedules.level(schedule, np.asarray(1 / schedule.length)) if final == "first" else Level(1.0, 0.0, 0.0)
  if final == "first" and levels.sigma[-1] <= end.sigma:
    end = Level(1.0, 0.0, 0.0)
  whole = Level(*(np.append(leaf, stop) for leaf, stop in zip(levels, end)))
  table, where = coefficients(name, whole, flow=schedule.kind == "flow", eta=eta, variance=variance)
  if len(table) > MAX_ROWS:
    raise ConfigError(f"steps: {name} with {steps} steps evaluates the network {len(table)} times; the most is {MAX_ROWS}")
  table[:, COLUMN["time"]] = whole.time[where]
  guided = (t[where] >= interval[0]) & (t[where] <= interval[1])
  table[:, COLUMN["guidance"]] = np.where(guided, guidance, 1.0)
  padded = np.zeros((MAX_ROWS, len(COLUMNS)), np.float32)
  padded[:len(table)] = table
  # A variance-preserving x_T has unit variance by construction, whatever is left of the picture in it.
  start = 1.0 if schedule.kind == "discrete" else whole.sigma[0]
  return Plan(padded, np.int32(len(table)), np.float32(start), np.float32(rescale), np.float32(clip or np.inf))
