"""An objective with two frozen encoders of one product each, so that a test of what they make compiles nothing large."""
from typing import Any

import jax
import jax.numpy as jnp

from mmdiff.core.objective import Aux, Objective, Variables

VOCAB, WIDTH, PATCH = 320, 3, 8


def objective(*, width: int = WIDTH, denoiser: Any = None, scale: float = 1.0, breaks: float = 0.0) -> Objective:
  """Groups `autoencoder`, `text` and `denoiser`; a batch brings pictures, or what the encoders would make of them.

  Latents are times `scale`; those of a picture whose first pixel is near white are `breaks`, if that is not 0.
  """
  def init(key, batch):
    k_image, k_text = jax.random.split(key)
    return Variables({"autoencoder": {"patchify": {"kernel": jax.random.normal(k_image, (PATCH * PATCH * 3, 4))}},
                      "text": {"embed": {"embedding": jax.random.normal(k_text, (VOCAB, width))}}, "denoiser": {"scale": jnp.ones(())}})

  def encode_image(params, image, extra=()):
    b, h, w, _ = image.shape
    x = (image.astype(jnp.float32) / 127.5 - 1).reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, 3).swapaxes(2, 3)
    mean = jnp.tanh(x.reshape(b, h // PATCH, w // PATCH, -1) @ params["autoencoder"]["patchify"]["kernel"])
    std = jnp.exp(-jnp.square(mean))
    if scale != 1:
      mean, std = scale * mean, scale * std
    return jnp.where(image[:, :1, :1].min(-1, keepdims=True) > 200, breaks, mean) if breaks else mean, std

  def encode_text(params, tokens, mask, extra=()):
    states = jnp.where(mask[..., None], params["text"]["embed"]["embedding"][tokens], 0)
    return {"tokens": states, "mask": mask, "pooled": states.sum(1)}

  def loss(params, context, batch):
    mean, std = (batch["latent_mean"], batch["latent_std"]) if "latent_mean" in batch else encode_image(params, batch["image"])
    states = batch["text_states"] if "text_states" in batch else encode_text(params, batch["tokens"], batch["mask"])["tokens"]
    value = params["denoiser"]["scale"] * (jnp.mean(mean) + jnp.mean(std) + jnp.mean(jnp.square(states)))
    return value, Aux({"loss": value})

  return Objective(init, loss, {"encode_image": encode_image, "encode_text": encode_text})
