"""What a network predicts, and how one prediction becomes another. All follow from x_t = alpha x0 + sigma eps.

| prediction | target                      | x0 from it                                        | |error|² over that of x0           |
|------------|-----------------------------|---------------------------------------------------|------------------------------------|
| `eps`      | eps                         | (x_t - sigma eps) / alpha                         | alpha² / sigma² = SNR              |
| `x0`       | x0                          | itself                                            | 1                                  |
| `v`        | alpha eps - sigma x0        | (alpha x_t - sigma v) / (alpha² + sigma²)         | ((alpha² + sigma²) / sigma)²       |
| `flow`     | eps - x0                    | (x_t - sigma u) / (alpha + sigma)                 | ((alpha + sigma) / sigma)²         |
| `edm`      | (x0 - c_skip x_t) / c_out   | c_skip x_t + c_out F                              | 1 / c_out²                         |

v: Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512), without assuming alpha² + sigma² = 1. edm: Karras 2022, table 1, alpha = 1; its
`sigma_data` is the deviation of what is learned: 0.5 for pictures in [-1, 1], about 1 for scaled latents.
Levels broadcast against x [B …] from the left: a level of shape [] or [B].
"""
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from mmdiff.core.types import Array
from mmdiff.diffusion.schedules import Level

PREDICTIONS = ("eps", "x0", "v", "flow", "edm")
SIGMA_DATA = 0.5                        # standard deviation of pictures in [-1, 1], as EDM assumes
LATENT_SIGMA_DATA = 1.0                 # of latents, which an autoencoder's `scale` brings there


class Precondition(NamedTuple):
  """D(x, s) = skip x + out F(in x, noise)."""
  skip: Array
  out: Array
  in_: Array
  noise: Array


def edm(sigma, sigma_data: float = SIGMA_DATA) -> Precondition:
  """Karras 2022, table 1: the scalings that keep the network's input and target at unit variance."""
  total = sigma**2 + sigma_data**2
  return Precondition(sigma_data**2 / total, sigma * sigma_data / jnp.sqrt(total), 1 / jnp.sqrt(total), jnp.log(sigma) / 4)


def expand(level: Level, x: Float[Array, "B ..."]) -> Level:
  """The level with trailing axes of length one, so that it multiplies x [B …]."""
  return Level(*(jnp.reshape(leaf, jnp.shape(leaf) + (1,) * (x.ndim - jnp.ndim(leaf))) for leaf in level))


def add_noise(x0: Float[Array, "B ..."], eps: Float[Array, "B ..."], level: Level) -> Float[Array, "B ..."]:
  """x_t, of the shape of x0."""
  level = expand(level, x0)
  return level.alpha * x0 + level.sigma * eps


def network_input(x: Float[Array, "B ..."], level: Level, kind: str, sigma_data: float = SIGMA_DATA) -> Float[Array, "B ..."]:
  """What the network sees: x_t itself, but scaled by c_in in a variance-exploding schedule (kind `edm`)."""
  return x * edm(expand(level, x).sigma, sigma_data).in_ if kind == "edm" else x


def target(prediction: str, x0: Float[Array, "B ..."], eps: Float[Array, "B ..."], level: Level,
           sigma_data: float = SIGMA_DATA) -> Float[Array, "B ..."]:
  """What a network of this prediction should output."""
  a, s, _ = expand(level, x0)
  if prediction == "edm":
    c = edm(s, sigma_data)
    return (x0 - c.skip * (a * x0 + s * eps)) / c.out
  return {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: a * eps - s * x0, "flow": lambda: eps - x0}[prediction]()


def to_x0(prediction: str, output: Float[Array, "B ..."], x: Float[Array, "B ..."], level: Level,
          sigma_data: float = SIGMA_DATA) -> Float[Array, "B ..."]:
  """The clean picture that an output implies. `eps` at alpha = 0 says nothing about it: 0, the middle of the range."""
  a, s, _ = expand(level, x)
  if prediction == "eps":
    return jnp.where(a > 0, (x - s * output) / jnp.where(a > 0, a, 1.0), 0.0)
  if prediction == "edm":
    c = edm(s, sigma_data)
    return c.skip * x + c.out * output
  return {"x0": lambda: output, "v": lambda: (a * x - s * output) / (a**2 + s**2),
          "flow": lambda: (x - s * output) / (a + s)}[prediction]()


def from_x0(prediction: str, x0: Float[Array, "B ..."], x: Float[Array, "B ..."], level: Level,
            sigma_data: float = SIGMA_DATA) -> Float[Array, "B ..."]:
  """The inverse of `to_x0`: the output that implies this clean picture. At sigma = 0 the noise is taken as 0."""
  a, s, _ = expand(level, x)
  eps = jnp.where(s > 0, (x - a * x0) / jnp.where(s > 0, s, 1.0), 0.0)
  return target(prediction, x0, eps, level, sigma_data)


def convert(output: Float[Array, "B ..."], x: Float[Array, "B ..."], level: Level, *, source: str, to: str,
            sigma_data: float = SIGMA_DATA) -> Float[Array, "B ..."]:
  """An output of one prediction as another's."""
  if source == to:
    return output
  if (source, to) == ("v", "eps"):      # through x0 it would divide by sigma
    a, s, _ = expand(level, x)
    return (s * x + a * output) / (a**2 + s**2)
  if (source, to) == ("flow", "eps"):
    a, s, _ = expand(level, x)
    return (x + a * output) / (a + s)
  return from_x0(to, to_x0(source, output, x, level, sigma_data), x, level, sigma_data)


def error_scale(prediction: str, level: Level, sigma_data: float = SIGMA_DATA) -> Float[Array, "..."]:
  """|error of the output|² / |error of the implied x0|², of the level's shape: the last column of the table."""
  a, s, _ = level
  return {"eps": lambda: (a / s) ** 2, "x0": lambda: jnp.ones_like(s), "v": lambda: ((a**2 + s**2) / s) ** 2,
          "flow": lambda: ((a + s) / s) ** 2, "edm": lambda: 1 / edm(s, sigma_data).out ** 2}[prediction]()
