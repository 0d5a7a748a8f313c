"""Alt text as the web writes it: mostly empty of content, sometimes wrong, often dirty.

DALL·E 3 (Betker et al. 2023, section 2) trains on captions that replace such text; this model of it is what makes the mixing ratio
matter. Every probability is a config key of the source (`alt_…`); the defaults of the first block give the ablation its effect, those of
the second exercise robustness.
"""
from typing import NamedTuple

from mmdiff.data.scenes.tiers import Tier
from mmdiff.data.scenes.wording import Digits

SPAM = ("stock", "clipart", "free", "download", "image", "photo", "vector", "hd", "wallpaper", "buy", "online", "best", "new", "sale",
        "premium", "icon", "logo", "design", "print", "background", "png", "picture", "royalty", "cheap", "gallery")
FOREIGN = {
  "red": ("rot", "rouge", "rojo"), "green": ("grün", "vert", "verde"), "blue": ("blau", "bleu", "azul"),
  "yellow": ("gelb", "jaune", "amarillo"), "purple": ("lila", "violet", "morado"), "cyan": ("türkis", "turquoise", "cian"),
  "orange": ("orangefarben", "orangé", "naranja"), "magenta": ("magentarot", "fuchsia", "fucsia"), "pink": ("rosa", "rose", "rosado"),
  "brown": ("braun", "marron", "marrón"),
  "circle": ("Kreis", "cercle", "círculo"), "square": ("Quadrat", "carré", "cuadrado"),
  "triangle": ("Dreieck", "triangulaire", "triángulo"), "cross": ("Kreuz", "croix", "cruz"),
  "diamond": ("Raute", "losange", "rombo"), "ring": ("Reif", "anneau", "anillo"),
  "star": ("Stern", "étoile", "estrella"), "heart": ("Herz", "cœur", "corazón"), "hexagon": ("Sechseck", "hexagone", "hexágono"),
  "arrow": ("Pfeil", "flèche", "flecha"),
}
EMOJI = ("✨", "🔥", "❤️", "👍", "🎨")
ENTITIES = ("&amp;", "&quot;", "&#39;", "&nbsp;", "%20")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {letter: row[max(i - 1, 0):i] + row[i + 1:i + 2] for row in _ROWS for i, letter in enumerate(row)}


class Noise(NamedTuple):
  """Probabilities of what goes wrong; from `other_image` on they are of texts that have content."""
  empty: float = 0.08             # nothing at all
  no_content: float = 0.32        # one to four words of spam
  keep_color: float = 0.60
  wrong_color: float = 0.15       # of the colours kept
  keep_shape: float = 0.70
  wrong_shape: float = 0.10       # of the shapes kept
  other_image: float = 0.03       # the text of another picture
  file_name: float = 0.06         # a file name, date or stock number instead
  typo: float = 0.05              # a neighbouring key in a content word
  foreign: float = 0.05           # German, French or Spanish
  caps: float = 0.05
  entities: float = 0.03
  emoji: float = 0.03
  cut: float = 0.04               # after `cut_chars` characters
  repeat: float = 0.03            # a word twice
  cut_chars: int = 30


def alt_text(scene: dict, tier: Tier, digits: Digits, noise: Noise) -> tuple[str, list[dict]]:
  """A caption of kind `original` and what it claims, which may be untrue of the picture. An empty text is ""."""
  if digits.chance(noise.empty):
    return "", []
  spam = [digits.pick(SPAM) for _ in range(1 + digits.below(4))]
  if digits.chance(noise.no_content):
    return " ".join(spam), []
  if digits.chance(noise.file_name):
    return _file_name(digits), []
  claim = _claim(scene, tier, digits, noise)
  if not claim:
    return " ".join(spam), []
  said = dict(claim)
  if digits.chance(noise.foreign):
    language = digits.below(3)
    said = {what: FOREIGN[word][language] for what, word in said.items()}
  if digits.chance(noise.typo):
    what = digits.pick(list(said))
    said[what] = _typo(said[what], digits)
  before = digits.below(len(spam) + 1)
  words = [*spam[:before], *said.values(), *spam[before:]]
  if digits.chance(noise.repeat):
    at = digits.below(len(words))
    words.insert(at, words[at])
  if digits.chance(noise.emoji):
    words.append(digits.pick(EMOJI))
  text = " ".join(words)
  if digits.chance(noise.entities):
    entity = digits.pick(ENTITIES)
    text = text.replace(" ", entity) if entity == "%20" else f"{text} {entity}"
  if digits.chance(noise.cut):
    text = text[:noise.cut_chars].rstrip()
  kept = {what: claim[what] for what, word in said.items() if word in text}
  if digits.chance(noise.caps):
    text = text.upper()
  return text, [{"fact": "object"} | kept] if kept else []


def _claim(scene: dict, tier: Tier, digits: Digits, noise: Noise) -> dict[str, str]:
  """The colour and shape that the text names, perhaps none, perhaps wrong; never a pair that training withholds from the picture's own."""
  obj = digits.pick(scene["objs"])
  shape, color = tier.shapes.index(obj["shape"]), tier.colors.index(obj["color"])
  if digits.chance(noise.other_image):
    shape, color = digits.below(len(tier.shapes)), digits.below(len(tier.colors))
    color = (color + _withheld(tier, shape, color)) % len(tier.colors)
  keep_color, keep_shape = digits.chance(noise.keep_color), digits.chance(noise.keep_shape)
  if keep_color and digits.chance(noise.wrong_color):
    color = _other(digits, color, len(tier.colors), lambda c: _withheld(tier, shape, c))
  if keep_shape and digits.chance(noise.wrong_shape):
    shape = _other(digits, shape, len(tier.shapes), lambda s: _withheld(tier, s, color))
  return ({"color": tier.colors[color]} if keep_color else {}) | ({"shape": tier.shapes[shape]} if keep_shape else {})


def _withheld(tier: Tier, shape: int, color: int) -> bool:
  return (shape + color) % tier.modulus == 0


def _other(digits: Digits, index: int, number: int, forbidden) -> int:
  """Another index, or the next one that is not forbidden."""
  start = digits.below(number - 1)
  order = [(index + 1 + (start + k) % (number - 1)) % number for k in range(number - 1)]
  return next((i for i in order if not forbidden(i)), index)


def _typo(word: str, digits: Digits) -> str:
  at = digits.below(len(word))
  near = NEIGHBOURS.get(word[at].lower(), "")
  return word[:at] + digits.pick(near) + word[at + 1:] if near else word[:at] + word[at] + word[at:]


def _file_name(digits: Digits) -> str:
  kind = digits.below(3)
  if kind == 0:
    return f"{digits.pick(('IMG', 'DSC', 'pic'))}_{digits.below(10_000):04d}.{digits.pick(('jpg', 'png', 'JPG'))}"
  if kind == 1:
    return f"{2005 + digits.below(20)}-{1 + digits.below(12):02d}-{1 + digits.below(28):02d}"
  return f"SKU-{digits.below(100_000):05d}-{digits.pick('ABCDEF')}"
