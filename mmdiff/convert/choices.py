"""What a caller may say of weights, whatever they are: the values of every option of `public.load`. Which of them a format takes is the
format's to say."""
import re
from collections.abc import Mapping
from typing import Any

from mmdiff.core.errors import OptionError
from mmdiff.core.ranges import DEEP, SIDE, WIDE
from mmdiff.nn.transformer import ACTIVATIONS

CHOICES = {"act": tuple(ACTIVATIONS)}
WHOLE = {"image_size": (1, SIDE), "patch": (1, SIDE), "text_len": (1, WIDE), "head_width": (1, WIDE), "head_dim": (1, WIDE),
         "heads": (1, WIDE), "skip": (0, DEEP)}
POSITIVE = ("scale",)
TEXTS = ("prefer", "variant", "part", "allow_missing")


def check(given: Mapping[str, Any]) -> None:
  """Raises OptionError for a value, None aside, that an option does not take. Those of other names pass."""
  for name, value in given.items():
    if value is not None and (expected := _expected(name, value)):
      raise OptionError(f"{name}: expected {expected}, found {value!r:.60}")


def _expected(name: str, value: Any) -> str:
  """What an option takes, if a value is something else."""
  if name in CHOICES:
    return "" if value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
  if name in WHOLE:
    low, high = WHOLE[name]
    return "" if type(value) is int and low <= value <= high else f"a whole number from {low} to {high:,}"
  if name in POSITIVE:
    return "" if type(value) in (int, float) and 0 < value < float("inf") else "a positive number"
  if name in TEXTS and not isinstance(value, str):
    return "a text"
  if name == "allow_missing":
    try:
      re.compile(value)
    except re.error as error:
      return f"a regular expression ({error})"
  return ""


def divided(width: int, by: int, name: str, of: str) -> int:
  """How many heads of a width that the caller gave. Raises OptionError where there is a rest."""
  if width % by:
    raise OptionError(f"{name}: {of} is {width} wide, which is no number of heads of {by}")
  return width // by
