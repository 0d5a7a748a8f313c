"""Cleaning by named steps gives what its makers' code gives."""
import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import captions, cleaning

TEXT = "A photo_of a  CAT.\n\t“Naïve” &amp; ÜBER-cool ▁x"


@pytest.mark.parametrize("steps, expected", [
  (cleaning.OPENAI, 'a photo_of a cat. "naïve" & über-cool ▁x'), (cleaning.OPEN_CLIP["lower"], 'a photo_of a cat. "naïve" & über-cool ▁x'),
  (cleaning.OPEN_CLIP["whitespace"], 'A photo_of a CAT. "Naïve" & ÜBER-cool ▁x'),
  (cleaning.OPEN_CLIP["canonicalize"], "a photo of a cat naïve übercool ▁x"),
  (cleaning.SIGLIP, "a photoof a cat “naïve” amp übercool x"),
  (cleaning.BIG_VISION, "a photo_of a  cat.\n\t“naïve” &amp; Über-cool ▁x"), ((), TEXT)])
def test_steps(steps, expected):
  assert cleaning.clean(TEXT, steps) == expected and cleaning.clean("", steps) == ""


def test_clips_cleaning_is_one_of_them():
  assert captions.clean(TEXT) == cleaning.clean(TEXT, cleaning.OPENAI)


def test_unknown_steps_are_named():
  assert cleaning.checked(["lower", "fix"], "x") == ("lower", "fix")
  with pytest.raises(DataError, match="run/tokenizer.json: unknown cleaning shout; known: fix, underscores"):
    cleaning.checked(["lower", "shout"], "run/tokenizer.json")
