"""Wrong captions are wrong, and exchanges leave the bag of words as it was."""
from collections import Counter

import pytest

from mmdiff.data.scenes.facts import score
from mmdiff.data.scenes.parse import parse
from mmdiff.data.scenes.swaps import EXCHANGES, KINDS, pairs
from mmdiff.data.scenes.tiers import TIERS
from mmdiff.data.scenes.world import sample, to_json


@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_the_right_caption_holds_the_wrong_one_does_not(tier):
  kinds = Counter()
  for i in range(200):
    scene = to_json(sample(tier, "val_iid", i))
    for pair in pairs(scene, tier):
      kinds[pair.kind] += 1
      right, wrong = parse(pair.right, tier), parse(pair.wrong, tier)
      assert right and all(score(scene, right)), pair
      assert wrong and not all(score(scene, wrong)), pair
      if pair.kind in EXCHANGES:
        bag = lambda text: Counter(text.replace(".", "").split())
        assert bag(pair.right) == bag(pair.wrong), pair
      else:
        assert len(set(pair.right.split()) ^ set(pair.wrong.split())) <= 6, pair
  assert set(kinds) == set(KINDS) - ({"size"} if len(tier.sizes) == 1 else set())
  assert min(kinds.values()) >= 40


def test_pairs_are_a_function_of_the_scene():
  scene = to_json(sample(TIERS["T64"], "val_iid", 3))
  assert pairs(scene, TIERS["T64"]) == pairs(scene, TIERS["T64"])
