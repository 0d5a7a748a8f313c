"""Any source as tar shards in img2dataset's layout: 00000.tar with KEY.jpg or .png, KEY.txt, KEY.json, and 00000_stats.json beside it.

A shard appears whole or not at all; its stats file is written last and says what went in, so the same call goes on where it stopped.
"""
import collections
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdiff.core.errors import DataError
from mmdiff.core.files import plain, read_object, write_atomically, write_json
from mmdiff.data import records, tar_index
from mmdiff.data.quarantine import BadRecord

SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}


def encoded(image: Any) -> tuple[bytes, str]:
  """(bytes, suffix): encoded bytes as they are, uint8 [H W 3] as PNG. BadRecord("undecodable") for bytes of no known picture format."""
  if isinstance(image, np.ndarray):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue(), "png"
  if not isinstance(image, (bytes, bytearray, memoryview)):
    raise BadRecord("bad_type", f"expected bytes or an array, found {type(image).__name__}")
  data = bytes(image)
  suffix = next((suffix for head, suffix in SIGNATURES.items() if data.startswith(head)), "")
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    suffix = "webp"
  if not suffix:
    raise BadRecord("undecodable", f"starts with {data[:8]!r}")
  return data, suffix


def member_key(key: str) -> str:
  """A key as a member name: no dots, which would end it, no control characters, no leading slash."""
  return re.sub(r"[.\x00-\x1f\x7f\\]", "_", key).strip("/") or "_"


def write(source: Any, out: str, *, per_shard: int = 10_000, tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
  """Writes shards of `per_shard` records to `out`; finished ones of the same source are kept. `tell(done, total)` after each record.

  Bad records are left out and counted. Returns {"count", "shards", "kept_shards", "bad": {kind: n}, "fingerprint"}.
  Raises DataError when `out` holds shards of something else, or when keys repeat.
  """
  total, identity, bad = len(source), source.fingerprint(), collections.Counter()
  count = kept = 0
  shards = range(-(-total // per_shard))
  seen: set[str] = set()
  for shard in shards:
    path, about = Path(out) / f"{shard:05d}.tar", Path(out) / f"{shard:05d}_stats.json"
    rows = range(shard * per_shard, min(total, (shard + 1) * per_shard))
    stats = _finished(path, about, identity, rows)
    if stats is None:
      stats = {"fingerprint": identity, "first": rows.start, "end": rows.stop}
      write_atomically(path, lambda file, rows=rows, stats=stats: stats.update(_shard(source, rows, file, seen, lambda n: tell(n, total))))
      write_json(about, stats | {"bytes": path.stat().st_size})
    else:
      kept += 1
      seen.update(tar_index.prefix_of(member.name) for member in tar_index.members(str(path)))
      tell(rows.stop, total)
    count += stats["successes"]
    bad.update(stats["bad"])
  extra = [path.name for path in sorted(Path(out).glob("[0-9]*.tar")) if int(path.stem) >= len(shards)] if total else []
  if extra:
    raise DataError(f"{out} also holds {', '.join(extra[:3])}, which this source does not fill; remove them or choose another folder")
  return {"count": count, "shards": len(shards), "kept_shards": kept, "bad": dict(bad), "fingerprint": identity}


def _finished(path: Path, about: Path, identity: str, rows: range) -> dict[str, Any] | None:
  if not path.exists():
    return None
  if not about.exists():                                                  # stopped between the shard and its stats
    return None
  stats = read_object(about)
  if stats.get("fingerprint") != identity or (stats.get("first"), stats.get("end")) != (rows.start, rows.stop):
    raise DataError(f"{path} holds records of another source or another shard size; choose another folder, or remove the shards there")
  return stats if stats.get("bytes") == path.stat().st_size else None


def _shard(source: Any, rows: range, file: Any, seen: set[str], tell: Callable[[int], None]) -> dict[str, Any]:
  bad: collections.Counter[str] = collections.Counter()
  written = 0
  with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for i in rows:
      try:
        record = source[i]
        data, suffix = encoded(record["image"])
      except BadRecord as fault:
        bad[fault.kind] += 1
      else:
        key = member_key(record["key"])
        if key in seen:
          raise DataError(f"key {record['key']!r} (as {key!r}) comes twice; the records of a set need different keys")
        seen.add(key)
        original = record["captions"].get("original")
        parts = {suffix: data} | ({"txt": original.encode()} if isinstance(original, str) else {})
        row = {"key": record["key"], "captions": record["captions"]} | records.extras_of(record)
        parts["json"] = json.dumps(plain(row), ensure_ascii=False).encode()
        for name, content in parts.items():
          member = tarfile.TarInfo(f"{key}.{name}")
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))
        written += 1
      tell(i + 1)
  return {"count": len(rows), "successes": written, "bad": dict(bad)}
