"""Scoring: what is asked counts, and nothing else."""
import copy

import pytest

from mmdiff.data.scenes.facts import attributes, score
from mmdiff.data.scenes.source import caption
from mmdiff.data.scenes.tiers import TIERS
from mmdiff.data.scenes.world import sample, to_json

RED = {"shape": "circle", "color": "red", "tex": "solid", "size": "large", "cell": [0, 0]}
BLUE = {"shape": "square", "color": "blue", "tex": "striped", "size": "small", "cell": [1, 1]}
SCENE = {"bg": "black", "objs": [RED, BLUE]}


def asked(**fact):
  return [{"fact": "object"} | fact]


@pytest.mark.parametrize("facts, right", [
  ([], []),
  (asked(shape="circle"), [True]),
  (asked(shape="circle", color="blue"), [False]),
  (asked(color="red", cell=[0, 0]), [True]),
  (asked(color="red", cell=[1, 1]), [False]),
  (asked(color="red") + asked(color="red"), [True, False]),              # one object can't be two
  (asked(color="red") + asked(shape="circle"), [True, False]),
  (asked(shape="square") + asked(), [True, True]),
  (asked() + asked(color="red"), [True, True]),                          # the loose one takes what the other leaves
  ([{"fact": "count", "value": 2}], [True]),
  ([{"fact": "count", "value": 3}], [False]),
  ([{"fact": "background", "value": "white"}], [False]),
  ([{"fact": "number", "value": 1, "color": "red"}], [True]),
  ([{"fact": "number", "value": 2, "shape": "circle"}], [False]),
  ([{"fact": "relation", "subject": {"color": "red"}, "relation": "left of", "object": {"color": "blue"}}], [True]),
  ([{"fact": "relation", "subject": {"color": "red"}, "relation": "below", "object": {"color": "blue"}}], [False]),
])
def test_score(facts, right):
  found = score(SCENE, facts)
  assert len(found) == len(right) and sum(found) == sum(right)


def test_an_empty_picture_has_no_objects():
  empty = {"bg": "black", "objs": []}
  assert score(empty, asked(color="red") + asked(color="blue") + [{"fact": "count", "value": 0}]) == [False, False, True]
  assert attributes(empty, asked(color="red", cell=[0, 0])) == {"position": [False], "color": [False]}


def test_unknown_facts_are_refused():
  with pytest.raises(ValueError, match="smell"):
    score(SCENE, [{"fact": "smell"}])


@pytest.mark.parametrize("name, value, broken", [("color", "green", "color"), ("shape", "cross", "shape"), ("tex", "striped", "tex")])
def test_one_wrong_attribute_breaks_that_attribute_only(name, value, broken):
  tier = TIERS["T32"]
  scene = next(s for s in (to_json(sample(tier, "train", i)) for i in range(99)) if s["objs"][0][name] != value and len(s["objs"]) == 2)
  _, facts = caption(scene, tier, "long")
  facts = [fact for fact in facts if fact["fact"] != "relation"]
  wrong = copy.deepcopy(scene)
  wrong["objs"][0][name] = value
  assert sum(score(wrong, facts)) == len(facts) - 1
  by_name = attributes(wrong, facts)
  assert {key for key, right in by_name.items() if not all(right)} == {broken}


def test_loose_objects_are_compared_with_the_likest():
  assert attributes(SCENE, asked(shape="square", color="blue", tex="solid")) == {"shape": [True], "color": [True], "tex": [False]}
