"""Captions of several kinds: which one an example gets, side-car files that add kinds, and text cleaning.

Caption mixing follows "Improving Image Generation with Better Captions" (Betker et al. 2023, section 3): 95 % synthetic, 5 % original.
"""
import re
from collections.abc import Mapping
from typing import NamedTuple

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import parse_json
from mmdiff.data import cleaning, draws
from mmdiff.data.quarantine import BadRecord

MAX_CHARACTERS = 65_536       # longer ones are pages, not captions
POLICIES = ("error", "original", "any", "replace")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")


class Mix(NamedTuple):
  """Kinds in name order, so that a config that was saved with its keys sorted draws the same."""
  kinds: tuple[str, ...]
  shares: tuple[float, ...]
  on_missing: str


class LacksKind(Exception):
  """The record has no caption of the kind drawn and `on_missing` is "replace"."""

  def __init__(self, kind: str):
    super().__init__(kind)
    self.kind = kind


def mix(captions: Mapping[str, float], *, on_missing: str) -> Mix:
  """The checked mix. Raises ConfigError that names every wrong key."""
  problems = [f"data.captions.{kind}: a share must be a positive number, found {share!r}" for kind, share in captions.items()
              if isinstance(share, bool) or not isinstance(share, (int, float)) or not share > 0]
  if not captions:
    problems.append('data.captions: no kinds; give at least one, e.g. {"original": 1.0}')
  elif not problems and not abs(sum(captions.values()) - 1.0) <= 1e-6:
    listed = ", ".join(f"{kind}={share:g}" for kind, share in captions.items())
    problems.append(f"data.captions: the shares must sum to 1, found {listed}, which sum to {sum(captions.values()):.9g}")
  if on_missing not in POLICIES:
    problems.append(f"data.on_missing: unknown value {on_missing!r}; known: {', '.join(POLICIES)}")
  if problems:
    raise ConfigError("\n".join(problems))
  kinds = tuple(sorted(captions))
  return Mix(kinds, tuple(float(captions[kind]) for kind in kinds), on_missing)


def draw(mix: Mix, *, seed: int, epoch: int, key: str) -> str:
  """The kind that this record gets in this epoch."""
  u, total = draws.uniform("caption", seed, epoch, key), 0.0
  for kind, share in zip(mix.kinds, mix.shares):
    total += share
    if u < total:
      return kind
  return mix.kinds[-1]


def choose(captions: Mapping, wanted: str, *, mix: Mix, key: str) -> str:
  """The kind to use when `wanted` was drawn: itself if the record has it, else what `mix.on_missing` says.

  "original": that kind. "any": the present kind of the largest share, then any other in the record's order. Raises DataError for
  "error", LacksKind for "replace", and BadRecord when nothing is left.
  """
  if wanted in captions:
    return wanted
  if mix.on_missing == "error":
    raise DataError(f"record {key!r} has no caption of kind {wanted!r} (it has: {', '.join(captions) or 'none'}); "
                    "choose data.captions from those, or set data.on_missing to original, any or replace")
  if mix.on_missing == "replace":
    raise LacksKind(wanted)
  if mix.on_missing == "original" and "original" in captions:
    return "original"
  if mix.on_missing == "any" and captions:
    share = dict(zip(mix.kinds, mix.shares))
    return max(captions, key=lambda kind: share.get(kind, 0.0))
  raise BadRecord("missing_caption", f"no caption of kind {wanted!r}, and data.on_missing={mix.on_missing} finds none among: "
                  f"{', '.join(captions) or 'none'}", key)


def text_of(value, *, key: str, allow_empty: bool = False, draw_from: tuple | None = None) -> str:
  """A caption as text. Of a list one is drawn by `draw_from`, the parts of a hash; with None it is the first. Raises BadRecord."""
  if isinstance(value, (list, tuple)):
    if not value:
      raise BadRecord("missing_caption", "an empty list of captions", key)
    value = value[draws.digest(*draw_from) % len(value) if draw_from else 0]
  if isinstance(value, bytes):
    try:
      value = value.decode("utf-8")
    except UnicodeDecodeError as error:
      raise BadRecord("non_utf8_caption", str(error), key) from None
  if not isinstance(value, str):
    raise BadRecord("bad_type", f"a caption must be text, found {type(value).__name__}", key)
  if len(value) > MAX_CHARACTERS:
    raise BadRecord("long_caption", f"{len(value)} characters, at most {MAX_CHARACTERS}", key)
  if not value.isascii():
    try:
      value.encode("utf-8")
    except UnicodeEncodeError as error:                # lone surrogates: bytes that someone decoded with errors="surrogateescape"
      raise BadRecord("non_utf8_caption", str(error), key) from None
  if control := _CONTROL.search(value):
    raise BadRecord("control_caption", f"control character {control.group()!r} at {control.start()}", key)
  if not allow_empty and not value.strip():
    raise BadRecord("empty_caption", "", key)
  return value


def reordered(text: str, draw_from: tuple) -> str:
  """A caption with the sentences after its first in an order drawn by `draw_from`, the parts of a hash.

  A describer of a few thousand pictures otherwise learns by heart which thing each caption names first, which no picture shows.
  """
  first, *others = _SENTENCE.split(text)
  return " ".join([first, *(others[i] for i in draws.generator(*draw_from).permutation(len(others)))]) if len(others) > 1 else text


def clean(text: str) -> str:
  """CLIP's cleaning: ftfy, HTML entities undone twice, white space collapsed, lower case (openai/CLIP, simple_tokenizer.py)."""
  return cleaning.clean(text, cleaning.OPENAI)


def parse_line(line: bytes, where: str) -> tuple[str, dict]:
  """(key, captions by kind) of one side-car line. Raises DataError that names the line."""
  try:
    entry = parse_json(line)
  except ValueError as error:
    raise DataError(f"{where}: not a JSON object: {error}") from None
  if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
    raise DataError(f'{where}: expected {{"key": …, kind: caption, …}}, found {line[:80]!r}')
  key = entry.pop("key")
  for kind, value in entry.items():
    if not isinstance(value, str) and not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
      raise DataError(f"{where}: caption {kind!r} of record {key!r} must be text or a list of texts, found {value!r:.80}")
  return key, entry
