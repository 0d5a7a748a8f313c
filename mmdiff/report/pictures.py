"""Pictures inside a page, as small as they are shown."""
import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmdiff.report.html import cell, folded, text

FIRST, CARDS = 8, 32         # pictures with captions of one sheet: shown at once, and in all
CELL, SHEET = 256, 1_024     # the largest side of a picture, and of a sheet, in pixels
PIXELS = 128                 # up to this side a picture is enlarged with its pixels sharp, and kept exact


def image(picture: Image.Image, largest: int = CELL, alt: str = "", *, pixels: int = PIXELS) -> str:
  """An <img> that holds the picture, at most `largest` pixels a side: up to `pixels` exactly, as PNG; a larger one as JPEG."""
  small = max(picture.size) <= pixels
  return f'<img{" class=pixels" if small else ""} src="{data_url(picture, largest, pixels=pixels)}" alt="{text(alt)}">'


def data_url(picture: Image.Image, largest: int, *, pixels: int = PIXELS) -> str:
  """The picture as a `data:` address, at most `largest` pixels a side."""
  exact = max(picture.size) <= pixels
  if max(picture.size) > largest:
    picture = picture.copy()
    picture.thumbnail((largest, largest))
  buffer = io.BytesIO()
  picture.save(buffer, **(dict(format="PNG") if exact else dict(format="JPEG", quality=88)))
  return f"data:image/{'png' if exact else 'jpeg'};base64," + base64.b64encode(buffer.getvalue()).decode()


def enlarged(sheet: Image.Image, least: int = 256) -> Image.Image:
  """A small sheet at a whole multiple of its size, so that its pixels stay sharp wherever the page is shown."""
  times = -(-least // max(sheet.size))
  return sheet.resize((sheet.width * times, sheet.height * times), Image.Resampling.NEAREST) if times > 1 else sheet


def caption_of(row: Mapping) -> str:
  return next((str(row[key]) for key in ("caption", "text", "prompt") if isinstance(row.get(key), str)), "")


def opened(file: Path) -> Image.Image | None:
  """The picture of a file, None where there is none that can be read."""
  try:
    with Image.open(file) as found:
      return found.convert("RGB")
  except (OSError, ValueError):
    return None


def pictures(file: Path, rows: Sequence[Mapping] = ()) -> str:
  """A sheet of pictures; cut apart, each over its caption, where the rows say what they show."""
  sheet = opened(file)
  if sheet is None:
    return f'<p class="soft">{text(file.name)} is missing</p>'
  cells = cut(np.asarray(sheet)) if rows else []
  if not cells:
    return f'<figure class="sheet">{image(enlarged(sheet), SHEET, file.name, pixels=SHEET // 2)}</figure>'
  cards = []
  for picture, row in list(zip(cells, rows))[:CARDS]:
    mark = cell(row["right"]) + " " if isinstance(row.get("right"), bool) else ""
    cards.append(f'<figure class="card">{image(Image.fromarray(picture))}<figcaption>{mark}{text(caption_of(row))}</figcaption></figure>')
  rest = folded(f"{len(cards) - FIRST} more", f'<div class="cards">{"".join(cards[FIRST:])}</div>' if cards[FIRST:] else "")
  return f'<div class="cards">{"".join(cards[:FIRST])}</div>{rest}'


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
