"""Building by name: nested blocks first, unknown names list the known."""
import pytest

from mmdiff.core.build import Built, OneOf, build, lookup, resolve

PARTS = {"wheel": "tests.core.test_build:wheel"}
WHOLES = {"cart": "tests.core.test_build:cart"}


def wheel(*, radius: float = 1.0):
  return ("wheel", radius)


def cart(given, *, front: Built["tests.core.test_build:PARTS"], load: int = 0, spare: Built["tests.core.test_build:PARTS"] | None = None):
  return (given, front, load) + ((spare,) if spare else ())


def test_nested_blocks_are_built_first():
  assert build(WHOLES, dict(name="cart", front=dict(name="wheel", radius=2.0)), "mine") == ("mine", ("wheel", 2.0), 0)
  with_spare = build(WHOLES, dict(name="cart", front=dict(name="wheel"), spare=dict(name="wheel", radius=3.0)), "mine")
  assert with_spare == ("mine", ("wheel", 1.0), 0, ("wheel", 3.0))


def test_unknown_names_list_the_known_and_guess():
  with pytest.raises(KeyError, match="unknown part 'weel', did you mean 'wheel'.*known: wheel"):
    lookup(PARTS, "weel", what="part")


def test_python_rejects_unknown_keys():
  with pytest.raises(TypeError, match="raduis"):
    build(PARTS, dict(name="wheel", raduis=1.0))


def test_markers_carry_their_table():
  assert Built["a:B"].spec == "a:B" and OneOf["c:D"].spec == "c:D" and resolve("math:pi") > 3
