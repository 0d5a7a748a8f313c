"""Prompts for text-to-image models in eight categories, scored by the judge.

After T2I-CompBench (Huang et al. 2023; 300 validation prompts per category) and GenEval (Ghosh et al. 2023), with exact truth instead of a
detector. A category chooses the scenes, and for `style="short"` the words too: a short prompt says and is scored on what the category is
about, a long one on everything. Half of each category has a pair of shape and colour that training never shows.

| category          | scenes                                           | short prompt                                             |
|-------------------|--------------------------------------------------|----------------------------------------------------------|
| `color_binding`   | two objects that differ in colour and shape only | a red circle and a blue square                           |
| `shape_binding`   | the same                                         | a red circle at the top left and a blue square at the …  |
| `texture_binding` | two of different textures                        | a striped red circle and a solid blue square             |
| `size_binding`    | two of different sizes                           | a small red circle and a large blue square               |
| `spatial`         | two in one row or column                         | a red circle left of a blue square                       |
| `counting`        | copies of one object                             | three red circles                                        |
| `background`      | any (short: one object)                          | a red circle on a black background                       |
| `complex`         | some relation is unambiguous                     | a small striped red circle left of a large solid blue …  |
"""
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from mmdiff.data.scenes import captions
from mmdiff.data.scenes.tiers import Tier
from mmdiff.data.scenes.wording import NUMBERS, Digits, article, plural
from mmdiff.data.scenes.world import from_json, sample, split_of, to_json

CATEGORIES = ("color_binding", "shape_binding", "texture_binding", "size_binding", "spatial", "counting", "background", "complex")


class Prompt(NamedTuple):
  """One request and what a picture must show to satisfy it."""
  category: str
  split: str                   # "val_iid" or "val_comp"
  index: int                   # of the prompt within its category
  text: str
  facts: list[dict[str, Any]]


def prompts(tier: Tier, *, per_category: int = 300, style: Literal["short", "long"] = "long") -> list[Prompt]:
  """The benchmark of a tier, category by category; the odd prompts of each are held-out pairs. A tier of one size has no `size_binding`."""
  found = []
  for category in CATEGORIES:
    if category == "size_binding" and len(tier.sizes) < 2:
      continue
    streams = {split: _suited(tier, split, category, style) for split in ("val_iid", "val_comp")}
    for index in range(per_category):
      split = ("val_iid", "val_comp")[index % 2]
      scene = next(streams[split])
      digits = Digits(scene["id"], "benchmark", category, style)
      text, facts = captions.long(scene, tier, digits) if style == "long" else _SHORT[category](scene, tier, digits)
      found.append(Prompt(category, split, index, text, facts))
  return found


def _suited(tier: Tier, split: str, category: str, style: str) -> Iterator[dict]:
  """Scenes of a split, changed so that they put the category to the test; those that then belong to another split are left out."""
  index = 1_000_000_000 * (1 + CATEGORIES.index(category))      # far from the scenes of the split itself
  while True:
    scene = to_json(sample(tier, split, index))
    index += 1
    digits = Digits(scene["id"], category)
    objs = digits.shuffled(scene["objs"])
    # A short prompt names one or two objects: with only those in the scene, a held-out pair is always named.
    if category == "background":
      objs = objs[:1] if style == "short" else objs
    elif category != "counting" and (category != "complex" or style == "short"):
      objs = objs[:2]
    if _prepare(objs, category):
      changed = from_json(scene | {"objs": objs}, tier)
      if split_of(changed) == split:
        yield to_json(changed)


def _prepare(objs: list[dict], category: str) -> bool:
  """Whether the objects can put the category to the test; makes them equal in what would give the answer away."""
  if category == "background":
    return True
  if category == "counting":
    for obj in objs[1:]:
      obj.update(shape=objs[0]["shape"], color=objs[0]["color"])
      obj.pop("rot", None)
      obj.update({"rot": objs[0]["rot"]} if "rot" in objs[0] else {})
    return True
  if len(objs) < 2:
    return False
  a, b = objs[:2]
  if category in ("color_binding", "shape_binding"):
    a["tex"], a["size"] = b["tex"], b["size"]
    return a["color"] != b["color"] and a["shape"] != b["shape"]
  if category in ("texture_binding", "size_binding"):
    name = {"texture_binding": "tex", "size_binding": "size"}[category]
    return a[name] != b[name] and (a["color"], a["shape"]) != (b["color"], b["shape"])
  return bool(captions.relations_of(objs, Digits()))


def _describe(obj: dict, *names: str) -> tuple[str, dict]:
  """(words, fact) of an object by colour, shape and the attributes named."""
  told = {name: obj[name] for name in names}
  fact = {"fact": "object", "shape": obj["shape"], "color": obj["color"]} | told
  return article(" ".join((*told.values(), obj["color"], obj["shape"]))), fact


def _binding(*names: str) -> Callable:
  def say(scene: dict, tier: Tier, digits: Digits):
    said = [_describe(obj, *names) for obj in digits.shuffled(scene["objs"])]
    return " and ".join(words for words, _ in said), [fact for _, fact in said]
  return say


def _placed(scene: dict, tier: Tier, digits: Digits):
  words, facts = [], []
  for obj in digits.shuffled(scene["objs"]):
    row, column = obj["cell"]
    what, fact = _describe(obj)
    words.append(f"{what} at the {tier.positions[row * tier.grid + column]}")
    facts.append(fact | {"cell": obj["cell"]})
  return " and ".join(words), facts


def _related(*names: str) -> Callable:
  def say(scene: dict, tier: Tier, digits: Digits):
    a, b, how = captions.relations_of(scene["objs"], digits)[0]
    known = [name for name in names if name != "size" or len(tier.sizes) > 1]
    (words_a, fact_a), (words_b, fact_b) = _describe(a, *known), _describe(b, *known)
    return f"{words_a} {how} {words_b}", [fact_a, fact_b, captions.relation_fact(a, b, how)]
  return say


def _counting(scene: dict, tier: Tier, digits: Digits):
  obj, number = scene["objs"][0], len(scene["objs"])
  shape = obj["shape"] if number == 1 else plural(obj["shape"])
  return f"{NUMBERS[number]} {obj['color']} {shape}", [{"fact": "number", "value": number, "shape": obj["shape"], "color": obj["color"]}]


def _background(scene: dict, tier: Tier, digits: Digits):
  words, fact = _describe(scene["objs"][0])
  return f"{words} on a {scene['bg']} background", [{"fact": "background", "value": scene["bg"]}, fact]


_SHORT = {"color_binding": _binding(), "shape_binding": _placed, "texture_binding": _binding("tex"), "size_binding": _binding("size"),
          "spatial": _related(), "counting": _counting, "background": _background, "complex": _related("size", "tex")}
