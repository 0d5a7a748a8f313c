"""Words back to facts: the inverse of `captions`, tolerant enough for what a captioner writes.

`parse(text, tier)` of a caption of kind `long` or `short` gives exactly its facts, in the order of the words; of any other text, the facts
that the grammar recognises in it. Sentences end at full stops; case does not matter.
"""
import re
from typing import Any

from mmdiff.data.scenes.tiers import Tier
from mmdiff.data.scenes.wording import CANONICAL, NUMBERS, RELATIONS, WORDS, plural


def _any(words) -> str:
  return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_SINGULARS = {plural(word): word for word in WORDS["shape"]} | {word: word for word in WORDS["shape"]}
_OBJECT = rf"""(?:(?P<size>{_any(WORDS['size'])})\ )?(?:(?P<tex>{_any(WORDS['tex'])})\ )?
  (?:(?P<color>{_any(WORDS['color'])})\b\ ?(?P<shape>(?:{_any(WORDS['shape'])})\b)?|(?P<only>{_any(WORDS['shape'])})\b)
  (?:\ pointing\ (?P<rot>{_any(WORDS['rot'])})\b)?(?:,?\ (?:at|in)\ the\ (?P<position>[a-z]+(?:\ [a-z]+)?))?"""
_OBJECTS = re.compile(r"\b" + _OBJECT, re.VERBOSE)
_COUNT = re.compile(rf"\b({_any(NUMBERS)}) objects?\b")
_BACKGROUND = re.compile(rf"\b({_any(WORDS['bg'])}) background\b")
_NUMBER = re.compile(rf"\b({_any(NUMBERS)}) ({_any(WORDS['color'])}) ({_any(_SINGULARS)})\b")
_RELATION = re.compile(rf"\b({_any(RELATIONS)})\b")
_STATEMENT = re.compile(rf"\bis ({_any(RELATIONS)})\b")


def _object(match: re.Match, tier: Tier) -> dict[str, Any]:
  found = match.groupdict()
  found["shape"] = found["shape"] or found.pop("only")
  fact = {"fact": "object"}
  for name in ("shape", "color", "tex", "size", "rot"):
    if found[name]:
      fact[name] = CANONICAL.get(found[name], found[name])
  words = (found["position"] or "").split()
  for length in (2, 1):
    position = " ".join(words[:length])
    if position in tier.positions:
      index = tier.positions.index(position)
      return fact | {"cell": [index // tier.grid, index % tier.grid]}
  return fact


def _named(fact: dict[str, Any]) -> dict[str, Any]:
  return {name: fact[name] for name in ("shape", "color") if name in fact}


def parse(text: str, tier: Tier) -> list[dict[str, Any]]:
  """The facts (see `captions`) that a text claims. Nothing recognised gives an empty list."""
  facts = []
  for sentence in text.lower().split("."):
    facts += [{"fact": "count", "value": NUMBERS.index(word)} for word in _COUNT.findall(sentence)]
    facts += [{"fact": "background", "value": name} for name in _BACKGROUND.findall(sentence)]
    for number, color, shapes in _NUMBER.findall(sentence):
      shape = _SINGULARS[shapes]
      facts.append({"fact": "number", "value": NUMBERS.index(number), "shape": CANONICAL.get(shape, shape), "color": color})
    matches = list(_OBJECTS.finditer(_NUMBER.sub("", sentence)))
    objects = [_object(match, tier) for match in matches]
    how = _RELATION.search(sentence)
    related = how and len(objects) == 2
    if not (related and _STATEMENT.search(sentence)):
      facts += objects
    if related:
      facts.append({"fact": "relation", "subject": _named(objects[0]), "relation": how[1], "object": _named(objects[1])})
  return facts
