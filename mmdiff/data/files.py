"""Folders of pictures: with a table of captions, with a text beside each picture, or one sub-folder per class; and COCO's JSON.

Nothing outside the folder is ever opened: `..`, absolute paths and links that lead elsewhere make a BadRecord("unreadable").
"""
import collections
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmdiff.core.errors import DataError
from mmdiff.core.ranges import wrong_text
from mmdiff.data import records, sight, tables
from mmdiff.data.quarantine import BadRecord

LOG = logging.getLogger(__name__)
TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.json", "metadata.json")


class Folder:
  """Pictures under `root`, one per row. A row is {"key", "file", "captions", …} or the BadRecord to raise for it. `skipped` counts what was
  found and is in no row, by reason; `captionless` says that records without captions are meant."""

  def __init__(self, root: str, rows: Sequence[Mapping[str, Any] | BadRecord], *, identity: str, labels: tuple[str, ...] = (),
               skipped: Mapping[str, int] = {}, captionless: bool = False):               # noqa: B006
    self.root, self._rows, self._identity, self.labels, self.skipped = os.path.realpath(root), rows, identity, labels, dict(skipped)
    self.captionless = captionless
    if not any(isinstance(row, Mapping) and records.is_here(self.root, row["file"]) for row in rows):
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


def _text_bytes(root: str, name: str) -> bytes:
  try:
    with open(records.confined(root, name), "rb") as file:
      data = file.read(records.MAX_TEXT_BYTES + 1)
  except OSError as error:
    raise BadRecord("unreadable", f"{name}: {error}") from None
  if len(data) > records.MAX_TEXT_BYTES:
    raise BadRecord("long_caption", f"{name} has more than {records.MAX_TEXT_BYTES} bytes")
  return data


def _stem(name: str) -> str:
  folder, file = os.path.split(name)
  return os.path.join(folder, file.rpartition(".")[0] or file)


def _from_table(root: str, table: str, image_column: str, columns: Mapping[str, str], captionless: bool) -> Folder:
  rows, digest = tables.read(table)
  good = [row for row in rows if isinstance(row, dict)]
  bad = next((row for row in rows if isinstance(row, BadRecord)), None)
  if bad and not good:
    raise DataError(f"{table}: none of its {len(rows)} rows can be read; the first: {bad.detail}; correct the table")
  names = list(dict.fromkeys(name for row in good[:100] for name in row))
  image, columns = sight.columns(root, table, names, good, image_column, columns)
  place, keyed = sight.place_of(root, table, good, image), _keys(table, good, image)
  kinds = {column: kind for kind, column in columns.items()} or {name: kind for name in names if (kind := records.kind_of(name))}
  empty, merged = 0, dict[str, dict[str, Any]]()
  out: list[dict[str, Any] | BadRecord] = []
  for number, row in enumerate(rows, 1):
    try:
      if isinstance(row, BadRecord):
        raise row
      file = row.get(image)
      if not isinstance(file, str) or not file:
        raise BadRecord("missing_key", f"{table} row {number}: no {image!r}")
      file = os.path.join(place, file)
      captions = ({kind: records.caption(row[column], what=column) for kind, column in columns.items() if row.get(column) is not None}
                  if columns else records.captions_of(row))
      empty += len({kinds[name] for name, cell in row.items() if cell is None and name in kinds} - captions.keys())
      key = keyed(row)
      if wrong := wrong_text(key):
        raise BadRecord("unreadable", f"{table} row {number}: key: {wrong}, which no result could name")
    except BadRecord as fault:
      out.append(fault)
      continue
    if key not in merged:
      merged[key] = {"key": key, "file": file, "captions": captions} | records.extras_of(row)
      out.append(merged[key])
    elif merged[key]["file"] == file:                                     # several captions of one picture, a row each
      other = [name for name, value in records.extras_of(row).items() if merged[key].get(name) != value]
      if other:
        raise DataError(f"{table} row {number}: {file!r} has the {other[0]} {row[other[0]]!r} here and {merged[key].get(other[0])!r} "
                        "before; give the table a `key` column if these are two records")
      merged[key]["captions"] = {kind: _join(merged[key]["captions"].get(kind), captions.get(kind))
                                 for kind in dict.fromkeys([*merged[key]["captions"], *captions])}
    else:
      raise DataError(f"{table} row {number}: key {key!r} is used for {merged[key]['file']!r} and for {file!r}; "
                      "give the table a `key` column with a different key per picture")
  if not captionless and not any(isinstance(row, dict) and row["captions"] for row in out):
    others = [name for name in names if name != image] or names
    raise DataError(f"{table}: no captions in columns {names}; expected `caption`, `text`, `title` or caption_KIND, or say which: "
                    f"{sight.flag('captions.original', others[-1])}, or for pictures alone captionless=True (--data.captionless)")
  return Folder(root, out, identity=f"{digest} {image} {sorted(columns.items())}", skipped=dict(empty_caption=empty) if empty else {},
                captionless=captionless)


def _keys(table: str, rows: Sequence[Mapping[str, Any]], image: str) -> Callable[[Mapping[str, Any]], str]:
  """What the key of a row is: `key`, `id` where it tells pictures apart, else the picture's path, without its suffix where that does."""
  named = [row for row in rows if isinstance(row.get(image), str)]
  apart = lambda key: len({(key(row), row[image]) for row in named}) == len({key(row) for row in named})
  stem = lambda row: _stem(row[image])
  own = lambda row: next((str(row[name]) for name in sight.KEY_COLUMNS if row.get(name) is not None), "")
  chosen = lambda row: own(row) or stem(row)
  if apart(chosen) or any(row.get("key") is not None for row in named):
    return chosen                                                     # two pictures of one `key` are refused where they are met
  if any(own(row) for row in named) and apart(stem):
    sight.say(f"{table}: several pictures have the same `id`, so that the keys of its records are the pictures' names")
    return stem
  sight.say(f"{table}: several pictures have the same name but for their suffix, so that the keys of its records are their whole names")
  return lambda row: row[image]


def _join(a: str | list[str] | None, b: str | list[str] | None) -> str | list[str]:
  both = [item for part in (a, b) if part is not None for item in ([part] if isinstance(part, str) else part)]
  return both if len(both) > 1 else both[0] if both else []


def _walk(root: str) -> tuple[list[str], list[str], collections.Counter[str]]:
  """(pictures, texts, what else there is by reason), names relative to the folder, in order."""
  pictures, texts, others = [], [], collections.Counter[str]()
  for folder, folders, files in os.walk(root):
    linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
    others["linked_folder"] += len(linked)
    others["hidden"] += sum(name.startswith(".") for name in (*folders, *files))
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in sorted(name for name in files if not name.startswith(".")):
      suffix = name.rpartition(".")[2].lower()
      if suffix in records.PICTURES or suffix == "txt":
        (texts if suffix == "txt" else pictures).append(os.path.relpath(os.path.join(folder, name), root))
      else:
        others["other_file"] += 1
  return pictures, texts, others


def _beside(pictures: Sequence[str],
            texts: Sequence[str]) -> tuple[dict[str, dict[str, str]], collections.Counter[str], dict[str, list[str]]]:
  """({picture: {kind: text}}, texts left out by reason, {text: pictures that could each claim it}).

  A text is of the picture whose name, with or without its suffix, it goes on from: k.txt, k.long.txt, k.jpg.txt, k.jpg.long.txt.
  """
  claims = collections.defaultdict[str, list[str]](list)
  for name in pictures:
    claims[name].append(name)
    claims[_stem(name)].append(name)
  beside, lost, contested = collections.defaultdict[str, dict[str, str]](dict), collections.Counter[str](), {}
  for name in texts:
    own = records.owner(name, claims)
    kind = name[len(own) + 1:-4] or "original"
    picture, *others = claims[own] if own else [""]
    if others:
      contested[name] = claims[own]
    elif not own or kind in beside.get(picture, {}):
      lost["second_text" if own else "text_without_picture"] += 1
    else:
      beside[picture][kind] = name
  return dict(beside), lost, contested


def _from_pictures(root: str, layout: str, captionless: bool) -> Folder:
  pictures, texts, skipped = _walk(root)
  if not pictures:
    raise DataError(f"{root}: no pictures (*.{{{','.join(records.PICTURES)}}}) and no table ({', '.join(TABLES)}); "
                    f"found {sorted(os.listdir(root))[:5] or 'nothing'}; point `path` at the folder that holds them")
  stems = [_stem(name) for name in pictures]
  keys = stems if len(set(stems)) == len(stems) else pictures
  beside, lost, contested = _beside(pictures, texts)
  if layout == "text" or (layout == "auto" and (beside or contested)):
    for name, claimants in contested.items():
      raise DataError(f"{root}: {', '.join(claimants)} could each claim {name}; rename or remove all but one of these pictures, or call "
                      f"the text {claimants[0]}.txt or {claimants[1]}.txt")
    if not beside:
      raise DataError(f"{root}: {len(pictures)} pictures but no text beside them; expected {stems[0]}.txt and so on")
    if lost:
      LOG.warning("%s: texts left out: second ones of a picture and kind (second_text), or beside no picture: %s", root, dict(lost))
    rows = [{"key": key, "file": file, "captions": {}, "texts": beside.get(file, {})} for key, file in zip(keys, pictures)]
    return Folder(root, rows, identity=repr([(row["key"], row["texts"]) for row in rows]), skipped=skipped + lost, captionless=captionless)
  skipped["text"] += len(texts)
  if captionless:
    rows = [{"key": key, "file": file, "captions": {}} for key, file in zip(keys, pictures)]
    return Folder(root, rows, identity=repr(keys), skipped=+skipped, captionless=True)
  classes = tuple(sorted({os.path.dirname(name).split(os.sep)[0] for name in pictures}))
  if "" in classes or (layout == "auto" and len(classes) < 2):
    raise DataError(f"{root}: {len(pictures)} pictures but no captions; expected one of {', '.join(TABLES)}, a .txt beside each picture "
                    f"({stems[0]}.txt), or every picture in a sub-folder named by its class; "
                    "set captionless=True for pictures alone")
  code = {name: i for i, name in enumerate(classes)}
  rows = [{"key": key, "file": file, "label": code[file.split(os.sep)[0]],
           "captions": {"original": file.split(os.sep)[0].replace("_", " ")}} for key, file in zip(keys, pictures)]
  return Folder(root, rows, identity=repr(keys), labels=tuple(name.replace("_", " ") for name in classes), skipped=+skipped)


def _odd_tables(root: str) -> list[str]:
  """The one table of another name in a folder that names its pictures, where no text lies beside these. Raises DataError for several."""
  names = [name for name in sorted(os.listdir(root)) if name.endswith(tables.SUFFIXES) and not name.startswith(".")]
  found = [name for name in names if sight.names_pictures(root, os.path.join(root, name))]
  if not found or any(_beside(*_walk(root)[:2])[::2]):
    return []
  if len(found) > 1:
    raise DataError(f"{root}: {', '.join(found)} could each be the table of its captions; say which: {sight.flag('table', found[0])}")
  return [os.path.join(root, found[0])]


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
    table: CSV, TSV, JSONL, parquet or JSON list; "" looks for metadata.jsonl, captions.csv and the like in the folder, then for one of
      another name that names pictures here. Rows that name the same picture are one record with several captions. Keys are a column
      `key`, or `id` where it tells pictures apart, otherwise the picture's path without suffix.
    image_column: column with the picture's path; "" takes the first of file_name, image, filepath, path, filename, then the one whose
      values are files here (see `sight`).
    captions: caption kind -> column; {} takes `caption`/`text`/`title` as original, `caption_KIND` and `captions: {KIND: text}`, then
      columns whose names or contents say so.
    layout: "text" reads STEM.txt (original) and STEM.KIND.txt beside each picture, or both after its whole name (k.jpg.txt); "classes"
      takes the sub-folder as `label` (an index into the source's `labels`) and as original caption; "auto" takes the first of table, text
      and classes that is there.
    captionless: accepts pictures alone, for a side-car or a captioner to supply the captions. (A record that lacks them among others
      that have some comes with `captions` {} in any case; the pipeline counts it.) Empty cells of a table are counted in `skipped`.
  Raises: DataError for a missing folder, table or column, and for pictures without any captions.
  """
  root = _directory(path, "path")
  if layout in ("auto", "table"):
    places = [os.path.expanduser(table), os.path.join(root, table)] if table else [os.path.join(root, name) for name in TABLES]
    found = next((place for place in places if os.path.isfile(place)), None)
    if found:
      return _from_table(root, found, image_column, dict(captions), captionless)
    if not table and layout == "auto" and (odd := _odd_tables(root)):
      return _from_table(root, odd[0], image_column, dict(captions), captionless)
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
  content = tables.parsed(path, data.decode("utf-8-sig", "surrogateescape"))
  try:
    pairs, skipped = _coco_pairs(root, path, content, split)
    if odd := [file for file, _ in pairs if not isinstance(file, str)]:
      raise TypeError(f"a picture is called {odd[0]!r:.60}")
  except (KeyError, TypeError, AttributeError) as error:
    raise DataError(f"{annotations}: not a caption file of COCO ({type(error).__name__}: {error}); expected images[] with annotations[] "
                    "of image_id and caption, or images[] with sentences[] (Karpathy)") from None
  plain = [_stem(os.path.basename(file)) for file, _ in pairs]
  keys = plain if len(set(plain)) == len(plain) else [_stem(file) for file, _ in pairs]
  twice = [key for key, count in collections.Counter(keys).items() if count > 1]
  if twice:
    raise DataError(f"{annotations}: {len(twice)} pictures are in it more than once, first {twice[0]!r}; captions and results are joined "
                    "by the picture's name, so list each once")
  rows: list[dict[str, Any] | BadRecord] = []
  for key, (file, captions) in zip(keys, pairs):
    try:
      rows.append({"key": key, "file": file, "captions": {"original": records.caption(captions)} if captions else {}})
    except BadRecord as fault:
      rows.append(BadRecord(fault.kind, fault.detail, key))
  return Folder(root, rows, identity=hashlib.blake2b(data).hexdigest()[:32] + split, skipped=+skipped)


def _coco_pairs(root: str, path: str, content: Mapping, split: str) -> tuple[list[tuple[str, list[Any]]], collections.Counter[str]]:
  """((picture, captions) of every picture, what has none)."""
  pairs: list[tuple[str, list[Any]]] = []
  if "annotations" in content:
    if split:
      raise DataError(f"{path}: has no splits; leave `split` empty, or use Karpathy's dataset_coco.json")
    by_image: dict[Any, list[Any]] = {}
    for note in content["annotations"]:
      by_image.setdefault(note["image_id"], []).append(note["caption"])
    names = {image["id"]: image["file_name"] for image in content["images"]}
    if len(names) < len(content["images"]):
      raise DataError(f"{path}: {len(content['images']):,} images share {len(names):,} ids, so their captions can't be told apart; "
                      "write it anew with an id for each")
    pairs = [(name, by_image.pop(number, [])) for number, name in names.items()]
    return pairs, collections.Counter(caption_without_image=sum(map(len, by_image.values())))
  known = sorted({image["split"] for image in content["images"]})
  wanted = split.split("+") if split else known
  if set(wanted) - set(known):
    raise DataError(f"{path}: unknown split {split!r}; it has {', '.join(known)}, several are joined by +")
  for image in content["images"]:
    if image["split"] in wanted:
      nested = os.path.join(image.get("filepath", ""), image["filename"])
      name = nested if os.path.exists(os.path.join(root, nested)) else image["filename"]
      pairs.append((name, [sentence["raw"] for sentence in image["sentences"]]))
  return pairs, collections.Counter()
