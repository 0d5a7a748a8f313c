"""What people call their data, in one word, as the source that a config names. Looks at names and first bytes, opens no data.

| word | source |
|---|---|
| a folder of pictures, with or without a table, texts or class folders; a table CSV, TSV, JSON or JSONL | `folder` |
| a folder of tars, a tar, a pattern such as '/data/{00000..00041}.tar' | `webdataset` |
| COCO's or Karpathy's JSON, its pictures beside or above it | `coco` |
| parquet files or a folder of them, what `datasets.save_to_disk` wrote; FOLDER:SPLIT | `parquet` |
| tfds:NAME[:SPLIT], a folder that TFDS prepared; FOLDER:SPLIT | `tfds` |
| scenes:TIER[:SPLIT] | `scenes` |
| name=NAME,KEY=VALUE,…; a NAME alone | that source |
"""
import os
import re
from typing import Any

from mmdiff.core.errors import DataError
from mmdiff.core.spelling import edits
from mmdiff.data import SOURCES

TABLES = (".csv", ".tsv", ".jsonl", ".json")
COCO_HEAD = 1 << 20                      # bytes of a JSON file that are looked at
SLIP = 2                                 # letters of a source's name
DEEP = 2                                 # folders below one that may hold a prepared set
VERSION = re.compile(r"\d+(\.\d+)*")


def source(text: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
  """(the source that a word means, further keys of it as texts). Raises DataError for a word that means nothing."""
  if text.startswith("name="):
    name, *rest = _pairs(text)
    return {"name": name[1]}, rest
  return _of_word(text), []


def _pairs(text: str) -> list[tuple[str, str]]:
  """Of "name=webdataset,urls=a.tar,b.tar": a part without "=" goes on with the value before it."""
  found: list[tuple[str, str]] = []
  for part in text.split(","):
    key, equals, value = part.partition("=")
    if equals or not found:
      found.append((key, value))
    else:
      found[-1] = (found[-1][0], f"{found[-1][1]},{part}")
  return found


def _of_word(text: str) -> dict[str, Any]:
  head, *rest = text.split(":")
  path = os.path.expanduser(text)
  if head in SOURCES and (not os.path.exists(path) or "/" not in text):
    return _of_name(head, rest)
  if ".tar" in text or "{" in text:
    return {"name": "webdataset", "urls": text}
  if os.path.isdir(path):
    return _of_folder(text)
  folder, colon, split = text.rpartition(":")
  if colon and os.path.isdir(os.path.expanduser(folder)):
    found = _of_folder(folder)
    if found["name"] not in ("tfds", "parquet"):
      raise DataError(f"{text}: {folder} is of the source {found['name']}, which has no splits; leave :{split} out")
    return found | {"split": split}
  suffix = os.path.splitext(text)[1].lower()
  if suffix in TABLES:
    return _of_table(text)
  if suffix in (".parquet", ".arrow"):
    from mmdiff.data import parquet
    if os.path.isfile(path) and not parquet.has_pictures(path):          # the pictures lie beside it
      return {"name": "folder", "path": os.path.dirname(text) or ".", "table": os.path.basename(text)}
    return {"name": "parquet", "path": text}
  if os.sep not in text and not os.path.exists(path) and any(edits(head, name) <= SLIP for name in SOURCES):
    return {"name": head}                                               # a slip, which the check of names will name
  found = "no source of data" if os.path.exists(path) else "no such file or folder"
  raise DataError(f"{text}: {found}; expected a folder of pictures, a table of captions, tar shards, parquet files, COCO's "
                  f"JSON, a TFDS folder or tfds:NAME, scenes:TIER, or the name of a source ({', '.join(SOURCES)})")


def _of_name(name: str, rest: list[str]) -> dict[str, Any]:
  if name == "scenes":
    return {"name": name} | dict(zip(("tier", "split"), rest))
  if name == "tfds" and rest:
    version = [part for part in rest[1:2] if VERSION.fullmatch(part)]
    return {"name": name, "dataset": ":".join([rest[0], *version]), "split": ":".join(rest[1 + len(version):]) or "train"}
  return {"name": name}


def _of_folder(text: str) -> dict[str, Any]:
  path = os.path.expanduser(text)
  names = sorted(os.listdir(path))
  if {"state.json", "dataset_dict.json"} & set(names):
    return {"name": "parquet", "path": text} | _split_of(text)
  if "dataset_info.json" in names:
    return {"name": "tfds", "dataset": text, "split": "train"}
  if any(name.endswith(".tar") for name in names):
    return {"name": "webdataset", "urls": text}
  if prepared := _prepared(path):
    return {"name": "tfds", "dataset": prepared, "split": "train"}
  from mmdiff.data import parquet
  files = parquet.files_under(path)
  if files and not _shows_pictures(path) and parquet.has_pictures(files[0]):
    return {"name": "parquet", "path": text} | _split_of(text)
  return {"name": "folder", "path": text}


def _split_of(path: str) -> dict[str, str]:
  """The split that training takes, where the names of the files tell some."""
  from mmdiff.data import parquet
  splits = parquet.splits(path)
  return {"split": "train"} if "train" in splits and len(splits) > 1 else {}


def _shows_pictures(path: str) -> bool:
  from mmdiff.data.records import PICTURES
  return any(name.rpartition(".")[2].lower() in PICTURES for name in os.listdir(path))


def _prepared(path: str) -> str:
  """The one folder that TFDS prepared at or shortly below a folder, as `mmdiff data shard --format=array_record` lays it; "" for none."""
  found = []
  for folder, folders, files in os.walk(path):
    depth = os.path.relpath(folder, path).count(os.sep) + (folder != path)
    folders[:] = [] if depth >= DEEP else [name for name in folders if not name.startswith(".")][:64]
    if "dataset_info.json" in files and not {"state.json", "dataset_dict.json"} & set(files):
      found.append(folder)
  return found[0] if len(found) == 1 else ""


def _of_table(text: str) -> dict[str, Any]:
  path = os.path.expanduser(text)
  where = os.path.dirname(text) or "."
  if path.endswith(".json") and (first := _first_picture(path)):
    return {"name": "coco", "images": _holding(first, where), "annotations": text}
  return {"name": "folder", "path": where, "table": os.path.basename(text)}


def _first_picture(path: str) -> str:
  """The file name of the first picture of a JSON of COCO's, as its beginning has it; "" for another JSON, or none."""
  try:
    with open(path, "rb") as file:
      head = file.read(COCO_HEAD).decode("utf-8-sig", "replace")
  except OSError:
    return ""
  listed = re.search(r'"images"\s*:\s*\[', head)
  name = re.search(r'"file_?name"\s*:\s*"([^"]+)"', head[listed.end():]) if listed else None
  return name[1] if head.lstrip().startswith("{") and name else ""


def _holding(picture: str, where: str) -> str:
  """The folder beside, above or next to `where` that holds a picture; `where` itself when none does."""
  for base in (where, os.path.join(where, "..")):
    here = os.path.expanduser(base)
    for name in ["", *sorted(name for name in os.listdir(here) if os.path.isdir(os.path.join(here, name)))]:
      if os.path.isfile(os.path.join(here, name, picture)):
        return os.path.normpath(os.path.join(base, name))
  return where
