"""Which scene stands at index i of a split.

Scene i is a pure function of numpy's Philox generator (Salmon et al. 2011) with key = (version, tier, split) and i in the second word
of the counter: random access in any order, and no two streams overlap (with i in the lowest word, scene i + 1 would repeat the numbers
of scene i shifted by one block).

A split is a property of the scene, never of the index, so that no scene is in two of them:

| split       | its scenes                                                                                                  |
|-------------|-------------------------------------------------------------------------------------------------------------|
| `train`     | nothing withheld, and the hash of what is said about them outside the held-out sixteenth                     |
| `val_iid`   | nothing withheld, hash inside that sixteenth                                                                 |
| `val_comp`  | a withheld pair of shape and colour: (shape + colour) % modulus == 0                                         |
| `val_rel`   | a withheld ordered pair of colours, side by side ((right − left) % colours == 1) or one above the other (== 2) |
| `val_count` | a withheld number of one shape: the largest but one for a third of the shapes, the largest for all (see `withheld_count`) |
| `val_len`   | one object more than training ever has                                                                       |

A scene of `val_comp`, `val_rel`, `val_count` or `val_len` breaks that one rule only.
"""
import hashlib
import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from mmdiff.data.scenes.sprites import turns
from mmdiff.data.scenes.tiers import DIRECTIONS, SPLITS, VERSION, Tier, tier_named

RULES = ("comp", "rel", "count", "len")


class Thing(NamedTuple):
  """An object by indices into its tier's lists; `cell` counts row by row, `dx` and `dy` are pixels off the cell's middle."""
  cell: int
  shape: int
  color: int
  tex: int
  size: int
  turn: int
  dx: int
  dy: int


class Scene(NamedTuple):
  """A background index and the objects in order of their cells."""
  tier: str
  bg: int
  things: tuple[Thing, ...]


def withheld_pair(tier: Tier, shape: int, color: int) -> bool:
  """Whether training never shows this shape in this colour."""
  return (shape + color) % tier.modulus == 0


def withheld_order(tier: Tier, first: int, second: int, vertical: bool) -> bool:
  """Whether training never shows colour `first` left of (or, vertical, above) colour `second` in one row (column)."""
  return (second - first) % len(tier.colors) == 1 + vertical


def withheld_count(tier: Tier, shape: int, number: int) -> bool:
  """Whether training never shows this number of one shape.

  With up to five objects: four for every third shape and five for all; with up to three: three, and with two: two, for every third.
  """
  most = tier.objects[1]
  return number > 4 or (shape % 3 == 2 and number >= min(most, 4))


def broken(tier: Tier, things: tuple[Thing, ...]) -> int:
  """The rules that a scene breaks, as bits in the order of `RULES`; 0 for a scene that training may show."""
  bits = 0
  grid = tier.grid
  shapes = []
  for thing in things:
    shapes.append(thing.shape)
    if (thing.shape + thing.color) % tier.modulus == 0:
      bits |= 1
  for a, b in itertools.combinations(things, 2):           # a's cell comes first
    if a.cell // grid == b.cell // grid:
      if withheld_order(tier, a.color, b.color, False):
        bits |= 2
    elif a.cell % grid == b.cell % grid and withheld_order(tier, a.color, b.color, True):
      bits |= 2
  most = tier.objects[1]
  if len(things) > most:
    bits |= 8
  if len(things) >= min(most, 4) and any(withheld_count(tier, shape, shapes.count(shape)) for shape in set(shapes)):
    bits |= 4
  return bits


def held_out_hash(scene: Scene) -> bool:
  """Whether the hash of what is said about a scene (everything but the jitter) falls into the sixteenth kept for `val_iid`."""
  told = bytes(itertools.chain((scene.bg,), *(thing[:6] for thing in scene.things)))
  return hashlib.sha1(told).digest()[0] < 16


def split_of(scene: Scene) -> str | None:
  """The split that a scene belongs to; None for one that breaks several rules and so belongs to none."""
  bits = broken(tier_named(scene.tier), scene.things)
  if bits == 0:
    return "val_iid" if held_out_hash(scene) else "train"
  return {1: "val_comp", 2: "val_rel", 4: "val_count", 8: "val_len"}.get(bits)


class _Words:
  """An endless stream of 64-bit words, read in blocks: one generator call costs more than a scene's arithmetic."""

  def __init__(self, tier: Tier, split: str, index: int):
    key = VERSION | tier.px << 16 | SPLITS.index(split) << 32
    self.generator = np.random.Philox(key=key, counter=index << 64)
    self.words = iter(())

  def __call__(self) -> int:
    for word in self.words:
      return word
    self.words = iter(self.generator.random_raw(24).tolist())
    return next(self.words)


def sample(tier: Tier, split: str, index: int) -> Scene:
  """Scene `index` of a split. Scenes that belong elsewhere are drawn again, from the same stream."""
  word = _Words(tier, split, index)
  fewest, most = tier.objects
  cells = tier.grid * tier.grid
  same = 0                                                 # objects that share one shape
  if split == "val_len":
    number = most + 1
  elif split == "val_count":
    same = min(most, 4)
    number = same + word() % (most - same + 1)
  else:
    fewest = max(fewest, 2) if split == "val_rel" else fewest
    number = fewest + word() % (most - fewest + 1)
  wanted = {"val_comp": 1, "val_rel": 2, "val_count": 4, "val_len": 8}.get(split, 0)
  shapes, colors, textures, sizes = len(tier.shapes), len(tier.colors), len(tier.textures), len(tier.sizes)
  spread = 2 * tier.jitter + 1
  while True:
    w = word()
    w, bg = divmod(w, len(tier.backgrounds))
    free = list(range(cells))
    things = []
    one = w % shapes if same else 0
    for k in range(number):
      w = word()
      w, pick = divmod(w, len(free))
      w, shape = divmod(w, shapes)
      w, color = divmod(w, colors)
      w, tex = divmod(w, textures)
      w, size = divmod(w, sizes)
      w, turn = divmod(w, 8)
      w, dx = divmod(w, spread)
      w, dy = divmod(w, spread)
      shape = one if k < same else shape
      turn = turn % turns(tier.shapes[shape])
      things.append(Thing(free.pop(pick), shape, color, tex, size, turn, dx - tier.jitter, dy - tier.jitter))
    things.sort()
    if broken(tier, things) != wanted:
      continue
    scene = Scene(tier.name, bg, tuple(things))
    if split == "train" and held_out_hash(scene) or split == "val_iid" and not held_out_hash(scene):
      continue
    return scene


def to_json(scene: Scene) -> dict[str, Any]:
  """The scene in words, keys in canonical order. `id` is the SHA-1 of the compact JSON of the rest; `rot` is said of arrows only."""
  tier = tier_named(scene.tier)
  objs = []
  for z, (cell, shape, color, tex, size, turn, dx, dy) in enumerate(scene.things):
    obj = {"shape": tier.shapes[shape], "color": tier.colors[color], "tex": tier.textures[tex], "size": tier.sizes[size],
           "cell": [cell // tier.grid, cell % tier.grid], "dx": dx, "dy": dy, "z": z}
    if obj["shape"] == "arrow":
      obj["rot"] = DIRECTIONS[turn]
    objs.append(obj)
  told = {"v": VERSION, "bg": tier.backgrounds[scene.bg], "objs": objs}
  return told | {"id": hashlib.sha1(json.dumps(told, separators=(",", ":")).encode()).hexdigest()}


def from_json(told: dict[str, Any], tier: Tier) -> Scene:
  """The inverse of `to_json`. Raises ValueError for a word that the tier does not have."""
  things = []
  for obj in told["objs"]:
    row, column = obj["cell"]
    things.append(Thing(row * tier.grid + column, tier.shapes.index(obj["shape"]), tier.colors.index(obj["color"]),
                        tier.textures.index(obj["tex"]), tier.sizes.index(obj["size"]),
                        DIRECTIONS.index(obj["rot"]) if "rot" in obj else 0, obj.get("dx", 0), obj.get("dy", 0)))
  return Scene(tier.name, tier.backgrounds.index(told["bg"]), tuple(sorted(things)))
