"""What a public encoder alone can be asked: `predict` functions as an objective has them, without a training problem around them."""
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mmdiff.core.types import Array, Tree
from mmdiff.nn import embed


def predict(family: str, module: nn.Module, config: Mapping[str, Any]) -> dict[str, Callable]:
  """By family: "text" gives `text_states`, and `embed_text` where there is a projection; "image" gives `embed_image`."""
  if family == "text":
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


def unit(x: Array) -> Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
