"""Any source as tar shards in img2dataset's layout: 00000.tar with KEY.jpg or .png, KEY.txt, KEY.json, and 00000_stats.json beside it.

A shard appears whole or not at all; its stats file is written last and says what went in, so the same call goes on where it stopped. One
that is not what its stats file says is written anew; its sha256 is worked out once for each state of the file (see `digests`).
"""
import collections
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object, write_atomically, write_json
from mmdiff.data import records, tar_index, verdict
from mmdiff.data.digests import Digests
from mmdiff.data.quarantine import BadRecord, Offence
from mmdiff.data.verdict import LIMITS, Limits, Seen

# What a member's name may not hold: a dot in its last part, at the first of which webdataset's key ends; what a path would be cleaned of;
# control characters; a backslash, which is another slash elsewhere; and what would read as one of these escaped.
UNFIT = re.compile(r"[\x00-\x1f\x7f\\]|\.(?=[^/]*\Z)|(?<![^/])\.{1,2}(?=/)|(?<![^/])/|/\Z|%(?=[0-9A-Fa-f]{2})")
STATS = ("bytes", "sha256", "successes", "bad", "offenders", "escaped", "escaped_such_as")
SHOWN = 3                            # of the keys that are escaped


def member_key(key: str) -> str:
  """A key as the name of its members, itself where it may be. What may not stand there is escaped as in an address (RFC 3986), 22.05 as
  22%2E05: two keys never become one, and `urllib.parse.unquote` gives the key back."""
  return UNFIT.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), key)


def write(source: Any, out: str, *, per_shard: int = 10_000, limits: Limits = LIMITS, threads: int = 4,
          tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
  """Writes shards of `per_shard` records to `out`; finished ones of the same source are kept. `tell(done, total)` after each record.

  Bad records, as `verdict` finds them, are left out and counted. Returns {"count", "shards", "kept_shards", "bad": {kind: n}, "offenders":
  [{key, kind, detail}], "escaped": keys whose members are called otherwise, "escaped_such_as": {key: member's name}, "fingerprint"}.
  Raises DataError when `out` holds shards of something else, when keys repeat, or when no record is good.
  """
  total, identity, held = len(source), source.fingerprint(), Digests(Path(out))
  found: list[dict[str, Any]] = []
  kept = 0
  shards = range(-(-total // per_shard))
  seen: set[str] = set()
  for shard in shards:
    path, about = Path(out) / f"{shard:05d}.tar", Path(out) / f"{shard:05d}_stats.json"
    rows = range(shard * per_shard, min(total, (shard + 1) * per_shard))
    wanted = {"fingerprint": identity, "first": rows.start, "end": rows.stop, "limits": limits._asdict()}
    stats = _finished(path, about, wanted, held)
    if stats is None:
      stats = dict(wanted)
      judged = verdict.each(source, rows, limits=limits, threads=threads, keep=True)
      write_atomically(path, lambda file, judged=judged, stats=stats, rows=rows: stats.update(
        _shard(judged, file, seen, lambda n: tell(rows.start + n, total))))
      stats |= {"bytes": path.stat().st_size, "sha256": held.of([path.name])[path.name]}
      write_json(about, stats)
    else:
      kept += 1
      seen.update(tar_index.prefix_of(member.name) for member in tar_index.members(str(path)))
      tell(rows.stop, total)
    found.append(stats)
  if not any(stats["successes"] for stats in found):
    for shard in shards:
      for ending in (".tar", "_stats.json"):
        (Path(out) / f"{shard:05d}{ending}").unlink(missing_ok=True)
    raise nothing_good(total, [Offence(**offender) for stats in found for offender in stats["offenders"]])
  extra = [path.name for path in sorted(Path(out).glob("[0-9]*.tar")) if int(path.stem) >= len(shards)] if total else []
  if extra:
    raise DataError(f"{out} also holds {', '.join(extra[:3])}, which this source does not fill; remove them or choose another folder")
  return {
    "count": sum(stats["successes"] for stats in found), "shards": len(shards), "kept_shards": kept,
    "bad": dict(sum((collections.Counter(stats["bad"]) for stats in found), collections.Counter())),
    "offenders": [offender for stats in found for offender in stats["offenders"]], "escaped": sum(stats["escaped"] for stats in found),
    "escaped_such_as": dict([pair for stats in found for pair in stats["escaped_such_as"].items()][:SHOWN]), "fingerprint": identity,
  }


def nothing_good(total: int, offences: Sequence[Offence]) -> DataError:
  """What to say where no record can be written."""
  kinds = dict(collections.Counter(offence.kind for offence in offences))
  first = f"; the first: {offences[0].key}: {offences[0].detail}" if offences else ""
  return DataError(f"none of {total:,} records is good: bad {kinds or 'none'}{first}; `mmdiff data validate` names them all")


def _finished(path: Path, about: Path, wanted: dict[str, Any], held: Digests) -> dict[str, Any] | None:
  if not path.exists():
    return None
  if not about.exists():                                                  # stopped between the shard and its stats
    return None
  stats = read_object(about)
  if any(stats.get(name) != value for name, value in wanted.items()):
    raise DataError(f"{path} holds records of another source, another shard size or other limits; choose another folder, or remove the "
                    "shards there")
  there = {"bytes": path.stat().st_size, "sha256": held.of([path.name])[path.name]}
  return stats if {*STATS} <= {*stats} and there == {name: stats[name] for name in there} else None


def _shard(judged: Iterable[Seen], file: Any, seen: set[str], tell: Callable[[int], None]) -> dict[str, Any]:
  offenders: list[dict[str, str]] = []
  escaped: dict[str, str] = {}
  number = written = 0
  with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for number, one in enumerate(judged, 1):
      try:
        parts = {} if one.fault else _parts(one.record)
      except BadRecord as fault:
        one = one._replace(fault=Offence(one.key, fault.kind, fault.detail))
      if one.fault:
        offenders.append(one.fault._asdict())
      else:
        name = member_key(one.key)
        if name in seen:
          raise DataError(f"key {one.key!r} comes twice; the records of a set need different keys")
        seen.add(name)
        if name != one.key:
          escaped[one.key] = name
        for ending, content in parts.items():
          member = tarfile.TarInfo(f"{name}.{ending}")
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))
        written += 1
      tell(number)
  return {"count": number, "successes": written, "bad": dict(collections.Counter(offender["kind"] for offender in offenders)),
          "offenders": offenders, "escaped": len(escaped), "escaped_such_as": dict(list(escaped.items())[:SHOWN])}


def _parts(record: Any) -> dict[str, bytes]:
  """The members of one record, by their endings. BadRecord for one that no reader would take."""
  data, suffix = verdict.encoded(record["image"])
  original = record["captions"].get("original")
  row = {"key": record["key"], "captions": record["captions"]} | records.extras_of(record)
  texts = {"txt": original.encode()} if isinstance(original, str) else {}
  return {suffix: data, **texts, "json": records.as_json(row, key=record["key"])}
