"""What the commands that measure or draw share: the facts that go beside every result."""
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmdiff.core.errors import CannotWrite
from mmdiff.data import picture_notes


def digest(file: Path) -> str:
  """sha256 of a file, "" if there is none."""
  return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def model_facts(model) -> dict[str, Any]:
  """The report of a loaded model, with fingerprints of its checkpoint and tokenizer."""
  path = Path(model.report["path"])
  manifest = path / "checkpoints" / str(model.report["step"]) / "manifest.json"
  return dict(model.report) | dict(checkpoint=digest(manifest) if manifest.is_file() else fingerprint(path),
                                   tokenizer=model.tokenizer.fingerprint() if model.tokenizer else "")


def fingerprint(path: Path, head: int = 2**20) -> str:
  """sha256 over the names, sizes and first MiB of a public checkpoint's weight files: all of a few gigabytes would take a minute."""
  from mmdiff.convert import containers
  files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in containers.WEIGHTS)
  found = hashlib.sha256()
  for file in files:
    with open(file, "rb") as opened:
      found.update(f"{file.name} {file.stat().st_size} ".encode() + opened.read(head))
  return found.hexdigest()


def write_png(file: Path, image, notes: Mapping[str, Any] | None = None) -> None:
  """uint8 [H W 3] -> a PNG, whole or not at all, that says `notes` of itself (`data.picture_notes`). Raises CannotWrite."""
  part = file.with_name(file.name + ".part")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    about = picture_notes.texts(notes, height=image.shape[0], width=image.shape[1]) if notes else None
    Image.fromarray(image).save(part, format="PNG", pnginfo=about)
    os.replace(part, file)
  except OSError as error:
    part.unlink(missing_ok=True)
    raise CannotWrite(f"cannot write {file}: {error}") from error
