"""Scenes by index: random access, the same bits everywhere, and nothing withheld ever in training."""
import hashlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.data.scenes.judge import judge
from mmdiff.data.scenes.parse import parse
from mmdiff.data.scenes.render import render
from mmdiff.data.scenes.source import scenes
from mmdiff.data.scenes.tiers import SPLITS, TIERS
from mmdiff.data.scenes.world import RULES, broken, from_json, sample, split_of, to_json, withheld_count, withheld_order, withheld_pair

each_tier = pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
# SHA-256 of the pixels of the first 1,000 training pictures, and of the JSON of their scenes, captions and facts.
GOLDEN = {
  "T16": ("8f15b5d56ce8a2a16763bcce6631579d19ac106f8f70bc3fba1065edde6dc926",
          "fd6eb68c3eb9266be9d4351393e803b037333ee608f1dbfb49c6459fe7bc175f"),
  "T32": ("5a2617b4a08d69e220f6ecf6cb46dabcedfbe26015e573bfbf93cd027da12c80",
          "04e2a55e207093931525974db970cebbd191ae41a6af4d44e69ade5277e04f3f"),
  "T64": ("0dd63d341a66661a6e971b28403f430d79d18e6f8100fcbbebbd838758460328",
          "7d070f36c6e6a5eb9c08e4b1462a9120dc356009a5290af352e3f6c4f7277040"),
}


@each_tier
def test_golden_digests(tier):
  source = scenes(tier=tier.name)
  pixels, words = hashlib.sha256(), hashlib.sha256()
  for i in range(1_000):
    record = source[i]
    pixels.update(record.pop("image").tobytes())
    words.update(json.dumps(record, sort_keys=True, ensure_ascii=True).encode())
  assert (pixels.hexdigest(), words.hexdigest()) == GOLDEN[tier.name]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(TIERS)), st.sampled_from(SPLITS), st.integers(0, 2**40))
def test_a_scene_is_a_pure_function_of_its_index_and_belongs_to_its_split(name, split, index):
  tier = TIERS[name]
  scene = sample(tier, split, index)
  sample(tier, split, index + 1)
  assert sample(tier, split, index) == scene
  assert split_of(scene) == split
  assert from_json(to_json(scene), tier) == scene
  assert len({thing.cell for thing in scene.things}) == len(scene.things)


@each_tier
def test_order_of_access_does_not_matter(tier):
  source = scenes(tier=tier.name)
  forward = [source[i]["scene"]["id"] for i in range(100)]
  shuffled = np.random.default_rng(0).permutation(100)
  assert {int(i): source[int(i)]["scene"]["id"] for i in shuffled} == dict(enumerate(forward))


@each_tier
def test_no_scene_is_in_two_splits(tier):
  told = {split: {sample(tier, split, i) for i in range(500)} for split in SPLITS}
  strip = lambda found: {(scene.bg, tuple(thing[:6] for thing in scene.things)) for scene in found}
  for a, b in itertools.combinations(SPLITS, 2):
    assert not strip(told[a]) & strip(told[b]), (a, b)


@each_tier
def test_neighbouring_streams_are_independent(tier):
  """A stream that overlapped its neighbour's would repeat its objects."""
  told = [sample(tier, "train", i) for i in range(2_000)]
  repeats = sum(bool(set(a.things) & set(b.things)) for a, b in itertools.pairwise(told))
  expected = sum(bool(set(a.things) & set(b.things)) for a, b in zip(told, told[1_000:] + told[:1_000]))
  assert abs(repeats - expected) <= 5 * np.sqrt(expected + 4)


@each_tier
def test_training_covers_everything_that_is_not_withheld(tier):
  told = [sample(tier, "train", i) for i in range(4_000)]
  number = Counter(len(scene.things) for scene in told)
  assert sorted(number) == list(range(tier.objects[0], tier.objects[1] + 1))
  assert max(number.values()) - min(number.values()) < 0.1 * len(told)
  things = [thing for scene in told for thing in scene.things]
  pairs = {(thing.shape, thing.color) for thing in things}
  allowed = {(s, c) for s in range(len(tier.shapes)) for c in range(len(tier.colors)) if not withheld_pair(tier, s, c)}
  assert pairs == allowed
  assert len(allowed) == len(tier.shapes) * len(tier.colors) - len(tier.shapes)
  for field, size in (("tex", tier.textures), ("size", tier.sizes), ("dx", range(2 * tier.jitter + 1)), ("cell", tier.positions)):
    counts = Counter(getattr(thing, field) for thing in things)
    assert len(counts) == len(size)
    assert max(counts.values()) < 1.25 * min(counts.values()), field
  assert {scene.bg for scene in told} == set(range(len(tier.backgrounds)))


def test_what_is_withheld():
  t16, t32, t64 = TIERS.values()
  assert sum(withheld_pair(t16, s, c) for s in range(4) for c in range(6)) == 4
  assert sum(withheld_pair(t32, s, c) for s in range(6) for c in range(8)) == 6
  for tier in (t16, t32, t64):
    colors = range(len(tier.colors))
    for vertical in (False, True):
      held = {(a, b) for a in colors for b in colors if withheld_order(tier, a, b, vertical)}
      assert len(held) == len(colors)
      assert not held & {(b, a) for a, b in held}            # training shows the reverse of every withheld order
  assert [s for s in range(10) if withheld_count(t64, s, 4)] == [2, 5, 8]
  assert all(withheld_count(t64, s, 5) for s in range(10)) and not any(withheld_count(t64, s, 3) for s in range(10))
  assert [s for s in range(6) if withheld_count(t32, s, 3)] == [2, 5]


@pytest.mark.parametrize("name, count", [("T16", 10_000), ("T32", 4_000), ("T64", 2_000)])
def test_no_training_caption_says_what_is_withheld(name, count):
  tier = TIERS[name]
  source = scenes(tier=name, size=count)
  for i in range(count):
    record = source[i]
    for kind, text in record["captions"].items():
      claimed = record["facts"][kind] + parse(text, tier)
      for fact in claimed:
        for obj in (fact, fact.get("subject", {}), fact.get("object", {})):
          if "shape" in obj and "color" in obj:
            assert not withheld_pair(tier, tier.shapes.index(obj["shape"]), tier.colors.index(obj["color"])), text
        if fact["fact"] == "count":
          assert fact["value"] <= tier.objects[1], text
        if fact["fact"] == "number":
          assert not withheld_count(tier, tier.shapes.index(fact["shape"]), fact["value"]), text
        if fact["fact"] == "relation":
          first, second = (tier.colors.index(fact[who]["color"]) for who in ("subject", "object"))
          how = fact["relation"]
          first, second = (first, second) if how in ("left of", "above") else (second, first)
          assert not withheld_order(tier, first, second, how in ("above", "below")), text


@pytest.mark.parametrize("name, count", [("T16", 2_000), ("T32", 500), ("T64", 48)])
def test_no_training_picture_shows_what_is_withheld(name, count):
  tier = TIERS[name]
  pictures = np.stack([render(sample(tier, "train", i)) for i in range(count)])
  for reading in judge(pictures, name):
    assert broken(tier, from_json(reading.scene, tier).things) == 0


@each_tier
@pytest.mark.parametrize("split, rule", list(zip(SPLITS[2:], RULES)))
def test_a_held_out_split_breaks_its_rule_only(tier, split, rule):
  for i in range(50):
    assert broken(tier, sample(tier, split, i).things) == 1 << RULES.index(rule)


def test_the_id_is_the_digest_of_the_rest():
  told = to_json(sample(TIERS["T64"], "train", 5))
  identity = told.pop("id")
  assert hashlib.sha1(json.dumps(told, separators=(",", ":")).encode()).hexdigest() == identity
  assert list(told) == ["v", "bg", "objs"]
  assert list(told["objs"][0])[:8] == ["shape", "color", "tex", "size", "cell", "dx", "dy", "z"]
