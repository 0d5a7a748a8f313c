"""What a caption says about a scene, in words and as facts.

`long` says everything; `short` names the main subject and perhaps one more; `original` is the web's alt text (`alt_text`). A caption is
a function of (scene, kind, variant). Beside the words stands what they claim:

  {"fact": "count", "value": n}             the picture has n objects
  {"fact": "background", "value": name}     that is its background
  {"fact": "object", …}                     an object has every shape, color, tex, size, rot said, in the `cell` [row, column] if one is
  {"fact": "number", "value": n, …}         exactly n objects have the shape and color said
  {"fact": "relation", "subject": {…}, "relation": "left of" | "right of" | "above" | "below", "object": {…}}
                                            such an object stands so to such another

Grammar (lower case, sentences end in a full stop, `long` only):
  long  := intro NUM ("object"|"objects") BGPART "." (object ".")+ ("the" COLOR SHAPE "is" REL "the" COLOR SHAPE "."){0,2}
  object := ART [SIZE] TEX COLOR SHAPE ["pointing" DIRECTION] ("at the"|"in the") POSITION
  short := ART [TEX] COLOR SHAPE [(REL|"and") ART COLOR SHAPE] | NUM COLOR SHAPEs
"""
from typing import Any

from mmdiff.data.scenes.tiers import Tier
from mmdiff.data.scenes.wording import BACKGROUND_PHRASES, INTROS, NUMBERS, SYNONYMS, Digits, article, plural

Facts = list[dict[str, Any]]


def relation(a: dict, b: dict) -> str | None:
  """How object a stands to object b when they share a row or a column; else None, since two words would be true."""
  (row_a, column_a), (row_b, column_b) = a["cell"], b["cell"]
  if row_a == row_b:
    return "left of" if column_a < column_b else "right of"
  if column_a == column_b:
    return "above" if row_a < row_b else "below"
  return None


def _named(obj: dict) -> dict[str, str]:
  return {"shape": obj["shape"], "color": obj["color"]}


def relation_fact(a: dict, b: dict, how: str) -> dict[str, Any]:
  """The fact that a stands so to b, both named by colour and shape."""
  return {"fact": "relation", "subject": _named(a), "relation": how, "object": _named(b)}


def object_fact(obj: dict, tier: Tier) -> dict[str, Any]:
  """Everything that can be said of an object; a tier of one size does not speak of sizes."""
  fact = {"fact": "object", "shape": obj["shape"], "color": obj["color"], "tex": obj["tex"]}
  if len(tier.sizes) > 1:
    fact["size"] = obj["size"]
  if "rot" in obj:
    fact["rot"] = obj["rot"]
  return fact | {"cell": obj["cell"]}


def _unique(objs: list[dict]) -> list[dict]:
  """The objects whose colour and shape no other has."""
  names = [(obj["color"], obj["shape"]) for obj in objs]
  return [obj for obj, name in zip(objs, names) if names.count(name) == 1]


def long(scene: dict, tier: Tier, digits: Digits, plain: bool = False) -> tuple[str, Facts]:
  """A caption that says everything, and its facts in the order of the words. `plain` leaves out synonyms and relations."""
  objs = scene["objs"]
  synonyms = tier.px >= 64 and not plain
  number = len(objs)
  intro = digits.pick(INTROS)
  if number == 1 and intro == "there are":
    intro = "there is"
  facts = [{"fact": "count", "value": number}, {"fact": "background", "value": scene["bg"]}]
  parts = [f"{intro} {NUMBERS[number]} {'object' if number == 1 else 'objects'} {digits.pick(BACKGROUND_PHRASES).format(scene['bg'])}."]
  for obj in digits.shuffled(objs):
    shape, size = obj["shape"], obj["size"]
    if synonyms:
      shape, size = digits.pick(SYNONYMS.get(shape, (shape,))), digits.pick(SYNONYMS.get(size, (size,)))
    what = f"{obj['tex']} {obj['color']} {shape}"
    if len(tier.sizes) > 1:
      what = f"{size} {what}"
    if "rot" in obj:
      what = f"{what} pointing {obj['rot']}"
    row, column = obj["cell"]
    parts.append(f"{article(what)} {'in' if digits.below(2) else 'at'} the {tier.positions[row * tier.grid + column]}.")
    facts.append(object_fact(obj, tier))
  if number > 1 and not plain:
    wanted = max(0, digits.below(4) - 1)                   # none twice as often as one or two
    for a, b, how in relations_of(objs, digits)[:wanted]:
      parts.append(f"the {a['color']} {a['shape']} is {how} the {b['color']} {b['shape']}.")
      facts.append(relation_fact(a, b, how))
  return " ".join(parts), facts


def relations_of(objs: list[dict], digits: Digits) -> list[tuple[dict, dict, str]]:
  """The unambiguous relations, each pair once and in a random direction, in a random order."""
  named = _unique(objs)
  pairs = [(b, a) if digits.below(2) else (a, b) for i, a in enumerate(named) for b in named[i + 1:] if relation(a, b)]
  start = digits.below(len(pairs)) if pairs else 0
  return [(a, b, relation(a, b)) for a, b in pairs[start:] + pairs[:start]]


def short(scene: dict, tier: Tier, digits: Digits) -> tuple[str, Facts]:
  """A caption of the main subject, 2–10 words, and its facts."""
  objs = scene["objs"]
  synonyms = tier.px >= 64
  names = [(obj["color"], obj["shape"]) for obj in objs]
  repeated = sorted({name for name in names if names.count(name) > 1})
  say = lambda shape: digits.pick(SYNONYMS.get(shape, (shape,))) if synonyms else shape
  if repeated and digits.below(2):
    color, shape = digits.pick(repeated)
    number = names.count((color, shape))
    return f"{NUMBERS[number]} {color} {plural(say(shape))}", [{"fact": "number", "value": number, "shape": shape, "color": color}]
  a = digits.pick(objs)
  fact = {"fact": "object"} | _named(a)
  what = f"{a['color']} {say(a['shape'])}"
  if digits.chance(0.4):
    what, fact = f"{a['tex']} {what}", fact | {"tex": a["tex"]}
  others = [obj for obj in objs if _named(obj) != _named(a)]
  if not others or digits.below(2):
    return article(what), [fact]
  b = digits.pick(others)
  facts = [fact, {"fact": "object"} | _named(b)]
  how = relation(a, b) if names.count((a["color"], a["shape"])) == names.count((b["color"], b["shape"])) == 1 else None
  how = how if how and digits.below(2) else None
  if how:
    facts.append(relation_fact(a, b, how))
  return f"{article(what)} {how or 'and'} {article(b['color'] + ' ' + say(b['shape']))}", facts
