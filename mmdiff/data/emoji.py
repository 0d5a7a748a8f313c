"""Real captioned pictures without a download: the system's colour emoji font, named by Unicode's emoji-test.txt.

One picture per fully-qualified sequence (Unicode 15.0: 3,655), 136×128 over white. Captions form a ladder: `original` is noise as
web alt-text is (file names, code points, shortcodes), `short` the CLDR name, `long` the name, its group and subgroup, and the dominant
colours measured from the pixels. Skin tone × role gives held-out combinations of which every part is seen in training.
"""
import colorsys
import functools
import hashlib
import os
import re
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from mmdiff.core.errors import DataError
from mmdiff.data import records
from mmdiff.data.quarantine import BadRecord

FONTS = ("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "/usr/share/fonts/noto/NotoColorEmoji.ttf",
         "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf", "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf")
TABLES = ("/usr/share/unicode/emoji/emoji-test.txt", "/usr/share/unicode/ucd/emoji/emoji-test.txt")
INSTALL = "apt-get install fonts-noto-color-emoji unicode-data"
STRIKE = 109                         # the font's only bitmap size: glyphs of 136×128 pixels
WIDTH, HEIGHT = 136, 128
SPLITS = ("train", "val", "val_comp")
SNOWBOARDER = "\U0001F3C2"           # the font draws it alike in every tone
TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
LINE = re.compile(r"([0-9A-F ]+?)\s*;\s*fully-qualified\s*#\s*\S+\s+E\d+\.\d+\s+(.+)")
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"), (290, "purple"), (340, "pink"),
        (361, "red"))


class Emoji(NamedTuple):
  """One line of emoji-test.txt."""
  text: str          # the sequence itself
  name: str          # CLDR short name
  group: str
  subgroup: str

  @property
  def key(self) -> str:
    """Code points in hex, joined by "-"."""
    return "-".join(f"{ord(c):x}" for c in self.text)


def parse(content: str) -> list[Emoji]:
  """The fully-qualified sequences of an emoji-test.txt, in its order (CLDR's)."""
  found, group, subgroup = [], "", ""
  for line in content.splitlines():
    if line.startswith("# group:"):
      group = line.partition(":")[2].strip()
    elif line.startswith("# subgroup:"):
      subgroup = line.partition(":")[2].strip()
    elif match := LINE.match(line):
      found.append(Emoji("".join(chr(int(code, 16)) for code in match[1].split()), match[2].strip(), group, subgroup))
  return found


def _hash(*parts: str) -> int:
  return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")


def split_of(emoji: Emoji) -> str:
  """The split of a sequence, a function of its code points alone.

  val_comp: of every second role that comes in five skin tones, one tone. val: one in six of the sequences without a tone. train: the
  rest, with everything that the font draws twice: territories' flags, families, the snowboarder.
  """
  tones = [ord(c) for c in emoji.text if ord(c) in TONES]
  if emoji.text[0] == SNOWBOARDER or emoji.group == "Flags" or emoji.subgroup == "family" and not tones:
    return "train"
  if len(tones) == 1:
    role = "".join(c for c in emoji.text if ord(c) not in TONES)
    held = sorted(TONES)[_hash("tone", role) % len(TONES)]
    return "val_comp" if _hash("role", role) % 2 == 0 and tones[0] == held else "train"
  return "val" if not tones and _hash("val", emoji.text) % 6 == 0 else "train"


def colour_name(red: int, green: int, blue: int) -> str:
  """A plain English name of an RGB colour, 0..255."""
  hue, lightness, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
  chroma = (max(red, green, blue) - min(red, green, blue)) / 255
  if lightness < 0.14:
    return "black"
  if chroma < 0.12 or saturation < 0.12:
    return "white" if lightness > 0.86 else "black" if lightness < 0.25 else "grey"
  name = next(name for limit, name in HUES if hue * 360 < limit)
  if name in ("orange", "yellow", "red") and lightness < 0.42 and (hue * 360 > 15 or saturation < 0.45) and hue * 360 < 68:
    return "brown"
  if name == "orange" and saturation < 0.62:
    return "brown" if lightness < 0.62 else "beige"
  return "pink" if name == "red" and lightness > 0.7 else name


@functools.cache
def _cell_name(cell: int) -> str:
  return colour_name(*(16 * level + 8 for level in (cell >> 8, cell >> 4 & 15, cell & 15)))


def dominant_colours(rgba: np.ndarray, *, limit: int = 3, least: float = 0.12) -> list[str]:
  """Names of the colours that cover at least `least` of what is drawn in uint8 [H W 4], most first."""
  drawn = rgba[rgba[..., 3] > 127][:, :3]
  if not len(drawn):
    return []
  counts = np.bincount((drawn >> 4).astype(np.int32) @ np.array([256, 16, 1]), minlength=4096)
  shares: dict[str, float] = {}
  for cell in np.nonzero(counts)[0].tolist():
    name = _cell_name(cell)
    shares[name] = shares.get(name, 0.0) + counts[cell] / len(drawn)
  ranked = sorted(shares, key=lambda name: (-shares[name], name))
  return [name for name in ranked if shares[name] >= least][:limit] or ranked[:1]


def alt_text(emoji: Emoji) -> str:
  """Noise such as web pages carry beside an emoji, drawn by the sequence."""
  codes, slug = emoji.key.split("-"), re.sub(r"[^a-z0-9]+", "_", emoji.name.lower()).strip("_")
  forms = ("U+" + " U+".join(code.upper() for code in codes) + ".png", f":{slug}:", f"emoji_u{'_'.join(codes)}.png", emoji.key,
           f"{slug.split('_')[-1]} emoji free download", f"IMG_{_hash('img', emoji.text) % 10000:04d}.png {emoji.text}",
           f"{slug.split('_')[0]} icon clipart", emoji.name.upper())
  return forms[_hash("alt", emoji.text) % len(forms)]


def captions(emoji: Emoji, colours: Sequence[str]) -> dict[str, str]:
  """The ladder of captions of one sequence."""
  shown = " and ".join(filter(None, [", ".join(colours[:-1]), *colours[-1:]]))
  long = (f"An emoji of {emoji.name}, one of the {emoji.subgroup.replace('-', ' ')} pictures in the group {emoji.group}, "
          f"drawn mostly in {shown} on a white background.")
  return {"original": alt_text(emoji), "short": emoji.name, "long": long}


def _locate(given: str, places: Sequence[str], what: str) -> str:
  for place in [given] if given else places:
    if os.path.isfile(os.path.expanduser(place)):
      return os.path.expanduser(place)
  raise DataError(f"no {what} at {given or ' or '.join(places)}; install it (Debian, Ubuntu: `{INSTALL}`) or give its path")


class EmojiSource:
  """Random access to the pictures of one split; picklable and safe to use from several threads.

  `missing` holds the sequences that this font lacks (it draws them as several glyphs); they are left out.
  """

  def __init__(self, font: str, table: str, *, split: str, size: int):
    self._font_path, self._size, self._split = font, size, split
    with open(table, encoding="utf-8") as file:
      parsed = parse(file.read())
    if not parsed:
      raise DataError(f"{table}: no fully-qualified sequences; expected Unicode's emoji-test.txt, install it: `{INSTALL}`")
    self._open()
    wanted = [emoji for emoji in parsed if split in ("all", split_of(emoji))]
    self.emoji = [emoji for emoji in wanted if self._known(emoji)]
    known = {emoji.key for emoji in self.emoji}
    self.missing = [emoji for emoji in wanted if emoji.key not in known]
    if len(self.emoji) < 2 * len(self.missing):
      raise DataError(f"{font}: draws only {len(self.emoji)} of {len(wanted)} sequences as one glyph; expected Noto Color Emoji, "
                      f"install it: `{INSTALL}`")

  def _open(self):
    if not features.check("raqm"):
      raise DataError("this Pillow has no raqm, which joins the code points of an emoji; install Pillow's wheel (`pip install pillow`)")
    try:
      self._font = ImageFont.truetype(self._font_path, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
      raise DataError(f"{self._font_path}: not a font with {STRIKE} px bitmaps ({error}); expected Noto Color Emoji: `{INSTALL}`") from None
    self._lock = threading.Lock()

  def _known(self, emoji: Emoji) -> bool:
    return round(self._font.getlength(emoji.text)) == WIDTH

  def __getstate__(self):
    return {name: value for name, value in self.__dict__.items() if name not in ("_font", "_lock")}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __len__(self) -> int:
    return len(self.emoji)

  def key(self, i: int) -> str:
    """The key of record `i`, without drawing it."""
    return self.emoji[i].key

  def fingerprint(self) -> str:
    """A digest of the keys, the size and the font's size in bytes."""
    return records.fingerprint("emoji", self._split, self._size, os.path.getsize(self._font_path), [emoji.key for emoji in self.emoji])

  def draw(self, emoji: Emoji) -> np.ndarray:
    """uint8 [128 136 4]."""
    canvas = Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 0))
    with self._lock:                                                      # a FreeType face is not thread-safe
      ImageDraw.Draw(canvas).text((0, 0), emoji.text, font=self._font, embedded_color=True)
    return np.asarray(canvas)

  def __getitem__(self, i: int) -> dict[str, Any]:
    emoji = self.emoji[int(i)]
    rgba = self.draw(emoji)
    if not rgba[..., 3].any():
      raise BadRecord("undecodable", f"the font has no picture of {emoji.name}", emoji.key)
    picture = Image.new("RGBA", (WIDTH, WIDTH if self._size else HEIGHT), (255, 255, 255, 255))
    picture.alpha_composite(Image.fromarray(rgba), (0, (picture.height - HEIGHT) // 2))
    if self._size:
      picture = picture.resize((self._size, self._size), Image.Resampling.LANCZOS)
    return {"key": emoji.key, "image": np.asarray(picture.convert("RGB")), "captions": captions(emoji, dominant_colours(rgba)),
            "group": emoji.group, "subgroup": emoji.subgroup}


def emoji(*, split: Literal["train", "val", "val_comp", "all"] = "train", size: int = 0, font: str = "", table: str = "") -> EmojiSource:
  """Emoji as pictures with captions, drawn when they are read.

  Args:
    split: see `split_of`.
    size: side of the square picture; 0 keeps the font's own 136×128.
    font: Noto Color Emoji's file; "" looks where Linux distributions install it.
    table: emoji-test.txt; "" likewise.
  Raises: DataError that says how to install what is missing.
  """
  if size < 0:
    raise DataError(f"emoji size {size}: expected pixels, or 0 for {WIDTH}x{HEIGHT}")
  return EmojiSource(_locate(font, FONTS, "colour emoji font"), _locate(table, TABLES, "table of emoji names"), split=split, size=size)
