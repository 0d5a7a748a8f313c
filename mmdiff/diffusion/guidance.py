"""Classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598) and what keeps it from burning pictures.

Convention: scale s >= 1 with output = unconditional + s (conditional - unconditional), as GLIDE, Imagen and Stable Diffusion write it;
s = 1 is no guidance. The paper's own w is s - 1. Guidance acts on the network's output; for eps, x0, v and velocity that is the same as
guiding x0, since at one noise level each is an affine function of it.
"""
import jax.numpy as jnp
from jaxtyping import Float

from mmdiff.core.types import Array


def _each(x: Array) -> tuple[int, ...]:
  return tuple(range(1, x.ndim))


def guide(conditional: Float[Array, "B ..."], unconditional: Float[Array, "B ..."], scale, rescale=0.0) -> Float[Array, "B ..."]:
  """Guided output [B …]; `rescale` (phi in [0, 1]) pulls its standard deviation per example back to the conditional's.

  Lin 2023 (https://arxiv.org/abs/2305.08891), eq. 14 to 16; 0.7 is usual with a zero terminal SNR, 0 turns it off.
  """
  guided = unconditional + scale * (conditional - unconditional)
  axes = _each(guided)
  ratio = jnp.std(conditional, axes, keepdims=True) / jnp.maximum(jnp.std(guided, axes, keepdims=True), 1e-12)
  return guided * (rescale * ratio + (1 - rescale))


def dynamic_threshold(x0: Float[Array, "B ..."], quantile: float = 0.995) -> Float[Array, "B ..."]:
  """x0 [B …] clipped to ±s and divided by s, with s = max(quantile of |x0|, 1) per example.

  Saharia 2022 (https://arxiv.org/abs/2205.11487), §2.3. For pixels only: latents have no range to clip to.
  """
  bound = jnp.maximum(jnp.quantile(jnp.abs(x0), quantile, axis=_each(x0), keepdims=True), 1.0)
  return jnp.clip(x0, -bound, bound) / bound
