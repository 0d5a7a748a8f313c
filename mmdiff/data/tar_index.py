"""Where the members of a tar lie: headers are read once, bodies never, and nothing is ever extracted.

Members that share the name up to the first dot of their file name are one sample and must stand together (webdataset's rule).
Members that could point elsewhere (links, devices, absolute names, `..`) are left out and counted. Formats: POSIX ustar and pax, GNU
long names, base-256 sizes (POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format").
"""
import collections
import hashlib
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.data.indexes import Table
from mmdiff.data.records import PICTURES

BLOCK = 512
MAX_HEADER_BYTES = 2**20             # of a long name or a pax header
WINDOW = 1 << 14
TEXTS = ("txt", "json", "cls")
LINKS = {b"1": "hardlink", b"2": "symlink", b"3": "device", b"4": "device", b"5": "", b"6": "fifo"}    # kinds without a body


class Member(NamedTuple):
  """One entry of a tar: its name, where its body lies, and why it must not be used ("" for an ordinary file)."""
  name: str
  offset: int
  size: int
  refused: str


def _number(field: bytes, path: str, at: int) -> int:
  if field[0] & 0x80:                                                     # GNU base 256, for sizes of 8 GiB and more
    value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    if field[0] & 0x40:
      raise DataError(f"{path}: negative size in the tar header at byte {at}; the file is damaged or hostile, remove it")
    return value
  try:
    return int(field.split(b"\0")[0].strip() or b"0", 8)
  except ValueError:
    raise DataError(f"{path}: unreadable number {field!r} in the tar header at byte {at}; the file is damaged, get it again") from None


def _checksums(header: bytes) -> tuple[bytes, ...]:
  """The checksum that a header must carry, in octal with any zeros before it."""
  octal = b"%o" % (sum(header) - sum(header[148:156]) + 8 * 32)
  return tuple(octal.zfill(width) for width in range(len(octal), 9))


def _pax(body: bytes, path: str, at: int) -> dict[str, bytes]:
  found = {}
  while body:
    length, _, _ = body.partition(b" ")
    if not length.isdigit() or not 4 < int(length) <= len(body):
      raise DataError(f"{path}: damaged pax header at byte {at}; get the file again")
    key, _, value = body[len(length) + 1:int(length) - 1].partition(b"=")
    found[key.decode("utf-8", "replace")] = value
    body = body[int(length):]
  return found


def members(path: str) -> Iterator[Member]:
  """Every entry of a tar in order. DataError: not a tar, compressed, damaged, cut short, or a header beyond 1 MiB."""
  total = os.path.getsize(path)
  with open(path, "rb", buffering=0) as file:
    window, start = os.pread(file.fileno(), WINDOW, 0), 0

    def read(at: int, size: int) -> bytes:
      nonlocal window, start
      if at + size > total:
        raise DataError(f"{path}: cut short: the entry at byte {at} needs {size:,} bytes, the file ends at {total:,}; get it again")
      if size > WINDOW:
        return os.pread(file.fileno(), size, at)
      if not start <= at <= at + size <= start + len(window):
        window, start = os.pread(file.fileno(), WINDOW, at), at
      return window[at - start:at - start + size]

    if window[:2] in (b"\x1f\x8b", b"BZ") or window[:6] == b"\xfd7zXZ\0" or window[:4] == b"\x28\xb5\x2f\xfd":
      raise DataError(f"{path}: compressed; records are read at random places, so decompress it to a plain .tar first")
    at, pax, long_name = 0, {}, None
    while at < total:
      header = read(at, BLOCK)
      if not header.strip(b"\0"):
        return
      if header[148:156].strip(b" \0") not in _checksums(header):
        what = "not a tar file" if at == 0 else f"no tar header at byte {at:,}"
        raise DataError(f"{path}: {what} (found {header[:16]!r}); expected an uncompressed tar as img2dataset writes, get it again")
      kind, size, body = header[156:157], _number(header[124:136], path, at), at + BLOCK
      if kind in b"LKxgX" and kind:
        if size > MAX_HEADER_BYTES:
          raise DataError(f"{path}: a {size:,} byte header at byte {at:,}, more than {MAX_HEADER_BYTES:,}; hostile or damaged, remove it")
        content = read(body, size)
        if kind == b"L":
          long_name = content.rstrip(b"\0")
        elif kind in b"xX":
          pax = _pax(content, path, at)
        at = body + -(-size // BLOCK) * BLOCK
        continue
      name = header[:100].split(b"\0")[0]
      if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0")[0] + b"/" + name
      name = pax.get("path", long_name or name)
      if "size" in pax:
        size = int(pax["size"]) if pax["size"].isdigit() and len(pax["size"]) < 20 else total + 1
      refused = LINKS.get(kind, "" if kind in (b"0", b"\0", b"7") else "other")
      if kind == b"S":
        refused, extended = "sparse", header[482]
        while extended:
          extended, body = read(body, BLOCK)[504], body + BLOCK
      if any(key.startswith("GNU.sparse") for key in pax):
        refused = "sparse"
      directory = kind == b"5" or name.endswith(b"/")
      length = 0 if kind in LINKS else size
      if length < 0 or body + length > total:
        raise DataError(f"{path}: cut short: {name.decode('utf-8', 'replace')!r} claims {length:,} bytes at byte {body:,}, "
                        f"the file ends at {total:,}; get it again")
      if not directory:
        yield Member(name.decode("utf-8", "backslashreplace"), body, length, refused)
      at, pax, long_name = body + -(-length // BLOCK) * BLOCK, {}, None


def split_name(name: str) -> tuple[str, str] | None:
  """`a/b.long.txt` → ("a/b", "long.txt"); None for a name that leads elsewhere (absolute, `..`) or holds control characters."""
  parts = [part for part in name.split("/") if part not in ("", ".")]
  if name.startswith("/") or ".." in parts or not parts or any(c < " " or c == "\x7f" for c in name):
    return None
  stem, _, suffix = parts[-1].partition(".")
  return "/".join([*parts[:-1], stem]), suffix.lower()


def _used(suffix: str) -> bool:
  return suffix.rpartition(".")[2] in PICTURES + TEXTS


def build(path: str) -> Table:
  """The index of one shard.

  Arrays: `keys` uint8 blob with `key_ends` [n], `key_hash` uint64 [n], `member_ends` [n]; per member `offset`, `size`, `suffix` (an
  index into the lines of `suffixes`); `skipped`, JSON {reason: count}. DataError when a name comes twice or samples interleave.
  """
  skipped: collections.Counter[str] = collections.Counter()
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  current = None
  for member in members(path):
    name = split_name(member.name)
    if name is None or member.refused:
      skipped["unsafe_path" if name is None else member.refused] += 1
      continue
    key, suffix = name
    if not suffix or not _used(suffix) or not key.rpartition("/")[2]:
      skipped["other_file"] += 1
      continue
    if key != current and key in samples:
      raise DataError(f"{path}: sample {key!r} is in two places (again at {member.name!r}): the members of a sample must stand together; "
                      "write the shard anew, sorted by name (`tar --sort=name`)")
    current, sample = key, samples.setdefault(key, {})
    if suffix in sample:
      raise DataError(f"{path}: {member.name!r} is in it twice; members need different names, write the shard anew")
    sample[suffix] = (member.offset, member.size)
  suffixes = {suffix: i for i, suffix in enumerate(dict.fromkeys(suffix for sample in samples.values() for suffix in sample))}
  encoded = [key.encode("utf-8", "replace") for key in samples]
  hashes = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in encoded)
  flat = [(*place, suffixes[suffix]) for sample in samples.values() for suffix, place in sample.items()]
  numbers = np.array(flat, np.int64).reshape(-1, 3)
  blob = lambda data: np.frombuffer(data, np.uint8)
  return {
    "keys": blob(b"".join(encoded)), "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.int64),
    "key_hash": np.frombuffer(hashes, "<u8"), "member_ends": np.cumsum([len(sample) for sample in samples.values()], dtype=np.int64),
    "offset": numbers[:, 0], "size": numbers[:, 1], "suffix": numbers[:, 2].astype(np.uint32),
    "suffixes": blob("\n".join(suffixes).encode("utf-8", "replace")), "skipped": blob(json.dumps(skipped).encode()),
  }
