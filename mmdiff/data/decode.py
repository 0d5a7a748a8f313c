"""Encoded pictures to RGB: the header is judged before a pixel is decoded, and what can go wrong is a closed set of exceptions."""
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

from mmdiff.data.quarantine import BadRecord

try:
  import simplejpeg  # extra `fast`: the same libjpeg-turbo as Pillow's, twice as quick, bit-identical
except ImportError:
  simplejpeg = None

MAX_SIDE = 65_535            # the largest that JPEG can express
MAX_PIXELS = 89_478_485      # Pillow's own bound
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# What Pillow's parsers raise on hostile bytes (UserWarning: where warnings are errors); anything else propagates.
FAULTS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, UserWarning, struct.error,
          zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)
# Remarks on broken metadata, of no use in a training log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Pillow's guard as a second fence: its warning, given between one and two times the bound, becomes an error.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: int = 0, fast: bool = True) -> np.ndarray:
  """Encoded bytes -> uint8 [H W 3].

  The EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit RGB; transparency is laid over white; of an
  animation the first frame is taken; colour profiles are ignored. With `at_least` a JPEG may come out reduced by 2, 4 or 8 in its
  DCT domain, with both sides still at least that long. Raises BadRecord: `oversized` from the header alone, or `undecodable`.
  """
  if not isinstance(data, (bytes, bytearray, memoryview)):
    raise BadRecord("bad_type", f"an encoded image must be bytes, found {type(data).__name__}")
  if max_pixels > Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = max_pixels                # the config allows more than Pillow's bound
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise BadRecord("oversized", str(error)) from None
  except FAULTS as error:
    raise BadRecord("undecodable", f"{len(data)} bytes starting {bytes(data[:8])!r}: {error}") from None
  width, height = image.size
  if width * height > max_pixels or max(width, height) > MAX_SIDE:
    raise BadRecord("oversized", f"{width}x{height}, more than {max_pixels} pixels or a side over {MAX_SIDE}")
  try:
    return _pixels(image, data, at_least, fast)
  except FAULTS as error:
    raise BadRecord("undecodable", f"{image.format} {width}x{height}: {type(error).__name__}: {error}") from None


def _pixels(image: Image.Image, data: bytes, at_least: int, fast: bool) -> np.ndarray:
  plain_jpeg, size = image.format in ("JPEG", "MPO") and image.mode == "RGB", image.size
  if at_least and plain_jpeg:
    image.draft("RGB", (at_least, at_least))
  turned = orientation(image) not in (0, 1)
  if fast and simplejpeg and plain_jpeg and not turned and image.size == size:
    try:
      return simplejpeg.decode_jpeg(data)
    except ValueError:
      pass                                             # stricter than Pillow about harmless faults: Pillow decides
  image.load()
  if turned:
    image = ImageOps.exif_transpose(image)
  return np.asarray(to_rgb(image))


def orientation(image: Image.Image) -> int:
  """The EXIF orientation, 1 to 8; 1 where there is none that can be read."""
  if "exif" not in image.info and image.format not in ("TIFF", "PNG", "WEBP"):
    return 1
  try:
    return image.getexif().get(0x0112, 1)
  except FAULTS:
    return 1                                           # a broken EXIF block does not make a broken picture


def to_rgb(image: Image.Image) -> Image.Image:
  """Any Pillow mode as RGB; transparency over white, 16-bit samples by their high byte."""
  if image.mode == "RGB" and "transparency" not in image.info:
    return image
  if image.mode.startswith("I"):                       # I;16, I;16B, and I for 16-bit PNGs of older Pillows
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 65_535:
      raise ValueError("32-bit samples have no defined range")
    return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
  if image.mode == "F":
    raise ValueError("floating-point samples have no defined range")
  if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
  return image.convert("RGB")


def pixels(image, *, max_pixels: int = MAX_PIXELS, at_least: int = 0) -> np.ndarray:
  """A record's `image`, encoded bytes or an array uint8 [H W 3], [H W 4], [H W 1] or [H W], as uint8 [H W 3]. Raises BadRecord."""
  if not isinstance(image, np.ndarray):
    return decode(image, max_pixels=max_pixels, at_least=at_least)
  if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
    raise BadRecord("bad_type", f"an image array must be uint8 [H W 3], found {image.dtype} {list(image.shape)}")
  if image.shape[0] * image.shape[1] > max_pixels:
    raise BadRecord("oversized", f"{image.shape[1]}x{image.shape[0]}, more than {max_pixels} pixels")
  if image.ndim == 3 and image.shape[2] == 3:
    return image
  return np.asarray(to_rgb(Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)))
