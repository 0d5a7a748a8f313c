"""Bad records: a closed set of kinds, a deterministic replacement, and the point at which there are too many.

A bad record is counted by kind when its turn comes and another one takes its place, so a batch is never short and every host agrees on
what it holds. Bad ones that are met while looking for a replacement are not counted again: their own turn comes.
"""
from typing import NamedTuple

from mmdiff.core.errors import DataError
from mmdiff.data import draws

KINDS = {
  "undecodable": "the image bytes are no picture that can be decoded",
  "oversized": "the picture's header announces more pixels, a longer side, or more memory to decode, than allowed",
  "unreadable": "the source found the record but could not read it",
  "missing_key": "a part that every record needs is absent",
  "bad_type": "a part has the wrong type, dtype or shape",
  "missing_caption": "no caption that `on_missing` allows",
  "empty_caption": "a caption of nothing but white space",
  "long_caption": "a caption longer than captions.MAX_CHARACTERS",
  "non_utf8_caption": "caption bytes that are not UTF-8",
  "control_caption": "a caption with NUL or other control characters",
}
TRIES = 32           # with a third of all records bad, 8 tries would fail once in 20,000 rows
OFFENDERS = 1000     # how many are remembered by name
SETTLED = 100        # records before the bad fraction is believed


class BadRecord(Exception):
  """A record that can't be used. `kind` is one of `KINDS`; `detail` says what was found."""

  def __init__(self, kind: str, detail: str = "", key: str = ""):
    if kind not in KINDS:
      raise ValueError(f"unknown kind of bad record {kind!r}; known: {', '.join(KINDS)}")
    super().__init__(kind, detail, key)
    self.kind, self.detail, self.key = kind, detail, key

  def __str__(self):
    return f"{self.kind}: {self.detail or KINDS[self.kind]}" + (f" (record {self.key!r})" if self.key else "")


class Offence(NamedTuple):
  """One bad record, for the list that a person reads."""
  key: str          # the record's key, or its index in the source as "#12" when it has none
  kind: str
  detail: str


def replacement(index: int, attempt: int, *, seed: int, epoch: int, length: int) -> int:
  """The index to try in place of `index`: a hash chain, so that every host and worker tries the same ones."""
  return draws.digest("replace", seed, epoch, index, attempt) % length


def check_fraction(bad: int, records: int, *, limit: float, kinds: dict[str, int], offenders=()) -> None:
  """Raises DataError when more than `limit` of the records were bad; below `SETTLED` records it takes that share of `SETTLED`."""
  if bad > limit * max(records, SETTLED):
    worst = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]) if count)
    named = "; for example " + ", ".join(f"{o.key} ({o.kind}: {o.detail})" for o in offenders) if offenders else ""
    raise DataError(f"{bad} of {records} records were bad ({worst}), more than data.max_bad_fraction={limit:g} allows{named}; "
                    "`mmdiff data validate` lists them all")
