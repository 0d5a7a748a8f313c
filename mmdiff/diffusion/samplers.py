"""Draws samples: one compiled loop over a plan's rows, for any denoiser function and every sampler of `plans`.

Picture i is a function of its own start noise and key alone: all randomness comes from one key per picture, folded with the row, so
that it does not depend on the batch or the devices that it is drawn with.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer
from jaxtyping import Key as KeyArray

from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.diffusion.plans import COLUMN, MAX_ROWS, MEMORY, Plan
from mmdiff.diffusion.schedules import Level

Denoise = Callable[[Array, Level, Array], Array]       # (x [B …], level [], guidance []) -> the clean pictures [B …]


class Known(NamedTuple):
  """What a loop draws around."""
  clean: Array                          # [B …]: what is known
  noise: Array                          # [B …] unit normal: its noise at every step
  where: Array                          # broadcasts against both: 1 where the loop draws, 0 where it is known


def picture_keys(seeds: Integer[Array, " B"]) -> KeyArray[Array, " B"]:
  """One key per picture from its seed, [B]."""
  return jax.vmap(jax.random.key)(seeds)


def start_noise(keys: KeyArray[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
  """Unit normal noise [B, *shape], float32, of picture keys [B]; row r of a plan folds them with r + 1, the start with 0."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)


def sample(denoise: Denoise, x: Float[Array, "B ..."], plan: Plan, keys: KeyArray[Array, " B"],
           known: Known | None = None) -> Float[Array, "B ..."]:
  """Runs the plan from x, float32 [B …] at the noise of its first row (`plan.start_scale` times unit noise), to pictures [B …].

  Traced once for all plans; the loop's bound and coefficients are arrays. Only rows with noise draw random numbers. After every row, what
  is `known` is put back at the noise of the next one, after the last without any.
  """
  def body(row, carry):
    x, memory = carry
    c = {name: plan.table[row, i] for name, i in COLUMN.items()}
    level = Level(c["alpha"], c["sigma"], c["time"])
    d = jnp.clip(denoise(x, level, c["guidance"]).astype(jnp.float32), -plan.clip, plan.clip)
    new = c["on_x"] * x + c["on_d"] * d + sum(c[f"on_m{k}"] * kept for k, kept in enumerate(memory, 1))
    draw = lambda keys: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, row + 1), x.shape[1:]))(keys)
    new = new + jax.lax.cond(c["noise"] > 0, lambda: c["noise"] * draw(keys), lambda: jnp.zeros_like(x))
    if known is not None:
      then = jnp.minimum(row + 1, MAX_ROWS - 1)
      last = row + 1 == plan.rows
      alpha, sigma = jnp.where(last, 1.0, plan.table[then, COLUMN["alpha"]]), jnp.where(last, 0.0, plan.table[then, COLUMN["sigma"]])
      new = known.where * new + (1 - known.where) * (alpha * known.clean + sigma * known.noise)
    return pin(new, BATCH), (c["keep_x"] * x + c["keep_d"] * d, *memory[:MEMORY - 1])
  table = jnp.asarray(plan.table)
  plan = plan._replace(table=table)
  x = x.astype(jnp.float32)
  return jax.lax.fori_loop(0, plan.rows, body, (x, (jnp.zeros_like(x),) * MEMORY))[0]
