"""What a call of a model was given, in one form: seeds, pictures and texts, one or many; and options that it has no use for."""
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.ranges import SIDE
from mmdiff.core.spelling import nearest
from mmdiff.data import decode
from mmdiff.data.quarantine import BadRecord

# What other libraries call it -> what it is called here: methods, and options of methods (the first that a method takes).
METHODS = {
  "encode_image": "embed_image", "get_image_features": "embed_image", "image_features": "embed_image", "encode_images": "embed_image",
  "encode_text": "embed_text", "get_text_features": "embed_text", "text_features": "embed_text", "encode_texts": "embed_text",
  "encode_prompt": "encode_text", "sample": "generate", "draw": "generate", "txt2img": "generate", "text2img": "generate",
  "text_to_image": "generate", "image_to_image": "img2img", "edit": "img2img", "predict": "classify", "zero_shot": "classify",
  "zeroshot": "classify", "describe": "caption", "tokenizer_encode": "tokenize",
}
ELSEWHERE = {"save": "mmdiff.save(model, PATH, format=…)", "save_pretrained": "mmdiff.save(model, PATH, format=…)",
             "from_pretrained": "mmdiff.load(PATH)", "load": "mmdiff.load(PATH)", "to": "mmdiff.load(PATH, dtype=…, mesh=…)"}
OPTIONS = {
  "seed": ("seeds",), "generator": ("seeds",), "random_state": ("seeds",), "num_inference_steps": ("steps",), "n_steps": ("steps",),
  "num_steps": ("steps",), "guidance_scale": ("guidance",), "cfg": ("guidance",), "cfg_scale": ("guidance",), "scale": ("guidance",),
  "prompt": ("prompts",), "negative_prompt": ("negative_prompts",), "negative": ("negative_prompts",), "text": ("texts", "prompts"),
  "image": ("images",), "init_image": ("images",), "pictures": ("images",), "mask": ("masks",), "mask_image": ("masks",),
  "scheduler": ("sampler",), "sampler_name": ("sampler",), "sampler_index": ("sampler",), "denoising_strength": ("strength",),
  "output_type": ("output",), "return_type": ("output",), "guidance_rescale": ("rescale",), "num_beams": ("beams",),
  "max_length": ("max_len",), "max_new_tokens": ("max_len",), "min_length": ("min_len",), "classes": ("labels",),
  "class_names": ("labels",), "candidate_labels": ("labels",), "names": ("labels",),
}
COUNTS = ("num_images", "num_images_per_prompt", "num_samples", "n_samples", "n_iter", "count")       # a prompt each is the way here


def named(method: Callable) -> Callable:
  """A method of `abilities.Model` that raises ConfigError for an option which it does not take, with the nearest that it does, or with the
  model's other methods that take it."""
  @functools.wraps(method)
  def call(self, *args, **given):
    known = self.takes(method.__name__) if given else []
    for name in given:
      if name not in known:
        raise ConfigError(f"{method.__name__} takes no {name}{_instead(self, name, known)} (it takes {', '.join(known)})")
    return method(self, *args, **given)
  return call


def _instead(model, name: str, known: Sequence[str]) -> str:
  """What to do instead of giving an option that a method does not take."""
  meant = next((ours for ours in OPTIONS.get(name, ()) if ours in known), None)
  if not meant and name in COUNTS and "prompts" in known:
    return "; a picture is drawn for each prompt: give as many prompts, [prompt] * 4"
  others = [other for other in model.METHODS if inspect.isfunction(getattr(type(model), other, None)) and name in model.takes(other)]
  if others and not meant:
    return f", which {' and '.join(others)} take{'s' * (len(others) == 1)}"
  meant = meant or nearest(name, known)
  return f"; did you mean {meant}?" if meant else ""


def meant_method(name: str, has: Sequence[str]) -> str | None:
  """What someone who asks a model for `name` wants: one of the methods that it has, a function of mmdiff, or None if nothing is near."""
  return METHODS[name] if METHODS.get(name) in has else ELSEWHERE.get(name) or nearest(name, has)


def seeds(seeds: int | Sequence[int], count: int, what: str) -> list[int]:
  """One seed for each of `count`. Raises ConfigError."""
  given = range(seeds, seeds + count) if isinstance(seeds, (int, np.integer)) else seeds
  given = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
  if wrong := [seed for seed in given if not isinstance(seed, (int, np.integer))]:
    raise ConfigError(f"seeds: expected whole numbers from 0 to 2**32 - 1, found {wrong[0]!r:.60}")
  each = [int(seed) for seed in given]
  if len(each) != count:
    raise ConfigError(f"seeds: expected one for each of the {count} {what}, found {len(each)}")
  beyond = [seed for seed in each if not 0 <= seed < 2 ** 32]
  if beyond:
    raise ConfigError(f"seeds: expected whole numbers from 0 to 2**32 - 1, found {beyond[0]}")
  return each


def pictures(images) -> Iterator[np.ndarray]:
  """One picture or many as uint8 [H W 3] each, read one by one. Raises DataError that names the one that is none.

  images: a file's path, a picture of PIL, or an array uint8 [H W 3] ([H W 4], [H W 1], [H W]); several of these, of any sizes; or uint8
  [B H W 3]. Pictures of PIL come upright, by their EXIF orientation, as the same files do where they are read.
  """
  expected = "expected a picture (a path, of PIL, or uint8 [H W 3]), a list of them, or uint8 [B H W 3]"
  if is_picture(images):
    images = [images]
  if not isinstance(images, Iterable) or isinstance(images, (bytes, Mapping)):
    raise DataError(f"images: {expected}, found {type(images).__name__}")
  for i, image in enumerate(images):
    if isinstance(image, (str, os.PathLike)):
      yield decode.of_file(image)
      continue
    try:
      pixels = decode.of_pil(image) if hasattr(image, "getbands") else decode.pixels(np.asarray(image))
    except BadRecord as error:
      raise DataError(f"image {i}: expected a path, a picture of PIL or uint8 [H W 3], found {type(image).__name__}: {error}") from None
    yield pixels


def is_picture(image) -> bool:
  """Whether it is one picture: a path, of PIL, or an array without a batch axis."""
  return isinstance(image, (str, os.PathLike)) or hasattr(image, "getbands") or getattr(image, "ndim", None) in (2, 3)


def numbers(*, least: int = 1, **given) -> None:
  """Raises ConfigError for a count or a side, None aside, that is no whole number from `least` to `SIDE`."""
  for name, value in given.items():
    if value is not None and (not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= SIDE):
      raise ConfigError(f"{name}: expected a whole number from {least} to {SIDE:,}, found {value!r:.60}")


def reals(**given) -> None:
  """Raises ConfigError for a number, None aside, that is none, or not finite."""
  for name, value in given.items():
    if value is not None and (not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool)
                              or not math.isfinite(value)):
      raise ConfigError(f"{name}: expected a finite number, found {value!r:.60}")


def noise(name: str, value, rows: int) -> None:
  """Raises ConfigError unless a value is an array [rows h w C] of finite numbers."""
  shape = np.shape(value)
  if len(shape) != 4 or shape[0] != rows or not np.isfinite(np.asarray(value, np.float32)).all():
    raise ConfigError(f"{name}: expected finite numbers [{rows} h w C], found {list(shape)}"
                      + (" with others among them" if len(shape) == 4 and shape[0] == rows else ""))


def texts(texts: str | Sequence[str]) -> list[str]:
  """One text or several as a list. Raises DataError for what is no text, or holds half a letter, which no tokenizer takes."""
  if not isinstance(texts, Iterable) or isinstance(texts, bytes):
    raise DataError(f"texts: expected a text or a list of them, found {type(texts).__name__}")
  found = [texts] if isinstance(texts, str) else list(texts)
  for i, text in enumerate(found):
    if not isinstance(text, str):
      raise DataError(f"text {i}: expected a text, found {type(text).__name__}")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
      raise DataError(f"text {i}: half of a surrogate pair in {text!r:.60}; it was decoded with the wrong encoding")
  return found
