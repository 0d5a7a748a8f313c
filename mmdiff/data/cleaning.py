"""What is done to a text before its tokenizer sees it, as named steps: which ones is a fact of the weights (`token_facts`).

  OPENAI      openai/CLIP, simple_tokenizer.py, and open_clip's clean="lower"
  OPEN_CLIP   open_clip's `tokenizer_kwargs.clean` (open_clip/tokenizer.py)
  SIGLIP      transformers' SiglipTokenizer (canonicalize_text)
  BIG_VISION  big_vision's `tokenize(lower=True)` and `lower`, which know the letters of ASCII only (pp/ops_text.py)
"""
import html
import re
import string
from collections.abc import Callable, Iterable, Mapping

from mmdiff.core.errors import DataError

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_SPACES = re.compile(r"\s+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fixed(text: str) -> str:
  """ftfy's repairs, and HTML entities undone twice."""
  if "&" in text or not text.isascii() or _CONTROL.search(text):
    import ftfy  # its tables take 50 ms to import; plain ASCII never needs them
    return html.unescape(html.unescape(ftfy.fix_text(text)))
  return text


STEPS: Mapping[str, Callable[[str], str]] = {
  "fix": fixed,
  "underscores": lambda text: text.replace("_", " "),
  "punctuation": lambda text: text.translate(_PUNCTUATION),
  "lower": str.lower,
  "lower_ascii": lambda text: text.translate(_ASCII),
  "spaces": lambda text: " ".join(text.split()),
  "canonical_spaces": lambda text: _SPACES.sub(" ", text).strip(),
  "word_marks": lambda text: text.replace("▁", " "),          # SentencePiece's own sign for a space
}
OPENAI = ("fix", "spaces", "lower")
OPEN_CLIP = {"lower": OPENAI, "whitespace": ("fix", "spaces"),
             "canonicalize": ("fix", "underscores", "punctuation", "lower", "spaces")}
SIGLIP = ("word_marks", "lower", "punctuation", "canonical_spaces")
BIG_VISION = ("lower_ascii",)


def checked(steps: Iterable[str], where: str) -> tuple[str, ...]:
  """The steps, all of them known. Raises DataError."""
  steps = tuple(steps)
  if unknown := [str(step) for step in steps if step not in STEPS]:
    raise DataError(f"{where}: unknown cleaning {', '.join(unknown)}; known: {', '.join(STEPS)}")
  return steps


def clean(text: str, steps: Iterable[str]) -> str:
  """A text after these steps, in order."""
  for step in steps:
    text = STEPS[step](text)
  return text
