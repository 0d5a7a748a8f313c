"""Looking at a source: what its records hold, how many are bad and why, and a sheet of pictures with their captions for a person."""
import collections
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdiff.core.terminal import printable, table
from mmdiff.data import decode, verdict
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.verdict import LIMITS, Limits

EXAMPLES = 3                         # bad records of a kind that are named on the screen


def _spread(values: Iterable[int]) -> dict[str, int]:
  found = np.array(list(values))
  levels = np.percentile(found, [0, 5, 50, 95, 100]).round().astype(int).tolist() if len(found) else [0] * 5
  return dict(zip(("min", "p5", "median", "p95", "max"), levels))


def validate(source: Any, *, limits: Limits = LIMITS, threads: int = 4, limit: int = 0,
             tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
  """Reads everything (or the first `limit` records) and counts: good and bad records by kind, duplicate keys, sizes, caption lengths."""
  total = min(limit or len(source), len(source))
  bad: collections.Counter[str] = collections.Counter()
  formats: collections.Counter[str] = collections.Counter()
  offenders, twice, keys = [], [], set()
  widths, heights, words = [], [], collections.defaultdict(list)
  with_kind: collections.Counter[str] = collections.Counter()
  for done, seen in enumerate(verdict.each(source, range(total), limits=limits, threads=threads), 1):
    if seen.fault:
      bad[seen.fault.kind] += 1
      offenders.append(seen.fault._asdict())
    else:
      twice += [seen.key] if seen.key in keys else []
      formats[seen.format] += 1
      widths.append(seen.width)
      heights.append(seen.height)
      for kind, lengths in seen.words.items():
        with_kind[kind] += 1
        words[kind] += lengths
    keys.add(seen.key)
    tell(done, total)
  return {
    "records": total, "good": total - sum(bad.values()), "bad": dict(bad), "bad_fraction": sum(bad.values()) / max(total, 1),
    "duplicate_keys": len(twice), "duplicates": twice, "skipped_members": dict(getattr(source, "skipped", {})),
    "images": {"formats": dict(formats), "width": _spread(widths), "height": _spread(heights)},
    "captions": {kind: {"records": with_kind[kind], "texts": len(words[kind]), "words": _spread(words[kind])} for kind in sorted(words)},
    "fingerprint": source.fingerprint(), "offenders": offenders,
  }


def told(found: Mapping[str, Any]) -> str:
  """What `validate` found, for a person: counts, and the first of each kind of bad record by name."""
  good, images = found["good"], found["images"]
  parts = [f"{found['records']:,} records: {good:,} good, {found['records'] - good:,} bad"]
  parts += [worst(found["offenders"])] if found["offenders"] else []
  sides = [{"pictures": side, **images[side]} for side in ("width", "height")]
  kinds = [{"captions": kind, "records": one["records"], "without": good - one["records"], "texts": one["texts"],
            **{f"words, {name}": value for name, value in one["words"].items()}} for kind, one in found["captions"].items()]
  if good:
    formats = ", ".join(f"{name} {count:,}" for name, count in images["formats"].items())
    parts += [f"{table(sides)}\nformats: {formats}", table(kinds)]
  if found["duplicates"]:
    parts.append(f"{found['duplicate_keys']:,} keys come again: {', '.join(found['duplicates'][:EXAMPLES])}")
  if found["skipped_members"]:
    parts.append("left out: " + ", ".join(f"{reason} {count:,}" for reason, count in found["skipped_members"].items()))
  return printable("\n\n".join(filter(None, parts)))


def worst(offenders: Sequence[Mapping[str, str]]) -> str:
  """Bad records by kind, most first, each with a few names and what was found."""
  kinds = collections.Counter(offender["kind"] for offender in offenders)
  rows = []
  for kind, count in kinds.most_common():
    first = itertools.islice((one for one in offenders if one["kind"] == kind), EXAMPLES)
    named = [f"{one['key']} ({one['detail'][:60]})" if one["detail"] else one["key"] for one in first]
    rows.append({"bad": kind, "records": count, "such as": "; ".join(named)})
  return table(rows)


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


def sample(source: Any, count: int, *, side: int = 256) -> list[Card]:
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
      small = cards[i].image.copy()
      small.thumbnail((side, side), Image.Resampling.NEAREST if max(cards[i].size) < side else Image.Resampling.LANCZOS)
      canvas.paste(small, (left, top + gap))
      for n, text in enumerate(told[i]):
        draw.text((left, top + side + 2 * gap + n * line), text, fill="black" if n else "#777", font=font)
    top += height
  return np.asarray(canvas)
