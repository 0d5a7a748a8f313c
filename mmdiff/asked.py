"""What a call of a model was given, in one form: seeds, pictures and texts, one or many."""
import re
from collections.abc import Iterable, Sequence

import numpy as np

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import decode
from mmdiff.data.quarantine import BadRecord


def seeds(seeds: int | Sequence[int], count: int, what: str) -> list[int]:
  """One seed for each of `count`. Raises ConfigError."""
  each = [int(seed) for seed in (range(seeds, seeds + count) if isinstance(seeds, (int, np.integer)) else seeds)]
  if len(each) != count:
    raise ConfigError(f"seeds: expected one for each of the {count} {what}, found {len(each)}")
  beyond = [seed for seed in each if not 0 <= seed < 2 ** 32]
  if beyond:
    raise ConfigError(f"seeds: expected whole numbers from 0 to 2**32 - 1, found {beyond[0]}")
  return each


def pictures(images) -> list[np.ndarray]:
  """uint8 [B H W 3], or a list of uint8 [H W 3] or of PIL images, as uint8 [H W 3] each. Raises DataError.

  PIL images come upright, by their EXIF orientation, as the same files do where they are read.
  """
  if not isinstance(images, Iterable) or isinstance(images, (str, bytes)):
    raise DataError(f"images: expected uint8 [B H W 3] or a list of pictures, found {type(images).__name__}")
  if isinstance(images, np.ndarray) and images.ndim != 4:
    raise DataError(f"images: expected uint8 [B H W 3] or a list of pictures, found an array {list(images.shape)}")
  found = []
  for i, image in enumerate(images):
    try:
      found.append(decode.pixels(image) if isinstance(image, np.ndarray) else decode.of_pil(image))
    except (BadRecord, AttributeError) as error:
      raise DataError(f"image {i}: expected uint8 [H W 3] or a PIL image, found {type(image).__name__}: {error}") from None
  return found


def several(images):
  """One picture, an array or of PIL, as a list of it."""
  return [images] if getattr(images, "ndim", None) == 3 or hasattr(images, "convert") else images


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
