"""Names that are nearly right are recognised."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.spelling import edits, nearest, nearest_path

WORD = st.text("abc", max_size=5)
PATHS = ["seed", "steps", "batch_size", "optim.default.lr", "optim.default.b1", "data.image_size", "data.captions.long", "checkpoint.keep",
         "optim", "optim.default", "data"]
MISSPELT = {
  "optm.default.lr": "optim.default.lr", "optim.defualt.lr": "optim.default.lr", "optim.default.lrr": "optim.default.lr",
  "lr": "optim.default.lr", "optim.lr": "optim.default.lr", "optm.defalt.l": "optim.default.lr", "data.seed": "seed",
  "image_sise": "data.image_size", "optm": "optim", "nothing.like.it": None,
}


@given(WORD, WORD)
@settings(max_examples=200, deadline=None)
def test_edits_is_a_distance(a, b):
  assert edits(a, b) == edits(b, a)
  assert (edits(a, b) == 0) == (a == b)
  assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))


def test_edits_counts_a_swap_once():
  assert edits("form", "from") == 1
  assert edits("lr", "") == 2


def test_nearest():
  assert nearest("stpes", ["seed", "steps"]) == "steps"
  assert nearest("ViT-B/23", ["ViT-L/14", "ViT-B/32"]) == "ViT-B/32"
  assert nearest("zzzzzz", ["seed", "steps"]) is None
  assert nearest("a", []) is None


@pytest.mark.parametrize("typed,meant", MISSPELT.items())
def test_nearest_path_mends_any_part(typed, meant):
  assert nearest_path(typed, PATHS) == meant
