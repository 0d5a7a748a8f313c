"""What the sources of real data share: caption fields, paths confined to their folder, and fingerprints.

A record is `{"key": str, "image": encoded bytes or uint8 [H W 3], "captions": {kind: str or list of str}}` plus what else the source
knows of it (`label`, `facts`, `scene`). A record that can't be had raises `BadRecord` with its kind of fault; a source that can't be
used at all raises `DataError` when it is built. A source that can leave a picture unread has `without_image(i)` beside `source[i]`.
"""
import hashlib
import json
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from mmdiff.core.files import plain
from mmdiff.data.quarantine import BadRecord

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
KINDS = ("original", "short", "long")
ORIGINAL = ("caption", "text", "title")       # what the alt text is called elsewhere, in this order
EXTRAS = ("facts", "scene", "label", "group", "subgroup")
MAX_PICTURE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 4 * 2**20


def without_image(source: Any, index: int) -> Any:
  """A record of a source whose picture nobody will look at: b"" where the source can leave it unread (`source.without_image`)."""
  return getattr(source, "without_image", source.__getitem__)(index)


def text(data: bytes, *, what: str = "caption") -> str:
  """Bytes as UTF-8 without a byte-order mark or the final newline. BadRecord("non_utf8_caption") otherwise."""
  try:
    return data.decode("utf-8-sig").rstrip("\r\n")
  except UnicodeDecodeError as error:
    raise BadRecord("non_utf8_caption", f"{what}: {error}") from None


def caption(value: Any, *, what: str = "caption") -> str | list[str]:
  """A caption or a list of them, checked: BadRecord("bad_type") for other types, "non_utf8_caption" for half a surrogate pair."""
  if isinstance(value, (list, tuple)):
    if not all(isinstance(item, str) for item in value):
      raise BadRecord("bad_type", f"{what}: expected texts, found {[type(item).__name__ for item in value][:5]}")
    return [caption(item, what=what) for item in value]
  if not isinstance(value, str):
    raise BadRecord("bad_type", f"{what}: expected a text, found {type(value).__name__}")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise BadRecord("non_utf8_caption", f"{what}: {error}") from None
  return value


def owner(name: str, stems: Container[str]) -> str:
  """The longest of `stems` that a file's name goes on from after a dot, "" if none: "22.05.long.txt" is of "22.05" where there is that,
  else of "22"."""
  start, at = name.rfind("/") + 1, name.rfind(".")
  while at > start and name[:at] not in stems:
    at = name.rfind(".", start, at)
  return name[:at] if at > start else ""


def kind_of(name: str) -> str:
  """The kind of caption that a column or field of this name holds, "" for none."""
  return "original" if name in ORIGINAL else name if name in KINDS else name.removeprefix("caption_") if name.startswith("caption_") else ""


def captions_of(row: Mapping[str, Any]) -> dict[str, str | list[str]]:
  """The captions that a JSON object or a table row carries, by kind.

  `captions: {kind: text}` or `captions: [text, …]`, a column `caption_KIND`, a column named as a usual kind, and `caption`, `text` or
  `title` as the original. Empty cells of a table (None) are left out.
  """
  found: dict[str, str | list[str]] = {}
  several = row.get("captions")
  if isinstance(several, Mapping):
    found |= {str(kind): caption(value, what=f"captions.{kind}") for kind, value in several.items() if value is not None}
  elif several is not None:
    found["original"] = caption(several, what="captions")
  for name, value in row.items():
    if name not in ORIGINAL and (kind := kind_of(name)) and value is not None:
      found.setdefault(kind, caption(value, what=name))
  for name in ORIGINAL:
    if "original" not in found and row.get(name) is not None:
      found["original"] = caption(row[name], what=name)
  return found


def extras_of(row: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a row that pass through to the record."""
  return {name: row[name] for name in EXTRAS if name in row}


def as_json(row: Mapping[str, Any], *, key: str) -> bytes:
  """A row of JSON fields as UTF-8, as a reader of shards takes it. BadRecord: bad_type for what JSON or UTF-8 has no form of, long_caption
  beyond MAX_TEXT_BYTES."""
  try:
    data = json.dumps(plain(row), ensure_ascii=False).encode()
  except (TypeError, ValueError, RecursionError) as error:
    raise BadRecord("bad_type", f"captions or other fields: {error}", key) from None
  if len(data) > MAX_TEXT_BYTES:
    raise BadRecord("long_caption", f"captions and other fields have {len(data):,} bytes, more than {MAX_TEXT_BYTES:,}", key)
  return data


def _encodes(name: str) -> bool:
  """Whether the file system can write a name down: not half a surrogate pair, but for what stands for a byte that is not UTF-8."""
  try:
    os.fsencode(name)
  except UnicodeEncodeError:
    return False
  return True


def confined(root: str, name: str) -> str:
  """The real path of `name` under the real folder `root`. BadRecord("unreadable") if it, or a link on its way, leads outside.

  An absolute path is taken only if it lies inside the folder.
  """
  if not name or "\0" in name or not _encodes(name):
    raise BadRecord("unreadable", f"{name!r:.200} is not a file name")
  path = os.path.realpath(os.path.join(root, name))
  if not path.startswith(root.rstrip(os.sep) + os.sep):
    raise BadRecord("unreadable", f"{name!r} leads outside {root}")
  return path


def is_here(root: str, name: str) -> bool:
  """Whether a name is a file's inside `root`."""
  try:
    return os.path.isfile(confined(root, name))
  except BadRecord:
    return False


def picture_bytes(root: str, name: str) -> bytes:
  """The bytes of a picture file inside `root`. BadRecord: unreadable, missing_key (no such file), oversized."""
  path = confined(root, name)
  try:
    if not os.path.isfile(path):
      raise BadRecord("missing_key", f"no picture {name} in {root}")
    if os.path.getsize(path) > MAX_PICTURE_BYTES:
      raise BadRecord("oversized", f"{name} has more than {MAX_PICTURE_BYTES} bytes")
    return Path(path).read_bytes()
  except OSError as error:
    raise BadRecord("unreadable", f"{name}: {error}") from None


def fingerprint(*parts: Any) -> str:
  """A short stable digest of texts, numbers and byte strings."""
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    data = part if isinstance(part, bytes) else repr(part).encode()
    digest.update(len(data).to_bytes(8, "little") + data)
  return digest.hexdigest()
