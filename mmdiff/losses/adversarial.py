"""Adversarial training as one scalar: `generator(D_stopped(G(x))) + discriminator(D(x), D(stop(G(x))))`.

Each player's parameters meet only its own term, so one gradient of the sum is both players' exact gradients (simultaneous updates).
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from mmdiff.core.types import Array

LARGEST = 1e4            # of the adaptive weight, taming-transformers


def generator(fake: Float[Array, "B h w 1"]) -> Float[Array, " B"]:
  """−D(G(x)), the mean over patches (https://arxiv.org/abs/1705.02894, eq. 4)."""
  return -fake.astype(jnp.float32).mean((1, 2, 3))


def hinge(real: Float[Array, "B h w 1"], fake: Float[Array, "B h w 1"]) -> Float[Array, " B"]:
  """½ [max(0, 1 − D(x)) + max(0, 1 + D(G(x)))], the mean over patches (ibid., eq. 3; the half is taming-transformers')."""
  real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
  return 0.5 * (jax.nn.relu(1.0 - real).mean((1, 2, 3)) + jax.nn.relu(1.0 + fake).mean((1, 2, 3)))


def adaptive_weight(reconstruction: Callable[[Array], Array], adversarial: Callable[[Array], Array], kernel: Array, *,
                    largest: float = LARGEST) -> Float[Array, ""]:
  """‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4), at most `largest` (VQGAN, https://arxiv.org/abs/2012.09841, eq. 7): with it the two
  pull equally hard at the decoder's last `kernel`. Both are functions of that kernel to a scalar []; the weight is a constant to gradients.
  """
  norm = lambda fn: jnp.linalg.norm(jax.grad(fn)(kernel).astype(jnp.float32).ravel())
  weight = norm(reconstruction) / (norm(adversarial) + 1e-4)
  return jax.lax.stop_gradient(jnp.minimum(weight, largest))
