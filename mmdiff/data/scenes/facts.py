"""Whether a scene, true or read from a picture, satisfies what a caption claims. Only what is asked counts."""
import itertools
from collections.abc import Mapping
from typing import Any

ATTRIBUTES = ("shape", "color", "tex", "size", "rot")


def _fits(obj: Mapping, asked: Mapping) -> bool:
  return all(obj.get(name) == asked[name] for name in (*ATTRIBUTES, "cell") if name in asked)


def _related(a: Mapping, b: Mapping, how: str) -> bool:
  (row_a, column_a), (row_b, column_b) = a["cell"], b["cell"]
  return {"left of": column_a < column_b, "right of": column_a > column_b, "above": row_a < row_b, "below": row_a > row_b}[how]


def _assign(objs: list, asked: list[Mapping], fits) -> list[bool]:
  """Gives each asked object another object of the scene, so that most are satisfied. At most a handful of either."""
  if len(asked) == 1:
    return [any(fits(obj, asked[0]) for obj in objs)]
  slots = [*objs, *[None] * len(asked)]
  options = [[k for k, obj in enumerate(slots) if obj is None or fits(obj, want)] for want in asked]
  options = [[*[k for k in row if slots[k] is not None], len(objs) + i] for i, row in enumerate(options)]
  best = max((choice for choice in itertools.product(*options) if len(set(choice)) == len(choice)),
             key=lambda choice: sum(slots[k] is not None for k in choice))
  return [slots[k] is not None for k in best]


def score(scene: Mapping[str, Any], facts: list[Mapping[str, Any]]) -> list[bool]:
  """Per fact, whether the scene has it. `scene` is JSON as of `world.to_json` (`bg`, `objs`).

  Objects asked without a cell are matched to different objects of the scene. Raises ValueError for an unknown kind of fact.
  """
  objs = scene["objs"]
  loose = [fact for fact in facts if fact["fact"] == "object" and "cell" not in fact]
  loose_right = iter(_assign(objs, loose, _fits) if loose else ())
  right = []
  for fact in facts:
    match fact["fact"]:
      case "count":
        right.append(len(objs) == fact["value"])
      case "background":
        right.append(scene["bg"] == fact["value"])
      case "object":
        right.append(any(_fits(obj, fact) for obj in objs) if "cell" in fact else next(loose_right))
      case "number":
        right.append(sum(_fits(obj, fact) for obj in objs) == fact["value"])
      case "relation":
        right.append(any(_fits(a, fact["subject"]) and _fits(b, fact["object"]) and _related(a, b, fact["relation"])
                         for a, b in itertools.permutations(objs, 2)))
      case kind:
        raise ValueError(f"unknown kind of fact {kind!r}")
  return right


def attributes(scene: Mapping[str, Any], facts: list[Mapping[str, Any]]) -> dict[str, list[bool]]:
  """The same by what is asked: `count`, `background`, `number`, `relation`, `position` and each attribute of the objects asked.

  An object with a cell is compared with what stands there (`position`: whether anything does); one without, with the object that
  agrees with it most.
  """
  found: dict[str, list[bool]] = {}
  objs = scene["objs"]
  for fact, right in zip(facts, score(scene, facts)):
    if fact["fact"] != "object":
      found.setdefault(fact["fact"], []).append(right)
      continue
    here = [obj for obj in objs if obj["cell"] == fact["cell"]] if "cell" in fact else objs
    if "cell" in fact:
      found.setdefault("position", []).append(bool(here))
    agrees = lambda obj, fact=fact: sum(obj.get(name) == fact[name] for name in ATTRIBUTES if name in fact)
    obj = max(here, key=agrees, default={})
    for name in ATTRIBUTES:
      if name in fact:
        found.setdefault(name, []).append(obj.get(name) == fact[name])
  return found
