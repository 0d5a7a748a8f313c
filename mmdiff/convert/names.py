"""What a name of a model means: a path, an id in the local cache of the Hugging Face hub, or `hf://`, which alone goes to the network.

  runs/clip, runs/clip@2000, sd15/vae, v1-5.safetensors      files here; models--ORG--NAME, a folder of the cache, is its snapshot
  ORG/NAME, ORG/NAME@REVISION, ORG/NAME/vae                  what is in the cache: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub
  hf://ORG/NAME@REVISION                                     fetched into the cache first (`convert.hub`), as by `mmdiff get`

Imports no JAX: a command knows what there is before it pays for that.
"""
import os
import re
from pathlib import Path
from typing import NamedTuple

from mmdiff.convert import containers
from mmdiff.core.errors import DataError
from mmdiff.core.spelling import edits, nearest
from mmdiff.data.records import PICTURES

HUB = "hf://"
ID = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?P<within>(/\w[\w.-]*)*)(@(?P<revision>\w[\w./-]*))?")
EXPECTED = "a run directory of `mmdiff train`, or a folder or file of weights in a public format"


class Id(NamedTuple):
  """A model of the hub; `within`: a folder or file of it, or "". Without a `revision` its main branch is meant."""
  repo: str
  within: str
  revision: str | None


def parsed(text: str) -> Id | None:
  """The id that a text is, or None."""
  found = ID.fullmatch(text)
  return Id(f"{found['owner']}/{found['name']}", found["within"].lstrip("/"), found["revision"]) if found else None


def find(name: str | os.PathLike) -> str:
  """The path of what a name means; that of what lies here as it stands, `DIR@STEP` among them. Raises DataError that says where it was
  looked for and what to do."""
  text = os.fspath(name)
  if text.startswith(HUB):
    from mmdiff.convert import hub
    return hub.fetch(text)
  path, (folder, _, step) = Path(text), text.rpartition("@")
  if path.exists():
    return str(snapshot(path) or text) if path.name.startswith("models--") else text
  if folder and step.isdecimal() and Path(folder).exists():
    return text
  asked, here = parsed(text), near(path)
  if asked is None or Path(text.partition("/")[0]).exists():
    raise DataError(f"{text}: no such file or folder{here}; expected {EXPECTED}, or ORG/NAME of a model in the Hugging Face cache, or "
                    "hf://ORG/NAME to fetch it")
  stored = cache() / f"models--{asked.repo.replace('/', '--')}"
  there = snapshot(stored, asked.revision)
  if there and (there / asked.within).exists():
    return str(there / asked.within)
  lack = f"{there} has no {asked.within}" if there else f"it is not in the Hugging Face cache ({cache()})"
  if not there and stored.is_dir() and asked.revision:
    lack += f" with revision {asked.revision}; there are {', '.join(sorted(os.listdir(stored / 'refs'))) or 'none'}"
  known = sorted(one.name.removeprefix("models--").replace("--", "/") for one in cache().glob("models--*--*"))
  guess = nearest(asked.repo, known)
  raise DataError(f"{text}: no such file or folder{here}, and {lack}" + (f"; did you mean {guess}?" if guess and not there else "")
                  + f". `mmdiff get {text}` fetches it, or write {HUB}{text}; no other command goes to the network")


def cache() -> Path:
  """The folder where tools of the Hugging Face hub keep what they have fetched."""
  home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
  return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub").expanduser()


def snapshot(folder: Path, revision: str | None = None) -> Path | None:
  """The files of a revision (branch, tag or commit) in a folder of the cache, `models--ORG--NAME`; without one those of main, or the only
  ones. None where they are not there."""
  reference = folder / "refs" / (revision or "main")
  commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or ""
  there = sorted(one for one in (folder / "snapshots").glob("*") if one.is_dir())
  if not commit and len(there) == 1:
    return there[0]
  return next((one for one in there if one.name == commit), None)


def title(path: str | os.PathLike) -> str:
  """A short name of a model for a file of results: that of its folder or file, of a snapshot in the cache that of the model."""
  where = Path(path).absolute()
  for folder in where.parents:
    if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
      return "-".join((folder.parent.name.rpartition("--")[2], *where.relative_to(folder).parts[1:]))
  return Path(path).resolve().stem


def near(path: Path) -> str:
  """A hint at what lies where a path points beside."""
  parent = next((one for one in path.parents if one.is_dir()), Path("."))
  within = path.relative_to(parent).parts[:1] if path.is_relative_to(parent) else ()
  names = [entry.name for entry in os.scandir(parent)] if within else []
  guess = nearest(within[0], [name for name in names if not name.startswith(".")]) if within else None
  guess = guess if guess and edits(within[0], guess) <= max(1, len(guess) // 4) else None
  return f"; did you mean {parent / guess}?" if guess else ""


def what(path: Path) -> str:
  """What a path that is no model is, for a message."""
  if path.is_file():
    kind = path.suffix.lower().lstrip(".")
    return ("a tar, which may hold records" if kind == "tar" else "a picture" if kind in PICTURES else f"a file of type .{kind}" if kind
            else "a file")
  names = [entry.name for entry in os.scandir(path)] if path.is_dir() else []
  endings = [name.rpartition(".")[2].lower() for name in names]
  pictures, tars = sum(one in PICTURES for one in endings), endings.count("tar")
  weights = [name for name in names if Path(name).suffix in containers.WEIGHTS and not name.endswith(".json")]
  if not names:
    return "an empty folder"
  if pictures or tars:
    return f"a folder of {f'{pictures:,} pictures' if pictures else f'{tars:,} tars'}"
  return f"a folder of several weight files, {', '.join(sorted(weights)[:3])}: give one of them" if weights else \
    "a folder without config.json and without weights"
