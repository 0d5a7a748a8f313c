"""Whether a record can be used, read to its last pixel and caption. What `mmdiff data validate` counts as bad, `mmdiff data shard` leaves
out: both ask here."""
import collections
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmdiff.core.ranges import wrong_text
from mmdiff.core.terminal import escaped
from mmdiff.data import captions, decode, pipelines, records
from mmdiff.data.quarantine import BadRecord, Offence

SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
AHEAD = 8                            # records for each thread that are read before their turn


class Limits(NamedTuple):
  """Beyond which a picture is bad, whatever is in it."""
  max_pixels: int = decode.MAX_PIXELS
  max_bytes: int = decode.MAX_BYTES  # of memory that decoding it takes


LIMITS = Limits()


class Seen(NamedTuple):
  """What one record turned out to be."""
  key: str
  fault: Offence | None
  format: str                        # jpg, png, …, "array"
  width: int
  height: int
  words: dict[str, list[int]]        # caption kind -> words of each text
  record: Mapping[str, Any]          # {} for a bad one, and where nobody asked to keep it


def encoded(image: Any) -> tuple[bytes, str]:
  """(bytes, suffix): encoded bytes as they are, uint8 [H W 3] as PNG. BadRecord: undecodable for bytes of no known picture format, bad_type
  for an array that is no picture, oversized for more bytes than a reader takes."""
  if isinstance(image, np.ndarray):
    buffer = io.BytesIO()
    try:
      Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG")
    except (TypeError, ValueError, OSError, SystemError) as error:
      raise BadRecord("bad_type", f"an array of {image.dtype} {list(image.shape)} is no picture: {error}") from None
    image = buffer.getvalue()
  if not isinstance(image, (bytes, bytearray, memoryview)):
    raise BadRecord("bad_type", f"expected bytes or an array, found {type(image).__name__}")
  data = bytes(image)
  suffix = next((suffix for head, suffix in SIGNATURES.items() if data.startswith(head)), "")
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    suffix = "webp"
  if not suffix:
    raise BadRecord("undecodable", f"starts with {data[:8]!r}")
  if len(data) > records.MAX_PICTURE_BYTES:
    raise BadRecord("oversized", f"{len(data):,} bytes, more than {records.MAX_PICTURE_BYTES:,}")
  return data, suffix


def offence(fault: BadRecord, key: str) -> Offence:
  """A fault for a report, of the record of that key where the fault names none. Names may hold half letters, which no report can be
  written with."""
  return Offence(escaped(fault.key or key), fault.kind, escaped(fault.detail))


def look(source: Any, i: int, *, limits: Limits = LIMITS, keep: bool = False) -> Seen:
  """Reads record `i` to the last pixel and caption. keep: hand it out with what was seen."""
  key = f"#{i}"
  try:
    record = source[i]
    key = pipelines.key_of(record)
    if wrong := wrong_text(key):
      raise BadRecord("unreadable", f"its key: {wrong}, which no result could name", f"#{i}")
    kind = "array" if isinstance(record["image"], np.ndarray) else encoded(record["image"])[1]
    height, width = decode.pixels(record["image"], max_pixels=limits.max_pixels, max_bytes=limits.max_bytes).shape[:2]
    words = _words(source, record["captions"], key)
    records.as_json({"key": key, "captions": record["captions"]} | records.extras_of(record), key=key)
    return Seen(key, None, kind, width, height, words, record if keep else {})
  except BadRecord as fault:
    found = offence(fault, key)
    return Seen(found.key, found, "", 0, 0, {}, {})


def _words(source: Any, texts: Any, key: str) -> dict[str, list[int]]:
  """The words of each caption by kind. Raises BadRecord for a caption that can't be used, and for none unless the source is meant to have
  none (`source.captionless`)."""
  if not isinstance(texts, Mapping):
    raise BadRecord("bad_type", f"captions must be a mapping of kind to text, found {type(texts).__name__}")
  if not texts and not getattr(source, "captionless", False):
    raise BadRecord("missing_caption")
  allow_empty, words = getattr(source, "allow_empty_captions", False), {}
  for kind, value in texts.items():
    if not isinstance(kind, str):
      raise BadRecord("bad_type", f"captions: expected texts as kinds, found {kind!r}")
    items = value if isinstance(value, (list, tuple)) and value else [value]
    words[kind] = [len(captions.text_of(item, key=key, allow_empty=allow_empty).split()) for item in items]
  return words


def each(source: Any, rows: range, *, limits: Limits = LIMITS, threads: int = 4, keep: bool = False) -> Iterator[Seen]:
  """`look` at every one of these records, in order, by several threads."""
  waiting: collections.deque[Future] = collections.deque()
  work: Callable[[int], Seen] = lambda i: look(source, i, limits=limits, keep=keep)
  pool = ThreadPoolExecutor(threads)
  try:
    for i in rows:
      waiting.append(pool.submit(work, i))
      if len(waiting) > AHEAD * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
