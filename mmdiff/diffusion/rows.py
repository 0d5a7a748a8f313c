"""The rows of every sampler: what one evaluation of the network at (x, level) adds to the coefficients of `plans`.

D is the network's opinion of the clean picture; a, s are the level's alpha and sigma, a', s' those of the next one, and
eps = (x - a D) / s. A row's keys are columns of `plans`; `at` is the index of its level, if it is not the row's own.
"""
import math
from typing import NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.diffusion.schedules import Level

Rows = list[dict[str, float | int]]
Steps = list[tuple[Level, Level]]       # each step's level and the one it goes to, from noise to data; as a rule the next step's own


class Options(NamedTuple):
  eta: float                            # share of a step's noise
  variance: str                         # of that noise: "small" or "large"
  flow: bool                            # levels of a flow
  extrapolate: str = "eps"              # what `plms` extrapolates: "eps", or "v" as diffusers does for a network that predicts v


def ratio(a: float, b: float) -> float:
  return a / b if b else np.inf


def single(now: Level, then: Level, eta: float, variance: str = "small") -> dict[str, float]:
  """DDIM's step (Song 2020, eq. 12 and 16) for any alpha, sigma: x' = a' D + sqrt(s'² - n²) eps + n z, eps = (x - a D) / s.

  `variance="large"` adds the noise of beta instead of the posterior's, with the same mean (Ho 2020, §3.2); not at the last step.
  """
  a, s, a2, s2 = now.alpha, now.sigma, then.alpha, then.sigma
  beta = max(s**2 - (a / a2) ** 2 * s2**2, 0.0)                  # variance that one step of the forward process adds
  small = eta * s2 / s * np.sqrt(beta)
  on_eps = np.sqrt(max(s2**2 - small**2, 0.0))
  noise = eta * np.sqrt(beta) if variance == "large" and s2 > 0 else small
  return dict(on_x=on_eps / s, on_d=a2 - on_eps * a / s, noise=noise)


def linear(steps: Steps, options: Options) -> Rows:
  return [single(now, then, options.eta, options.variance) for now, then in steps]


def heun(steps: Steps, options: Options) -> Rows:
  """Heun's method in sigma / alpha, in the flow's time for flow schedules (where sigma / alpha starts at infinity).

  With y = x / c, tau = s / c and r = tau' / tau, the correction after the Euler step to y_e is y' = y_e + (1 - r) / (2 r) (D' - D).
  A step to sigma = 0, and one from alpha = 0, is Euler's.
  """
  rows = []
  for i, (now, then) in enumerate(steps):
    scale = (lambda level: level.alpha + level.sigma) if options.flow else (lambda level: level.alpha)
    rows.append(single(now, then, 0.0) | dict(at=i))
    if then.sigma > 0 and scale(now) > 0:
      r = (then.sigma / scale(then)) / (now.sigma / scale(now))
      correction = scale(then) * (1 - r) / (2 * r)
      rows.append(dict(at=i + 1, on_x=1.0, on_d=correction, on_m1=-correction))
  return rows


def dpmpp_2m(steps: Steps, options: Options) -> Rows:
  """x' = (s'/s) x - a' expm1(-h) ((1 + 1/(2r)) D - 1/(2r) D_before), h = lambda' - lambda, r = h_before / h, lambda = ln(a / s)."""
  rows: Rows = []
  before = None
  for now, then in steps:
    with np.errstate(divide="ignore"):
      h = np.log(ratio(then.alpha, then.sigma)) - np.log(ratio(now.alpha, now.sigma))
    row = single(now, then, 0.0)
    if before is not None and np.isfinite(before) and np.isfinite(h):
      total, extra = row["on_d"], h / (2 * before)
      row |= dict(on_d=total * (1 + extra), on_m1=-total * extra)
    rows.append(row)
    before = h
  return rows


def transfer(now: Level, then: Level) -> tuple[float, float]:
  """(on x, on eps) of DDIM's step without noise: x' = (a'/a) x + (s' - a' s / a) eps."""
  return then.alpha / now.alpha, then.sigma - then.alpha * now.sigma / now.alpha


def remember_eps(now: Level) -> dict[str, float]:
  """Of an evaluation, eps is remembered instead of D."""
  return dict(keep_x=1 / now.sigma, keep_d=-now.alpha / now.sigma)


def on_eps(now: Level, coefficient: float) -> dict[str, float]:
  """A multiple of this evaluation's eps, as coefficients of x and D."""
  return dict(on_x=coefficient / now.sigma, on_d=-coefficient * now.alpha / now.sigma)


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(steps: Steps, options: Options) -> Rows:
  """Pseudo linear multistep (https://arxiv.org/abs/2202.09778, eq. 11 and 12) as Stable Diffusion runs it: the first step is taken twice,
  the second time with the mean of the eps at both its ends, then Adams and Bashforth's weights on eps. One evaluation more than steps."""
  again = steps[:1] if len(steps) > 1 else []
  return [row | dict(at=max(i - 1, min(i, 1))) for i, row in enumerate(plms_in_parts([*steps[:1], *again, *steps[1:]], options))]


def plms_in_parts(steps: Steps, options: Options) -> Rows:
  """`plms` with the repeated first step among `steps`, as the second: from where it begins anew to where the network is asked again.

  With v extrapolated, eps = a v + s x at each step's own x.
  """
  need_finite("plms", steps)
  # What the repeated first step remembers, m2 of the row after the next, is no part of the history.
  ages = {0: (), 2: (2,), 3: (1, 3), 4: (1, 2, 4)}
  rows: Rows = []
  for i, (now, then) in enumerate(steps):
    if i != 1:
      rows.append(multistep(now, then, ages.get(i, (1, 2, 3)), options))
      continue
    # x is where the first step went; what that began with is told by x and the eps that took it there.
    (before_x, before_gain), (on_x, gain), own = moved(*steps[0], options), moved(now, then, options), kept(then, options)
    on_x /= before_x
    rows.append(dict(on_x=on_x + gain / 2 * own["keep_x"], on_d=gain / 2 * own["keep_d"], on_m1=gain / 2 - on_x * before_gain,
                     alpha=then.alpha, sigma=then.sigma, time=then.time) | own)
  return rows


def pndm(steps: Steps, options: Options) -> Rows:
  """`plms` after three steps of Runge and Kutta's method (algorithm 2), each of four `steps` here: to its middle twice, to its end, and
  with all four opinions to its end again, all from where it began. As diffusers runs it without `skip_prk_steps`."""
  need_finite("pndm", steps)
  ages = {12: (4, 8, 12), 13: (1, 5, 9), 14: (1, 2, 6)}            # of the whole steps' first evaluations
  rows: Rows = []
  for i, (now, then) in enumerate(steps):
    if i >= 12:
      rows.append(multistep(now, then, ages.get(i, (1, 2, 3)), options))
      continue
    part, own = i % 4, kept(now, options)
    on_x, gain = moved(steps[i - part][0], then, options)
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6) if part == 3 else (1.0,)    # of this evaluation, then of those before it
    row = {f"on_m{age}": gain * weight for age, weight in enumerate(weights) if age}
    if part:                            # x is where the part before went; the step's beginning is told by both
      before_x, before_gain = moved(steps[i - part][0], steps[i - 1][1], options)
      on_x /= before_x
      row["on_m1"] = row.get("on_m1", 0.0) - on_x * before_gain
    rows.append(row | dict(on_x=on_x + gain * weights[0] * own["keep_x"], on_d=gain * weights[0] * own["keep_d"]) | own)
  return rows


def kept(now: Level, options: Options) -> dict[str, float]:
  """What the pseudo linear methods remember of an evaluation and extrapolate: eps or v."""
  if options.extrapolate == "v":
    return dict(keep_x=now.alpha / now.sigma, keep_d=-1 / now.sigma)
  return remember_eps(now)


def moved(now: Level, then: Level, options: Options) -> tuple[float, float]:
  """(on x, on what is `kept`) of DDIM's step without noise; eps = a v + s x."""
  on_x, by_eps = transfer(now, then)
  return (on_x + by_eps * now.sigma, by_eps * now.alpha) if options.extrapolate == "v" else (on_x, by_eps)


def multistep(now: Level, then: Level, ages: tuple[int, ...], options: Options) -> dict[str, float]:
  """A step with Adams and Bashforth's weights on this evaluation and on those `ages` rows before."""
  own, (on_x, gain), weights = kept(now, options), moved(now, then, options), ADAMS_BASHFORTH[len(ages)]
  row = dict(on_x=on_x + gain * weights[0] * own["keep_x"], on_d=gain * weights[0] * own["keep_d"])
  return row | {f"on_m{age}": gain * weight for age, weight in zip(ages, weights[1:])} | own


def lms(steps: Steps, options: Options) -> Rows:
  """Linear multistep of order four in sigma / alpha (k-diffusion, sample_lms): eps is extrapolated by Lagrange's polynomial through the
  evaluations so far and integrated over the step, here exactly: Gauss' rule of two nodes is exact for its degree, three."""
  need_finite("lms", steps)
  rows: Rows = []
  tau = [float(level.sigma / level.alpha) for level in levels_of(steps)]
  for i, (now, then) in enumerate(steps):
    known = tau[max(i - 3, 0):i + 1][::-1]
    middle, half = (tau[i + 1] + tau[i]) / 2, (tau[i + 1] - tau[i]) / 2
    basis = lambda j, at, known=known: math.prod((at - other) / (known[j] - other) for k, other in enumerate(known) if k != j)
    weights = [then.alpha * half * sum(basis(j, middle + node * half) for node in (-(3**-0.5), 3**-0.5)) for j in range(len(known))]
    row = on_eps(now, weights[0])
    row |= {f"on_m{j}": weight for j, weight in enumerate(weights[1:], 1)}
    rows.append(row | dict(on_x=row["on_x"] + then.alpha / now.alpha) | remember_eps(now))
  return rows


def unipc(steps: Steps, options: Options, order: int = 2) -> Rows:
  """UniPC on D with B(h) = expm1(-h) (https://arxiv.org/abs/2302.04867, algorithms 5 and 6; `bh2` of the authors' code and diffusers):
  each evaluation first corrects the sample that it was made at, then predicts the next. Lower order at both ends.

  The corrected sample differs from the predicted one in its weights on the D's alone, which are all remembered, so that correction and
  prediction are one row.
  """
  rows: Rows = []
  with np.errstate(divide="ignore"):
    lam = [np.log(ratio(level.alpha, level.sigma)) for level in levels_of(steps)]
  predicted: dict[int, float] = {}      # weights of the last prediction on D_{i-1-k}, by k
  order_before, finite = 0, 0           # evaluations at a finite lambda so far
  for i, (now, then) in enumerate(steps):
    correction: dict[int, float] = {}   # on D_{i-k}, by k
    if i and np.isfinite(lam[i - 1]):
      corrected = bh_weights(lam, i, order_before, corrector=True)
      correction = {k: now.alpha * corrected.get(k, 0.0) for k in corrected}
      for k, weight in predicted.items():
        correction[k + 1] = correction.get(k + 1, 0.0) - weight
    finite += bool(np.isfinite(lam[i]))
    own = max(min(order, len(steps) - i, finite), 1)
    h = lam[i + 1] - lam[i]
    on_x, base = then.sigma / now.sigma, -then.alpha * np.expm1(-h)
    predicted = {k: then.alpha * weight for k, weight in bh_weights(lam, i + 1, own, corrector=False).items()}
    weights = {k: on_x * value for k, value in correction.items()}
    weights[0] = weights.get(0, 0.0) + base
    for k, weight in predicted.items():
      weights[k] = weights.get(k, 0.0) + weight
    order_before = own
    rows.append(dict(on_x=on_x) | {"on_d" if k == 0 else f"on_m{k}": weight for k, weight in weights.items()})
  return rows


def bh_weights(lam: list[float], i: int, order: int, *, corrector: bool) -> dict[int, float]:
  """Of the step from level i - 1 to level i, what UniPC of an order adds to the first-order step, divided by alpha_i: weights on D, by age.

  The predictor's ages count from D_{i-1}, the corrector's from D_i, which it has.
  """
  h = lam[i] - lam[i - 1]
  if not corrector and order == 1:
    return {}
  hh = -h
  big = np.expm1(hh)                                               # B(h)
  ratios = np.asarray([(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, order)] + [1.0])
  phi, factorial, right = big / hh - 1, 1.0, []
  for n in range(1, order + 1):
    right.append(phi * factorial / big)
    factorial *= n + 1
    phi = phi / hh - 1 / factorial
  matrix = np.stack([ratios ** n for n in range(order)])
  if corrector:
    rho = np.asarray([0.5]) if order == 1 else np.linalg.solve(matrix, np.asarray(right))
  else:
    rho = np.asarray([0.5]) if order == 2 else np.linalg.solve(matrix[:-1, :-1], np.asarray(right[:-1]))
  ages = [*range(2, order + 1), 0] if corrector else [*range(1, order)]
  first = 1 if corrector else 0                                    # the age of D_{i-1}
  found = {first: 0.0}
  for age, weight, r in zip(ages, rho, ratios):
    found[age] = -big * weight / r
    found[first] += big * weight / r
  return found


def levels_of(steps: Steps) -> list[Level]:
  """Every step's level, and the last one's end."""
  return [*(now for now, _ in steps), steps[-1][1]]


def need_finite(name: str, steps: Steps) -> None:
  """Raises ConfigError for levels where eps says nothing."""
  if any(now.alpha == 0 for now, _ in steps):
    raise ConfigError(f"sampler {name} extrapolates eps, which says nothing at pure noise, where this schedule begins (zero terminal SNR); "
                      "use ddim or dpm++2m")
