"""Masks of pictures: what is to be drawn anew, and how the new part joins the rest."""
import os
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mmdiff.core.errors import DataError
from mmdiff.data import decode, transforms
from mmdiff.data.quarantine import BadRecord


def read(mask: Any, *, height: int, width: int, where: str = "mask") -> np.ndarray:
  """A mask as bool [height width], true where the picture is drawn anew: white in a picture, true or above one half in an array. What is
  transparent is never mask, so that white strokes on an empty layer are one.

  mask: a PIL image, or the path of one; or [H W], [H W 1], [H W 2] (grey, alpha), [H W 3] or [H W 4] (RGBA) of bool, of uint8 up to 255,
  or of floats up to 1. An array of whole numbers that are all 0 or 1 counts 1 as white. It has the picture's size, or its shape at another
  scale, which is scaled to the nearest pixel.

  Raises DataError: for other arrays, for another shape, with both sizes, and for a mask in which nothing is to be drawn.
  """
  try:
    values = (decode.of_file(mask, over="black") if isinstance(mask, (str, os.PathLike)) else decode.of_pil(mask, over="black")
              if isinstance(mask, Image.Image) else np.asarray(mask))
  except BadRecord as fault:
    raise DataError(f"{where}: {fault}; expected a picture of 8 or 16 bits a channel, or an array") from None
  if values.ndim not in (2, 3) or values.dtype.kind not in "buif" or not values.size or values.ndim == 3 and values.shape[-1] > 4:
    raise DataError(f"{where}: expected [H W] of bool, uint8 or floats, or a picture, found {values.dtype} {list(values.shape)}")
  least, most = float(values.min()), float(values.max())
  white = 255.0 if values.dtype.kind in "ui" and most > 1 else 1.0
  if not 0 <= least <= most <= white:                     # also what is not a number
    raise DataError(f"{where}: expected bool, whole numbers from 0 to 255 or floats from 0 to 1, found {values.dtype} from {least:g} to "
                    f"{most:g}")
  made = _light(values.astype(np.float32) / white) > 0.5
  if made.shape[0] * width != made.shape[1] * height:
    raise DataError(f"{where}: {made.shape[1]}x{made.shape[0]} pixels, its picture has {width}x{height}; a mask has its picture's size, or "
                    "at least its shape: which part of the picture is meant would be a guess")
  if made.shape != (height, width):
    made = np.asarray(Image.fromarray(made.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)) > 0
  if not made.any():
    raise DataError(f"{where}: nothing in it is to be drawn: white is what is drawn anew, and this mask is black or transparent throughout")
  return made


def _light(values: np.ndarray) -> np.ndarray:
  """[H W C] of 1 to 4 channels in [0, 1], or [H W] -> [H W], the light that is left over black: Rec. 601 luma times alpha."""
  if values.ndim == 2:
    return values
  channels = values.shape[-1]
  light = values[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) if channels > 2 else values[..., 0]
  return light * values[..., -1] if channels in (2, 4) else light


def covered(mask: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """bool [H W] -> bool [height width], scaled and cropped as `transforms.cover` does its picture."""
  return transforms.cover(mask.astype(np.uint8), height=height, width=width, interpolation="nearest")[0] > 0


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
