"""Wrong captions one fact away from the right one: does a model bind words to things, or does it count words?

In the manner of Winoground (Thrush et al. 2022) and SugarCrepe (Hsieh et al. 2023), with the answer known. The kinds `color`, `shape`,
`tex`, `size`, `position` and `relation` exchange something between two objects, so that right and wrong caption have the same words:
a bag of words is right half of the time. `count` and `background` change one word.
"""
import copy
from typing import Any, NamedTuple

from mmdiff.data.scenes import captions
from mmdiff.data.scenes.facts import score
from mmdiff.data.scenes.tiers import Tier
from mmdiff.data.scenes.wording import NUMBERS, Digits

EXCHANGES = ("color", "shape", "tex", "size", "position", "relation")
KINDS = (*EXCHANGES, "count", "background")


class Pair(NamedTuple):
  """A right and a wrong caption of one picture that differ in one kind of fact."""
  kind: str
  right: str
  wrong: str


def pairs(scene: dict[str, Any], tier: Tier) -> list[Pair]:
  """One pair per kind of fact that the scene allows, a function of the scene alone.

  The wrong caption is the long one, in the same wording, of a scene in which two objects have exchanged an attribute; `relation` is one
  sentence about two objects. A pair whose wrong caption would be true of the picture too is left out.
  """
  found = []
  for kind in KINDS:
    digits = Digits(scene["id"], "swap", kind)
    pair = _relation(scene, digits) if kind == "relation" else _long(scene, tier, kind, digits)
    if pair:
      found.append(pair)
  return found


def _long(scene: dict, tier: Tier, kind: str, digits: Digits) -> Pair | None:
  wrong = copy.deepcopy(scene)
  if kind == "background":
    wrong["bg"] = digits.pick([name for name in tier.backgrounds if name != scene["bg"]])
  elif kind != "count":
    attribute = "cell" if kind == "position" else kind
    objs = wrong["objs"]
    choices = [(a, b) for i, a in enumerate(objs) for b in objs[i + 1:] if _exchangeable(a, b, kind)]
    if not choices:
      return None
    a, b = digits.pick(choices)
    a[attribute], b[attribute] = b[attribute], a[attribute]
    if kind == "shape" and ("rot" in a or "rot" in b):
      turn_a, turn_b = a.pop("rot", None), b.pop("rot", None)
      a.update({"rot": turn_b} if turn_b else {})
      b.update({"rot": turn_a} if turn_a else {})
  say = lambda told: captions.long(told, tier, Digits(scene["id"], "swap wording", kind), plain=True)
  right, _ = say(scene)
  text, facts = say(wrong)
  if kind == "count":
    text, facts = _recounted(right, len(scene["objs"]), digits)
  return None if all(score(scene, facts)) else Pair(kind, right, text)


def _exchangeable(a: dict, b: dict, kind: str) -> bool:
  if kind == "position":
    return any(a.get(name) != b.get(name) for name in ("shape", "color", "tex", "size", "rot"))
  return a[kind] != b[kind]


def _recounted(text: str, number: int, digits: Digits) -> tuple[str, list[dict]]:
  """The text with one object more or fewer in its opening; a scene of one has only more, since nobody says "no objects"."""
  wrong = number + (1 if number == 1 or digits.below(2) else -1)
  noun = lambda n: f"{NUMBERS[n]} {'object' if n == 1 else 'objects'}"
  text = text.replace(noun(number), noun(wrong), 1)
  text = text.replace("there is ", "there are ", 1) if number == 1 else text.replace("there are ", "there is ", 1) if wrong == 1 else text
  return text, [{"fact": "count", "value": wrong}]


def _relation(scene: dict, digits: Digits) -> Pair | None:
  """`the red circle is left of the blue square.` against the same with the two exchanged."""
  related = captions.relations_of(scene["objs"], digits)
  if not related:
    return None
  a, b, how = related[0]
  say = lambda first, second: f"the {first['color']} {first['shape']} is {how} the {second['color']} {second['shape']}."
  return Pair("relation", say(a, b), say(b, a))
