"""Models that belong together: a diffusers folder with a model_index.json, or a single file of Stable Diffusion.

Their parts go by the parameter groups that the same models have in `objectives.diffusion`: `denoiser`, `autoencoder`, and `text`, or
`text/first` and `text/second` where there are two encoders.
"""
import os
from pathlib import Path

from mmdiff.convert import containers, ldm_formats, public
from mmdiff.convert.public import Loaded
from mmdiff.core.errors import DataError

FOLDERS = {"unet": "unet", "vae": "vae", "text_encoder": "text", "text_encoder_2": "text_2"}      # of diffusers -> part
INDEX = "model_index.json"


def is_pipeline(path: str | os.PathLike) -> bool:
  """Whether a path holds several models. Reads names at most."""
  path = Path(path)
  if path.is_dir():
    return (path / INDEX).is_file()
  return path.is_file() and path.suffix in containers.WEIGHTS and len(ldm_formats.parts_in(containers.read(path).tensors)) > 1


def groups(parts: list[str]) -> dict[str, str]:
  """{part: parameter group} of the parts that there are."""
  named = {"unet": "denoiser", "vae": "autoencoder", "text": "text/first", "text_2": "text/second"}
  if "text" not in parts or "text_2" not in parts:
    named |= {"text": "text", "text_2": "text"}
  return {part: named[part] for part in parts}


def load(path: str | os.PathLike, *, quiet: bool = False) -> dict[str, Loaded]:
  """Every part by its parameter group. Raises DataError as `public.load` does, and for a folder without a part that is known."""
  path = Path(path)
  if path.is_file():
    named = groups(list(ldm_formats.parts_in(containers.read(path).tensors)))
    return {group: public.load(path, part=part, quiet=quiet) for part, group in named.items()}
  folders = {part: path / name for name, part in FOLDERS.items() if (path / name / "config.json").is_file()}
  if not folders:
    raise DataError(f"{path}: {INDEX} is there, and none of the folders {', '.join(FOLDERS)} with a config.json; is the download complete?")
  return {group: public.load(folders[part], quiet=quiet) for part, group in groups(list(folders)).items()}
