"""How much each noise level counts: the distribution of training times, and weights on the loss.

A weight is defined on the error of x0 and divided by `predictions.error_scale`, so that one name means one loss whatever the network
predicts: `loss = weight(level) · |x0_hat - x0|² = weight / error_scale · |output - target|²`.

| weighting      | on the error of x0                               | source                                              |
|----------------|--------------------------------------------------|-----------------------------------------------------|
| `uniform`      | error_scale: the plain MSE of the output         | L_simple for eps, Ho 2020                           |
| `inverse_time` | 1 / max(sigma / (alpha + sigma), 0.1)            | between the plain MSE of x0 and of the velocity     |
| `min_snr`      | min(SNR, gamma)                                  | Hang 2023, https://arxiv.org/abs/2303.09556         |
| `edm`          | (s² + d²) / (s d)², s = sigma / alpha, d = sigma_data | Karras 2022, table 1                           |
| `sigmoid`      | SNR · sigmoid(2 - ln SNR)                        | Hoogeboom 2024, https://arxiv.org/abs/2410.19324    |

Where a schedule begins at pure noise, the weights that go with the SNR leave out the level that sampling starts at: its picture is the
mean of all, and nothing else teaches it. There SNR + 1 stands for the SNR, the ratio of both squared to the noise, as v needs it: min_snr
of v is min(SNR + 1, gamma) / (SNR + 1), and 1 at pure noise. At little noise both are the same.
"""
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Key as KeyArray

from mmdiff.core.types import Array
from mmdiff.diffusion import predictions, schedules
from mmdiff.diffusion.schedules import Level, Schedule

WEIGHTINGS = ("uniform", "inverse_time", "min_snr", "edm", "sigmoid")
TIME_SAMPLINGS = {"uniform": (0.0, 1.0), "logit_normal": (0.6, 1.3), "lognormal": (-1.2, 1.2)}     # name -> default (mean, std)
TINY = 1e-20


def snr(level: Level) -> Float[Array, "..."]:
  """alpha² / sigma²."""
  return (level.alpha / level.sigma) ** 2


def weight(name: str, level: Level, *, prediction: str, gamma: float = 5.0, sigma_data: float = predictions.SIGMA_DATA,
           from_pure_noise: bool = False) -> Float[Array, "..."]:
  """Weight on the mean squared error of the network's *output*, float32 of the level's shape; finite at alpha = 0 and at sigma = 0.

  from_pure_noise: whether the schedule begins at an SNR of zero (`Schedule.from_pure_noise`).
  """
  if name == "uniform":
    return jnp.ones_like(level.sigma)
  ratio, log_snr = level.sigma / jnp.maximum(level.alpha, TINY), jnp.log(jnp.maximum(snr(level), TINY))
  if name == "min_snr" and prediction == "eps":
    return jnp.minimum(1.0, gamma / jnp.maximum(snr(level), TINY))
  if name == "sigmoid" and prediction == "eps":
    return jax.nn.sigmoid(2.0 - log_snr)
  more = 1.0 if from_pure_noise else 0.0
  on_x0 = {
    "inverse_time": lambda: 1 / jnp.maximum(schedules.noise_share(level), 0.1),
    "min_snr": lambda: jnp.minimum(snr(level) + more, gamma),
    "edm": lambda: 1 / sigma_data**2 + 1 / ratio**2,
    # e² sigmoid(ln SNR - 2) is SNR · sigmoid(2 - ln SNR) without a product of infinity and zero.
    "sigmoid": lambda: math.e**2 * jax.nn.sigmoid(log_snr - 2.0) + more * jax.nn.sigmoid(2.0 - log_snr),
  }[name]()
  return on_x0 / jnp.maximum(predictions.error_scale(prediction, level, sigma_data), TINY)


def sample_time(name: str, schedule: Schedule, keys: KeyArray[Array, " B"], *, mean: float, std: float) -> Float[Array, " B"]:
  """Training times t [B] from one key each.

  uniform: over the levels of a discrete schedule, else over (0, 1); logit_normal: sigmoid(mean + std · n) (SD3, eq. 19);
  lognormal: ln sigma ~ N(mean, std²) of `edm` (Karras 2022, table 1), which may leave [0, 1].
  A discrete schedule receives the nearest level above.
  """
  if name == "lognormal":
    log_sigma = mean + std * jax.vmap(jax.random.normal)(keys)
    return (log_sigma - jnp.log(schedules.SIGMA_MIN)) / jnp.log(schedules.SIGMA_MAX / schedules.SIGMA_MIN)
  t = jax.vmap(jax.random.uniform)(keys) if name == "uniform" else jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
  if schedule.kind == "discrete":
    return jnp.minimum(jnp.floor(t * schedule.length) + 1, schedule.length) / schedule.length
  return t
