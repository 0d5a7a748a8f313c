"""Small sources that tests make, importable by worker processes."""
import io
import struct
import zlib

import numpy as np
from PIL import Image

from mmdiff.data.quarantine import BadRecord
from mmdiff.data.tokenizers import Tokenizer, train


class World:
  """`n` flat pictures, each of a grey that its index names, with the caption kinds given."""

  def __init__(self, n=40, *, size=8, kinds=("long", "original")):
    self.n, self.size, self.kinds = n, size, kinds

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    return {"key": f"k{i}", "image": np.full((self.size, self.size, 3), i % 256, np.uint8),
            "captions": {kind: f"{kind} caption of picture {i}" for kind in self.kinds}, "label": i}

  def fingerprint(self):
    return f"world {self.n} {self.size} {self.kinds}"


class Listed:
  """Records as given; an exception in the list is raised."""

  def __init__(self, records, allow_empty_captions=False):
    self.records, self.allow_empty_captions = records, allow_empty_captions

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    if isinstance(self.records[i], Exception):
      raise self.records[i]
    return self.records[i]

  def fingerprint(self):
    return "listed"


class Failing(World):
  """A source with a bug: one index raises what no data can explain."""

  def __getitem__(self, i):
    if i == 7:
      raise ZeroDivisionError("a bug")
    return super().__getitem__(i)


class Holed(World):
  """Every third record can't be read."""

  def __getitem__(self, i):
    if i % 3 == 0:
      raise BadRecord("unreadable", "a hole", f"k{i}")
    return super().__getitem__(i)


def tokenizer() -> Tokenizer:
  return train([f"{kind} caption of picture {i}" for kind in ("long", "original", "short") for i in range(10)], vocab=280)


def encode(image: Image.Image, format: str, **options) -> bytes:
  out = io.BytesIO()
  image.save(out, format, **options)
  return out.getvalue()


def noise(height=24, width=32, channels=3, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
  """A PNG that announces a size and holds next to nothing."""
  chunk = lambda tag, data: struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
