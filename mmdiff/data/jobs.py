"""Long work on a source in units, by any number of processes on one or many hosts that share a folder.

    DIR/job.json           what the job is: task, settings, digests of the model and of the source; other settings are refused
    DIR/00000.…            the output of unit 00000, complete or absent
    DIR/00000.json         its manifest, written last: counts, bad records, size and sha256 of each output file
    DIR/manifest.json      the sum of all manifests: the job is done
    DIR/claims/            who works on what (see `claims`); gone when the job is done
    DIR/digests.…          what the files were found to hold (see `digests`); not of the job's output

A unit's output is a function of the job's settings and the unit's records alone. So a unit that two processes happen to make is made
alike, a job that was killed and started again leaves the same bytes as one that was not, and nothing is lost or there twice, whatever
the claims say. Manifests hold no times and no host names.
"""
import collections
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.core.files import plain, read_object, write_json
from mmdiff.core.spelling import shown
from mmdiff.data.claims import Claims, create_exclusively
from mmdiff.data.digests import Digests, digest, state
from mmdiff.data.quarantine import BadRecord, Offence

THREADS = 16                         # that look at files
OFFENDERS = 20                       # bad records that a unit's manifest names
REDO = "run the command that made this folder again: it redoes this unit"
FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError)      # what reading a damaged manifest may raise
LITTER = re.compile(r"\.(\d+|job|manifest)\.")   # what a killed process was writing


class Unit(NamedTuple):
  """A run of a source's records that is worked on as one."""
  name: str                          # "00012", its number
  rows: range                        # indices of the source
  shard: str = ""                    # the file that these records are, if they are one


def units_of(source: Any, *, per_unit: int) -> list[Unit]:
  """Every record of a source in one unit: its shards where it has some (`source.shard_rows()`), else runs of `per_unit` records."""
  whole = getattr(source, "shard_rows", None)
  parts = whole() if whole else [("", range(start, min(start + per_unit, len(source)))) for start in range(0, len(source), per_unit)]
  parts = [(shard, rows) for shard, rows in parts if len(rows)]
  width = max(5, len(str(len(parts))))
  return [Unit(f"{number:0{width}d}", rows, shard) for number, (shard, rows) in enumerate(parts)]


class Output:
  """The files of one unit while they are written, under names that only `commit` makes final."""

  def __init__(self, folder: Path, name: str):
    self.folder, self.name, self.parts = folder, name, dict[str, Path]()

  @contextmanager
  def open(self, suffix: str) -> Iterator[BinaryIO]:
    """A binary file that becomes DIR/NAME.SUFFIX; on the disk when the context is left. Raises CannotWrite."""
    part = self.folder / f".{self.name}.{suffix}.{secrets.token_hex(6)}.part"
    try:
      with open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      self.parts[suffix] = part
    except OSError as error:
      raise CannotWrite(f"cannot write {part}: {error}") from error
    finally:
      if suffix not in self.parts:
        part.unlink(missing_ok=True)

  def discard(self) -> None:
    for part in self.parts.values():
      part.unlink(missing_ok=True)
    self.parts.clear()


class Job:
  """One process's part in a job. `todo()` yields claimed units until all are finished, `commit` finishes one.

  A unit that is there is kept when its manifest is sound, `check(folder, manifest)` raises none of `FAULTS`, and its files have the digests
  that the manifest says. Raises ConfigError when the folder holds a job of other settings, CannotWrite when it can't be written.
  """

  def __init__(self, out: str | os.PathLike, units: Sequence[Unit], identity: Mapping[str, Any], *, about: Mapping[str, Any] | None = None,
               check: Callable[[Path, Mapping[str, Any]], Any] = lambda folder, entry: None,
               beat_seconds: float = 15.0, stale_seconds: float = 180.0, poll_seconds: float = 2.0):
    self.out, self.units, self.poll_seconds = Path(out), list(units), poll_seconds
    self._check, self._rows = check, {unit.name: unit.rows for unit in self.units}
    self.total = sum(map(len, self._rows.values()))
    self.identity = plain(dict(identity) | {"records": self.total, "units": len(self.units)})
    self._register(about or {})
    self.claims = Claims(self.out / "claims", beat_seconds=beat_seconds, stale_seconds=stale_seconds)
    self._digests = Digests(self.out)
    with ThreadPoolExecutor(THREADS) as pool:
      found = [entry for entry in pool.map(self._entry, self._rows) if entry]
    self._digests.of([name for entry in found for name in files_of(entry)])
    self._known = {entry["unit"] for entry in found if self._fits(entry)}

  def _register(self, about: Mapping[str, Any]) -> None:
    path, content = self.out / "job.json", {"identity": self.identity, "started": plain(about)}
    try:
      self.out.mkdir(parents=True, exist_ok=True)
      if not path.exists():
        create_exclusively(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
      raise CannotWrite(f"cannot write {path}: {error}") from error
    check_identity(self.out, self.identity)

  def todo(self) -> Iterator[Unit]:
    """Claimed units, one after another, until every unit is finished by someone; waits for those that others work on."""
    by_name = {unit.name: unit for unit in self.units}
    first = secrets.randbelow(max(len(self.units), 1))   # each process begins elsewhere, so that they seldom want the same one
    order = [unit.name for unit in self.units[first:] + self.units[:first]]
    while left := self._left(order):
      name = self.claims.take(left)
      if name is None:
        time.sleep(self.poll_seconds)
        continue
      try:
        if not self._intact(name):                       # finished and let go between the look and the claim
          yield by_name[name]
      finally:
        self.claims.release(name)

  def _left(self, order: Sequence[str]) -> list[str]:
    finished = self.finished()
    return [name for name in order if name not in finished]

  def finished(self) -> set[str]:
    """The names of the finished units; a unit whose files don't fit its manifest was found unfinished at the start, and is redone."""
    there = {name.removesuffix(".json") for name in os.listdir(self.out) if name.endswith(".json")}
    for name in there & self._rows.keys() - self._known:
      if self._intact(name):
        self._known.add(name)
    return self._known

  def done(self) -> int:
    """Records of the finished units."""
    return sum(len(self._rows[name]) for name in self.finished())

  def output(self, unit: Unit) -> Output:
    return Output(self.out, unit.name)

  def commit(self, unit: Unit, output: Output, facts: Mapping[str, Any]) -> None:
    """Makes a unit's files final, then writes its manifest: `facts`, which must depend on the unit's records and the settings alone."""
    if self._intact(unit.name):                          # someone who took us for dead was faster
      output.discard()
      return
    files = {suffix: dict(bytes=part.stat().st_size, sha256=digest(part)) for suffix, part in sorted(output.parts.items())}
    found = {f"{unit.name}.{suffix}": (state(output.parts[suffix]), facts["sha256"]) for suffix, facts in files.items()}
    try:
      for suffix, part in output.parts.items():
        os.replace(part, self.out / f"{unit.name}.{suffix}")
      self._digests.keep(found)
      sync_folder(self.out)
      entry = {"unit": unit.name, "shard": unit.shard, "rows": [unit.rows.start, unit.rows.stop], **facts, "files": files}
      write_json(self.out / f"{unit.name}.json", entry)
      sync_folder(self.out)
    except OSError as error:
      if self._intact(unit.name):                        # it was finished meanwhile, and what we wrote swept away
        return
      raise CannotWrite(f"cannot write the output of unit {unit.name} in {self.out}: {error}") from error

  def _entry(self, name: str) -> dict[str, Any] | None:
    """The manifest of a unit, None where there is none or one that is not sound."""
    try:
      entry = entry_of(self.out, name)
      self._check(self.out, entry)
      return entry if entry["rows"] == [self._rows[name].start, self._rows[name].stop] else None
    except FAULTS:
      return None

  def _intact(self, name: str) -> bool:
    """Whether a unit is there with the files that its manifest says. Those that came after the start are not read: someone has just made
    them, and said so last."""
    entry = self._entry(name)
    return entry is not None and self._fits(entry)

  def _fits(self, entry: Mapping[str, Any]) -> bool:
    return not list(wrong_sizes(self.out, entry)) and all(
      self._digests.known(file) in (None, facts["sha256"]) for file, facts in files_of(entry).items())

  def close(self) -> None:
    """Lets go of what this process holds."""
    self.claims.close()

  def complete(self, summary: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]) -> dict[str, Any]:
    """When every unit is finished: writes manifest.json with `summary` of the units' manifests, and removes what killed ones left."""
    entries = [entry_of(self.out, unit.name) for unit in self.units]
    made = {"identity": self.identity, **summary(entries)}
    try:
      write_json(self.out / "manifest.json", made)
    except CannotWrite:
      if not (self.out / "manifest.json").exists():      # else someone else wrote the same, and swept away what we were writing
        raise
    self.close()
    shutil.rmtree(self.out / "claims", ignore_errors=True)
    for part in self.out.iterdir():
      if LITTER.match(part.name):
        part.unlink(missing_ok=True)
    return made


def check_identity(out: Path, wanted: Mapping[str, Any]) -> None:
  """Raises ConfigError with every difference between the job that a folder holds and the one that is wanted."""
  try:
    held = read_object(out / "job.json", nan=True)["identity"]
  except FAULTS as error:
    raise DataError(f"{out / 'job.json'}: {type(error).__name__}: {error}; it should say what the job in {out} is; "
                    "choose another --out, or remove the folder") from None
  lines = [f"{name}: that job has {before!r}, now {now!r}" for name, before, now in differences(held, wanted)]
  if lines:
    raise ConfigError(f"{out} holds another job; undo the change or choose another --out\n" + "\n".join(lines))


def differences(held: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
  """(dotted key, held, wanted) wherever two JSON values differ."""
  if isinstance(held, Mapping) and isinstance(wanted, Mapping):
    for key in sorted({*held, *wanted}):
      yield from differences(held.get(key, "nothing"), wanted.get(key, "nothing"), f"{path}.{key}" if path else key)
  elif held != wanted:
    yield path, held, wanted


def entry_of(folder: Path, name: str) -> dict[str, Any]:
  """A unit's manifest. Raises DataError for what is none."""
  path = folder / f"{name}.json"
  entry = read_object(path, nan=True)
  files = entry.get("files")
  if entry.get("unit") != name:
    raise DataError(f"{path}: `unit` is {shown(entry.get('unit'))}, expected {name!r}; {REDO}")
  if not isinstance(files, dict) or not all(
      isinstance(facts, dict) and type(facts.get("bytes")) is int and isinstance(facts.get("sha256"), str) and "/" not in suffix
      for suffix, facts in files.items()):
    raise DataError(f"{path}: `files` is {shown(files)}, expected {{suffix: {{bytes, sha256}}}}; {REDO}")
  return entry


def files_of(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """What a unit's manifest says of its files, by their names."""
  return {f"{entry['unit']}.{suffix}": facts for suffix, facts in entry.get("files", {}).items()}


def wrong_sizes(folder: Path, entry: Mapping[str, Any]) -> Iterator[str]:
  for name, facts in files_of(entry).items():
    try:
      size = (folder / name).stat().st_size
    except OSError:
      yield f"{folder / name}: {facts['bytes']:,} bytes in its manifest, found no file; {REDO}"
    else:
      if size != facts["bytes"]:
        yield f"{folder / name}: {facts['bytes']:,} bytes in its manifest, found {size:,} bytes; {REDO}"


def manifest_of(folder: Path) -> dict[str, Any]:
  """The manifest of a finished job. Raises DataError for an unfinished or a damaged one."""
  again = "run the command that made this folder again until it ends"
  try:
    identity = read_object(folder / "job.json", nan=True)["identity"]
    count = identity["units"]
  except FAULTS as error:
    raise DataError(f"{folder}: not the folder of a job: job.json: {type(error).__name__}: {error}") from None
  if (found := len(names_of(folder))) != count or not (folder / "manifest.json").exists():
    raise DataError(f"{folder}: {found} of {shown(count)} units are finished; {again}, then use it")
  made = read_object(folder / "manifest.json", nan=True)
  if made.get("identity") != identity:
    raise DataError(f"{folder / 'manifest.json'}: `identity` is not that of job.json; {again}")
  return made


def names_of(folder: Path) -> list[str]:
  """The names of the units that have a manifest."""
  return sorted(path.stem for path in folder.glob("*.json") if path.stem.isdigit())


def finished_units(folder: str | os.PathLike) -> list[dict[str, Any]]:
  """The manifests of a finished job, in order. Raises DataError for an unfinished one or for files that don't fit their manifest."""
  folder = Path(folder)
  manifest_of(folder)
  entries = [entry_of(folder, name) for name in names_of(folder)]
  for wrong in damage(folder, entries):
    raise DataError(wrong)
  return entries


def damage(folder: Path, entries: Sequence[Mapping[str, Any]], *, again: bool = False) -> Iterator[str]:
  """What is wrong with the files of a job, a line for each. Their digests are those of `digests`; `again` reads every file."""
  for entry in entries:
    yield from wrong_sizes(folder, entry)
  files = {name: facts for entry in entries for name, facts in files_of(entry).items()}
  for name, found in Digests(folder).of(list(files), again=again).items():
    if found not in (None, files[name]["sha256"]):
      yield f"{folder / name}: its bytes are not those of its manifest (sha256 {found:.12}…, expected {files[name]['sha256']:.12}…); {REDO}"


def prepared(source: Any, rows: range, prepare: Callable[[Any], Any], *, threads: int, ahead: int,
             bad: list[Offence]) -> Iterator[Any]:
  """`prepare(record)` of the records in order, read by `threads` up to `ahead` records early. Bad records go to `bad` instead."""
  def one(index: int) -> Any:
    try:
      return prepare(source[index])
    except BadRecord as fault:
      return Offence(fault.key or f"#{index}", fault.kind, fault.detail)

  with ThreadPoolExecutor(max(threads, 1)) as pool:
    waiting = collections.deque(pool.submit(one, index) for index in rows[:ahead])
    later = iter(rows[ahead:])
    try:
      while waiting:
        item = waiting.popleft().result()
        waiting.extend(pool.submit(one, index) for index in itertools.islice(later, 1))
        if isinstance(item, Offence):
          bad.append(item)
        else:
          yield item
    finally:
      for future in waiting:
        future.cancel()


def batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
  """Runs of `size` items; the last may be shorter."""
  while batch := list(itertools.islice(items, size)):
    yield batch


def faults(bad: Sequence[Offence]) -> dict[str, Any]:
  """What a manifest says of the bad records of its unit."""
  kinds = sorted({offence.kind for offence in bad})
  return {"bad": {kind: sum(offence.kind == kind for offence in bad) for kind in kinds},
          "offenders": [offence._asdict() for offence in bad[:OFFENDERS]]}


def sync_folder(folder: Path) -> None:
  """Puts a folder's names on the disk, where the system can do that."""
  try:
    handle = os.open(folder, os.O_RDONLY)
  except OSError:
    return
  try:
    os.fsync(handle)
  except OSError:
    pass
  finally:
    os.close(handle)
