"""Next-token cross-entropy (CoCa, https://arxiv.org/abs/2205.01917 eq. 2) without ever holding the logits of all positions."""
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mmdiff.core.types import Array


def token_losses(hidden: Float[Array, "B L D"], kernel: Float[Array, "D V"], labels: Int[Array, "B L"], *,
                 chunk: int = 0) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
  """(−log p(label), whether the label is the most likely token) at every position, from the last hidden states and the head's kernel.

  Args:
    hidden: in the dtype that the product is computed in; logits and the loss are float32.
    chunk: positions whose logits [B chunk V] are held at once, recomputed in the backward pass; 0 = all.
  """
  def losses(part: tuple[Array, Array]) -> tuple[Array, Array]:
    hidden, labels = part
    logits = jnp.einsum("bld,dv->blv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - right, right >= logits.max(-1)

  batch, length = labels.shape
  if not chunk or chunk >= length:
    return losses((hidden, labels))
  parts = -(-length // chunk)
  # By positions, not by rows: every device keeps its rows of the batch.
  padded = lambda x: jnp.pad(x, ((0, 0), (0, parts * chunk - length), *((0, 0),) * (x.ndim - 2)))
  split = lambda x: jnp.moveaxis(padded(x).reshape(batch, parts, chunk, *x.shape[2:]), 1, 0)
  joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, parts * chunk)[:, :length]
  return jax.tree.map(joined, jax.lax.map(jax.checkpoint(losses), (split(hidden), split(labels))))


def mean_where(values: Float[Array, "B L"], counted: Bool[Array, "B L"]) -> Float[Array, ""]:
  """The mean of the values that count; 0 if none does."""
  weight = counted.astype(jnp.float32)
  return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)
