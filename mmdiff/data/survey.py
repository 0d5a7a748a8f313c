"""Looking at a source: what its records hold, how many are bad and why, and a sheet of pictures with their captions for a person."""
import base64
import collections
import html
import io
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdiff.data import captions, decode, pipelines, shards
from mmdiff.data.quarantine import BadRecord, Offence

OFFENDERS = 100                      # bad records that a report names
BLOCK = 256                          # records in flight


class Seen(NamedTuple):
  """What one record turned out to be."""
  key: str
  fault: Offence | None
  format: str                        # jpg, png, …, "array"
  width: int
  height: int
  words: dict[str, list[int]]        # caption kind -> words of each text


def look(source: Any, i: int, *, max_pixels: int = decode.MAX_PIXELS, max_bytes: int = decode.MAX_BYTES) -> Seen:
  """Reads record `i` to the last pixel and caption."""
  key = f"#{i}"
  allow_empty = getattr(source, "allow_empty_captions", False)
  try:
    record = source[i]
    key = pipelines.key_of(record)
    texts = record["captions"]
    if not isinstance(texts, Mapping):
      raise BadRecord("bad_type", f"captions must be a mapping of kind to text, found {type(texts).__name__}")
    kind = "array" if isinstance(record["image"], np.ndarray) else shards.encoded(record["image"])[1]
    height, width = decode.pixels(record["image"], max_pixels=max_pixels, max_bytes=max_bytes).shape[:2]
    words = {}
    for name, value in texts.items():
      items = value if isinstance(value, (list, tuple)) else [value]
      words[name] = [len(captions.text_of(item, key=key, allow_empty=allow_empty).split()) for item in items]
    if not texts:
      raise BadRecord("missing_caption")
    return Seen(key, None, kind, width, height, words)
  except BadRecord as fault:
    return Seen(fault.key or key, Offence(fault.key or key, fault.kind, fault.detail), "", 0, 0, {})


def _spread(values: Iterable[int]) -> dict[str, int]:
  found = np.array(list(values))
  levels = np.percentile(found, [0, 5, 50, 95, 100]).round().astype(int).tolist() if len(found) else [0] * 5
  return dict(zip(("min", "p5", "median", "p95", "max"), levels))


def validate(source: Any, *, max_pixels: int = decode.MAX_PIXELS, max_bytes: int = decode.MAX_BYTES, threads: int = 4, limit: int = 0,
             tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
  """Reads everything (or the first `limit` records) and counts: good and bad records by kind, duplicate keys, sizes, caption lengths."""
  total = min(limit or len(source), len(source))
  bad: collections.Counter[str] = collections.Counter()
  formats: collections.Counter[str] = collections.Counter()
  offenders, twice, keys = [], [], set()
  widths, heights, words = [], [], collections.defaultdict(list)
  with_kind: collections.Counter[str] = collections.Counter()
  with ThreadPoolExecutor(threads) as pool:
    for start in range(0, total, BLOCK):
      rows = range(start, min(total, start + BLOCK))
      for i, seen in zip(rows, pool.map(lambda i: look(source, i, max_pixels=max_pixels, max_bytes=max_bytes), rows)):
        if seen.fault is None and seen.key in keys:
          twice.append(seen.key)
        keys.add(seen.key)
        if seen.fault:
          bad[seen.fault.kind] += 1
          offenders += [seen.fault._asdict()] if len(offenders) < OFFENDERS else []
        else:
          formats[seen.format] += 1
          widths.append(seen.width)
          heights.append(seen.height)
          for kind, lengths in seen.words.items():
            with_kind[kind] += 1
            words[kind] += lengths
        tell(i + 1, total)
  return {
    "records": total, "good": total - sum(bad.values()), "bad": dict(bad), "bad_fraction": sum(bad.values()) / max(total, 1),
    "duplicate_keys": len(twice), "duplicates": twice[:OFFENDERS], "skipped_members": dict(getattr(source, "skipped", {})),
    "images": {"formats": dict(formats), "width": _spread(widths), "height": _spread(heights)},
    "captions": {kind: {"records": with_kind[kind], "texts": len(words[kind]), "words": _spread(words[kind])} for kind in sorted(words)},
    "fingerprint": source.fingerprint(), "offenders": offenders,
  }


def spec(value: Any) -> Any:
  """The shape of a value in words: dicts by key, arrays by dtype and shape, lists by their first item."""
  if isinstance(value, Mapping):
    return {str(key): spec(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return f"{value.dtype} {list(value.shape)}"
  if isinstance(value, (bytes, bytearray)):
    return f"bytes ({len(value):,})"
  if isinstance(value, (list, tuple)):
    return [spec(value[0]), f"{len(value)} items"] if value else []
  return type(value).__name__


class Card(NamedTuple):
  """One record for the sheet."""
  key: str
  image: Image.Image
  captions: Mapping[str, Any]
  size: tuple[int, int]              # (width, height) before it became a thumbnail


def sample(source: Any, count: int, *, side: int = 160) -> list[Card]:
  """Up to `count` good records spread evenly over the source, as thumbnails of at most `side` pixels."""
  cards = []
  for i in dict.fromkeys(n * len(source) // count for n in range(count)):
    try:
      record = source[i]
      image = Image.fromarray(decode.pixels(record["image"]))
    except BadRecord:
      continue
    original = image.size
    scale = min(side / max(image.size), max(1, side // max(image.size)))   # small pictures grow by whole factors
    size = tuple(max(1, round(length * scale)) for length in image.size)
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    cards.append(Card(record["key"], image, record["captions"], original))
  return cards


def lines(card: Card) -> list[tuple[str, str]]:
  """(kind, text) of every caption of a card."""
  return [(kind, text) for kind, value in card.captions.items() for text in ([value] if isinstance(value, str) else value)]


def sheet(cards: list[Card], *, columns: int = 4, width: int = 260, side: int = 160) -> np.ndarray:
  """The contact sheet: pictures with key and captions under them, uint8 [H W 3]."""
  font, line, gap = ImageFont.load_default(11), 13, 8
  told = []
  for card in cards:
    texts = [f"{kind}: {text}" for kind, text in lines(card)]
    told.append([card.key[:40], *itertools.chain.from_iterable(textwrap.wrap(text, width // 6)[:5] for text in texts)][:12])
  rows = [range(start, min(len(cards), start + columns)) for start in range(0, len(cards), columns)]
  tall = [side + gap + line * max(len(told[i]) for i in row) + 2 * gap for row in rows]
  canvas = Image.new("RGB", (columns * width, max(1, sum(tall))), "white")
  draw = ImageDraw.Draw(canvas)
  top = 0
  for row, height in zip(rows, tall):
    for column, i in enumerate(row):
      left = column * width + gap
      canvas.paste(cards[i].image, (left, top + gap))
      for n, text in enumerate(told[i]):
        draw.text((left, top + side + 2 * gap + n * line), text, fill="black" if n else "#777", font=font)
    top += height
  return np.asarray(canvas)


def page(cards: list[Card], *, title: str) -> str:
  """The same as one self-contained HTML page."""
  boxes = []
  for card in cards:
    buffer = io.BytesIO()
    card.image.save(buffer, "PNG")
    told = "".join(f"<dt>{html.escape(kind)}</dt><dd>{html.escape(text)}</dd>" for kind, text in lines(card))
    boxes.append(f'<figure><img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
                 f"<figcaption><b>{html.escape(card.key)}</b><dl>{told}</dl></figcaption></figure>")
  style = ("body{font:14px system-ui;margin:2em}figure{display:inline-block;width:260px;vertical-align:top;margin:8px}"
           "img{max-width:100%;border:1px solid #ddd}dt{color:#777;margin-top:4px}dd{margin:0;overflow-wrap:anywhere}")
  return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
          f"<h1>{html.escape(title)}</h1>{''.join(boxes)}</html>\n")
