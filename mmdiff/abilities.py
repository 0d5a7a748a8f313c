"""What a loaded model can be asked: numpy in, numpy out.

A model has the methods that it can serve: CLIP models embed, captioners also write, text-to-image models draw and edit; asking for another
says which it has. Calls of any size run a few compiled programs: rows are padded to powers of two.
"""
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from mmdiff import asked
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.terminal import tell
from mmdiff.core.types import Tree
from mmdiff.data import masking, transforms
from mmdiff.evaluators import base

ROWS = 64             # most rows of one call of the network
PICTURES = 4          # of an autoencoder, which works on whole pictures
SAMPLING = dict(steps=20, guidance=2.0, rows=ROWS)       # of models trained here
Output = Literal["uint8", "float", "latents"]


class Model:
  """What `load` returns, with the methods of every ability in `ABILITIES` that its objective serves.

  config: the run's, as nested dicts. params: the full tree, on the mesh. report: what was loaded, from where. tokenizer: the run's.
  services: what evaluators may use.
  """

  def __init__(self, config: Mapping, params: Tree, extra: Tree, report: Mapping[str, Any], *, tokenizer, services: base.Services,
               mesh: jax.sharding.Mesh):
    self.config, self.params, self.extra, self.report = config, params, extra, report
    self.tokenizer, self.services, self.mesh = tokenizer, services, mesh
    self.origin: Any = None               # where a public checkpoint's spellings are kept, for saving: `public.Loaded` or `Pipeline`

  def __getattr__(self, name: str):
    known = [method for ability in ABILITIES for method in vars(ability) if method.islower() and method[0] != "_" and method != "sampling"]
    if name in known:
      has = [method for method in known if method in dir(type(self))]
      hint = f"; {self.report['hint']}" if self.report.get("hint") else ""
      kind = self.report["objective"]
      article = "an" if kind[0] in "aeiou" else "a"
      raise AttributeError(f"{self.report['path']} is {article} {kind} model: it has {', '.join(has) or 'no methods'}, not {name}{hint}")
    raise AttributeError(name)

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
    found = asked.pictures(images)
    fitted = np.empty((len(found), data["image_size"], data["image_size"], 3), np.uint8)
    for i, pixels in enumerate(found):
      fitted[i] = transforms.fit(pixels, size=data["image_size"], resize=data["resize"], interpolation=data["interpolation"])
    return fitted

  def _size(self, count: int, most: int = ROWS) -> int:
    """Rows of a call for `count`: the next power of two that divides over the mesh, at most `most`."""
    ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
    each = -(-min(count, most) // ways)
    return ways * 2 ** (each - 1).bit_length()


class EmbedsImages(Model):
  """An image tower."""
  NEEDS = ("embed_image",)

  def embed_image(self, images) -> np.ndarray:
    """uint8 [B H W 3], or a list of uint8 [H W 3] of any sizes or of PIL images -> float32 [B D], unit norm. Preprocessing inside."""
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
    found = asked.pictures(asked.several(images))
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


class Prompted(Model):
  """What all that draws from prompts shares."""
  NEEDS = ("plan",)

  @property
  def sampling(self) -> dict[str, Any]:
    """steps, guidance and rows (pictures at a time) where a call does not say."""
    return {**SAMPLING, **self.config.get("sampling", {})}

  def _draw(self, prompts: Sequence[str], negative_prompts: str | Sequence[str] | None, rows: Mapping[str, np.ndarray],
            static: Mapping[str, Any], *, steps: int | None, guidance: float | None, sampler: str | None, seeds: int | Sequence[int],
            output: str, long_prompts: str, batch_size: int | None, **options) -> np.ndarray:
    """What every kind of drawing ends in; `rows` and `static` as of `evaluators.base.draw`."""
    decodes = "decode" in self.services.predict
    if output not in ("uint8", "float", "latents") or (output == "latents" and not decodes):
      raise ConfigError(f"output: expected 'uint8' or 'float'{' or latents' * decodes}, found {output!r}"
                        + ("" if decodes else "; this model has no latents but its pixels"))
    if isinstance(negative_prompts, str):
      negative_prompts = [negative_prompts] * len(prompts)
    seeds = asked.seeds(seeds, len(prompts), "prompts")
    asked.numbers(steps=steps or None, batch_size=batch_size)
    for name, given in (("negative_prompts", negative_prompts), *rows.items()):
      if given is not None and len(given) != len(prompts):
        raise ConfigError(f"{name}: expected one for each of the {len(prompts)} prompts, found {len(given)}")
      if name in ("latents", "noisy"):
        asked.noise(name, given, len(prompts))
    tokens, mask, negative = self._words(prompts, negative_prompts, long_prompts)
    own = self.sampling
    with jax.set_mesh(self.mesh):
      made = base.draw(self.services, self.params, tokens, mask, seeds, sampler=sampler, steps=own["steps"] if steps is None else steps,
                       guidance=own["guidance"] if guidance is None else float(guidance), negative=negative,
                       rows={name: np.asarray(value, np.float32) if name in ("latents", "noisy") else np.asarray(value)
                             for name, value in rows.items()},
                       extra=self.extra, size=self._size(len(prompts), batch_size or own["rows"]),
                       static={**static, **(dict(decode=output != "latents") if decodes else {})}, **options)
    return base.to_uint8(made) if output == "uint8" else made

  def _words(self, prompts: Sequence[str], negative: Sequence[str] | None, long_prompts: str):
    """(tokens, mask, (tokens, mask) of the negative prompts or None), all of one length. A "" has no tokens, as captions that training
    drops."""
    if long_prompts not in ("cut", "chunks"):
      raise ConfigError(f"long_prompts: expected 'cut' or 'chunks', found {long_prompts!r}")
    length, texts = self.config["data"]["text_len"], [*prompts, *(negative or ())]
    if long_prompts == "cut":
      tokens, mask = self.tokenize(texts)
      self._warn_of_cuts(texts, length)
    else:
      self.tokenize(texts[:1])                            # refuses a model without a tokenizer
      tokens, mask = self.tokenizer.chunks(texts, length)
    count = len(prompts)
    if negative is None:
      return tokens, mask, None
    said = np.asarray([bool(text.strip()) for text in negative])[:, None]
    return tokens[:count], mask[:count], (np.where(said, tokens[count:], 0), mask[count:] & said)

  def _warn_of_cuts(self, texts: Sequence[str], length: int) -> None:
    lost = [(len(ids) - length, ids) for text in texts if len(ids := self.tokenizer.encode(text)) > length]
    if lost:
      more, ids = lost[0]
      tell(f"{len(lost)} of {len(texts)} prompts are longer than {length} tokens and were cut; the first lost {more}: "
           f"{self.tokenizer.decode(ids[length - 1:])!r:.80}; long_prompts=\"chunks\" encodes all of it")

  def _pixels(self, images, prompts: str | Sequence[str], options: dict[str, Any]) -> tuple[np.ndarray, list[str], list[tuple[int, int]]]:
    """(uint8 [B H W 3], prompts [B]) of one size, and the (height, width) that the pictures had; takes height and width out of the
    options."""
    prompts, found = asked.texts(prompts), asked.pictures(asked.several(images))
    if not found or not prompts:
      raise ConfigError(f"images and prompts: expected at least one of each, found {len(found)} and {len(prompts)}")
    own = self.config["data"]["image_size"]
    height, width = options.pop("height", None), options.pop("width", None)
    asked.numbers(height=height, width=width)
    if "decode" not in self.services.predict:
      height, width = height or own, width or own
    before = [image.shape[:2] for image in found]
    if height or width:
      found = [transforms.cover(image, height=height or own, width=width or own)[0] for image in found]
    sizes = {image.shape[:2] for image in found}
    if len(sizes) > 1:
      shown = " and ".join(f"{high}×{wide}" for high, wide in sorted(sizes)[:2])
      raise ConfigError(f"images: expected one size, found {len(sizes)}, such as {shown}; give height and width")
    count = max(len(found), len(prompts))
    if {len(found), len(prompts)} - {1, count}:
      raise ConfigError(f"images and prompts: expected as many of both, or one of either, found {len(found)} and {len(prompts)}")
    whole = lambda items: items * count if len(items) == 1 else items
    return np.stack(whole(found)), whole(prompts), whole(before)


class Draws(Prompted):
  """Pictures from prompts."""
  NEEDS = ("sample", "plan")

  def generate(self, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *, steps: int | None = None,
               guidance: float | None = None, sampler: str | None = None, seeds: int | Sequence[int] = 0, height: int | None = None,
               width: int | None = None, latents: np.ndarray | None = None, output: Output = "uint8",
               long_prompts: Literal["cut", "chunks"] = "cut", size: np.ndarray | None = None, refiner: Model | None = None,
               handover: float = 0.8, batch_size: int | None = None, **options) -> np.ndarray:
    """Prompts -> pictures [B H W 3], uint8 or float32 in [-1, 1], or the latents float32 [B h w C] that they are decoded from.

    Picture i depends on prompt i, seed i and the other options, not on the batch that it is drawn in.

    Args:
      negative_prompts: what guidance points away from, one for all or one each; None and "" are no caption, as in training.
      steps, guidance, sampler: of the sampler; None is the model's own, `mmdiff.diffusion.plans.SAMPLERS` has the others.
      seeds: one each, or the first of consecutive ones.
      height, width: of the pictures; None is the model's own. Models on pixels draw their own size only.
      latents: float32 [B h w C] of unit normal noise to start from, instead of the seeds'; its size is the picture's.
      long_prompts: prompts beyond the encoder's length are cut, with a line on stderr, or encoded in chunks that are put side by side.
      size: int32 [B 6], where the model reads it: height and width of the original, top and left of the crop, target height and width;
        None is a whole picture of the size that is drawn.
      refiner: another model of the same latents, which goes on from where `handover` of the noise is gone (SDXL's).
      batch_size: pictures drawn at a time; None is as many as there are, up to 64, or 4 for a public model.
      **options: of the plan, such as rescale and eta.
    """
    prompts = asked.texts(prompts)
    asked.numbers(height=height, width=width)
    own = self.config["data"]["image_size"]
    decodes = "decode" in self.services.predict
    if (height or own, width or own) != (own, own) and not decodes:
      raise ConfigError(f"height and width: this model draws {own}×{own}, found {height or own}×{width or own}")
    if latents is not None and "latents" not in inspect.signature(self.services.predict["sample"]).parameters:
      raise ConfigError("latents: this model starts from the noise of seeds only; give seeds")
    rows = {name: value for name, value in dict(latents=latents, size=size).items() if value is not None}
    static = dict(height=height or own, width=width or own) if decodes else {}
    if not prompts:
      return np.zeros((0, own, own, 3), np.uint8 if output == "uint8" else np.float32)
    shared = dict(steps=steps, guidance=guidance, sampler=sampler, seeds=seeds, long_prompts=long_prompts, batch_size=batch_size, **options)
    if refiner is None:
      return self._draw(prompts, negative_prompts, rows, static, output=output, **shared)
    left = self._draw(prompts, negative_prompts, rows, static, output="latents", end=handover, **shared)
    return refiner._draw(prompts, negative_prompts, dict(noisy=left), static, output=output, begin=handover, **shared)


class Edits(Draws):
  """Pictures from pictures and prompts."""
  NEEDS = ("edit", "sample", "plan")

  def img2img(self, images, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *, strength: float = 0.8,
              **as_generate) -> np.ndarray:
    """Pictures drawn anew from part of their noise: [B H W 3] as `generate`.

    Args:
      images: as for `embed_image`, one each or one for all prompts. They keep their size, unless height and width say another; sizes that
        the model can't take are filled up inside.
      strength: share of the steps that are taken, above 0, up to 1, where little of the picture is left.
      **as_generate: other arguments of `generate`; `latents` is the noise that is added.
    """
    pixels, prompts, _ = self._pixels(images, prompts, as_generate)
    return self._edit(pixels, prompts, negative_prompts, {}, strength=float(strength), **as_generate)

  def inpaint(self, images, masks, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *,
              strength: float = 1.0, feather: int = 0, **as_generate) -> np.ndarray:
    """Pictures of which a part is drawn anew: [B H W 3] as `generate`. Pixels outside the mask come back bit for bit.

    Args:
      images, strength, **as_generate: as of `img2img`; a strength of 1 knows nothing of what was within the mask.
      masks: one for each image, or one for all: bool [H W], true where the picture is drawn anew; or a picture, white there, of the image's
        own size (or shape); height and width scale and crop it as the image. What is transparent is not mask.
      feather: pixels within the mask over which the new part fades in.
    """
    if feather < 0:
      raise ConfigError(f"feather: expected 0 pixels or more, found {feather}")
    pixels, prompts, before = self._pixels(images, prompts, as_generate)
    layered = isinstance(masks, np.ndarray) and masks.ndim > 2 and masks.shape[-1] <= 4          # channels come last
    several = isinstance(masks, (list, tuple)) or (isinstance(masks, np.ndarray) and masks.ndim == (4 if layered else 3))
    given = list(masks) if several else [masks]
    given = given * len(pixels) if len(given) == 1 else given
    if len(given) != len(pixels):
      raise ConfigError(f"masks: expected one, or one for each of the {len(pixels)} images, found {len(given)}")
    where = np.stack([masking.covered(masking.read(mask, height=high, width=wide, where=f"mask {i}"), height=pixels.shape[1],
                                      width=pixels.shape[2]) for i, (mask, (high, wide)) in enumerate(zip(given, before))])
    rows = dict(where=where.astype(np.float32), fresh=np.full(len(pixels), strength == 1.0))
    made = self._edit(pixels, prompts, negative_prompts, rows, strength=float(strength), **as_generate)
    output = as_generate.get("output", "uint8")
    if output == "latents":
      return made
    old = pixels if output == "uint8" else pixels.astype(np.float32) / 127.5 - 1
    return np.stack([masking.joined(a, b, masking.weights(mask, feather)) for a, b, mask in zip(old, made, where)])

  def _edit(self, pixels: np.ndarray, prompts: Sequence[str], negative_prompts, rows: Mapping[str, np.ndarray], *, strength: float,
            steps: int | None = None, guidance: float | None = None, sampler: str | None = None, seeds: int | Sequence[int] = 0,
            latents: np.ndarray | None = None, size: np.ndarray | None = None, output: Output = "uint8",
            long_prompts: Literal["cut", "chunks"] = "cut", batch_size: int | None = None, **options) -> np.ndarray:
    more = {name: value for name, value in dict(latents=latents, size=size).items() if value is not None}
    return self._draw(prompts, negative_prompts, {"image": pixels, **rows, **more}, {}, steps=steps, guidance=guidance, sampler=sampler,
                      seeds=seeds, output=output, long_prompts=long_prompts, batch_size=batch_size, strength=strength, **options)


class Enlarges(Prompted):
  """Large pictures from small ones and prompts."""
  NEEDS = ("enlarge", "plan", "small_noise")

  def upscale(self, images, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *, noise_level: int = 20,
              steps: int | None = None, guidance: float | None = None, sampler: str | None = None, seeds: int | Sequence[int] = 0,
              latents: np.ndarray | None = None, small_noise: np.ndarray | None = None, output: Output = "uint8",
              long_prompts: Literal["cut", "chunks"] = "cut", batch_size: int | None = None, **options) -> np.ndarray:
    """Pictures of f times the sides, f of the model's autoencoder, drawn from small ones: [B f·H f·W 3] as `generate`.

    Args:
      images: as for `embed_image`, of one size, one each or one for all prompts.
      noise_level: how much noise is added to the small pictures first, a level of the model's own schedule: more lets it invent more.
      small_noise: float32 [B H W 3] of unit normal noise for that, instead of the seeds'.
      Other arguments as of `generate`.
    """
    pixels, prompts, _ = self._pixels(images, prompts, {})
    alpha, sigma = self.services.predict["small_noise"](noise_level)
    rows = dict(small=pixels, level=np.full(len(pixels), noise_level, np.int32),
                noised=np.asarray([[alpha, sigma]] * len(pixels), np.float32))
    rows |= {name: np.asarray(value, np.float32) for name, value in dict(latents=latents, small_noise=small_noise).items()
             if value is not None}
    return self._draw(prompts, negative_prompts, rows, {}, steps=steps, guidance=guidance, sampler=sampler, seeds=seeds, output=output,
                      long_prompts=long_prompts, batch_size=batch_size, **options)


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


ABILITIES = (EmbedsImages, EmbedsTexts, Compares, EncodesTexts, Autoencodes, Edits, Draws, Enlarges, Captions)
