"""What a loaded model can be asked: texts and pictures in, numpy out; `mmdiff.prompted` has what draws.

A model has the methods that it can serve: CLIP models embed, captioners also write, text-to-image models draw and edit; asking for another
says which it has.

Calls of any size run a few compiled programs: rows are padded to powers of two, and a call that a size compiled before can serve, padded to
less than twice the rows or in at most four turns, compiles nothing (`fitting`).
"""
import contextlib
import inspect
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from mmdiff import asked, decode
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.progress import Progress, rewrites
from mmdiff.core.types import Tree
from mmdiff.data import transforms
from mmdiff.evaluators import base, zeroshot

ROWS = 64             # most rows of one call of the network
TURNS = 4             # of a small compiled size in place of compiling a larger one
PICTURES = 4          # of an autoencoder, which works on whole pictures
PUBLIC = ("config", "params", "report", "tokenizer", "tokenize", "methods", "takes")       # of every model, beside its methods


class Names(list):
  """Names of tensors: a list that shows how many there are, and the first."""

  def __repr__(self) -> str:
    return f"<{len(self):,} names, {self[0]} …>" if len(self) > 3 else super().__repr__()


class Model:
  """What `load` returns, with the methods of every ability (`mmdiff.model.ABILITIES`) that its objective serves.

  config: the run's, as nested dicts. params: the full tree, on the mesh. report: what was loaded, from where; names of tensors are `Names`.
  tokenizer: the run's. services: what evaluators may use.
  """
  METHODS: tuple[str, ...] = ()         # of every ability, also of those that others have

  def __init__(self, config: Mapping, params: Tree, extra: Tree, report: Mapping[str, Any], *, tokenizer, services: base.Services,
               mesh: jax.sharding.Mesh):
    self.config, self.params, self.extra, self.report = config, params, extra, report
    self.tokenizer, self.services, self.mesh = tokenizer, services, mesh
    self.sizes: dict[tuple, dict[int, float]] = {}         # program -> {rows that it was compiled for: seconds of a batch, 0 if unknown}
    self.origin: Any = None               # where a public checkpoint's spellings are kept, for saving: `public.Loaded` or `Pipeline`

  if not TYPE_CHECKING:                   # a checker knows the methods, and tells of others itself
    def __getattr__(self, name: str):
      if name.startswith("_") or "report" not in self.__dict__:
        raise AttributeError(name)
      if name in self.METHODS or asked.meant_method(name, self.methods()):
        raise AttributeError(self.without(name))
      raise AttributeError(f"a {self.report['objective']} model has no {name}: it has {', '.join(self.methods()) or 'no methods'}")

  def __dir__(self) -> list[str]:
    return [*PUBLIC, *self.methods()]

  def __repr__(self) -> str:
    facts, data = self.report, self.config["data"]
    count = facts["parameters"]
    devices = self.mesh.devices
    lines = {"parameters": f"{sum(count.values()):,}" + (f" ({', '.join(f'{name} {size:,}' for name, size in count.items())})"
                                                         if len(count) > 1 else ""),
             "pictures": f"{data['image_size']}×{data['image_size']}" if "image_size" in data else "",
             "devices": f"{devices.size} × {devices.flat[0].device_kind}",
             "methods": ", ".join(self.methods()) or "none"}
    kind = f"{facts['objective']} model" + (f" ({facts['format']})" if "format" in facts else "")
    step = f", step {facts['step']}, {facts['params'] or 'raw'} parameters" if facts["step"] else ""
    return f"<{kind} of {facts['path']}{step}>" + "".join(f"\n  {name:<11} {value}" for name, value in lines.items() if value)

  def methods(self) -> list[str]:
    """The names of what this model can be asked."""
    return [method for method in self.METHODS if method in dir(type(self))]

  def without(self, name: str) -> str:
    """What a model that lacks a method is and has instead."""
    has, kind = self.methods(), self.report["objective"]
    meant = asked.meant_method(name, has)
    hint = f"; did you mean {meant}?" if meant else f"; {self.report['hint']}" if self.report.get("hint") else ""
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
    with self._running(name, "texts", len(tokens), (tokens.shape[1],)) as (services, size):
      function = jax.jit(services.predict[name])
      return base.over_rows(services, lambda batch: function(self.params, batch["tokens"], batch["mask"], extra=self.extra),
                            dict(tokens=tokens, mask=mask), size=size)

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

  @contextlib.contextmanager
  def _running(self, name: str, unit: str, count: int, about: tuple = (), *, what: str = "", work: int = 1, batch_size: int | None = None,
               most: int = ROWS, progress: bool | None = None) -> Iterator[tuple[base.Services, int]]:
    """(services, rows of a batch) for a call of the predict function `name` on `count` rows, on the mesh; a progress line tells of it.

    about: what else the program is compiled for. work: what the time of a batch grows with, such as steps. batch_size: rows at a time that
    the caller asks for; None is up to `most`, of those compiled before if they serve. progress: whether a line tells of it; None: where
    stderr rewrites one.
    """
    if progress not in (None, True, False):
      raise ConfigError(f"progress: expected True, False or None, found {progress!r:.60}")
    known = self.sizes.setdefault((name, *about), {})
    size = self._size(count, batch_size) if batch_size else fitting(count, self._size(count, most), known)
    batches = -(-count // size)
    told = Progress(what or name, unit, active=rewrites() if progress is None else progress, total=count,
                    expected=known.get(size, 0) * batches * work or None)
    fresh, started = size not in known, time.monotonic()
    with jax.set_mesh(self.mesh), told.running(compiles=name if fresh else ""):
      yield self.services._replace(progress=told), size
    known[size] = 0.0 if fresh else (time.monotonic() - started) / (batches * work)


def fitting(count: int, wanted: int, compiled: Collection[int]) -> int:
  """Rows of a batch for `count` rows: of the sizes that are compiled the one that computes the fewest, or `wanted`, its own, where they
  would compute twice as many or take more than `TURNS`."""
  turns = lambda size: -(-count // size)
  serve = [size for size in compiled if size <= 2 * wanted and turns(size) <= max(TURNS, turns(wanted))]
  return min(serve, key=lambda size: (turns(size) * size, turns(size)), default=wanted)


class EmbedsImages(Model):
  """An image tower."""
  NEEDS = ("embed_image",)

  def embed_image(self, images, *, progress: bool | None = None) -> np.ndarray:
    """Pictures -> float32 [B D], unit norm. Preprocessing inside.

    Args:
      images: one or a list of paths, of PIL images or of uint8 [H W 3], of any sizes; or uint8 [B H W 3].
      progress: whether a line on stderr tells how far it is; None: on a terminal and in a notebook.
    """
    pixels = self._preprocess(images)
    if not len(pixels):
      return self.embed_image(np.zeros((1, 8, 8, 3), np.uint8))[:0]
    with self._running("embed_image", "pictures", len(pixels), progress=progress) as (services, size):
      embed = jax.jit(services.predict["embed_image"])
      made = base.over_rows(services, lambda batch: embed(self.params, batch["image"], extra=self.extra), dict(image=pixels), size=size)
    return made.astype(np.float32)


class EmbedsTexts(Model):
  """A text tower."""
  NEEDS = ("embed_text",)

  def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
    """Texts -> float32 [B D], unit norm."""
    return self._over_texts("embed_text", texts).astype(np.float32)


class Compares(Model):
  """Two towers into one space."""
  NEEDS = ("embed_image", "embed_text", "logit_scale")

  @property
  def logit_scale(self) -> float:
    """What cosines are multiplied by to become logits, after exp."""
    return float(self.services.fetch(self.services.predict["logit_scale"](self.params)))

  def similarity(self, images, texts: str | Sequence[str]) -> np.ndarray:
    """The cosine of every picture, as for `embed_image`, with every text: float32 [B T]."""
    return self.embed_image(images) @ self.embed_text(texts).T

  def classify(self, images, labels: Sequence[str], *, templates: str | Sequence[str] = "plain") -> np.ndarray:
    """Probabilities float32 [B K] that picture b, as for `embed_image`, shows label k, as the evaluator `zeroshot` ranks them.

    A model that was trained with a softmax over texts gives probabilities that add up to 1 over the labels; one that was trained with a
    sigmoid (SigLIP) one for each pair, whatever the other labels are.

    Args:
      labels: names, such as "cat".
      templates: one or a list of `evaluators.zeroshot.TEMPLATES` or of texts with {} where the name goes, whose embeddings are averaged.
    """
    names = asked.texts(labels)
    if not names or len(set(names)) < len(names):
      twice = next((name for name in names if names.count(name) > 1), None)
      raise ConfigError("labels: expected at least one name" if twice is None else
                        f"labels: {twice!r} stands there {names.count(twice)} times, and no text can tell them apart")
    phrases = zeroshot.expand(asked.texts(templates))
    scores = self.embed_image(images) @ zeroshot.class_weights(self.embed_text, names, phrases).T
    if "logit_bias" in self.params:
      bias = float(self.services.fetch(self.params["logit_bias"]))
      return (1 / (1 + np.exp(-(self.logit_scale * scores + bias)))).astype(np.float32)
    odds = np.exp(self.logit_scale * (scores - scores.max(1, keepdims=True)))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


class EncodesTexts(Model):
  """A text encoder, as text-to-image models have."""
  NEEDS = ("text_states",)

  def encode_text(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (states float32 [B L D], mask bool [B L], true at the texts' own tokens)."""
    return self._over_texts("text_states", texts)


class Autoencodes(Model):
  """Pictures to latents and back."""
  NEEDS = ("encode", "decode")

  def encode(self, images, *, height: int | None = None, width: int | None = None, batch_size: int | None = None) -> np.ndarray:
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

  def decode(self, latents: np.ndarray, *, output: Literal["uint8", "float"] = "uint8", batch_size: int | None = None) -> np.ndarray:
    """Latents [B h w C] as `encode` and `generate(output="latents")` give them -> pictures [B H W 3], uint8 or float32 in [-1, 1]."""
    if output not in ("uint8", "float") or np.ndim(latents) != 4 or not len(latents):
      raise ConfigError(f"decode: expected latents [B h w C] and output 'uint8' or 'float', found {list(np.shape(latents))} and {output!r}")
    asked.numbers(batch_size=batch_size)
    asked.noise("latents", latents, len(latents))
    made = self._over_pictures("decode", np.asarray(latents, np.float32), batch_size)
    return base.to_uint8(made) if output == "uint8" else made

  def _over_pictures(self, name: str, rows: np.ndarray, batch_size: int | None) -> Any:
    with self._running(name, "pictures", len(rows), rows.shape[1:], batch_size=batch_size, most=PICTURES) as (services, size):
      function = jax.jit(services.predict[name])
      return base.over_rows(services, lambda batch: function(self.params, batch["rows"], extra=self.extra), dict(rows=rows), size=size)


class Captions(Model):
  """Words for pictures."""
  NEEDS = ("caption",)

  def caption(self, images, *, seeds: int | Sequence[int] = 0, progress: bool | None = None, **decoding) -> list[str]:
    """Pictures, as for `embed_image`, -> a caption each.

    Caption i depends on picture i, seed i and the other options, not on the batch that it is written in.

    Args:
      seeds: one each, or the first of consecutive ones; read by method="sample" only.
      progress: as of `embed_image`.
      **decoding: of `mmdiff.decode.settings`: method ("greedy", "sample", "beam"), max_len, min_len, beams, temperature, top_k, top_p,
        repetition_penalty, no_repeat_ngram, length_penalty. `max_len` is by default the length of the training captions.
    """
    tokens, lengths = self.caption_tokens(images, seeds=seeds, progress=progress, **decoding)
    return [self.tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths)]

  def caption_tokens(self, images, *, seeds: int | Sequence[int] = 0, progress: bool | None = None,
                     **decoding) -> tuple[np.ndarray, np.ndarray]:
    """The same as (tokens int32 [B L], lengths int32 [B]); a row that lacks the end token was cut off."""
    settings = base.caption_settings(self.tokenizer, self.config["data"]["text_len"], **decoding)
    pixels = self._preprocess(images)
    seeds = asked.seeds(seeds, len(pixels), "images")
    if not len(pixels):
      return np.zeros((0, settings.max_len), np.int32), np.zeros((0,), np.int32)
    with self._running("caption", "pictures", len(pixels), (jax.tree.structure(settings),), progress=progress) as (services, size):
      return base.write_captions(services, self.params, pixels, seeds, settings, extra=self.extra, size=size)

  def _options(self, method: str) -> list[str]:
    if method not in ("caption", "caption_tokens"):
      return super()._options(method)
    return [name for name in inspect.signature(decode.settings).parameters if name not in ("start", "end", "pad")]
