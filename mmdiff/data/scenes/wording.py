"""The words of the captions: one vocabulary for the writer and the parser, and the digits that choose between them."""
import hashlib

from mmdiff.data.scenes.tiers import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, TEXTURES

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ("small", "medium", "large")
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}      # each with its inverse
INTROS = ("a picture of", "an image with", "there are", "a drawing of", "a scene with", "this is a picture of")
# Other words for the same thing, used from T64 on.
SYNONYMS = {"circle": ("circle", "disc"), "square": ("square", "box"), "large": ("large", "big"), "small": ("small", "tiny")}
CANONICAL = {word: name for name, words in SYNONYMS.items() for word in words}
BACKGROUND_PHRASES = ("on a {} background", "against a {} background", "in front of a {} background")

WORDS = {
  "shape": (*SHAPES, "disc", "box"), "color": tuple(COLORS), "tex": TEXTURES, "size": (*SIZES, "big", "tiny"), "rot": DIRECTIONS,
  "bg": BACKGROUNDS,
}


def plural(noun: str) -> str:
  """`crosses`, `boxes`, `circles`."""
  return noun + ("es" if noun[-1] in "sx" else "s")


def article(phrase: str) -> str:
  """The phrase with `a` or `an` before it."""
  return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


class Digits:
  """Independent choices, each a digit of one 512-bit number: the hash of what the choices belong to."""

  def __init__(self, *of):
    self.left = int.from_bytes(hashlib.sha512("/".join(map(str, of)).encode()).digest(), "little")

  def below(self, n: int) -> int:
    """A number from 0 to n − 1."""
    self.left, digit = divmod(self.left, n)
    return digit

  def pick(self, items):
    """One of the items."""
    self.left, digit = divmod(self.left, len(items))
    return items[digit]

  def chance(self, p: float) -> bool:
    """True with probability p, to 1/65,536."""
    self.left, digit = divmod(self.left, 65_536)
    return digit < p * 65_536

  def shuffled(self, items: list) -> list:
    """The items in a random order."""
    rest = list(items)
    return [rest.pop(self.below(len(rest))) for _ in items]
