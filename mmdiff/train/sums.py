"""`SHA256SUMS` of a run directory: a line for every file that comes once and stays as it is, in the form of `sha256sum`. Imports no JAX.

The arrays have manifests of their own (`train.integrity`), and `metrics.jsonl`, which grows, is vouched for by each checkpoint's meta.
TensorBoard's events and `report.html` are never read back.
"""
import functools
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmdiff.core.errors import DataError
from mmdiff.core.files import plain, write_atomically
from mmdiff.core.terminal import tell

SUMS = "SHA256SUMS"
VOUCHED = ("config.json", "run.json", "code-*.patch", "tokenizer.json", "eval/*.json", "samples/*.png")
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def digest(file: Path) -> str:
  """sha256 of a file, in hexadecimal."""
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def read(workdir: Path) -> tuple[dict[str, set[str]], list[str]]:
  """({name: digests that are right}, what is wrong with the table). A file that is being replaced has two."""
  found: dict[str, set[str]] = {}
  wrong = []
  file = workdir / SUMS
  if not file.is_file():
    return {}, []
  content = file.read_bytes()
  for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
    match = LINE.fullmatch(line)
    if match:
      found.setdefault(match[2], set()).add(match[1])
    else:
      wrong.append(f"{SUMS}: line {number} is damaged")
  return found, wrong + ([] if content.endswith(b"\n") else [f"{SUMS}: cut short"])


def write(workdir: Path, name: str, content: bytes) -> None:
  """A file of a run, and its line; a kill in between leaves a file that one of its lines vouches for, or a new one without. Raises
  CannotWrite."""
  new = hashlib.sha256(content).hexdigest()
  table, _ = read(workdir)
  if name in table:
    _save(workdir, table | {name: table[name] | {new}})
  write_atomically(workdir / name, lambda file: file.write(content))
  _save(workdir, table | {name: {new}})


def write_json(workdir: Path, name: str, value: Any) -> None:
  """`write` of a value as JSON."""
  write(workdir, name, (json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n").encode())


def vouch(workdir: Path, name: str) -> None:
  """Gives a file that is there a line, if it has none."""
  table, _ = read(workdir)
  if name not in table:
    _save(workdir, table | {name: {digest(workdir / name)}})


def forget(workdir: Path, names: Collection[str]) -> None:
  """Drops the lines of files that were removed."""
  table, _ = read(workdir)
  if any(name in table for name in names):
    _save(workdir, {name: digests for name, digests in table.items() if name not in names})


def _save(workdir: Path, table: Mapping[str, set[str]]) -> None:
  lines = "".join(f"{one}  {name}\n" for name, digests in sorted(table.items()) for one in sorted(digests))
  write_atomically(workdir / SUMS, lambda file: file.write(lines.encode()))


def check(workdir: Path, *names: str) -> None:
  """Raises DataError if one of these files is not what its line says. One without a line passes: nothing vouches for it, and where the
  table is damaged, a line on stderr says so."""
  table, wrong = read(workdir)
  bare = [name for name in names if name not in table and (workdir / name).is_file()]
  if wrong and bare:
    _tell_once(f"{workdir}: {'; '.join(wrong[:2])}{f' and {len(wrong) - 2} more' if len(wrong) > 2 else ''}: nothing vouches for "
               f"{', '.join(bare)}. Put {SUMS} back from a copy; `mmdiff info {workdir}` says what else is damaged")
  for name in names:
    if name in table and (workdir / name).is_file() and digest(workdir / name) not in table[name]:
      raise DataError(f"{workdir / name} is not the file that was written (its line in {SUMS} has another digest): it was damaged, or "
                      f"changed by hand. Put it back from a copy; if the change is meant, delete that line of {SUMS}")


@functools.cache
def _tell_once(text: str) -> None:
  tell(text)


def inspect(workdir: Path) -> tuple[list[str], list[str]]:
  """(what is damaged: changed or missing; what nothing vouches for) among the files that stay as they are, each by its name."""
  table, damaged = read(workdir)
  if not table and not damaged:
    return [], [f"{SUMS} is missing or empty: nothing vouches for {', '.join(VOUCHED)}"]
  there = sorted(str(file.relative_to(workdir)) for pattern in VOUCHED for file in workdir.glob(pattern))
  damaged += [f"{name}: missing" for name in table if not (workdir / name).is_file()]
  damaged += [f"{name}: differs from its line in {SUMS}" for name in there if name in table and digest(workdir / name) not in table[name]]
  return damaged, [f"{name}: has no line in {SUMS}" for name in there if name not in table]
