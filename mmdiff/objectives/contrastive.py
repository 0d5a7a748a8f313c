"""Contrastive image-text training: CLIP (https://arxiv.org/abs/2103.00020), SigLIP (https://arxiv.org/abs/2303.15343), and with a frozen
image tower, `freeze=("image/.*",)`, LiT (https://arxiv.org/abs/2111.07991)."""
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Context, Objective, Variables, in_chunks
from mmdiff.core.types import Array, Batch, Key, Tree
from mmdiff.losses import contrastive as losses
from mmdiff.models import flops

MAX_SCALE = 100.0               # CLIP §2.5; SigLIP has no limit, and its released models go beyond
LOG_MAX_SCALE = float(np.nextafter(np.float32(math.log(MAX_SCALE)), np.float32(0)))     # the nearest float32 whose exp is not above it


def contrastive(*, model: Built["mmdiff.models:MODELS"], loss: Literal["softmax", "sigmoid"] = "softmax", chunk: int = 0,
                scale_init: float | None = None, bias_init: float | None = None) -> Objective:
  """One loss over all pairs of the global batch.

  Args:
    model: a two-tower model, see `models.clip`.
    loss: CLIP's softmax or SigLIP's sigmoid.
    chunk: rows of similarities per device at once; 0 = the whole batch's. See `losses.contrastive`.
    scale_init: what cosines are multiplied by at the start; None = 1/0.07 (CLIP) or 10 (SigLIP).
    bias_init: of the sigmoid's logits; None = −10 (SigLIP).

  Metrics: accuracy_image_to_text, accuracy_text_to_image, logit_scale, and logit_bias with the sigmoid.
  """
  if chunk < 0:
    raise ConfigError(f"objective.chunk counts rows, found {chunk}; 0 means the whole batch")
  if bias_init is not None and loss == "softmax":
    raise ConfigError("objective.bias_init: the softmax loss has no bias; leave it out or set loss='sigmoid'")
  start = scale_init or (10.0 if loss == "sigmoid" else 1 / 0.07)
  bias = None if loss == "softmax" else -10.0 if bias_init is None else bias_init
  model = model.clone(scale_init=math.log(start), bias_init=bias)

  def variables(params: Tree, extra: Tree) -> Tree:
    return {"params": params} | ({"batch_stats": extra} if model.has_statistics else {})

  def init(key: Key, batch: Batch) -> Variables:
    few = {name: batch[name][:1] for name in ("image", "tokens", "mask")}          # shapes are all that matters
    made = model.init(key, few["image"], few["tokens"], few["mask"])
    return Variables(made["params"], made.get("batch_stats", ()))

  def embed(params: Tree, extra: Tree, batch: Batch, chunks: int) -> tuple[Array, Array, Tree]:
    """Unit-norm embeddings [B D] of images and texts, and the new batch statistics."""
    inputs = {name: batch[name] for name in ("image", "tokens", "mask")}
    if model.has_statistics:
      if chunks > 1:
        raise ConfigError("accumulate > 1 is not exact with batch statistics, which couple the examples of a batch: "
                          "set accumulate=1 or choose a ViT")
      (image, text), changed = model.apply(variables(params, extra), **inputs, train=True, mutable=["batch_stats"])
      return unit(image), unit(text), changed["batch_stats"]
    image, text = in_chunks(lambda rows: jax.tree.map(unit, model.apply({"params": params}, **rows)), inputs, chunks)
    return image, text, extra

  def score(params: Tree, image: Array, text: Array, *, chunk: int, valid: Array | None = None) -> tuple[Array, dict[str, Array]]:
    scale = jnp.exp(at_most(params["logit_scale"], LOG_MAX_SCALE) if loss == "softmax" else params["logit_scale"])
    if loss == "sigmoid":
      value, metrics = losses.sigmoid(image, text, scale, params["logit_bias"], chunk=chunk, valid=valid)
      return value, metrics | {"logit_scale": scale, "logit_bias": params["logit_bias"]}
    value, metrics = losses.softmax(image, text, scale, chunk=chunk, valid=valid)
    return value, metrics | {"logit_scale": scale}

  def loss_fn(params: Tree, context: Context, batch: Batch) -> tuple[Array, Aux]:
    image, text, extra = embed(params, context.extra, batch, context.microbatches)
    value, metrics = score(params, image, text, chunk=chunk)
    return value, Aux(metrics, extra)

  def embed_image(params: Tree, image: Array, *, extra: Tree = ()) -> Array:
    """uint8 or [-1, 1] pixels [B H W 3] -> float32 [B D], unit norm."""
    return unit(model.apply(variables(params, extra), image, method="encode_image"))

  def embed_text(params: Tree, tokens: Array, mask: Array, *, extra: Tree = ()) -> Array:
    """int32 [B L], bool [B L] -> float32 [B D], unit norm."""
    return unit(model.apply(variables(params, extra), tokens, mask, method="encode_text"))

  def logit_scale(params: Tree, *, extra: Tree = ()) -> Array:
    """What cosines are multiplied by, []; with the softmax at most 100."""
    scale = jnp.exp(params["logit_scale"])
    return jnp.minimum(scale, MAX_SCALE) if loss == "softmax" else scale

  def evaluate(params: Tree, batch: Batch, key: Key, *, extra: Tree = ()) -> dict[str, Array]:
    """The loss and its metrics on one batch, with running batch statistics; `valid` bool [B] leaves out padding."""
    image = embed_image(params, batch["image"], extra=extra)
    text = embed_text(params, batch["tokens"], batch["mask"], extra=extra)
    value, metrics = score(params, image, text, chunk=0 if "valid" in batch else chunk, valid=batch.get("valid"))
    return metrics | {"loss": value}

  predict = {"embed_image": embed_image, "embed_text": embed_text, "logit_scale": logit_scale, "loss": evaluate,
             "flops": lambda batch_size, text_len: flops.TRAIN * batch_size * flops.clip(model, text_len=text_len)}
  return Objective(init, loss_fn, predict, couples_batch=True, statistics=model.has_statistics,
                   **(dict(project=functools.partial(clipped, name="logit_scale", limit=LOG_MAX_SCALE)) if loss == "softmax" else {}))


def unit(x: Array) -> Array:
  """[… D] scaled to unit norm; a zero vector stays zero and has a finite gradient."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def at_most(x: Array, limit: float) -> Array:
  """min(x, limit) with the gradient of x, which a plain minimum would stop there: weights that come from elsewhere may start beyond."""
  return x + jax.lax.stop_gradient(jnp.minimum(x, limit) - x)


def clipped(params: Tree, *, name: str, limit: float) -> Tree:
  """The parameters with that top-level one at most `limit`: what CLIP does to its logit scale after every update (its fig. 3 and §2.5;
  `clamp_` after `optimizer.step()` in OpenCLIP), so that no momentum carries it away and it comes back with the first gradient that leads
  there."""
  return params if params.get(name) is None else {**params, name: jnp.minimum(params[name], limit)}
