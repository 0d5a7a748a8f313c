"""The benchmark's prompts: half held out, scored on what they say, never on a training scene."""
from collections import Counter

import pytest

from mmdiff.data.scenes.benchmark import CATEGORIES, prompts
from mmdiff.data.scenes.parse import parse
from mmdiff.data.scenes.tiers import TIERS
from mmdiff.data.scenes.world import withheld_pair


@pytest.mark.parametrize("style", ["short", "long"])
@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_prompts(tier, style):
  asked = prompts(tier, per_category=20, style=style)
  counts = Counter((prompt.category, prompt.split) for prompt in asked)
  categories = [name for name in CATEGORIES if name != "size_binding" or len(tier.sizes) > 1]
  assert counts == {(name, split): 10 for name in categories for split in ("val_iid", "val_comp")}
  for prompt in asked:
    assert parse(prompt.text, tier) == prompt.facts and prompt.facts, prompt.text
    named = [fact for fact in prompt.facts if "shape" in fact and "color" in fact]
    held = [withheld_pair(tier, tier.shapes.index(fact["shape"]), tier.colors.index(fact["color"])) for fact in named]
    assert any(held) == (prompt.split == "val_comp"), prompt.text
  assert asked == prompts(tier, per_category=20, style=style)


def test_short_prompts_say_what_their_category_is_about():
  asked = prompts(TIERS["T64"], per_category=10, style="short")
  facts = {category: [prompt for prompt in asked if prompt.category == category] for category in CATEGORIES}
  objects = lambda prompt: [fact for fact in prompt.facts if fact["fact"] == "object"]
  assert all(len({o["color"] for o in objects(p)}) == len({o["shape"] for o in objects(p)}) == 2 for p in facts["color_binding"])
  assert all(len({o["tex"] for o in objects(p)}) == 2 for p in facts["texture_binding"])
  assert all(len({o["size"] for o in objects(p)}) == 2 for p in facts["size_binding"])
  assert all(all("cell" in o for o in objects(p)) for p in facts["shape_binding"])
  assert all(p.facts[-1]["fact"] == "relation" for p in facts["spatial"] + facts["complex"])
  assert all({"tex", "size"} <= set(o) for p in facts["complex"] for o in objects(p))
  assert all(p.facts[0]["fact"] == "number" for p in facts["counting"])
  assert all(p.facts[0]["fact"] == "background" for p in facts["background"])
