"""Noise schedules in one form: x_t = alpha(t) x + sigma(t) eps, t in [0, 1], t = 0 is data.

| name            | alpha, sigma                                       | t                       | network's time   | source       |
|-----------------|----------------------------------------------------|-------------------------|------------------|--------------|
| `linear`        | sqrt(abar), sqrt(1 - abar); beta 1e-4 … 0.02       | (n + 1) / 1000          | n in 0 … 999     | Ho 2020      |
| `scaled_linear` | the same; sqrt(beta) linear, beta 0.00085 … 0.012  | (n + 1) / 1000          | n                | Rombach 2022 |
| `cosine`        | the same; abar cos², beta ≤ 0.999                  | (n + 1) / 1000          | n                | Nichol 2021  |
| `edm`           | 1, s                                               | ln s linear, 0.002 … 80 | 1000 · ln(s) / 4 | Karras 2022  |
| `flow`          | 1 - t', t' with t' = shift t / (1 + (shift - 1) t) | t                       | 1000 t'          | Liu 2022     |

Ho: https://arxiv.org/abs/2006.11239, Rombach: https://arxiv.org/abs/2112.10752, Nichol: https://arxiv.org/abs/2102.09672, Karras:
https://arxiv.org/abs/2206.00364, Liu: https://arxiv.org/abs/2209.03003; the shift: https://arxiv.org/abs/2403.03206 §5.3.2.
Every function takes numpy or JAX arrays: plans are made on the host in float64, training levels on the device in float32.
"""
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mmdiff.core.errors import ConfigError

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0      # EDM's range (Karras 2022, table 1)
BETA_MAX = 0.999                        # cosine schedule's cap


class Level(NamedTuple):
  """A noise level, any common shape: x_t = alpha x + sigma eps, and the time that the network receives."""
  alpha: Any
  sigma: Any
  time: Any


class Schedule(NamedTuple):
  """`kind` says how t becomes a level: `discrete` reads `log_snr`, `edm` and `flow` have formulas."""
  kind: str                             # discrete | edm | flow
  log_snr: np.ndarray                   # float64 [T]: ln(alpha² / sigma²) of the T discrete levels, else [0]; may end in -inf
  shift: float = 1.0                    # flow: how far levels move to noise, for large pictures

  @property
  def length(self) -> int:
    """Number of discrete levels."""
    return len(self.log_snr)

  @property
  def zero_terminal_snr(self) -> bool:
    """Whether t = 1 is pure noise in a discrete schedule."""
    return self.kind == "discrete" and bool(np.isneginf(self.log_snr[-1]))

  @property
  def from_pure_noise(self) -> bool:
    """Whether nothing of the picture is left at t = 1."""
    return self.kind == "flow" or self.zero_terminal_snr


def linear_betas(length: int = 1000) -> np.ndarray:
  """Ho 2020 §4, the ends scaled by 1000 / length as in improved-diffusion."""
  return np.linspace(1e-4 * 1000 / length, 0.02 * 1000 / length, length, dtype=np.float64)


def scaled_linear_betas(length: int = 1000) -> np.ndarray:
  """Stable Diffusion: the square root is linear."""
  return np.linspace(0.00085**0.5, 0.012**0.5, length, dtype=np.float64) ** 2


def cosine_betas(length: int = 1000) -> np.ndarray:
  """Nichol 2021, eq. 17: betas from the ratios of cos²((t + s) / (1 + s) · pi / 2), s = 0.008."""
  abar = np.cos((np.arange(length + 1, dtype=np.float64) / length + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.minimum(1 - abar[1:] / abar[:-1], BETA_MAX)


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas}
NAMES = (*BETAS, "edm", "flow")


def zero_terminal(abar: np.ndarray) -> np.ndarray:
  """alpha-bar [T] shifted and scaled so that the last is 0 and the first stays (https://arxiv.org/abs/2305.08891, algorithm 1)."""
  root = np.sqrt(abar)
  return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def schedule(name: str, *, zero_terminal_snr: bool = False, shift: float = 1.0) -> Schedule:
  """A schedule by name. Raises ConfigError for an unknown name and for options that the schedule does not have."""
  if name not in NAMES:
    raise ConfigError(f"schedule: unknown value {name!r}; known: {', '.join(NAMES)}")
  if zero_terminal_snr and name not in BETAS:
    raise ConfigError(f"zero_terminal_snr: schedule {name!r} has no betas to rescale; use one of {', '.join(BETAS)}, or leave it false")
  if shift != 1.0 and name != "flow":
    raise ConfigError(f"shift: only the schedule 'flow' is shifted, found schedule {name!r} with shift {shift}; leave it 1.0")
  if shift <= 0:
    raise ConfigError(f"shift: expected a positive number, found {shift}")
  if name not in BETAS:
    return Schedule(name, np.zeros(0), shift)
  abar = np.cumprod(1 - BETAS[name]())
  abar = zero_terminal(abar) if zero_terminal_snr else abar
  with np.errstate(divide="ignore"):
    return Schedule("discrete", np.log(abar) - np.log1p(-abar))


def level(schedule: Schedule, t) -> Level:
  """The level at t, elementwise; a numpy t gives float64 numpy, anything else float32 JAX.

  Between two discrete levels ln sigma/alpha is linear in t (k-diffusion's rule); t below the first level is the first level.
  """
  xp = np if isinstance(t, (np.ndarray, np.floating, float)) else jnp
  t = xp.asarray(t, np.float64 if xp is np else jnp.float32)
  if schedule.kind == "edm":
    log_sigma = np.log(SIGMA_MIN) + t * np.log(SIGMA_MAX / SIGMA_MIN)
    return Level(xp.ones_like(t), xp.exp(log_sigma), 250.0 * log_sigma)
  if schedule.kind == "flow":
    t = schedule.shift * t / (1 + (schedule.shift - 1) * t)
    return Level(1 - t, t, 1000.0 * t)
  position = xp.clip(t * schedule.length - 1, 0, schedule.length - 1)
  low = xp.floor(position + 1e-3).astype(np.int32)      # 1e-3: float32 puts (n + 1) / T a little below n
  high = xp.minimum(low + 1, schedule.length - 1)
  part = xp.clip(position - low, 0.0, 1.0)
  part = xp.where(part < 1e-3, 0.0, part)
  table = xp.asarray(schedule.log_snr, np.float64 if xp is np else jnp.float32)
  # A weight of zero must not touch the -inf of a zero terminal SNR.
  log_snr = xp.where(part > 0, (1 - part) * table[low] + xp.where(part > 0, part, 1.0) * table[high], table[low])
  zero = xp.zeros_like(log_snr)
  return Level(xp.exp(-0.5 * xp.logaddexp(zero, -log_snr)), xp.exp(-0.5 * xp.logaddexp(zero, log_snr)), low + part)


def time_of(schedule: Schedule, sigma_over_alpha) -> np.ndarray:
  """The inverse of `level` on the host: t [..] float64 whose sigma / alpha is given, clamped to the schedule's range."""
  ratio = np.asarray(sigma_over_alpha, np.float64)
  if schedule.kind == "edm":
    return np.log(ratio / SIGMA_MIN) / np.log(SIGMA_MAX / SIGMA_MIN)
  if schedule.kind == "flow":
    t = ratio / (1 + ratio)
    return t / (schedule.shift - (schedule.shift - 1) * t)
  return (np.interp(2 * np.log(ratio), -schedule.log_snr, np.arange(schedule.length)) + 1) / schedule.length


def log_snr(level: Level):
  """ln(alpha² / sigma²)."""
  xp = np if isinstance(level.alpha, (np.ndarray, np.floating)) else jnp
  return 2 * (xp.log(level.alpha) - xp.log(level.sigma))


def noise_share(level: Level):
  """sigma / (alpha + sigma) in [0, 1]: flow matching's t, for a level of any schedule."""
  return level.sigma / (level.alpha + level.sigma)


def karras_ramp(steps: int, low: float, high: float, rho: float = 7.0) -> np.ndarray:
  """Sigmas [steps], float64, from high to low (Karras 2022, eq. 5, without the closing zero)."""
  ramp = np.linspace(0, 1, steps)
  return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential_ramp(steps: int, low: float, high: float) -> np.ndarray:
  """Sigmas [steps], float64, from high to low, evenly in ln sigma."""
  return np.exp(np.linspace(np.log(high), np.log(low), steps))
