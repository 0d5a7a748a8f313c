"""What models that draw can be asked: pictures from prompts, from pictures and prompts, and large from small ones."""
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mmdiff import asked
from mmdiff.abilities import ROWS, Model
from mmdiff.core.errors import ConfigError
from mmdiff.core.terminal import tell
from mmdiff.data import masking, transforms
from mmdiff.evaluators import base

SAMPLING = dict(steps=20, guidance=2.0, rows=ROWS)       # of models trained here
Output = Literal["pil", "uint8", "float", "latents"]
Pictures = np.ndarray | list[Image.Image]
HANDOVER = 0.8        # share of the noise that is gone when a refiner takes over (SDXL's)
# What a plan takes that is no option of a call: its model's, named by the methods themselves, or what only methods can mean.
OF_METHODS = ("config", "name", "schedule", "sampler", "steps", "guidance", "strength", "begin", "end", "where")
NOISES = ("latents", "noisy", "small_noise")
REAL = ("rescale", "eta", "strength", "clip")


class Prompted(Model):
  """What all that draws from prompts shares."""
  NEEDS = ("plan",)

  @property
  def sampling(self) -> dict[str, Any]:
    """steps, guidance and rows (pictures at a time) where a call does not say."""
    return {**SAMPLING, **self.config.get("sampling", {})}

  def _options(self, method: str) -> list[str]:
    return [name for name in inspect.signature(self.services.predict["plan"]).parameters if name not in OF_METHODS]

  def _draw(self, prompts: Sequence[str], negative_prompts: str | Sequence[str] | None, rows: Mapping[str, np.ndarray],
            static: Mapping[str, Any], *, steps: int | None, guidance: float | None, sampler: str | None, seeds: int | Sequence[int],
            output: str, long_prompts: str, batch_size: int | None, progress: bool | None, **options) -> Pictures:
    """What every kind of drawing ends in; `rows` and `static` as of `evaluators.base.draw`."""
    decodes = "decode" in self.services.predict
    known = [name for name in get_args(Output) if decodes or name != "latents"]
    if output not in known:
      raise ConfigError(f"output: expected one of {', '.join(known)}, found {output!r}"
                        + ("; this model has no latents but its pixels" if output == "latents" else ""))
    if negative_prompts is not None:
      one = isinstance(negative_prompts, str)
      negative_prompts = asked.texts(negative_prompts) * (len(prompts) if one else 1)
    seeds = asked.seeds(seeds, len(prompts), "prompts")
    asked.numbers(steps=steps or None, batch_size=batch_size)
    asked.reals(guidance=guidance, **{name: options.get(name) for name in REAL})
    for name, given in (("negative_prompts", negative_prompts), *rows.items()):
      if given is not None and len(given) != len(prompts):
        raise ConfigError(f"{name}: expected one for each of the {len(prompts)} prompts, found {len(given)}")
      if name in NOISES and given is not None:
        asked.noise(name, given, len(prompts))
    tokens, mask, negative = self._words(prompts, negative_prompts, long_prompts)
    own = self.sampling
    taken = own["steps"] if steps is None else steps
    static = {**static, **(dict(decode=output != "latents") if decodes else {})}
    rows = {name: np.asarray(value, np.float32) if name in NOISES else np.asarray(value) for name, value in rows.items()}
    function = base.drawing_function(rows)
    shapes = (tokens.shape[1], negative is None, *sorted((name, value.shape[1:]) for name, value in rows.items()), *sorted(static.items()))
    with self._running(function, "pictures", len(prompts), shapes, what=f"{function}, {taken} steps", work=taken,
                       batch_size=batch_size, most=own["rows"], progress=progress) as (services, size):
      made = base.draw(services, self.params, tokens, mask, seeds, sampler=sampler, steps=taken,
                       guidance=own["guidance"] if guidance is None else float(guidance), negative=negative, rows=rows, extra=self.extra,
                       size=size, static=static, **options)
    return finished(made, output)

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
    prompts, found = asked.texts(prompts), list(asked.pictures(images))
    if not found or not prompts:
      raise ConfigError(f"images and prompts: expected at least one of each, found {len(found)} and {len(prompts)}")
    own = self.config["data"]["image_size"]
    height, width = options.pop("height", None), options.pop("width", None)
    refuse(self, height=height, width=width)
    if "decode" not in self.services.predict:
      height, width = own, own
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
               width: int | None = None, latents: np.ndarray | None = None, output: Output = "pil",
               long_prompts: Literal["cut", "chunks"] = "cut", size: np.ndarray | None = None, refiner: Model | None = None,
               handover: float | None = None, batch_size: int | None = None, progress: bool | None = None, **options) -> Pictures:
    """Prompts -> a list of pictures of PIL; or, by `output`, arrays.

    Picture i depends on prompt i, seed i and the other options, not on the batch that it is drawn in.

    Args:
      negative_prompts: what guidance points away from, one for all or one each; None and "" are no caption, as in training.
      steps, guidance, sampler: of the sampler; None is the model's own, `mmdiff.diffusion.plans.SAMPLERS` has the others.
      seeds: one each, or the first of consecutive ones.
      height, width: of the pictures; None is the model's own. Models on pixels draw their own size only.
      latents: float32 [B h w C] of unit normal noise to start from, instead of the seeds'; its size is the picture's.
      output: "pil"; "uint8", an array [B H W 3]; "float", one of float32 in [-1, 1]; or "latents", float32 [B h w C], which `decode` takes.
      long_prompts: prompts beyond the encoder's length are cut, with a line on stderr, or encoded in chunks that are put side by side.
      size: int32 [B 6], where the model reads it: height and width of the original, top and left of the crop, target height and width;
        None is a whole picture of the size that is drawn.
      refiner: another model of the same latents, which goes on from where `handover` of the noise is gone (SDXL's); None is 0.8 of it.
      batch_size: pictures drawn at a time; None is as many as there are, up to 64, or 4 for a public model, or of a number that was
        compiled before and serves (`abilities.fitting`).
      progress: whether a line on stderr tells of compiling, and how far it is; None: on a terminal and in a notebook.
      **options: of the plan, such as rescale and eta.
    """
    prompts = asked.texts(prompts)
    refuse(self, height=height, width=width, refiner=refiner, handover=handover)
    own = self.config["data"]["image_size"]
    if latents is not None and "latents" not in inspect.signature(self.services.predict["sample"]).parameters:
      raise ConfigError("latents: this model starts from the noise of seeds only; give seeds")
    rows = {name: value for name, value in dict(latents=latents, size=size).items() if value is not None}
    static = dict(height=height, width=width) if "decode" in self.services.predict else {}
    if not prompts:
      return finished(np.zeros((0, height or own, width or own, 3), np.float32), output)
    shared = dict(steps=steps, guidance=guidance, sampler=sampler, seeds=seeds, long_prompts=long_prompts, batch_size=batch_size,
                  progress=progress, **options)
    if refiner is None:
      return self._draw(prompts, negative_prompts, rows, static, output=output, **shared)
    handover = HANDOVER if handover is None else float(handover)
    left = self._draw(prompts, negative_prompts, rows, static, output="latents", end=handover, **shared)
    more = {name: value for name, value in rows.items() if name == "size"}
    return refiner._draw(prompts, negative_prompts, dict(noisy=left, **more), static, output=output, begin=handover, **shared)


class Edits(Draws):
  """Pictures from pictures and prompts."""
  NEEDS = ("edit", "sample", "plan")

  def _options(self, method: str) -> list[str]:
    if method not in ("img2img", "inpaint"):
      return super()._options(method)
    return [name for name in self.takes("generate") if name not in ("refiner", "handover")]

  def img2img(self, images, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *, strength: float = 0.8,
              **as_generate) -> Pictures:
    """Pictures drawn anew from part of their noise, returned as by `generate`.

    Args:
      images: as for `embed_image`, one each or one for all prompts. They keep their size, unless height and width say another; sizes that
        the model can't take are filled up inside.
      strength: share of the steps that are taken, above 0, up to 1, where little of the picture is left.
      **as_generate: other arguments of `generate`; `latents` is the noise that is added.
    """
    asked.reals(strength=strength)
    pixels, prompts, _ = self._pixels(images, prompts, as_generate)
    return self._edit(pixels, prompts, negative_prompts, {}, strength=float(strength), **as_generate)

  def inpaint(self, images, masks, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *,
              strength: float = 1.0, feather: int = 0, output: Output = "pil", **as_generate) -> Pictures:
    """Pictures of which a part is drawn anew, returned as by `generate`. Pixels outside the mask come back bit for bit.

    Args:
      images, strength, **as_generate: as of `img2img`; a strength of 1 knows nothing of what was within the mask.
      masks: one for each image, or one for all: bool [H W], true where the picture is drawn anew; or a picture or the path of one, white
        there, of the image's own size (or shape); height and width scale and crop it as the image. What is transparent is not mask.
      feather: pixels within the mask over which the new part fades in.
    """
    asked.reals(strength=strength)
    asked.numbers(least=0, feather=feather)
    if feather and output == "latents":
      raise ConfigError("feather: fades pixels, and output='latents' has none; leave it out")
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
    made = self._edit(pixels, prompts, negative_prompts, rows, strength=float(strength), output="uint8" if output == "pil" else output,
                      **as_generate)
    if output == "latents":
      return made
    old = pixels.astype(np.float32) / 127.5 - 1 if output == "float" else pixels
    whole = np.stack([masking.joined(a, b, masking.weights(mask, feather)) for a, b, mask in zip(old, made, where)])
    return as_pil(whole) if output == "pil" else whole

  def _edit(self, pixels: np.ndarray, prompts: Sequence[str], negative_prompts, rows: Mapping[str, np.ndarray], *, strength: float,
            steps: int | None = None, guidance: float | None = None, sampler: str | None = None, seeds: int | Sequence[int] = 0,
            latents: np.ndarray | None = None, size: np.ndarray | None = None, output: Output = "pil",
            long_prompts: Literal["cut", "chunks"] = "cut", batch_size: int | None = None, progress: bool | None = None,
             **options) -> Pictures:
    more = {name: value for name, value in dict(latents=latents, size=size).items() if value is not None}
    return self._draw(prompts, negative_prompts, {"image": pixels, **rows, **more}, {}, steps=steps, guidance=guidance, sampler=sampler,
                      seeds=seeds, output=output, long_prompts=long_prompts, batch_size=batch_size, progress=progress, strength=strength,
                      **options)


class Enlarges(Prompted):
  """Large pictures from small ones and prompts."""
  NEEDS = ("enlarge", "plan", "small_noise")

  def upscale(self, images, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *, noise_level: int = 20,
              steps: int | None = None, guidance: float | None = None, sampler: str | None = None, seeds: int | Sequence[int] = 0,
              latents: np.ndarray | None = None, small_noise: np.ndarray | None = None, output: Output = "pil",
              long_prompts: Literal["cut", "chunks"] = "cut", batch_size: int | None = None, progress: bool | None = None,
              **options) -> Pictures:
    """Pictures of f times the sides, f of the model's autoencoder, drawn from small ones, returned as by `generate`.

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
    rows |= {name: value for name, value in dict(latents=latents, small_noise=small_noise).items() if value is not None}
    return self._draw(prompts, negative_prompts, rows, {}, steps=steps, guidance=guidance, sampler=sampler, seeds=seeds, output=output,
                      long_prompts=long_prompts, batch_size=batch_size, progress=progress, **options)


def finished(made: np.ndarray, output: str) -> Pictures:
  """Pictures float32 [B H W 3] in [-1, 1], or latents, as what a call asked for."""
  if output not in ("pil", "uint8"):
    return made
  pixels = base.to_uint8(made)
  return pixels if output == "uint8" else as_pil(pixels)


def as_pil(pixels: np.ndarray) -> list[Image.Image]:
  """uint8 [B H W 3] as pictures, which a notebook shows and `.save("x.png")` writes."""
  return [Image.fromarray(one) for one in pixels]


def refuse(model: Model, *, height: int | None = None, width: int | None = None, refiner: Any = None,
           handover: float | None = None) -> None:
  """Raises ConfigError for options of a drawing that a model can't honour, before anything is drawn."""
  asked.numbers(height=height, width=width)
  asked.reals(handover=handover)
  own = model.config["data"]["image_size"]
  if "decode" not in model.services.predict and (height or own, width or own) != (own, own):
    raise ConfigError(f"height and width: this model draws {own}×{own}, found {height or own}×{width or own}")
  if refiner is None:
    if handover is not None:
      raise ConfigError("handover: says when a refiner takes over, and there is none; give refiner, or leave it out")
    return
  if not isinstance(refiner, Model):
    raise ConfigError(f"refiner: expected a text-to-image model, as mmdiff.load returns it, found {type(refiner).__name__}")
  if not hasattr(refiner, "generate"):
    raise ConfigError(f"refiner: {refiner.without('generate')}")
  for one in (model, refiner):
    if "decode" not in one.services.predict or "begin" not in inspect.signature(one.services.predict["plan"]).parameters:
      raise ConfigError(f"refiner: {one.report['path']} was trained here: only public models on latents leave part of the noise to another")
  if handover is not None and not 0 < handover < 1:
    raise ConfigError(f"handover: expected a number above 0, below 1, found {handover}")
