"""Encoded pictures to RGB: the header is judged before a pixel is decoded, and what can go wrong is a closed set of exceptions.

Nothing here changes Pillow or Python's warnings for the rest of the process.
"""
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mmdiff.core.errors import DataError
from mmdiff.data.quarantine import BadRecord

try:
  import simplejpeg  # extra `fast`: the same libjpeg-turbo as Pillow's, twice as quick, bit-identical
except ImportError:
  simplejpeg = None

MAX_SIDE = 65_535            # the largest that JPEG can express
MAX_PIXELS = 89_478_485      # Pillow's own bound
MAX_BYTES = 2**30            # of memory that decoding one picture may take
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# What Pillow's parsers raise on hostile bytes (UserWarning: where warnings are errors); anything else propagates.
FAULTS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, UserWarning, struct.error,
          zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)
STRIP = 1 << 20              # pixels that are converted at a time
# EXIF orientation -> what puts the picture upright, as views.
UPRIGHT = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.transpose(1, 0, 2),
           6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2), 8: lambda x: np.rot90(x)}
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")             # chunks of a PNG of which no pixel depends
ORIENTED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts that may say which way is up
MAX_TEXT = 2**16             # bytes of those


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, at_least: int = 0, fast: bool = True,
           over: str = "white") -> np.ndarray:
  """Encoded bytes -> uint8 [H W 3].

  The EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit RGB; transparency is laid over a colour; of an
  animation the first frame is taken; colour profiles are ignored. With `at_least` a JPEG may come out reduced by 2, 4 or 8 in its
  DCT domain, with both sides still at least that long. Raises BadRecord: `oversized` from the header alone, or `undecodable`.
  """
  if not isinstance(data, (bytes, bytearray, memoryview)):
    raise BadRecord("bad_type", f"an encoded image must be bytes, found {type(data).__name__}")
  try:
    return _decoded(data, max_pixels, max_bytes, at_least, fast, over)
  except BadRecord as fault:
    if fault.kind != "undecodable" or bytes(data[:8]) != PNG or len(bare := without_texts(data)) == len(data):
      raise
    return _decoded(bare, max_pixels, max_bytes, at_least, fast, over)     # a sound picture with more text than Pillow reads


def _decoded(data: bytes, max_pixels: int, max_bytes: int, at_least: int, fast: bool, over: str) -> np.ndarray:
  try:
    image = opened(data)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise BadRecord("oversized", str(error)) from None
  except FAULTS as error:
    raise BadRecord("undecodable", f"{len(data)} bytes starting {bytes(data[:8])!r}: {error}") from None
  return _judged(image, lambda: _pixels(image, data, at_least, fast, over), max_pixels, max_bytes)


def _judged(image: Image.Image, made: Callable[[], np.ndarray], max_pixels: int, max_bytes: int) -> np.ndarray:
  """`made()`, once the picture's size and mode are judged. Raises BadRecord."""
  width, height = image.size
  if width * height > max_pixels or max(width, height) > MAX_SIDE:
    raise BadRecord("oversized", f"{width}x{height}, more than {max_pixels} pixels or a side over {MAX_SIDE}")
  if (cost := bytes_to_decode(image)) > max_bytes:
    raise BadRecord("oversized", f"{image.format} {width}x{height} {image.mode}: {cost:,} bytes of memory to decode, more than "
                    f"{max_bytes:,}")
  try:
    return made()
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:      # of a TIFF's tile
    raise BadRecord("oversized", str(error)) from None
  except FAULTS as error:
    raise BadRecord("undecodable", f"{image.format or image.mode} {width}x{height}: {type(error).__name__}: {error}") from None


def of_pil(image: Image.Image, *, over: str = "white", max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> np.ndarray:
  """A picture that Pillow opened or made, as uint8 [H W 3], treated as `decode` treats its file: the EXIF orientation is applied (what
  `ImageOps.exif_transpose` returns has none any more), and the size is judged before the pixels are read. Raises BadRecord."""
  def made() -> np.ndarray:
    image.load()
    turn, found = UPRIGHT.get(orientation(image)), _converted(image, over)
    return np.ascontiguousarray(turn(found)) if turn else found
  return _judged(image, made, max_pixels, max_bytes)


def of_file(path: str | os.PathLike, *, over: str = "white") -> np.ndarray:
  """A picture's file as uint8 [H W 3], as `decode` reads it. Raises DataError that names it."""
  file = Path(path).expanduser()
  try:
    return decode(file.read_bytes(), over=over)
  except FileNotFoundError:
    raise DataError(f"{path}: no such file; expected a picture") from None
  except IsADirectoryError:
    raise DataError(f"{path}: a folder; expected a picture, or a list of them: sorted(Path({str(path)!r}).glob('*.png'))") from None
  except (BadRecord, OSError) as error:
    raise DataError(f"{path}: cannot be read as a picture: {error}") from None


def opened(data: bytes) -> Image.Image:
  """The picture's header, read as `Image.open` does, but for its bound of pixels, which is one for the whole process. Raises `FAULTS`."""
  for name in FORMATS:
    if name not in Image.OPEN:
      Image.init()                                     # registers Pillow's formats, which it does when it first needs to
    factory, accept = Image.OPEN[name]
    if accept is None or accept(bytes(data[:16])) is True:
      try:
        return factory(io.BytesIO(data), "")           # type: ignore[return-value]
      except (SyntaxError, IndexError, TypeError, struct.error):
        continue                                       # as Pillow: perhaps another format knows it
  raise Image.UnidentifiedImageError("no picture of a format that is read here")


def header(data: bytes) -> Image.Image:
  """The same of a picture that `decode` would read, with texts that Pillow refuses left out. Raises `FAULTS`."""
  try:
    return opened(data)
  except FAULTS:
    if bytes(data[:8]) != PNG:
      raise
    return opened(without_texts(data))


def bytes_to_decode(image: Image.Image) -> int:
  """Upper estimate, from the header, of the memory that decoding takes: the decoder's own, Pillow's picture, and the result."""
  bands = len(image.getbands())
  stored = 1 if bands == 1 and image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
  deep = any(mark in str(tile) for tile in getattr(image, "tile", ()) for mark in ("16", "32"))
  working = 0
  if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
    working = 2 * bands                                # all coefficients, 16 bits each
  elif image.format == "WEBP":
    working = 4 * 4                                    # two canvases, the frame and its copy, RGBA
  elif image.format in ("TIFF", "PPM", "BMP", "GIF"):
    working = bands * (4 if deep or image.mode in ("I", "F") else 2)       # a strip or tile of it may be the whole picture
  turned = 4 if told_orientation(image, b"") in UPRIGHT else 0
  pixels = image.size[0] * image.size[1]
  return pixels * (stored + working + 3 + turned) + min(pixels, STRIP) * 16


def told_orientation(image: Image.Image, data: bytes) -> int:
  """`orientation` without decoding a pixel, which Pillow does to look for a PNG's, that may stand after them."""
  if image.format != "PNG" or "exif" in image.info or any(mark[:-1].decode() in image.info for mark in ORIENTED):
    return orientation(image)
  late = next((body for kind, body in chunks(data) if kind == b"eXIf"), None)
  try:
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + bytes(late or b""))
    return exif.get(0x0112, 1) if late else 1
  except FAULTS:
    return 1


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
  """(kind, body) of the chunks of a PNG, as far as it goes."""
  at, view = len(PNG), memoryview(data)
  while at + 12 <= len(data):
    end = at + 12 + int.from_bytes(view[at:at + 4], "big")
    yield bytes(view[at + 4:at + 8]), view[at + 8:end - 4]
    at = end


def without_texts(data: bytes) -> bytes:
  """A PNG without colour profiles and texts but for a short one that says which way is up; damaged bytes as they are."""
  kept, at = [PNG], len(PNG)
  for kind, body in chunks(data):
    end = at + 12 + int.from_bytes(data[at:at + 4], "big")
    if kind not in TEXTS or bytes(body[:24]).startswith(ORIENTED) and len(body) <= MAX_TEXT and _short(kind, body):
      kept.append(bytes(data[at:end]))
    at = end
  return b"".join(kept)


def _short(kind: bytes, body: memoryview) -> bool:
  """Whether a text chunk holds at most `MAX_TEXT` bytes when it is unpacked."""
  packed = body if kind == b"tEXt" else bytes(body).split(b"\0", 1)[1]
  if kind == b"tEXt" or kind == b"iTXt" and packed[:1] == b"\0":
    return True
  stream = bytes(packed[1:]) if kind == b"zTXt" else bytes(packed[2:]).split(b"\0", 2)[-1]
  unpacker = zlib.decompressobj()
  try:
    unpacker.decompress(stream, MAX_TEXT)
  except zlib.error:
    return False
  return not unpacker.unconsumed_tail


def _pixels(image: Image.Image, data: bytes, at_least: int, fast: bool, over: str) -> np.ndarray:
  plain_jpeg, size = image.format in ("JPEG", "MPO") and image.mode == "RGB", image.size
  if at_least and plain_jpeg:
    image.draft("RGB", (at_least, at_least))
  if fast and simplejpeg and plain_jpeg and image.size == size and orientation(image) not in UPRIGHT:
    try:
      return simplejpeg.decode_jpeg(data)
    except ValueError:
      pass                                             # stricter than Pillow about harmless faults: Pillow decides
  image.load()
  turn = UPRIGHT.get(orientation(image))               # of a TIFF there is none any more: Pillow turns it while it loads
  made = _converted(image, over)
  return np.ascontiguousarray(turn(made)) if turn else made


def _converted(image: Image.Image, over: str) -> np.ndarray:
  """`to_rgb` as an array, a strip at a time where the picture is large, so that there are never several copies of all of it."""
  width, height = image.size
  rows = max(1, STRIP // width)
  if rows >= height:
    return np.asarray(to_rgb(image, over=over))
  made = np.empty((height, width, 3), np.uint8)
  for top in range(0, height, rows):
    made[top:top + rows] = np.asarray(to_rgb(image.crop((0, top, width, min(height, top + rows))), over=over))
  return made


def orientation(image: Image.Image) -> int:
  """The EXIF orientation, 1 to 8; 1 where there is none that can be read."""
  if "exif" not in image.info and image.format not in ("TIFF", "PNG", "WEBP"):
    return 1
  try:
    return image.getexif().get(0x0112, 1)
  except FAULTS:
    return 1                                           # a broken EXIF block does not make a broken picture


def to_rgb(image: Image.Image, *, over: str = "white") -> Image.Image:
  """Any Pillow mode as RGB; transparency over a colour, 16-bit samples by their high byte."""
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
    return Image.alpha_composite(Image.new("RGBA", image.size, over), image).convert("RGB")
  return image.convert("RGB")


def pixels(image, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, at_least: int = 0) -> np.ndarray:
  """A record's `image`, encoded bytes or an array uint8 [H W 3], [H W 4], [H W 1] or [H W], as uint8 [H W 3]. Raises BadRecord."""
  if not isinstance(image, np.ndarray):
    return decode(image, max_pixels=max_pixels, max_bytes=max_bytes, at_least=at_least)
  if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
    raise BadRecord("bad_type", f"an image array must be uint8 [H W 3], found {image.dtype} {list(image.shape)}")
  if image.shape[0] * image.shape[1] > max_pixels:
    raise BadRecord("oversized", f"{image.shape[1]}x{image.shape[0]}, more than {max_pixels} pixels")
  if image.ndim == 3 and image.shape[2] == 3:
    return image
  return np.asarray(to_rgb(Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)))
