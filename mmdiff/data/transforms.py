"""Pictures to the training size: uint8 [H W 3] -> uint8 [S S 3]. A picture that has the size already passes bit-exactly."""
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

from mmdiff.core.errors import ConfigError

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS,
                  "nearest": Image.Resampling.NEAREST}
RESIZES = ("crop", "squash", "pad")
RATIO = (3 / 4, 4 / 3)       # width to height of random crops, as torchvision's RandomResizedCrop


def check(*, image_size: int, resize: str, interpolation: str, crop: tuple[float, ...]) -> None:
  """Raises ConfigError that names every wrong key."""
  problems = []
  if image_size < 1:
    problems.append(f"data.image_size: expected at least 1, found {image_size}")
  if resize not in RESIZES:
    problems.append(f"data.resize: unknown value {resize!r}; known: {', '.join(RESIZES)}")
  if interpolation not in INTERPOLATIONS:
    problems.append(f"data.interpolation: unknown value {interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
  if crop and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
    problems.append(f"data.augment.crop: expected (min area, max area) with 0 < min <= max <= 1, or (), found {tuple(crop)}")
  if problems:
    raise ConfigError("\n".join(problems))


def check_augment(augment: Mapping, *, bucketed: bool, has_latents: bool) -> None:
  """Raises ConfigError for augmentation that buckets or precomputed latents rule out."""
  drawn = [name for name, off in (("crop", ()), ("flip", False), ("position", "centre")) if (augment.get(name) or off) != off]
  if has_latents and drawn:
    raise ConfigError(f"data.augment.{drawn[0]}: precomputed latents are those of one fixed crop of each picture; leave augmentation out, "
                      "or leave data.features out and encode pictures as they are trained on")
  if bucketed and "crop" in drawn:
    raise ConfigError("data.augment.crop: in data.buckets a picture keeps its shape; leave the crop out, or set "
                      "data.augment.position=random")
  if not bucketed and "position" in drawn:
    raise ConfigError("data.augment.position: only for data.buckets; without them data.augment.crop draws a part of the picture")


def fit(image: np.ndarray, *, size: int, resize: str = "crop", interpolation: str = "bicubic") -> np.ndarray:
  """uint8 [H W 3] -> uint8 [size size 3].

  "crop": the shorter side becomes `size`, then the centre is cropped, with the rounding of torchvision's Resize and CenterCrop (as in
  openai/CLIP). "squash": both sides become `size` (SigLIP). "pad": the longer side becomes `size`, the rest is black (open_clip).
  """
  height, width = image.shape[:2]
  if height == width == size:
    return image
  if resize == "squash":
    return _resample(image, size, size, None, interpolation)
  short, long = min(height, width), max(height, width)
  if resize == "pad":
    new_h, new_w = max(1, round(height * size / long)), max(1, round(width * size / long))
    out = np.zeros((size, size, 3), np.uint8)
    top, left = (size - new_h) // 2, (size - new_w) // 2
    out[top:top + new_h, left:left + new_w] = _resample(image, new_h, new_w, None, interpolation)
    return out
  new_long = int(size * long / short)
  new_h, new_w = (new_long, size) if height >= width else (size, new_long)
  top, left = round((new_h - size) / 2), round((new_w - size) / 2)
  if new_long <= 4 * size:
    return _resample(image, new_h, new_w, None, interpolation)[top:top + size, left:left + size]
  # A 1x2000 picture would become 224x448,000 first; Pillow resamples just the part that is kept.
  y, x = height / new_h, width / new_w
  return _resample(image, size, size, (left * x, top * y, min(width, (left + size) * x), min(height, (top + size) * y)), interpolation)


def fitted(height: int, width: int, *, size: int, resize: str = "crop", mirrored: bool = False) -> tuple[int, ...]:
  """The `size` (see `cover`) of a picture of these sides that `fit` brings to [size size]. Padding is a crop that begins outside."""
  if resize == "squash" or height == width == size:
    return height, width, 0, 0, size, size
  short, long = min(height, width), max(height, width)
  if resize == "pad":
    new_h, new_w = max(1, round(height * size / long)), max(1, round(width * size / long))
    top, left = -((size - new_h) // 2), -((size - new_w) // 2)
  else:
    new_long = int(size * long / short)
    new_h, new_w = (new_long, size) if height >= width else (size, new_long)
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
  return height, width, top, new_w - size - left if mirrored else left, size, size


def cover(image: np.ndarray, *, height: int, width: int, at: tuple[float, float] = (0.5, 0.5), mirrored: bool = False,
          interpolation: str = "bicubic") -> tuple[np.ndarray, tuple[int, ...]]:
  """uint8 [h w 3] -> (uint8 [height width 3], its `size`): resized until it just covers the target, then cropped.

  at: where the crop lies, from (0, 0), top and left, to (1, 1); the centre has the rounding of torchvision's CenterCrop.
  mirrored: the picture is mirrored before the crop, so that the crop's coordinates are those of what is seen.

  size, the conditions of SDXL (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.2): original height and width, the crop's
  top and left in the resized picture, target height and width. Of pictures without a bucket `fitted` and `cropped` say it.
  """
  h, w = image.shape[:2]
  tall = height * w >= h * width                                          # the height is what limits
  full_h, full_w = (height, height * w // h) if tall else (width * h // w, width)
  top, left = round((full_h - height) * at[0]), round((full_w - width) * at[1])
  size = (h, w, top, left, height, width)
  if mirrored:
    image = image[:, ::-1]
  if (full_h, full_w) == (height, width):
    return _resample(image, height, width, None, interpolation), size
  y, x = h / full_h, w / full_w
  return _resample(image, height, width, (left * x, top * y, min(w, (left + width) * x), min(h, (top + height) * y)), interpolation), size


def random_crop(image: np.ndarray, *, size: int, area: tuple[float, float], rng: np.random.Generator,
                interpolation: str = "bicubic") -> np.ndarray:
  """A random part of between `area` of the picture, ratio log-uniform in `RATIO`, resized to [size size 3].

  Szegedy et al. 2015 (https://arxiv.org/abs/1409.4842), as torchvision's RandomResizedCrop: ten tries, then the centre.
  """
  box = random_box(*image.shape[:2], area=area, rng=rng)
  if box is None:
    return fit(image, size=size, resize="crop", interpolation=interpolation)
  return part(image, box, size=size, interpolation=interpolation)


def part(image: np.ndarray, box: tuple[int, int, int, int], *, size: int, interpolation: str = "bicubic") -> np.ndarray:
  """The box (top, left, height, width) of a picture as uint8 [size size 3]."""
  top, left, h, w = box
  return _resample(image[top:top + h, left:left + w], size, size, None, interpolation)


def random_box(height: int, width: int, *, area: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int] | None:
  """(top, left, height, width) of `random_crop`; None after ten tries."""
  for _ in range(10):
    pixels = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
  return None


def cropped(height: int, width: int, box: tuple[int, int, int, int], *, of: tuple[int, int], size: int,
            mirrored: bool = False) -> tuple[int, ...]:
  """The `size` (see `cover`) of a picture of these sides that was decoded to `of` (height, width), of which `box` became [size size]."""
  top, left, h, w = box
  right = of[1] - left - w if mirrored else left
  return height, width, round(top * size / h), round(right * size / w), size, size


def _resample(image: np.ndarray, height: int, width: int, box, interpolation: str) -> np.ndarray:
  if box is None and image.shape[:2] == (height, width):
    return image
  picture = Image.fromarray(np.ascontiguousarray(image))
  return np.asarray(picture.resize((width, height), INTERPOLATIONS[interpolation], box=box))
