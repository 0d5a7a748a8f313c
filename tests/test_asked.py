import numpy as np
import pytest
from PIL import Image

from mmdiff import asked
from mmdiff.core.errors import ConfigError, DataError


def test_one_or_many():
  one = np.zeros((4, 5, 3), np.uint8)
  assert len(asked.several(one)) == len(asked.several(Image.fromarray(one))) == 1 and len(asked.several([one, one])) == 2
  assert [picture.shape for picture in asked.pictures([one, Image.new("L", (6, 7))])] == [(4, 5, 3), (7, 6, 3)]
  assert asked.texts("a cat") == ["a cat"] and asked.texts(("a", "b")) == ["a", "b"]
  with pytest.raises(DataError, match="image 1: expected uint8"):
    asked.pictures([one, "a.png"])


def test_seeds_are_consecutive_or_given_one_each():
  assert asked.seeds(7, 3, "prompts") == [7, 8, 9] and asked.seeds([5, 1], 2, "prompts") == [5, 1]
  with pytest.raises(ConfigError, match="one for each of the 3 prompts, found 2"):
    asked.seeds([5, 1], 3, "prompts")
  with pytest.raises(ConfigError, match=r"from 0 to 2\*\*32 - 1, found -1"):
    asked.seeds(-1, 2, "prompts")
