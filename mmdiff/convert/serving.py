"""What a public encoder alone can be asked: `predict` functions as an objective has them, without a training problem around them."""
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mmdiff.core.types import Array, Tree
from mmdiff.models.autoencoder import Autoencoder
from mmdiff.models.text import ClipStates
from mmdiff.models.unet import UNet
from mmdiff.nn import embed


def predict(family: str, module: nn.Module, config: Mapping[str, Any]) -> dict[str, Callable]:
  """A text encoder gives `text_states`, and `embed_text` where there is a projection; an autoencoder `encode` and `decode`; an image
  encoder `embed_image`. A denoiser gives nothing: what it denoises is another model's to make, and what it makes to show."""
  if isinstance(module, Autoencoder):
    def encode(params: Tree, image: Array, *, extra: Tree = ()) -> tuple[Array, Array]:
      """uint8 or [-1, 1] pixels [B H W 3] -> (mean, standard deviation) of the latents, float32 [B h w C], shifted and scaled."""
      pixels = image.astype(jnp.float32) / 127.5 - 1.0 if image.dtype == jnp.uint8 else image
      return module.apply({"params": params}, pixels, method="encode")

    def decode(params: Tree, latents: Array, *, extra: Tree = ()) -> Array:
      """Latents as `encode` gives them -> pictures float32 [B H W 3] in [-1, 1]."""
      return module.apply({"params": params}, latents, method="decode")
    return {"encode": encode, "decode": decode}
  if family == "text" or isinstance(module, ClipStates):
    def states(params: Tree, tokens: Array, mask: Array, *, extra: Tree = ()) -> tuple[Array, Array]:
      """int32 [B L], bool [B L] -> float32 [B L D], bool [B L], true at the text's own tokens."""
      made = module.apply({"params": params}, tokens, mask)
      return made["tokens"] if isinstance(made, Mapping) else made, mask

    def embed_text(params: Tree, tokens: Array, mask: Array, *, extra: Tree = ()) -> Array:
      """int32 [B L], bool [B L] -> float32 [B D], unit norm."""
      return unit(module.apply({"params": params}, tokens, mask)["pooled"])
    return {"text_states": states} | ({"embed_text": embed_text} if getattr(module, "embed_dim", None) else {})
  if family == "image":
    model = config["model"]

    def embed_image(params: Tree, image: Array, *, extra: Tree = ()) -> Array:
      """uint8 or [-1, 1] pixels [B H W 3] -> float32 [B D], unit norm."""
      return unit(module.apply({"params": params}, embed.normalize(image, mean=tuple(model["mean"]), std=tuple(model["std"]))))
    return {"embed_image": embed_image}
  return {}


def kind(family: str, module: nn.Module) -> str:
  """What a model alone is called in messages: a part of a single file is not known by its format."""
  kinds = {Autoencoder: "autoencoder", ClipStates: "text", UNet: "denoiser"}
  return next((name for of, name in kinds.items() if isinstance(module, of)), family)


def unit(x: Array) -> Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
