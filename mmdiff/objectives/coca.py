"""Contrastive captioning, CoCa (https://arxiv.org/abs/2205.01917 eq. 4): L = λ_con · L_con + λ_cap · L_cap.

`lambda_con=0` is fine-tuning as a captioner only (§4.2 of the paper; §2 of https://cdn.openai.com/papers/dall-e-3.pdf, twice: for short and
for long captions).
"""
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp

from mmdiff import decode
from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Context, Objective, Variables, in_chunks
from mmdiff.core.types import Array, Batch, Key, Tree
from mmdiff.losses import contrastive as contrast
from mmdiff.losses import language
from mmdiff.models import flops
from mmdiff.models.coca import step_function
from mmdiff.objectives.contrastive import LOG_MAX_SCALE, MAX_SCALE, at_most, clipped, unit


class Outputs(NamedTuple):
  """What the towers say of every pair."""
  image: Array             # float32 [B E], unit norm
  text: Array              # float32 [B E], unit norm
  loss: Array              # float32 [B L-1], of each next token
  right: Array             # bool [B L-1]


def coca(*, model: Built["mmdiff.models:CAPTIONERS"], lambda_con: float = 1.0, lambda_cap: float = 2.0, chunk: int = 0,
         logits_chunk: int = 0, scale_init: float = 1 / 0.07) -> Objective:
  """One loss of the global batch: contrast over all pairs, and the next token of every caption, given its picture.

  Args:
    model: a captioner, see `models.coca`.
    lambda_con, lambda_cap: weights of the two losses; 0 leaves one out.
    chunk: rows of similarities per device at once; 0 = the whole batch's. See `losses.contrastive`.
    logits_chunk: positions whose logits are held at once; 0 = all.
    scale_init: what cosines are multiplied by at the start.

  Metrics: loss_caption (nats a token) and accuracy_token; loss_contrastive, accuracy_image_to_text, accuracy_text_to_image and logit_scale.
  """
  if min(lambda_con, lambda_cap, chunk, logits_chunk) < 0 or lambda_con == lambda_cap == 0:
    raise ConfigError("objective.lambda_con, lambda_cap, chunk and logits_chunk are not negative and one of the weights is positive; found "
                      f"{lambda_con}, {lambda_cap}, {chunk}, {logits_chunk}")
  model = model.clone(scale_init=math.log(scale_init))

  def init(key: Key, batch: Batch) -> Variables:
    few = {name: batch[name][:1] for name in ("image", "tokens", "mask")}          # shapes are all that matters
    return Variables(model.init(key, few["image"], few["tokens"], few["mask"])["params"])

  def outputs(params: Tree, batch: Batch, chunks: int) -> Outputs:
    def towers(rows):
      image, text, hidden = model.apply({"params": params}, rows["image"], rows["tokens"], rows["mask"])
      kernel = params["decoder"]["project_vocab"]["kernel"]
      return Outputs(unit(image), unit(text), *language.token_losses(hidden, kernel, rows["tokens"][:, 1:], chunk=logits_chunk))
    return in_chunks(towers, {name: batch[name] for name in ("image", "tokens", "mask")}, chunks)

  def score(params: Tree, made: Outputs, batch: Batch, *, chunk: int, valid: Array | None = None) -> tuple[Array, dict[str, Array]]:
    counted = batch["mask"][:, 1:]
    if valid is not None:
      counted = counted & valid[:, None]
    caption = language.mean_where(made.loss, counted)
    metrics = {"loss_caption": caption, "accuracy_token": language.mean_where(made.right.astype(jnp.float32), counted)}
    total = lambda_cap * caption
    if lambda_con:
      scale = jnp.exp(at_most(params["logit_scale"], LOG_MAX_SCALE))
      pairs, more = contrast.softmax(made.image, made.text, scale, chunk=chunk, valid=valid)
      total = total + lambda_con * pairs
      metrics |= more | {"loss_contrastive": pairs, "logit_scale": scale}
    return total, metrics

  def loss(params: Tree, context: Context, batch: Batch) -> tuple[Array, Aux]:
    value, metrics = score(params, outputs(params, batch, context.microbatches), batch, chunk=chunk)
    return value, Aux(metrics)

  def embed_image(params: Tree, image: Array, *, extra: Tree = ()) -> Array:
    """uint8 or [-1, 1] pixels [B H W 3] -> float32 [B E], unit norm."""
    return unit(model.apply({"params": params}, image, method="encode_image")[0])

  def embed_text(params: Tree, tokens: Array, mask: Array, *, extra: Tree = ()) -> Array:
    """int32 [B L], bool [B L] -> float32 [B E], unit norm."""
    return unit(model.apply({"params": params}, tokens, mask, method="encode_text"))

  def logit_scale(params: Tree, *, extra: Tree = ()) -> Array:
    """What cosines are multiplied by, [], at most 100."""
    return jnp.minimum(jnp.exp(params["logit_scale"]), MAX_SCALE)

  def caption(params: Tree, images: Array, seeds: Array, settings: decode.Settings, *, extra: Tree = ()) -> decode.Decoded:
    """Pixels [B H W 3] and seeds uint32 [B] -> (tokens int32 [B max_len], lengths int32 [B]), see `mmdiff.decode.Decoded`."""
    tokens = model.apply({"params": params}, images, method="encode_image")[1]
    step, cache = step_function(model, params, jnp.repeat(tokens, settings.beams, axis=0), max_len=settings.max_len)
    return decode.decode(step, cache, seeds, settings)

  def evaluate(params: Tree, batch: Batch, key: Key, *, extra: Tree = ()) -> dict[str, Array]:
    """The loss and its metrics on one batch; `valid` bool [B] leaves out padding."""
    value, metrics = score(params, outputs(params, batch, 1), batch, chunk=0 if "valid" in batch else chunk, valid=batch.get("valid"))
    return metrics | {"loss": value}

  predict = {"embed_image": embed_image, "embed_text": embed_text, "logit_scale": logit_scale, "caption": caption, "loss": evaluate,
             "flops": lambda batch_size, text_len: flops.TRAIN * batch_size * flops.coca(model, text_len=text_len)}
  # A mean over tokens is none over examples: microbatches with fewer words would count for more.
  return Objective(init, loss, predict, couples_batch=True, project=functools.partial(clipped, name="logit_scale", limit=LOG_MAX_SCALE))
