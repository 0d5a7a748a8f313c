"""What a drawn picture says of itself, in its PNG's texts: `mmdiff`, a JSON object, and `parameters`, the line that other programs for
Stable Diffusion write and show (the web UI's)."""
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from mmdiff.core.errors import DataError
from mmdiff.core.files import parse_json

KEY, COMMON = "mmdiff", "parameters"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of our settings, what the web UI calls them.
THEIRS = {"steps": "Steps", "sampler": "Sampler", "guidance": "CFG scale", "seed": "Seed", "strength": "Denoising strength"}


def texts(notes: Mapping[str, Any], *, height: int, width: int) -> PngImagePlugin.PngInfo:
  """The texts of a PNG of this size. notes: prompt, negative, seed, settings, model, checkpoint, command and what else JSON can hold."""
  info = PngImagePlugin.PngInfo()
  info.add_itxt(KEY, json.dumps(notes, ensure_ascii=False))
  settings = dict(notes.get("settings", {}), seed=notes.get("seed"))
  said = [f"{theirs}: {settings[name]}" for name, theirs in THEIRS.items() if settings.get(name) not in (None, "")]
  said += [f"Size: {width}x{height}"] + ([f"Model hash: {notes['checkpoint'][:10]}"] if notes.get("checkpoint") else [])
  said += [f"Model: {Path(str(notes['model'])).name}"] if notes.get("model") else []
  lines = [str(notes.get("prompt", "")), *([f"Negative prompt: {notes['negative']}"] if notes.get("negative") else []), ", ".join(said)]
  info.add_itxt(COMMON, "\n".join(lines))
  return info


def is_png(file: Path) -> bool:
  if not file.is_file():
    return False
  with open(file, "rb") as opened:
    return opened.read(len(SIGNATURE)) == SIGNATURE


def read(file: Path) -> dict[str, Any]:
  """What a PNG says of itself: our own notes, else {"parameters": …} of another program; {} where it says nothing. Raises DataError for a
  damaged file."""
  try:
    with Image.open(file) as picture:
      size, found = dict(width=picture.width, height=picture.height), {str(key): str(value) for key, value in picture.info.items()
                                                                      if isinstance(value, str)}
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise DataError(f"{file}: cannot be read as a picture: {error}") from None
  if KEY in found:
    try:
      notes = parse_json(found[KEY])
    except ValueError as error:
      raise DataError(f"{file}: its notes ({KEY}) are damaged: {error}") from None
    if not isinstance(notes, dict):
      raise DataError(f"{file}: its notes ({KEY}) are no object but a {type(notes).__name__}")
    return size | notes
  return size | {name: found[name] for name in (COMMON, "Comment", "Description", "Software") if name in found}


def command(words: list[str], flags: Mapping[str, Any]) -> str:
  """A command line that a shell takes."""
  said = lambda value: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
  return shlex.join(["mmdiff", *words, *(f"--{name}={said(value)}" for name, value in flags.items())])
