"""Masks of pictures: what is to be drawn anew, and how the new part joins the rest."""
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mmdiff.core.errors import DataError


def read(mask: Any, *, height: int, width: int, where: str = "mask") -> np.ndarray:
  """A mask as bool [height width], true where the picture is drawn anew: white in a picture, true or above one half in an array.

  mask: [H W] of bool, of uint8 up to 255, or of floats up to 1; or a PIL image. Another size is scaled to the nearest pixel.

  Raises DataError.
  """
  values = np.asarray(mask.convert("L")) if isinstance(mask, Image.Image) else np.asarray(mask)
  if values.ndim == 3 and values.shape[-1] in (1, 3):
    values = values[..., 0]
  if values.ndim != 2 or values.dtype.kind not in "buif" or not values.size:
    raise DataError(f"{where}: expected [H W] of bool, uint8 or floats, or a picture, found {values.dtype} {list(values.shape)}")
  made = values > 0.5 * (255 if values.dtype.kind in "ui" and values.max() > 1 else 1)
  if made.shape != (height, width):
    made = np.asarray(Image.fromarray(made.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)) > 0
  return made


def weights(mask: np.ndarray, feather: int) -> np.ndarray:
  """bool [H W] -> float32 [H W]: how much of each pixel is new. 0 outside the mask; inside it rises over `feather` pixels to 1."""
  picture = Image.fromarray(np.pad(mask, 1, mode="edge").astype(np.uint8) * 255)
  total = np.zeros(mask.shape, np.float32)
  for step in range(feather + 1):
    total += np.asarray(picture)[1:-1, 1:-1] > 0
    if step < feather:
      picture = picture.filter(ImageFilter.MinFilter(3))
  return total / (feather + 1)


def joined(old: np.ndarray, new: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """[H W 3] of one dtype, of old and new by weight [H W]; where the weight is 0 the old is kept bit for bit."""
  w = weight[..., None]
  mixed = old + w * (new.astype(np.float32) - old)
  mixed = np.rint(mixed) if old.dtype == np.uint8 else mixed
  return np.where(w >= 1, new, np.where(w > 0, mixed.astype(old.dtype), old))
