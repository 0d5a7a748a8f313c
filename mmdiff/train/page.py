"""The parts of an HTML page that needs nothing but itself: no script, no request, every text escaped."""
import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdiff.train.charts import interval, number

STYLE = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c2024; --soft:#60646c; --line:#e3e4e8; --good:#18794e; --bad:#c62a2f;
  --c0:#3e63dd; --c1:#d6630c; --c2:#1a8a5f; --c3:#a144af; --c4:#0588a6; --c5:#8d6e1f }
@media (prefers-color-scheme: dark) { :root { --bg:#121315; --card:#1a1c1f; --ink:#edeef0; --soft:#9ba1a8; --line:#2e3237;
  --good:#4cc38a; --bad:#ff6369; --c0:#849dff; --c1:#ff9f4d; --c2:#4cc38a; --c3:#d19dff; --c4:#4ccce6; --c5:#e2c264 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 26px; margin: 0 0 2px }
h2 { font-size: 21px; margin: 44px 0 4px; padding-top: 18px; border-top: 2px solid var(--line) }
h3 { font-size: 16px; margin: 30px 0 8px }
h4 { font-size: 14px; margin: 18px 0 6px }
p { margin: 4px 0 }
.soft, small { color: var(--soft); font-weight: 400 }
code { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
a { color: var(--c0) }
nav a { margin-right: 16px }
.tiles, .charts, .cards { display: grid; gap: 12px; margin: 14px 0 }
.tiles { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }
.charts { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)) }
.cards { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)) }
.tile, .chart, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0; padding: 10px 12px;
  min-width: 0 }
.tile b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.tile span { color: var(--soft); font-size: 13px; overflow-wrap: anywhere }
.card { padding: 6px; font-size: 12px; line-height: 1.35; overflow-wrap: anywhere }
.card img, .sheet img { width: 100%; display: block; border-radius: 4px; margin-bottom: 5px; image-rendering: pixelated }
.sheet { max-width: 560px; margin: 12px 0 }
.yes { color: var(--good) }
.no { color: var(--bad) }
.changed { color: var(--c1) }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 12px; font-size: 13px; margin-bottom: 4px }
.chart figcaption > span:first-child { flex: 1; font-weight: 600; white-space: nowrap }
.chart svg { width: 100%; display: block }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 5px; margin-right: 3px }
.grid { stroke: var(--line) }
.tick { fill: var(--soft); font: 10.5px system-ui, sans-serif }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.raw { opacity: .3; stroke-width: 1 }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin-bottom: 12px; font-size: 14px; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 500 }
td, th { padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { overflow-wrap: anywhere }
.n { text-align: right }
.bar { width: 120px; height: 14px; vertical-align: middle; margin-right: 8px }
.bar .track { fill: var(--line) }
.bar .fill { fill: var(--c0) }
.bar line { stroke: var(--ink); stroke-width: 1.4 }
details { margin: 12px 0 }
summary { cursor: pointer; color: var(--soft) }
""" + "".join(f".c{i} {{ stroke: var(--c{i}) }} .dot.c{i} {{ fill: var(--c{i}) }} .k{i} {{ background: var(--c{i}) }}\n" for i in range(6))
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"      # the browser refuses whatever else a text might bring along
CARDS, CELL = 32, 256                # pictures with captions of one sheet; their largest side in pixels

text = html.escape


class Markup(str):
  """Text that is HTML already."""


def page(title: str, body: str) -> str:
  return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">'
          f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>'
          f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n")


def tiles(shown: Mapping[str, Any]) -> str:
  return '<div class="tiles">' + "".join(f'<div class="tile"><b>{text(number(value))}</b><span>{text(name)}</span></div>'
                                         for name, value in shown.items() if value is not None) + "</div>"


def caption_of(row: Mapping) -> str:
  return next((str(row[key]) for key in ("caption", "text", "prompt") if isinstance(row.get(key), str)), "")


def table(rows: Sequence[Mapping]) -> str:
  """Rows of one table; `low` and `high` become the interval of the number before them, shares a bar."""
  if not rows:
    return ""
  keys = list(dict.fromkeys(key for row in rows for key in row))
  has_interval = "low" in keys and "high" in keys
  keys = [key for key in keys if not has_interval or key not in ("low", "high")]
  value_key = next((key for key in keys if all(_inside(row, key) for row in rows if "low" in row)), None) if has_interval else None
  head = "".join(f"<th>{text(str(key))}</th>" + ("<th>95 % interval</th>" if key == value_key else "") for key in keys)
  lines = []
  for row in rows:
    cells = []
    for key in keys:
      value = row.get(key, "")
      cells.append(f'<td class="{"n" if isinstance(value, (int, float)) and not isinstance(value, bool) else "t"}">{cell(value)}</td>')
      if key == value_key:
        inside = _inside(row, key)
        unit = inside and 0 <= row["low"] and row["high"] <= 1
        bar = interval(value, row["low"], row["high"]) if unit else ""
        cells.append(f"<td>{bar} {number(row['low'])} – {number(row['high'])}</td>" if inside else "<td></td>")
    lines.append(f"<tr>{''.join(cells)}</tr>")
  return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _inside(row: Mapping, key: str) -> bool:
  numbers: list[Any] = [row.get("low"), row.get(key), row.get("high")]
  real = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
  return real and numbers[0] - 1e-9 <= numbers[1] <= numbers[2] + 1e-9


def cell(value: Any) -> str:
  if isinstance(value, Markup):
    return value
  if isinstance(value, bool):
    return '<span class="yes">✓</span>' if value else '<span class="no">✗</span>'
  if isinstance(value, int):
    return f"{value:,}"
  return text(number(value)) if isinstance(value, float) else text(value if isinstance(value, str) else json.dumps(value))


def pictures(file: Path, rows: Sequence[Mapping]) -> str:
  """A sheet of pictures; cut apart, each over its caption, where the rows say what they show."""
  try:
    with Image.open(file) as opened:
      sheet = opened.convert("RGB")
  except (OSError, ValueError):
    return f'<p class="soft">{text(file.name)} is missing</p>'
  cells = cut(np.asarray(sheet)) if rows else []
  if not cells:
    return f'<figure class="sheet"><img src="{data_url(sheet, 1_024)}" alt="{text(file.name)}"></figure>'
  cards = []
  for picture, row in list(zip(cells, rows))[:CARDS]:
    mark = cell(row["right"]) + " " if isinstance(row.get("right"), bool) else ""
    cards.append(f'<figure class="card"><img src="{data_url(Image.fromarray(picture), CELL)}" alt="">'
                 f"<figcaption>{mark}{text(caption_of(row))}</figcaption></figure>")
  return f'<div class="cards">{"".join(cards)}</div>'


def cut(sheet: np.ndarray, gap: int = 2, least: int = 8) -> list[np.ndarray]:
  """uint8 [H W 3], square pictures with white gaps between -> the pictures in reading order; [] if it is no such sheet."""
  height, width = sheet.shape[:2]
  for side in range(least, min(height, width) + 1):
    pitch = side + gap
    if (height + gap) % pitch or (width + gap) % pitch:
      continue
    gaps = lambda size, pitch=pitch, side=side: [i for i in range(size) if i % pitch >= side]
    if (sheet[gaps(height)] == 255).all() and (sheet[:, gaps(width)] == 255).all():
      return [sheet[y:y + side, x:x + side] for y in range(0, height, pitch) for x in range(0, width, pitch)]
  return []


def data_url(image: Image.Image, largest: int) -> str:
  """The picture as a `data:` address, at most `largest` pixels a side."""
  if max(image.size) > largest:
    image = image.copy()
    image.thumbnail((largest, largest))
  buffer = io.BytesIO()
  image.save(buffer, format="PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
