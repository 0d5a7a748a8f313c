"""What a loaded model can be asked: texts and pictures in, numpy out; `mmdiff.prompted` has what draws.

A model has the methods that it can serve: CLIP models embed, captioners also write, text-to-image models draw and edit; asking for another
says which it has. Calls of any size run a few compiled programs: rows are padded to powers of two.
"""
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from mmdiff import asked, decode
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.types import Tree
from mmdiff.data import transforms
from mmdiff.evaluators import base

ROWS = 64             # most rows of one call of the network
PICTURES = 4          # of an autoencoder, which works on whole pictures


class Model:
  """What `load` returns, with the methods of every ability (`mmdiff.model.ABILITIES`) that its objective serves.

  config: the run's, as nested dicts. params: the full tree, on the mesh. report: what was loaded, from where. tokenizer: the run's.
  services: what evaluators may use.
  """
  METHODS: tuple[str, ...] = ()         # of every ability, also of those that others have

  def __init__(self, config: Mapping, params: Tree, extra: Tree, report: Mapping[str, Any], *, tokenizer, services: base.Services,
               mesh: jax.sharding.Mesh):
    self.config, self.params, self.extra, self.report = config, params, extra, report
    self.tokenizer, self.services, self.mesh = tokenizer, services, mesh
    self.origin: Any = None               # where a public checkpoint's spellings are kept, for saving: `public.Loaded` or `Pipeline`

  def __getattr__(self, name: str):
    raise AttributeError(self.without(name) if name in self.METHODS else name)

  def without(self, name: str) -> str:
    """What a model that lacks a method is and has instead."""
    has = [method for method in self.METHODS if method in dir(type(self))]
    hint = f"; {self.report['hint']}" if self.report.get("hint") else ""
    kind = self.report["objective"]
    article = "an" if kind[0] in "aeiou" else "a"
    return f"{self.report['path']} is {article} {kind} model: it has {', '.join(has) or 'no methods'}, not {name}{hint}"

  def takes(self, method: str) -> list[str]:
    """The names of what a method takes, with those that its **options stand for."""
    own = inspect.signature(getattr(type(self), method)).parameters
    named = [name for name, one in own.items() if name != "self" and one.kind is not one.VAR_KEYWORD]
    return [*named, *(name for name in self._options(method) if name not in named)] if len(named) + 1 < len(own) else named

  def _options(self, method: str) -> list[str]:
    """The names of the **options of a method."""
    return []

  def tokenize(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (tokens int32 [B L], mask bool [B L]), cut to the model's length. Raises DataError without a tokenizer."""
    if self.tokenizer is None:
      raise DataError(f"{self.report['path']}: there is no tokenizer beside the weights: put tokenizer.json, or vocab.json and merges.txt, "
                      "there, or load with tokenizer=FOLDER")
    return self.tokenizer.batch(asked.texts(texts), self.config["data"]["text_len"])

  def _over_texts(self, name: str, texts: str | Sequence[str]) -> Any:
    tokens, mask = self.tokenize(texts)
    if not len(tokens):
      return jax.tree.map(lambda x: x[:0], self._over_texts(name, [""]))
    with jax.set_mesh(self.mesh):
      function = jax.jit(self.services.predict[name])
      return base.over_rows(self.services, lambda batch: function(self.params, batch["tokens"], batch["mask"], extra=self.extra),
                            dict(tokens=tokens, mask=mask), size=self._size(len(tokens)))

  def _preprocess(self, images) -> np.ndarray:
    data = self.config["data"]
    fitted = [transforms.fit(pixels, size=data["image_size"], resize=data["resize"], interpolation=data["interpolation"])
              for pixels in asked.pictures(images)]
    return np.stack(fitted) if fitted else np.zeros((0, data["image_size"], data["image_size"], 3), np.uint8)

  def _size(self, count: int, most: int = ROWS) -> int:
    """Rows of a call for `count`: the next power of two that divides over the mesh, at most `most`."""
    ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
    each = -(-min(count, most) // ways)
    return ways * 2 ** (each - 1).bit_length()


class EmbedsImages(Model):
  """An image tower."""
  NEEDS = ("embed_image",)

  def embed_image(self, images) -> np.ndarray:
    """Pictures -> float32 [B D], unit norm. Preprocessing inside.

    images: one or a list of paths, of PIL images or of uint8 [H W 3], of any sizes; or uint8 [B H W 3].
    """
    pixels = self._preprocess(images)
    if not len(pixels):
      return self.embed_image(np.zeros((1, 8, 8, 3), np.uint8))[:0]
    with jax.set_mesh(self.mesh):
      embed = jax.jit(self.services.predict["embed_image"])
      return base.over_rows(self.services, lambda batch: embed(self.params, batch["image"], extra=self.extra), dict(image=pixels),
                            size=self._size(len(pixels)))


class EmbedsTexts(Model):
  """A text tower."""
  NEEDS = ("embed_text",)

  def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
    """Texts -> float32 [B D], unit norm."""
    return self._over_texts("embed_text", texts)


class Compares(Model):
  """Two towers into one space."""
  NEEDS = ("logit_scale",)

  @property
  def logit_scale(self) -> float:
    """What cosines are multiplied by to become logits, after exp."""
    return float(self.services.fetch(self.services.predict["logit_scale"](self.params)))


class EncodesTexts(Model):
  """A text encoder, as text-to-image models have."""
  NEEDS = ("text_states",)

  def encode_text(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (states float32 [B L D], mask bool [B L], true at the texts' own tokens)."""
    return self._over_texts("text_states", texts)


class Autoencodes(Model):
  """Pictures to latents and back."""
  NEEDS = ("encode", "decode")

  def encode(self, images, *, height: int | None = None, width: int | None = None, batch_size: int = PICTURES) -> np.ndarray:
    """Pictures, as for `embed_image` -> the means of their latents, float32 [B h w C], shifted and scaled as `generate` works on them.

    height, width: what the pictures are scaled and cropped to; None keeps their own size, which must be one for all.
    """
    asked.numbers(height=height, width=width, batch_size=batch_size)
    found = list(asked.pictures(images))
    if height or width:
      found = [transforms.cover(image, height=height or image.shape[0], width=width or image.shape[1])[0] for image in found]
    if (sizes := len({image.shape for image in found})) != 1:
      raise ConfigError(f"images: expected pictures of one size, found {sizes} sizes; give height and width")
    return self._over_pictures("encode", np.stack(found), batch_size)[0]

  def decode(self, latents: np.ndarray, *, output: Literal["uint8", "float"] = "uint8", batch_size: int = PICTURES) -> np.ndarray:
    """Latents [B h w C] as `encode` and `generate(output="latents")` give them -> pictures [B H W 3], uint8 or float32 in [-1, 1]."""
    if output not in ("uint8", "float") or np.ndim(latents) != 4 or not len(latents):
      raise ConfigError(f"decode: expected latents [B h w C] and output 'uint8' or 'float', found {list(np.shape(latents))} and {output!r}")
    asked.numbers(batch_size=batch_size)
    asked.noise("latents", latents, len(latents))
    made = self._over_pictures("decode", np.asarray(latents, np.float32), batch_size)
    return base.to_uint8(made) if output == "uint8" else made

  def _over_pictures(self, name: str, rows: np.ndarray, batch_size: int) -> Any:
    with jax.set_mesh(self.mesh):
      function = jax.jit(self.services.predict[name])
      return base.over_rows(self.services, lambda batch: function(self.params, batch["rows"], extra=self.extra), dict(rows=rows),
                            size=self._size(len(rows), batch_size))


class Captions(Model):
  """Words for pictures."""
  NEEDS = ("caption",)

  def caption(self, images, *, seeds: int | Sequence[int] = 0, **decoding) -> list[str]:
    """Pictures, as for `embed_image`, -> a caption each.

    Caption i depends on picture i, seed i and the other options, not on the batch that it is written in.

    Args:
      seeds: one each, or the first of consecutive ones; read by method="sample" only.
      **decoding: of `mmdiff.decode.settings`: method ("greedy", "sample", "beam"), max_len, min_len, beams, temperature, top_k, top_p,
        repetition_penalty, no_repeat_ngram, length_penalty. `max_len` is by default the length of the training captions.
    """
    tokens, lengths = self.caption_tokens(images, seeds=seeds, **decoding)
    return [self.tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths)]

  def caption_tokens(self, images, *, seeds: int | Sequence[int] = 0, **decoding) -> tuple[np.ndarray, np.ndarray]:
    """The same as (tokens int32 [B L], lengths int32 [B]); a row that lacks the end token was cut off."""
    settings = base.caption_settings(self.tokenizer, self.config["data"]["text_len"], **decoding)
    pixels = self._preprocess(images)
    seeds = asked.seeds(seeds, len(pixels), "images")
    if not len(pixels):
      return np.zeros((0, settings.max_len), np.int32), np.zeros((0,), np.int32)
    with jax.set_mesh(self.mesh):
      return base.write_captions(self.services, self.params, pixels, seeds, settings, extra=self.extra, size=self._size(len(pixels)))

  def _options(self, method: str) -> list[str]:
    if method not in ("caption", "caption_tokens"):
      return super()._options(method)
    return [name for name in inspect.signature(decode.settings).parameters if name not in ("start", "end", "pad")]
