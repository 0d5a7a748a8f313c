"""One page for pictures, whoever made or found them: thumbnails that lead to the files, a section a prompt, the settings on top.

A hundred pictures of 512 px make at most 2 MB. A thumbnail is made once: `Thumbs` keeps it while a page grows.
"""
import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from PIL import Image

from mmdiff.report.html import heading, text, tiles, write_page
from mmdiff.report.pictures import PIXELS, data_url

SIDE = 288                     # pixels of a thumbnail's larger side
MOST_BYTES = 14_000            # of its JPEG: 19 kB in the page
QUALITIES = (82, 68, 52, 36, 20)
AGAIN_SECONDS = 10.0           # between two writings of a page that grows


class Shot(NamedTuple):
  """A picture, with those that it was made from before it (`parts`: what each is, and its <img>), and what is said beneath."""
  parts: Sequence[tuple[str, str]]
  caption: str = ""
  note: str = ""


def thumbnail(picture: Image.Image, where: str = "", alt: str = "") -> str:
  """An <img>, which leads to the file `where` (a path beside the page); a small picture as it is, its pixels sharp."""
  if max(picture.size) <= PIXELS:
    made = f'<img class=pixels src="{data_url(picture, SIDE)}" alt="{text(alt)}">'
  else:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    for quality in QUALITIES:
      buffer = io.BytesIO()
      small.save(buffer, format="JPEG", quality=quality)
      if buffer.tell() <= MOST_BYTES:
        break
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    made = f'<img src="{url}" alt="{text(alt)}" width={small.width} height={small.height}>'
  return f'<a href="{text(quote(where))}">{made}</a>' if where else made


class Thumbs:
  """The thumbnails of files, each made once: of a picture that is at hand, or of the file."""

  def __init__(self, folder: Path):
    self.folder, self.made = folder, dict[str, str]()

  def of(self, file: str, picture: Image.Image | None = None, *, link: bool = True) -> str:
    """file: below the folder, or a path of its own, which gets no link (the page may be moved without it)."""
    if file not in self.made:
      try:
        picture = picture or Image.open(self.folder / file)
        self.made[file] = thumbnail(picture, file if link else "", Path(file).name)
      except (OSError, ValueError, Image.DecompressionBombError):
        return f'<small class="soft">{text(Path(file).name)} cannot be read</small>'
    return self.made[file]


def card(shot: Shot) -> str:
  small = all("class=pixels" in made for _, made in shot.parts)
  pictures = "".join(f"<div>{made}{f'<small>{text(what)}</small>' if len(shot.parts) > 1 else ''}</div>" for what, made in shot.parts)
  note = f"{'<br>' if shot.caption else ''}<small>{text(shot.note)}</small>" if shot.note else ""
  kind = " few" if small else ""
  return f'<figure class="card shot{kind}"><div class="side">{pictures}</div><figcaption>{text(shot.caption)}{note}</figcaption></figure>'


def body(title: str, sections: Sequence[tuple[str, Sequence[Shot]]], *, lead: str = "", settings: Mapping[str, Any] = {},
         command: str = "", more: str = "") -> str:
  """sections: (heading, pictures); one picture with its prompt as heading is laid among its neighbours. settings: shown on top."""
  parts = [heading(1, title), f'<p class="goal">{text(lead)}</p>' if lead else "", tiles(settings) if settings else "",
           f"<p><code>{text(command)}</code></p>" if command else ""]
  waiting: list[str] = []

  def flush() -> None:
    if waiting:
      parts.append(f'<div class="shots">{"".join(waiting)}</div>')
      waiting.clear()
  for name, shots in sections:
    if len(shots) == 1 and (not name or name == shots[0].caption):
      waiting.append(card(shots[0]))
      continue
    flush()
    parts.append((heading(3, name) if name else "") + f'<div class="shots">{"".join(map(card, shots))}</div>')
  flush()
  return "".join(parts) + (f'<p class="soft">{text(more)}</p>' if more else "")


class Growing:
  """A page that is written anew while pictures come, not more often than every few seconds."""

  def __init__(self, out: Path, title: str, make: Callable[[], str], *, clock: Callable[[], float] = time.monotonic):
    self.out, self.title, self.make, self.clock, self.last = out, title, make, clock, -AGAIN_SECONDS

  def __call__(self) -> None:
    if self.clock() - self.last >= AGAIN_SECONDS:
      self.last = self.clock()
      self.write()

  def write(self) -> None:
    write_page(self.out, self.title, self.make())
