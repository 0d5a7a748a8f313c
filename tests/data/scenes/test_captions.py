"""Captions: what they claim is true, complete and can be read back."""
from collections import Counter

import numpy as np
import pytest

from mmdiff.data.scenes.alt_text import FOREIGN, Noise, alt_text
from mmdiff.data.scenes.captions import object_fact
from mmdiff.data.scenes.facts import score
from mmdiff.data.scenes.parse import parse
from mmdiff.data.scenes.source import caption, scenes
from mmdiff.data.scenes.tiers import SPLITS, TIERS
from mmdiff.data.scenes.wording import Digits
from mmdiff.data.scenes.world import sample, to_json, withheld_pair

each_tier = pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)


def told(tier, split="train", count=300):
  return [to_json(sample(tier, split, i)) for i in range(count)]


@each_tier
@pytest.mark.parametrize("kind", ["long", "short"])
@pytest.mark.parametrize("split", SPLITS)
def test_parsing_gives_the_facts_back_and_they_hold(tier, kind, split):
  for scene in told(tier, split, 100):
    for variant in range(2):
      text, facts = caption(scene, tier, kind, variant)
      assert parse(text, tier) == facts, text
      assert facts and all(score(scene, facts)), text


@each_tier
def test_long_captions_say_everything(tier):
  for scene in told(tier):
    _, facts = caption(scene, tier, "long")
    objects = [fact for fact in facts if fact["fact"] == "object"]
    assert sorted(objects, key=lambda fact: fact["cell"]) == [object_fact(obj, tier) for obj in scene["objs"]]
    assert {"fact": "count", "value": len(scene["objs"])} in facts
    assert {"fact": "background", "value": scene["bg"]} in facts


def test_lengths():
  tier = TIERS["T32"]
  words = {kind: [len(caption(scene, tier, kind)[0].split()) for scene in told(tier, count=1_000)] for kind in ("long", "short")}
  assert 15 <= min(words["long"]) and max(words["long"]) <= 60
  assert 2 <= min(words["short"]) and max(words["short"]) <= 10


@each_tier
def test_variants_differ_in_words_and_objects_come_in_any_order(tier):
  scene = next(scene for scene in told(tier) if len(scene["objs"]) >= 2)
  texts = {caption(scene, tier, "long", variant)[0] for variant in range(20)}
  assert len(texts) >= 15
  first = Counter(parse(text, tier)[2]["color"] + str(parse(text, tier)[2]["cell"]) for text in texts)
  assert len(first) == len(scene["objs"])


def test_synonyms_from_t64_on():
  text = " ".join(caption(scene, TIERS["T64"], "long")[0] for scene in told(TIERS["T64"]))
  assert all(f" {word} " in text for word in ("disc", "box", "big", "tiny"))
  assert "disc" not in " ".join(caption(scene, TIERS["T32"], "long")[0] for scene in told(TIERS["T32"]))


@pytest.mark.parametrize("text, facts", [
  ("", []),
  ("a dog on the moon", []),
  ("A RED CIRCLE.", [{"fact": "object", "shape": "circle", "color": "red"}]),
  ("stock blue clipart", [{"fact": "object", "color": "blue"}]),
  ("one red circle", [{"fact": "number", "value": 1, "shape": "circle", "color": "red"}]),
  ("three green boxes", [{"fact": "number", "value": 3, "shape": "square", "color": "green"}]),
  ("a big dotted pink arrow pointing down-left in the center", [
    {"fact": "object", "shape": "arrow", "color": "pink", "tex": "dotted", "size": "large", "rot": "down-left", "cell": [1, 1]}]),
  ("a ring at the middle left and a cross", [{"fact": "object", "shape": "ring", "cell": [1, 0]}, {"fact": "object", "shape": "cross"}]),
])
def test_parsing_other_words(text, facts):
  assert parse(text, TIERS["T64"]) == facts


DEFAULTS = Noise()


class TestAltText:
  def rate(self, test, noise=DEFAULTS, tier=TIERS["T32"], count=4_000):
    texts = [alt_text(scene, tier, Digits(scene["id"], "original", 0), noise) for scene in told(tier, count=count)]
    return np.mean([bool(test(*found)) for found in texts])

  def near(self, rate, p, count=4_000):
    return abs(rate - p) < 4 * np.sqrt(p * (1 - p) / count)

  def test_shares_of_the_defaults(self):
    assert self.near(self.rate(lambda text, _: text == ""), 0.08)
    content = 0.92 * 0.68 * 0.94 * (1 - 0.4 * 0.3)
    assert abs(self.rate(lambda _, facts: facts) - content) < 0.03

  @pytest.mark.parametrize("field, test", [
    ("empty", lambda text, facts: text == "" and not facts),
    ("no_content", lambda text, facts: not facts),
    ("file_name", lambda text, facts: not facts and any(c.isdigit() for c in text)),
    ("caps", lambda text, facts: text == text.upper()),
    ("emoji", lambda text, facts: not text.isascii()),
    ("entities", lambda text, facts: "&" in text or "%20" in text),
    ("foreign", lambda text, facts: any(word.lower() in text.lower() for f in facts for v in list(f.values())[1:] for word in FOREIGN[v])),
    ("repeat", lambda text, facts: max(Counter(text.split()).values()) > 1),
    ("cut", lambda text, facts: len(text) <= 30),
  ])
  def test_each_probability_does_its_thing(self, field, test):
    calm = Noise(*[0.0] * 15)._replace(keep_color=1.0, keep_shape=1.0)
    assert self.rate(test, calm._replace(**{field: 1.0}), count=200) == 1.0
    assert self.rate(test, calm, count=200) < 0.6

  def test_without_noise_it_names_an_object_truly(self):
    calm = Noise(*[0.0] * 15)._replace(keep_color=1.0, keep_shape=1.0)
    for scene in told(TIERS["T32"]):
      text, facts = alt_text(scene, TIERS["T32"], Digits(scene["id"]), calm)
      assert all(score(scene, facts)) and facts == [{"fact": "object", "color": facts[0]["color"], "shape": facts[0]["shape"]}]
      assert parse(text, TIERS["T32"]) == facts

  def test_wrong_words_are_wrong_but_never_a_withheld_pair(self):
    tier = TIERS["T16"]
    wrong = Noise(*[0.0] * 15)._replace(keep_color=1.0, keep_shape=1.0, wrong_color=1.0)
    false = 0
    for scene in told(tier, count=500):
      _, (fact,) = alt_text(scene, tier, Digits(scene["id"]), wrong)
      false += not all(score(scene, [fact]))
      assert not withheld_pair(tier, tier.shapes.index(fact["shape"]), tier.colors.index(fact["color"]))
    assert false > 400

  def test_a_typo_changes_a_letter(self):
    calm = Noise(*[0.0] * 15)._replace(keep_color=1.0)
    for scene in told(TIERS["T32"], count=100):
      clean, _ = alt_text(scene, TIERS["T32"], Digits(scene["id"]), calm)
      assert len(clean.split()) >= 2
    assert self.rate(lambda text, facts: facts[0]["color"] not in text.split(), calm._replace(typo=1.0), count=200) == 1.0


def test_the_same_scene_has_the_same_captions_in_any_source():
  a, b = scenes(tier="T32", size=10), scenes(tier="T32", size=20, long_variants=3)
  for i in range(10):
    assert a[i]["captions"]["long"] == b[i]["captions"]["long"][0] and a[i]["captions"]["short"] == b[i]["captions"]["short"]
    assert b[i]["facts"]["long"][0] == a[i]["facts"]["long"] and len(b[i]["captions"]["long"]) == 3
