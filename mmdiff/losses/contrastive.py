"""Contrastive losses between B images and B texts: softmax (CLIP, https://arxiv.org/abs/2103.00020 fig. 3) and sigmoid (SigLIP,
https://arxiv.org/abs/2303.15343 eq. 1).

Both are functions of the *global* batch. `chunk=0` builds the [B B] similarities and lets JAX differentiate them. `chunk=c` never holds
more than [c b] of them on a device (b = rows per device) and is exact: on a mesh each device keeps its images and passes its texts
around a ring, with the texts' running sums in the forward pass and their gradients in the backward pass, so memory is linear in the
batch and every block of similarities is computed once per pass.
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from mmdiff.core.precision import EXACT
from mmdiff.core.sharding import BATCH
from mmdiff.core.types import Array

# At a scale of 100 the rounding of TF32 or bfloat16 moves a logit by a tenth or by a whole.
exact = functools.partial(jnp.matmul, precision=EXACT)


def similarities(image: Float[Array, "c D"], text: Float[Array, "b D"]) -> Float[Array, "c b"]:
  """Cosines of unit-norm rows, in full float32 on every device."""
  return exact(image, text.T)


class Ring(NamedTuple):
  """Where the batch is split: mesh axes and how many devices they make. No axes: one device."""
  axes: tuple[str, ...] = ()
  size: int = 1


def softmax(image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""], *, chunk: int = 0,
            valid: Bool[Array, " B"] | None = None) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """½ (cross-entropy over texts + cross-entropy over images), averaged over the B pairs.

  Args:
    image, text: float32 [B D], unit norm; row i of one belongs to row i of the other.
    scale: [], what the cosine is multiplied by.
    chunk: rows of similarities at once per device; 0 = all at once. The largest divisor of the rows per device that is not above it.
    valid: bool [B], false for pairs that only fill the batch up; for evaluation, and only without chunks.

  Returns:
    The loss [], and metrics: in-batch accuracy both ways (a tie counts as a miss).
  """
  if not chunk:
    logits = scale * similarities(image, text)                                                # [B B]
    counted = logits if valid is None else jnp.where(valid[:, None] & valid[None], logits, -jnp.inf)
    right = jnp.diagonal(logits)
    by_image, by_text = jax.nn.logsumexp(counted, axis=1), jax.nn.logsumexp(counted, axis=0)
    loss = jnp.mean(0.5 * (by_image + by_text) - right, where=valid)
    return loss, accuracies(right, counted, valid)
  ring = ring_of(image.shape[0])
  return _softmax(image, text, scale, divisor(image.shape[0] // ring.size, chunk), ring)


def sigmoid(image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""], bias: Float[Array, ""], *, chunk: int = 0,
            valid: Bool[Array, " B"] | None = None) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """−1/B Σ_ij log σ(z_ij (scale · cos_ij + bias)), z = 1 on the diagonal and −1 elsewhere; arguments as for `softmax`.

  Normalised by the number of positives, not of pairs (the paper's algorithm 1).
  """
  if not chunk:
    logits = scale * similarities(image, text) + bias
    counted = jnp.ones_like(logits, bool) if valid is None else valid[:, None] & valid[None]
    signed = jnp.where(jnp.eye(image.shape[0], dtype=bool), -logits, logits)
    loss = jnp.sum(jax.nn.softplus(signed), where=counted) / (image.shape[0] if valid is None else valid.sum())
    return loss, accuracies(jnp.diagonal(logits), jnp.where(counted, logits, -jnp.inf), valid)
  ring = ring_of(image.shape[0])
  return _sigmoid(image, text, scale, bias, divisor(image.shape[0] // ring.size, chunk), ring)


def accuracies(right: Float[Array, " B"], logits: Float[Array, "B B"], valid: Bool[Array, " B"] | None) -> dict[str, Float[Array, ""]]:
  """From the logits of the true pairs [B] and all of them [B B]."""
  wrong = at_pairs(jax.lax.stop_gradient(logits), jnp.zeros((), jnp.int32), True, -jnp.inf)
  return shares(right, wrong.max(axis=1), wrong.max(axis=0), valid)


def shares(right: Float[Array, " B"], best_text: Float[Array, " B"], best_image: Float[Array, " B"],
           valid: Bool[Array, " B"] | None = None) -> dict[str, Float[Array, ""]]:
  """From the logits [B] of the true pairs and of the best wrong text and image."""
  return {"accuracy_image_to_text": jnp.mean(right > best_text, dtype=jnp.float32, where=valid),
          "accuracy_text_to_image": jnp.mean(right > best_image, dtype=jnp.float32, where=valid)}


def ring_of(rows: int) -> Ring:
  """The mesh axes that hold the batch, if there is a mesh and they divide it."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return Ring()
  sizes = {name: size for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types) if kind == AxisType.Auto}
  axes = tuple(name for name in BATCH if sizes.get(name, 1) > 1)
  size = functools.reduce(lambda total, name: total * sizes[name], axes, 1)
  return Ring(axes, size) if size > 1 and rows % size == 0 else Ring()


def divisor(rows: int, chunk: int) -> int:
  """The largest divisor of `rows` that is not above `chunk`."""
  return next(c for c in range(min(rows, chunk), 0, -1) if rows % c == 0)


def on_ring(ring: Ring, fn: Callable, split: int, whole: int, outputs: int, totals: int) -> Callable:
  """`fn` per device: `split` arguments and `outputs` results are split by rows, `whole` arguments and `totals` results are not."""
  if ring.size == 1:
    return fn
  rows = P(ring.axes)
  return jax.shard_map(fn, in_specs=(rows,) * split + (P(),) * whole, out_specs=(rows,) * outputs + (P(),) * totals, check_vma=False)


def total(ring: Ring, x: Array) -> Array:
  return jax.lax.psum(x, ring.axes) if ring.size > 1 else x


def around(ring: Ring, hop: Callable, kept, moving):
  """`hop(kept, moving, home) -> (kept, moving)` for each block of texts that comes by; `home` says that it is the device's own.

  After the last hop every block is back where it started, with what it gathered on the way.
  """
  kept, moving = hop(kept, moving, True)
  if ring.size == 1:
    return kept, moving
  shift = [(i, (i + 1) % ring.size) for i in range(ring.size)]
  turn = lambda tree: jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axes, shift), tree)
  kept, moving = jax.lax.fori_loop(1, ring.size, lambda _, both: hop(both[0], turn(both[1]), False), (kept, moving))
  return kept, turn(moving)


def at_pairs(logits: Float[Array, "c b"], start: Int[Array, ""], home: bool, value) -> Float[Array, "c b"]:
  """Logits [c b] of rows `start` … with `value` where image and text belong together, which is in the device's own block only."""
  if not home:
    return logits
  rows = start + jnp.arange(logits.shape[0])
  return jnp.where(rows[:, None] == jnp.arange(logits.shape[1])[None], value, logits)


def by_rows(chunk: int, body: Callable, carry, rows):
  """Scans `body(carry, rows [c …], start) -> (carry, out)` over chunks of the leading axis of `rows`, and joins the outputs."""
  split = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), rows)
  count = jax.tree.leaves(split)[0].shape[0]
  carry, out = jax.lax.scan(lambda c, x: body(c, x[0], x[1]), carry, (split, jnp.arange(count) * chunk))
  return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _softmax(image, text, scale, chunk, ring):
  return _softmax_forward(image, text, scale, chunk, ring)[0]


def _softmax_forward(image, text, scale, chunk, ring):
  def local(image, text, scale):
    def hop(kept, moving, home):
      text, columns, best_image = moving

      def rows(carry, chunk_of, start):
        columns, best_image = carry
        image, row, best = chunk_of
        logits = scale * similarities(image, text)                                            # [c b]
        wrong = at_pairs(logits, start, home, -jnp.inf)
        carry = jnp.logaddexp(columns, jax.nn.logsumexp(logits, axis=0)), jnp.maximum(best_image, wrong.max(axis=0))
        return carry, (jnp.logaddexp(row, jax.nn.logsumexp(logits, axis=1)), jnp.maximum(best, wrong.max(axis=1)))

      (columns, best_image), kept = by_rows(chunk, rows, (columns, best_image), (image, *kept))
      return kept, (text, columns, best_image)

    nothing = jnp.full(image.shape[:1], -jnp.inf)
    right = scale * jnp.sum(image * text, axis=1)
    (by_image, best_text), (_, by_text, best_image) = around(ring, hop, (nothing, nothing), (text, nothing, nothing))
    count = image.shape[0] * ring.size
    loss = total(ring, jnp.sum(0.5 * (by_image + by_text) - right)) / count
    metrics = jax.tree.map(lambda mean: total(ring, mean) / ring.size, shares(right, best_text, best_image))
    return by_image, by_text, loss, metrics

  by_image, by_text, loss, metrics = on_ring(ring, local, 2, 1, 2, 2)(image, text, scale)
  return (loss, metrics), (image, text, scale, by_image, by_text)


def _softmax_backward(chunk, ring, saved, cotangents):
  def local(image, text, by_image, by_text, scale, weight):
    def slope(logits, row, columns):
      return 0.5 * (jnp.exp(logits - row[:, None]) + jnp.exp(logits - columns[None]))

    return _pull(image, text, scale, weight, chunk, ring, slope, (by_image,), (by_text,))

  image, text, scale, by_image, by_text = saved
  weight = cotangents[0] / image.shape[0]
  d_image, d_text, d_scale, _ = on_ring(ring, local, 4, 2, 2, 2)(image, text, by_image, by_text, scale, weight)
  return d_image, d_text, d_scale


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _pull(image, text, scale, weight, chunk, ring, slope, row_state, column_state):
  """Gradients of weight · (Σ_ij f(scale · cos_ij) − Σ_i scale · cos_ii), given slope = f′ of a block [c b].

  Both losses have this form, since softplus(−x) = softplus(x) − x.

  Returns d_image, d_text [b D], and d_scale, d_bias [] summed over the ring.
  """
  def hop(kept, moving, home):
    d_image, bias = kept
    text, d_text, *columns = moving

    def rows(carry, chunk_of, _):
      d_text, bias = carry
      image, d_image, *row = chunk_of
      d_logits = slope(scale * similarities(image, text), *row, *columns)                     # [c b]
      return (d_text + exact(d_logits.T, image), bias + d_logits.sum()), d_image + exact(d_logits, text)

    (d_text, bias), d_image = by_rows(chunk, rows, (d_text, bias), (image, d_image, *row_state))
    return (d_image, bias), (text, d_text, *columns)

  # The sums start with the share of the true pairs, which is linear.
  start = (-text, jnp.asarray(-image.shape[0], jnp.float32))
  (d_image, d_bias), (_, d_text, *_) = around(ring, hop, start, (text, -image, *column_state))
  d_scale = jnp.sum(d_image * image)
  return weight * scale * d_image, weight * scale * d_text, weight * total(ring, d_scale), weight * total(ring, d_bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sigmoid(image, text, scale, bias, chunk, ring):
  return _sigmoid_forward(image, text, scale, bias, chunk, ring)[0]


def _sigmoid_forward(image, text, scale, bias, chunk, ring):
  def local(image, text, scale, bias):
    def hop(kept, moving, home):
      loss, best = kept
      text, best_image = moving

      def rows(carry, chunk_of, start):
        loss, best_image = carry
        image, best = chunk_of
        logits = scale * similarities(image, text) + bias
        wrong = at_pairs(logits, start, home, -jnp.inf)
        signed = at_pairs(logits, start, home, -logits)
        carry = loss + jax.nn.softplus(signed).sum(), jnp.maximum(best_image, wrong.max(axis=0))
        return carry, jnp.maximum(best, wrong.max(axis=1))

      (loss, best_image), best = by_rows(chunk, rows, (loss, best_image), (image, best))
      return (loss, best), (text, best_image)

    nothing = jnp.full(image.shape[:1], -jnp.inf)
    right = scale * jnp.sum(image * text, axis=1) + bias
    (loss, best_text), (_, best_image) = around(ring, hop, (jnp.zeros(()), nothing), (text, nothing))
    metrics = jax.tree.map(lambda mean: total(ring, mean) / ring.size, shares(right, best_text, best_image))
    return total(ring, loss) / (image.shape[0] * ring.size), metrics

  loss, metrics = on_ring(ring, local, 2, 2, 0, 2)(image, text, scale, bias)
  return (loss, metrics), (image, text, scale, bias)


def _sigmoid_backward(chunk, ring, saved, cotangents):
  def local(image, text, scale, bias, weight):
    return _pull(image, text, scale, weight, chunk, ring, lambda logits: jax.nn.sigmoid(logits + bias), (), ())

  image, text, scale, bias = saved
  return on_ring(ring, local, 2, 3, 2, 2)(image, text, scale, bias, cotangents[0] / image.shape[0])


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)
