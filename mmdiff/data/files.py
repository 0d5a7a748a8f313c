"""Folders of pictures: with a table of captions, with a text beside each picture, or one sub-folder per class; and COCO's JSON.

Nothing outside the folder is ever opened: `..`, absolute paths and links that lead elsewhere make a BadRecord("unreadable").
"""
import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmdiff.core.errors import DataError
from mmdiff.data import records
from mmdiff.data.quarantine import BadRecord

TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.json", "metadata.json")
IMAGE_COLUMNS = ("file_name", "image", "filepath", "path", "filename")
KEY_COLUMNS = ("key", "id")


class Folder:
  """Pictures under `root`, one per row. A row is {"key", "file", "captions", …} or the BadRecord to raise for it."""

  def __init__(self, root: str, rows: Sequence[Mapping[str, Any] | BadRecord], *, identity: str, labels: tuple[str, ...] = ()):
    self.root, self._rows, self._identity, self.labels = os.path.realpath(root), rows, identity, labels
    if not any(isinstance(row, Mapping) and _inside(self.root, row["file"]) for row in rows):
      first = next((f"{row.kind}: {row.detail}" if isinstance(row, BadRecord) else repr(row["file"]) for row in rows), "no rows")
      raise DataError(f"{root}: none of {len(rows)} records has its picture in this folder (first: {first}); picture paths must be "
                      "relative to it, or absolute and inside it")

  def __len__(self) -> int:
    return len(self._rows)

  def fingerprint(self) -> str:
    """A digest of the table (or the file list), the same wherever the folder lies."""
    return records.fingerprint("folder", self._identity, len(self._rows))

  def key(self, i: int) -> str:
    """The key of record `i`, without reading the picture; "" for a row that can't be read."""
    row = self._rows[i]
    return row["key"] if isinstance(row, Mapping) else ""

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = int(i)
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    row = self._rows[i]
    if isinstance(row, BadRecord):
      raise BadRecord(row.kind, row.detail, row.key)
    record = {"key": row["key"], "image": records.picture_bytes(self.root, row["file"]), "captions": dict(row["captions"])}
    if "texts" in row:
      record["captions"] = {kind: records.text(_text_bytes(self.root, name), what=name) for kind, name in row["texts"].items()}
    return record | {name: value for name, value in row.items() if name not in ("key", "file", "captions", "texts")}


def _inside(root: str, name: str) -> bool:
  try:
    return os.path.isfile(records.confined(root, name))
  except BadRecord:
    return False


def _text_bytes(root: str, name: str) -> bytes:
  try:
    with open(records.confined(root, name), "rb") as file:
      data = file.read(records.MAX_TEXT_BYTES + 1)
  except OSError as error:
    raise BadRecord("unreadable", f"{name}: {error}") from None
  if len(data) > records.MAX_TEXT_BYTES:
    raise BadRecord("long_caption", f"{name} has more than {records.MAX_TEXT_BYTES} bytes")
  return data


def read_table(path: str) -> tuple[list[dict[str, Any] | BadRecord], str]:
  """The rows of a CSV, TSV, JSONL or JSON-list file and a digest of its bytes.

  A line that can't be read becomes BadRecord("unreadable"); bytes that are not UTF-8 survive as lone surrogates, so that only the
  field that holds them is faulty.
  """
  data = Path(path).read_bytes()
  content, digest = data.decode("utf-8-sig", "surrogateescape"), hashlib.blake2b(data, digest_size=16).hexdigest()
  suffix = Path(path).suffix.lower()
  rows: list[dict[str, Any] | BadRecord] = []
  if suffix in (".csv", ".tsv"):
    previous = csv.field_size_limit(records.MAX_TEXT_BYTES)
    try:
      reader = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t" if suffix == ".tsv" else ",", restkey="")
      for row in reader:
        rows.append({name: value or None for name, value in row.items() if name})
    except csv.Error as error:
      raise DataError(f"{path}: line {reader.line_num}: {error}; expected a CSV with a header row") from None
    finally:
      csv.field_size_limit(previous)
  elif suffix in (".jsonl", ".json"):
    items = content.split("\n") if suffix == ".jsonl" else _json(path, content)
    if not isinstance(items, list):
      raise DataError(f"{path}: found a JSON {type(items).__name__}, expected a list of objects with a picture and a caption "
                      "(for COCO annotation files use the source `coco`)")
    for number, item in enumerate(items, 1):
      if isinstance(item, str) and suffix == ".jsonl":
        if not item.strip():
          continue
        try:
          item = json.loads(item)
        except (ValueError, RecursionError) as error:
          rows.append(BadRecord("unreadable", f"{path} line {number}: {error}"))
          continue
      rows.append(item if isinstance(item, dict) else BadRecord("unreadable", f"{path} item {number}: not an object"))
  else:
    raise DataError(f"{path}: unknown kind of table {suffix!r}; expected .csv, .tsv, .jsonl or .json")
  if not rows:
    raise DataError(f"{path}: no rows; expected a header and one line per picture")
  return rows, digest


def _json(path: str, content: str) -> Any:
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise DataError(f"{path}: not JSON ({error}); write it anew") from None


def _stem(name: str) -> str:
  folder, file = os.path.split(name)
  return os.path.join(folder, file.rpartition(".")[0] or file)


def _from_table(root: str, table: str, image_column: str, columns: Mapping[str, str], captionless: bool) -> Folder:
  rows, digest = read_table(table)
  names = list(dict.fromkeys(name for row in rows[:100] if isinstance(row, dict) for name in row))
  image = image_column or next((name for name in IMAGE_COLUMNS if name in names), "")
  wanted = [image, *columns.values()]
  if not image or any(name not in names for name in wanted):
    missing = [name for name in wanted if name and name not in names] or [f"a picture column ({', '.join(IMAGE_COLUMNS)})"]
    raise DataError(f"{table}: no column {', '.join(missing)}; found columns {names}; set image_column= and captions.KIND= to their names")
  merged: dict[str, dict[str, Any]] = {}
  out: list[dict[str, Any] | BadRecord] = []
  for number, row in enumerate(rows, 1):
    try:
      if isinstance(row, BadRecord):
        raise row
      file = row.get(image)
      if not isinstance(file, str) or not file:
        raise BadRecord("missing_key", f"{table} row {number}: no {image!r}")
      captions = ({kind: records.caption(row[column], what=column) for kind, column in columns.items() if row.get(column) is not None}
                  if columns else records.captions_of(row))
      key = next((str(row[name]) for name in KEY_COLUMNS if row.get(name) is not None), _stem(file))
    except BadRecord as fault:
      out.append(fault)
      continue
    if key not in merged:
      merged[key] = {"key": key, "file": file, "captions": captions} | records.extras_of(row)
      out.append(merged[key])
    elif merged[key]["file"] == file:                                     # several captions of one picture, a row each
      merged[key]["captions"] = {kind: _join(merged[key]["captions"].get(kind), captions.get(kind))
                                 for kind in dict.fromkeys([*merged[key]["captions"], *captions])}
    else:
      raise DataError(f"{table} row {number}: key {key!r} is used for {merged[key]['file']!r} and for {file!r}; "
                      "give the table a `key` column with a different key per picture")
  if not captionless and not any(isinstance(row, dict) and row["captions"] for row in out):
    raise DataError(f"{table}: no captions in columns {names}; expected `caption`, `text`, `title` or caption_KIND, or set "
                    "captions.KIND=COLUMN, or captionless=True for pictures alone")
  return Folder(root, out, identity=f"{digest} {image} {sorted(columns.items())}")


def _join(a: str | list[str] | None, b: str | list[str] | None) -> str | list[str]:
  both = [item for part in (a, b) if part is not None for item in ([part] if isinstance(part, str) else part)]
  return both if len(both) > 1 else both[0] if both else []


def _walk(root: str) -> tuple[list[str], set[str]]:
  pictures, texts = [], set()
  for folder, folders, files in os.walk(root):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in sorted(files):
      relative = os.path.relpath(os.path.join(folder, name), root)
      suffix = name.rpartition(".")[2].lower()
      if suffix in records.PICTURES and not name.startswith("."):
        pictures.append(relative)
      elif suffix == "txt":
        texts.add(relative)
  return pictures, texts


def _from_pictures(root: str, layout: str, captionless: bool) -> Folder:
  pictures, texts = _walk(root)
  if not pictures:
    raise DataError(f"{root}: no pictures (*.{{{','.join(records.PICTURES)}}}) and no table ({', '.join(TABLES)}); "
                    f"found {sorted(os.listdir(root))[:5] or 'nothing'}; point `path` at the folder that holds them")
  stems = [_stem(name) for name in pictures]
  keys = stems if len(set(stems)) == len(stems) else pictures
  beside: dict[str, dict[str, str]] = {}
  for name in texts:
    folder, file = os.path.split(name)
    stem, _, suffix = file.partition(".")
    beside.setdefault(os.path.join(folder, stem), {})["original" if suffix.lower() == "txt" else suffix[:-4]] = name
    beside.setdefault(_stem(name), {}).setdefault("original", name)
  if layout == "text" or (layout == "auto" and any(stem in beside for stem in stems)):
    if not any(stem in beside for stem in stems):
      raise DataError(f"{root}: {len(pictures)} pictures but no text beside them; expected {stems[0]}.txt and so on")
    rows = [{"key": key, "file": file, "captions": {}, "texts": beside.get(stem, {})} for key, file, stem in zip(keys, pictures, stems)]
    return Folder(root, rows, identity=repr([(row["key"], row["texts"]) for row in rows]))
  if captionless:
    return Folder(root, [{"key": key, "file": file, "captions": {}} for key, file in zip(keys, pictures)], identity=repr(keys))
  classes = tuple(sorted({os.path.dirname(name).split(os.sep)[0] for name in pictures}))
  if "" in classes or (layout == "auto" and len(classes) < 2):
    raise DataError(f"{root}: {len(pictures)} pictures but no captions; expected one of {', '.join(TABLES)}, a .txt beside each picture "
                    f"({stems[0]}.txt), or every picture in a sub-folder named by its class; "
                    "set captionless=True for pictures alone")
  code = {name: i for i, name in enumerate(classes)}
  rows = [{"key": key, "file": file, "label": code[file.split(os.sep)[0]],
           "captions": {"original": file.split(os.sep)[0].replace("_", " ")}} for key, file in zip(keys, pictures)]
  return Folder(root, rows, identity=repr(keys), labels=tuple(name.replace("_", " ") for name in classes))


def _directory(path: str, what: str) -> str:
  found = os.path.expanduser(path)
  if not os.path.isdir(found):
    kind = "a file" if os.path.exists(found) else "nothing"
    raise DataError(f"{path}: found {kind}, expected a folder of pictures; correct `{what}`")
  return found


def folder(*, path: str, table: str = "", image_column: str = "", captions: Mapping[str, str] = {},  # noqa: B006
           layout: Literal["auto", "table", "text", "classes"] = "auto", captionless: bool = False) -> Folder:
  """A folder of pictures.

  Args:
    path: the folder. No record reaches outside it.
    table: CSV, TSV, JSONL or JSON list; "" looks for metadata.jsonl, captions.csv and the like in the folder. Rows that name the same
      picture are one record with several captions. Keys are a column `key` or `id`, otherwise the picture's path without suffix.
    image_column: column with the picture's path; "" takes the first of file_name, image, filepath, path, filename.
    captions: caption kind -> column; {} takes `caption`/`text`/`title` as original, `caption_KIND` and `captions: {KIND: text}`.
    layout: "text" reads STEM.txt (original) and STEM.KIND.txt beside each picture; "classes" takes the sub-folder as `label` (an index
      into the source's `labels`) and as original caption; "auto" takes the first of table, text and classes that is there.
    captionless: accepts pictures alone, for a side-car or a captioner to supply the captions. (A record that lacks them among others
      that have some comes with `captions` {} in any case; the pipeline counts it.)
  Raises: DataError for a missing folder, table or column, and for pictures without any captions.
  """
  root = _directory(path, "path")
  if layout in ("auto", "table"):
    places = [os.path.expanduser(table), os.path.join(root, table)] if table else [os.path.join(root, name) for name in TABLES]
    found = next((place for place in places if os.path.isfile(place)), None)
    if found:
      return _from_table(root, found, image_column, dict(captions), captionless)
    if table or layout == "table":
      raise DataError(f"{path}: no table {table or ' or '.join(TABLES)}; found {sorted(os.listdir(root))[:5]}; correct `table`")
  return _from_pictures(root, layout, captionless)


def coco(*, images: str, annotations: str, split: str = "") -> Folder:
  """COCO captions: the official captions_*.json, or Karpathy's dataset_*.json; all captions of a picture as a list under `original`.

  Args:
    images: folder of the pictures (for Karpathy's form the folder above train2014 and val2014, or theirs).
    annotations: the JSON file.
    split: Karpathy's split, several joined by "+", e.g. "train+restval"; "" is all. Only for that form.
  Raises: DataError for other JSON, an unknown split, or no pictures.
  """
  root, path = _directory(images, "images"), os.path.expanduser(annotations)
  if not os.path.isfile(path):
    raise DataError(f"{annotations}: no such file; expected COCO's captions_val2014.json or Karpathy's dataset_coco.json")
  data = Path(path).read_bytes()
  content = _json(path, data.decode("utf-8-sig", "surrogateescape"))
  try:
    rows = _coco_rows(root, path, content, split)
  except (KeyError, TypeError, AttributeError) as error:
    raise DataError(f"{annotations}: not a caption file of COCO ({type(error).__name__}: {error}); expected images[] with annotations[] "
                    "of image_id and caption, or images[] with sentences[] (Karpathy)") from None
  return Folder(root, rows, identity=hashlib.blake2b(data).hexdigest()[:32] + split)


def _coco_rows(root: str, path: str, content: Mapping, split: str) -> list[dict[str, Any] | BadRecord]:
  pairs: list[tuple[str, list[Any]]] = []
  if "annotations" in content:
    if split:
      raise DataError(f"{path}: has no splits; leave `split` empty, or use Karpathy's dataset_coco.json")
    by_image: dict[Any, list[Any]] = {}
    for note in content["annotations"]:
      by_image.setdefault(note["image_id"], []).append(note["caption"])
    pairs = [(image["file_name"], by_image.get(image["id"], [])) for image in content["images"]]
  else:
    known = sorted({image["split"] for image in content["images"]})
    wanted = split.split("+") if split else known
    if set(wanted) - set(known):
      raise DataError(f"{path}: unknown split {split!r}; it has {', '.join(known)}, several are joined by +")
    for image in content["images"]:
      if image["split"] in wanted:
        nested = os.path.join(image.get("filepath", ""), image["filename"])
        name = nested if os.path.exists(os.path.join(root, nested)) else image["filename"]
        pairs.append((name, [sentence["raw"] for sentence in image["sentences"]]))
  rows: list[dict[str, Any] | BadRecord] = []
  for file, captions in pairs:
    try:
      found = {"original": records.caption(captions)} if captions else {}
      rows.append({"key": _stem(os.path.basename(file)), "file": file, "captions": found})
    except BadRecord as fault:
      rows.append(fault)
  return rows
