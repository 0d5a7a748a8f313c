"""Where the members of a tar lie: headers are read once, bodies never, and nothing is ever extracted.

Which members are one sample is said by the pictures that are there, see `assign`; the members of a sample must stand together. Members
that could point elsewhere (links, devices, absolute names, `..`) are left out and counted. Formats: POSIX ustar and pax, GNU long names,
base-256 sizes (POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format").
"""
import collections
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.data import records
from mmdiff.data.indexes import Table

BLOCK = 512
MAX_HEADER_BYTES = 2**20             # of a long name or a pax header
WINDOW = 1 << 14
TEXTS = ("txt", "json", "cls")
ORIGINAL = {"txt", "original.txt"}
LINKS = {b"1": "hardlink", b"2": "symlink", b"3": "device", b"4": "device", b"5": "", b"6": "fifo"}    # kinds without a body


class Member(NamedTuple):
  """One entry of a tar: its name, where its body lies, and why it must not be used ("" for an ordinary file)."""
  name: str
  offset: int
  size: int
  refused: str


def _negative(path: str, at: int) -> NoReturn:
  raise DataError(f"{path}: negative size in the tar header at byte {at}; the file is damaged or hostile, remove it")


def _number(field: bytes, path: str, at: int) -> int:
  if field[0] & 0x80:                                                     # GNU base 256, for sizes of 8 GiB and more
    value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return _negative(path, at) if field[0] & 0x40 else value
  digits = field.split(b"\0")[0].strip()
  if digits.startswith(b"-"):
    _negative(path, at)
  try:
    return int(digits or b"0", 8)
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
    if not length.isdigit() or len(length) > 8 or not 4 < int(length) <= len(body):
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


def clean_name(name: str) -> str | None:
  """`./a//b.long.txt` → "a/b.long.txt"; None for a name that leads elsewhere (absolute, `..`) or holds control characters."""
  parts = [part for part in name.split("/") if part not in ("", ".")]
  if name.startswith("/") or ".." in parts or not parts or any(c < " " or c == "\x7f" for c in name):
    return None
  return "/".join(parts)


def prefix_of(name: str) -> str:
  """`a/b.long.txt` → "a/b": up to the first dot of the file name, which is webdataset's key."""
  folder, slash, file = name.rpartition("/")
  return folder + slash + file.partition(".")[0]


def assign(names: Sequence[str], *, image: str = "") -> list[str | None]:
  """The key of each member's sample; None for a picture that is not its sample's.

  By webdataset's rule a key ends at the first dot of the file name, so that 22.05.png and 22.06.png would be one sample. Here a picture's
  key is its name without the suffix, and it takes the texts NAME.txt, NAME.KIND.txt, …; only where a text names the first-dot prefix and a
  single picture goes on (k.txt, k.photo.png) is the prefix the key. Beside k.png with its texts, k.depth.png without any is left out.
  `image` ("photo.png") says which pictures count, and that their keys end before it. Raises ValueError where two pictures want one text.
  """
  groups = collections.defaultdict[str, list[int]](list)
  for at, name in enumerate(names):
    groups[prefix_of(name)].append(at)
  keys: list[str | None] = [None] * len(names)
  for prefix, rows in groups.items():
    for at, key in zip(rows, _assigned(prefix, [names[at] for at in rows], image)):
      keys[at] = key
  return keys


def _assigned(prefix: str, names: Sequence[str], image: str) -> list[str | None]:
  """The same for names that share a first-dot prefix."""
  shown = [name for name in names if _suffix(name) in records.PICTURES]
  chosen = {name: name[:-1 - len(image or _suffix(name))] for name in shown if not image or name.lower().endswith("." + image)}
  stems = set(chosen.values())
  if len(stems) < len(chosen):
    twice = next(stem for stem in chosen.values() if list(chosen.values()).count(stem) > 1)
    raise ValueError(f"sample {twice!r} has the pictures {', '.join(name for name, stem in chosen.items() if stem == twice)}")
  texts = [name for name in names if _suffix(name) in TEXTS]
  if not chosen:
    for name in sorted(texts, key=len):                # records without a picture, to be counted one by one
      stems |= set() if records.owner(name, stems) else {name[:-1 - len(_suffix(name))]}
  owners = {name: records.owner(name, stems) for name in texts}
  strays = [name for name in texts if not owners[name]]
  if strays and len(chosen) > 1:
    raise ValueError(f"sample {prefix!r} has the pictures {', '.join(chosen)}, and {strays[0]} names none of them")
  if strays:
    return [prefix if name in owners or name in chosen else None for name in names]
  told = set(owners.values())
  beside = {name for name, stem in chosen.items() if prefix in stems and stem != prefix and told and stem not in told}
  return [owners[name] if name in owners else None if name in beside else chosen.get(name) for name in names]


def _suffix(name: str) -> str:
  return name.rpartition(".")[2].lower()


def build(path: str, *, image: str = "") -> Table:
  """The index of one shard.

  Arrays: `keys` uint8 blob with `key_ends` [n], `key_hash` uint64 [n], `member_ends` [n]; per member `offset`, `size`, `suffix` (an
  index into the lines of `suffixes`); `skipped`, JSON {reason: count}. `image`: see `assign`. DataError when a name comes twice, samples
  interleave or it can't be said which picture a text is of.
  """
  skipped: collections.Counter[str] = collections.Counter()
  used: dict[str, tuple[int, int]] = {}
  for member in members(path):
    name = clean_name(member.name)
    if name is None or member.refused:
      skipped["unsafe_path" if name is None else member.refused] += 1
    elif _suffix(name) not in records.PICTURES + TEXTS or name.rpartition("/")[2].startswith(".") or "." not in name.rpartition("/")[2]:
      skipped["other_file"] += 1
    elif name in used:
      raise DataError(f"{path}: {name!r} is in it twice; members need different names, write the shard anew")
    else:
      used[name] = member.offset, member.size
  try:
    keys = assign(list(used), image=image)
  except ValueError as fault:
    raise DataError(f"{path}: {fault}; set `image` to the suffix of those that are the samples' (image='jpg', image='photo.png'), or write "
                    "the shard anew with one name a sample") from None
  shown = {name for name, key in zip(used, keys) if key is not None and _suffix(name) in records.PICTURES}
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  current, letters = None, set()
  for (name, place), key in zip(used.items(), keys):
    if key is None:
      skipped["other_picture"] += 1
      continue
    if key != current and key in samples:
      raise DataError(f"{path}: sample {key!r} is in two places (again at {name!r}): the members of a sample must stand together; "
                      "write the shard anew, sorted by name (`tar --sort=name`)")
    current, rest = key, name[len(key) + 1:].lower()
    if (key, rest) in letters:
      raise DataError(f"{path}: {name!r} is in it twice, in other letters; members need different names, write the shard anew")
    letters.add((key, rest))
    whole = records.owner(name, shown) if _suffix(name) in TEXTS else ""       # as in a folder, k.jpg.txt is a text of k.jpg
    suffix = name[len(whole or key) + 1:].lower()
    if suffix in samples.setdefault(key, {}) or suffix in ORIGINAL and samples[key].keys() & ORIGINAL:
      skipped["second_text"] += 1
      continue
    samples[key][suffix] = place
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
