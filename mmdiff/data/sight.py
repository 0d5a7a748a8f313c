"""Which column of a table is the picture's, and which are captions: by their names' words and case, then by what stands in them."""
import functools
import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmdiff.core.errors import DataError
from mmdiff.data import records, tables

LOG = logging.getLogger(__name__)
LOOKED_AT = 200                          # rows, spread over the table
PICTURE_WORDS = ("image", "img", "picture", "photo", "file", "filename", "filepath", "imagefile", "imagepath", "jpg", "png")
TEXT_WORDS = ("caption", "captions", "text", "title", "description", "prompt", "sentence", "comment", "alt")        # in this order
IMAGE_COLUMNS = ("file_name", "image", "filepath", "path", "filename")            # by name alone
KEY_COLUMNS = ("key", "id")
PLACES = 32                              # folders right in a folder of pictures that a table's names may be relative to
MOST = 0.5                               # of the values, for a column to be what they are


def words(name: str) -> list[str]:
  """"Image File", "imageFile", "image_file" -> image, file."""
  return re.findall("[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


def spread(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """A few rows from everywhere."""
  return [rows[i * len(rows) // LOOKED_AT] for i in range(LOOKED_AT)] if len(rows) > LOOKED_AT else list(rows)


def picture_column(names: Sequence[str], rows: Sequence[Mapping[str, Any]], is_here: Callable[[str], bool]) -> str:
  """The column whose values are files here; of several the one whose name says so; "" if none can be told."""
  shown = spread(rows)
  here = [name for name in names if _share(shown, name, lambda value: isinstance(value, str) and is_here(value)) >= MOST]
  called = [name for name in here or names if set(words(name)) & set(PICTURE_WORDS)]
  if not here:                           # all are missing: which ones is said later, so that names decide and suffixes confirm
    called = [name for name in called if _share(shown, name, _is_picture_name) >= MOST]
  found = here if len(here) == 1 else called
  return found[0] if len(found) == 1 else ""


def caption_columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """{kind: column} of the columns that hold captions, given those that may; {} if none can be told."""
  shown = spread(rows)
  texts = [name for name in names if _share(shown, name, _is_text) >= MOST]
  found: dict[str, str] = {}
  for name in texts:
    said = [word for word in words(name) if word not in TEXT_WORDS]
    if len(said) == 1 and said[0] in records.KINDS:
      found.setdefault(said[0], name)
  rest = [name for name in texts if name not in found.values()]
  called = [[name for name in rest if word in words(name)] for word in TEXT_WORDS]
  prose = [] if found else [name for name in rest if _share(shown, name, _is_prose) >= MOST]
  original = next((listed for listed in called if listed), prose)
  return found | ({"original": original[0]} if len(original) == 1 and "original" not in found else {})


def columns(root: str, table: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], image: str,
            columns: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
  """(the picture's column, {kind: column} where the names of the columns don't say it themselves). Raises DataError."""
  if missing := [name for name in (image, *columns.values()) if name and name not in names]:
    raise refused(table, f"no column {', '.join(missing)}", names, [("image_column", names[0]), ("captions.original", names[-1])])
  found = image or next((name for name in IMAGE_COLUMNS if name in names), "") or \
    picture_column(names, rows, _here(root))
  if not found:
    raise refused(table, "no column can be told to be the pictures'", names, [("image_column", names[0])])
  if columns or any(records.kind_of(name) or name == "captions" for name in names):
    return found, columns
  seen = caption_columns([name for name in names if name not in (found, *KEY_COLUMNS, *records.EXTRAS)], rows)
  if seen or found != image and found not in IMAGE_COLUMNS:
    say(f"{table}: pictures are taken from the column {found!r}" + (f", captions from {seen}" if seen else ""))
  return found, seen


def _places(root: str) -> list[str]:
  """The folder itself, and those right in it."""
  inner = [name for name in sorted(os.listdir(root)) if not name.startswith(".") and os.path.isdir(os.path.join(root, name))]
  return ["", *inner[:PLACES]]


def _here(root: str) -> Callable[[str], bool]:
  root, places = os.path.realpath(root), _places(root)
  return lambda name: any(records.is_here(root, os.path.join(place, name)) for place in places)


def place_of(root: str, table: str, rows: Sequence[Mapping[str, Any]], image: str) -> str:
  """The folder right in `root` that the names are relative to, when none of them is in `root` itself; "" for `root`."""
  names = [row[image] for row in spread(rows) if isinstance(row.get(image), str)]
  real = os.path.realpath(root)
  there = {sub: sum(records.is_here(real, os.path.join(sub, name)) for name in names) for sub in _places(root)} if names else {}
  best = max(there, key=lambda sub: there[sub], default="")
  if not best or there[""] or not there[best]:
    return ""
  say(f"{table}: the names of its pictures are those of the folder {best}")
  return best


@functools.lru_cache(maxsize=64)
def say(text: str) -> None:
  """Once: training and its evaluators open the same table."""
  LOG.warning("%s", text)


def names_pictures(root: str, table: str) -> bool:
  """Whether a file of any name in a folder is a table of its pictures."""
  try:
    rows = [row for row in tables.read(table)[0] if isinstance(row, dict)]
  except DataError:
    return False                                                        # no table of records: settings, COCO's annotations, …
  names, is_here = list(dict.fromkeys(name for row in rows[:100] for name in row)), _here(root)
  found = picture_column(names, rows, is_here)
  return any(isinstance(row.get(found), str) and is_here(row[found]) for row in spread(rows))


def flag(key: str, name: str) -> str:
  """As it is typed: --data.image_column='Image File'."""
  return f"--data.{key}={shlex.quote(name)}"


def refused(where: str, what: str, names: Sequence[str], keys: Sequence[tuple[str, str]]) -> DataError:
  """That a column can't be told; keys: (key of the source, the column that it might be)."""
  flags = " ".join(flag(key, name) for key, name in keys)
  return DataError(f"{where}: {what}; found columns {list(names)}; say which, for instance {flags} (in a config, data.source.{keys[0][0]})")


def _share(rows: Sequence[Mapping[str, Any]], name: str, test: Callable[[Any], bool]) -> float:
  values = [row[name] for row in rows if row.get(name) is not None]
  return sum(map(test, values)) / len(values) if values else 0.0


def _is_picture_name(value: Any) -> bool:
  return isinstance(value, str) and "." in value and value.rpartition(".")[2].lower() in records.PICTURES


def _texts(value: Any) -> list[str]:
  several = list(value) if isinstance(value, (list, tuple)) else [value]
  return [text for text in several if isinstance(text, str)]


def _is_text(value: Any) -> bool:
  """Some words: no number, no file, no address."""
  return any(re.search(r"[^\W\d_]", text) and not _is_picture_name(text) and not re.match(r"\w+://", text) for text in _texts(value))


def _is_prose(value: Any) -> bool:
  return any(len(text.split()) >= 2 for text in _texts(value)) and _is_text(value)
