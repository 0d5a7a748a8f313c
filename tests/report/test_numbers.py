"""Few digits, and the right unit."""
import math

import pytest

from mmdiff.report import numbers


@pytest.mark.parametrize("value,shown", [(0, "0"), (3, "3"), (0.5, "0.5"), (1234, "1234"), (12_345, "12.3k"), (1_234_567, "1.23M"),
                                         (0.000012, "1.2e-05"), (math.nan, "nan"), ("x", "x"), (-20_000.0, "-20k"), (True, "True"),
                                         (0.123456, "0.123"), (27.3456, "27.3")])
def test_numbers_are_short(value, shown):
  assert numbers.number(value) == shown


@pytest.mark.parametrize("name,value,shown", [
  ("image_to_text/recall_at_1", 0.535, "53.5 %"), ("images", 5_000.0, "5,000"), ("recall_at_1", 1.5, "1.5"), ("loss", 0.93124, "0.931"),
  ("count", 1_234_567, "1,234,567"), ("accuracy_held_out/color", 0.0, "0.0 %"), ("share", 0.000031, "0.0031 %"), ("x", 12_345.67, "12,346"),
  ("loss", math.inf, "inf"), ("name", "text", "text")])
def test_values_of_tables(name, value, shown):
  assert numbers.written(name, value) == shown


def test_names_in_words_and_nested_keys():
  assert numbers.said("image_to_text/recall_at_1") == "image to text · recall at 1"
  assert numbers.flat({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}
