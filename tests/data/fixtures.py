"""Pictures and tars that several tests of sources are made from."""
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(shade: int, *, form: str = "PNG", width: int = 8, height: int = 6) -> bytes:
  """An encoded picture of one colour."""
  buffer = io.BytesIO()
  Image.fromarray(np.full((height, width, 3), shade % 256, np.uint8)).save(buffer, form)
  return buffer.getvalue()


def write_tar(path: Path, members, *, form: int = tarfile.PAX_FORMAT) -> str:
  """A tar of (name, bytes) pairs and ready TarInfo objects."""
  with tarfile.open(path, "w", format=form) as tar:
    for member in members:
      if isinstance(member, tarfile.TarInfo):
        tar.addfile(member)
        continue
      info = tarfile.TarInfo(member[0])
      info.size = len(member[1])
      tar.addfile(info, io.BytesIO(member[1]))
  return str(path)


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
  """A member without a body: a link, a device, …"""
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


def shard(path: Path, first: int, count: int) -> str:
  """A shard as img2dataset writes it: KEY.jpg, KEY.txt, KEY.json."""
  members = []
  for i in range(first, first + count):
    members += [(f"{i:09d}.jpg", picture(i, form="JPEG")), (f"{i:09d}.txt", f"alt {i}".encode()),
                (f"{i:09d}.json", b'{"key": "%09d", "caption": "alt %d", "width": 8}' % (i, i))]
  return write_tar(path, members)


class Rows:
  """A source of given records; an exception in place of a record is raised."""

  def __init__(self, rows, *, identity: str = "rows"):
    self.rows, self.identity = list(rows), identity

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    if isinstance(self.rows[i], Exception):
      raise self.rows[i]
    return self.rows[i]

  def fingerprint(self):
    return f"{self.identity} {len(self.rows)}"
