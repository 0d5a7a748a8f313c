"""The evaluators on models whose score is known: one that paints what it reads, one that mixes up colours, one that counts words."""
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.data.scenes.captions import relation, relation_fact
from mmdiff.data.scenes.judge import judge
from mmdiff.data.scenes.parse import parse
from mmdiff.data.scenes.render import render
from mmdiff.data.scenes.source import caption, scenes
from mmdiff.data.scenes.swaps import EXCHANGES, KINDS
from mmdiff.data.scenes.tiers import TIERS
from mmdiff.data.scenes.world import from_json
from mmdiff.evaluators import EVALUATORS
from mmdiff.evaluators.statistics import compare
from tests.evaluators import toys

LENGTH, DIM = 600, 512


class Bytes:
  """A dataset of scenes whose tokens are the bytes of the text, so that a toy model can read it."""

  def __init__(self, tier):
    self.source = scenes(tier=tier, split="val_iid")

  def tokenize(self, texts):
    tokens = np.zeros((len(texts), LENGTH), np.int32)
    for row, text in zip(tokens, texts):
      row[:len(text)] = list(text.encode())
    return tokens, tokens > 0

  def eval_batches(self, *, batch_size, limit, caption_kind):
    for start in range(0, limit, batch_size):
      records = [self.source[i] for i in range(start, min(start + batch_size, limit))]
      valid = np.arange(batch_size) < len(records)
      images = [record["image"] for record in records] + [np.zeros_like(records[0]["image"])] * (batch_size - len(records))
      yield {"image": np.stack(images), "valid": valid, "records": records}


def read(tokens):
  return [bytes(row[row > 0].astype(np.uint8)).decode() for row in np.asarray(tokens)]


def painter(tier, change=lambda scene: scene, noise=0):
  """A `sample` that paints the long caption it reads, after `change`."""
  def paint(tokens):
    pictures = []
    for text in read(tokens):
      facts = parse(text, tier)
      objs = [{"size": tier.sizes[0]} | fact | {"z": 0} for fact in facts if fact["fact"] == "object"]
      scene = change({"bg": facts[1]["value"], "objs": sorted(objs, key=lambda obj: obj["cell"])})
      picture = render(from_json(scene, tier))
      pictures.append(picture + np.random.default_rng(0).normal(0, noise, picture.shape) if noise else picture)
    return (np.stack(pictures) / 127.5 - 1).astype(np.float32)

  def sample(params, tokens, mask, seeds, plan, *, extra=()):
    return jax.pure_callback(paint, jax.ShapeDtypeStruct((len(tokens), tier.px, tier.px, 3), jnp.float32), tokens)
  return dict(sample=sample, plan=toys.plan)


def evaluate(name, predict, tier, **options):
  services = toys.services(predict, data=Bytes(tier), batch_size=32)
  return build(EVALUATORS, dict(name=name, tier=tier, every_steps=1, **options), services).run({}, 0)


def judged(tier, *args, **options):
  return evaluate("scenes_judge", painter(TIERS[tier], *args), tier, **options)


@pytest.mark.parametrize("tier", ["T16", "T32"])
def test_a_model_that_paints_what_it_reads_is_right_throughout(tier):
  found = judged(tier, prompts=24, splits=("val_iid", "val_comp", "val_len"), benchmark=True, per_category=2, noises=2)
  scalars = found.scalars
  assert scalars["all_facts"] == scalars["all_facts_held_out"] == scalars["all_facts_val_len"] == scalars["benchmark/mean"] == 1.0
  assert scalars["unparseable"] == scalars["unparseable_held_out"] == 0.0
  assert {"color", "shape", "tex", "position", "background", "count", "relation"} <= {
    key.removeprefix("accuracy/") for key, value in scalars.items() if key.startswith("accuracy/") and value == 1.0}
  categories = 8 if tier == "T32" else 7
  assert len(found.tables["prompts"]) == 3 * 24 + categories * 4 and len(found.tables["groups"]) == 3 + categories
  assert found.images[""].ndim == 3
  json.dumps(found.tables)


def test_exchanged_colors_are_charged_to_color_alone():
  def exchange(scene):
    a, b = scene["objs"]
    a["color"], b["color"] = b["color"], a["color"]
    return scene
  scalars = judged("T16", exchange, prompts=60).scalars
  same = np.mean([len({obj["color"] for obj in scenes(tier="T16", split="val_iid")[i]["scene"]["objs"]}) == 1 for i in range(60)])
  assert scalars["all_facts"] == pytest.approx(same) and same < 0.4
  assert scalars["all_facts_low"] <= same <= scalars["all_facts_high"]
  assert scalars["accuracy/color"] == pytest.approx(same)
  assert scalars["accuracy/shape"] == scalars["accuracy/tex"] == scalars["accuracy/position"] == scalars["accuracy/count"] == 1.0


def test_unreadable_pictures_are_wrong_and_counted():
  scalars = judged("T16", lambda scene: scene, 90, prompts=8).scalars
  assert scalars["unparseable"] == 1.0 and scalars["all_facts"] == scalars["accuracy/background"] == 0.0


def test_results_of_two_models_are_compared_in_pairs(tmp_path):
  def blank(scene):
    return scene | {"objs": []}
  for name, change in (("a", lambda scene: scene), ("b", blank)):
    found = judged("T16", change, prompts=12, splits=("val_iid",), benchmark=True, per_category=2, noises=1)
    (tmp_path / name).write_text(json.dumps(found._asdict() | {"images": {}}))
  found = compare(tmp_path / "a", tmp_path / "b")
  assert found["val_iid"] == (12, 12, 0, pytest.approx(2 / 2 ** 12))
  assert found["all"].first_better == found["all"].prompts == 12 + 7 * 2


def test_wrong_settings_are_refused():
  with pytest.raises(ConfigError, match="val_idd"):
    judged("T16", splits=("val_idd",))
  with pytest.raises(ConfigError, match="at least 1"):
    judged("T16", prompts=0)
  with pytest.raises(ConfigError, match="image_size"):
    evaluate("scenes_judge", painter(TIERS["T32"]), "T16", prompts=1)
  with pytest.raises(ConfigError, match="embed_text"):
    evaluate("hard_negatives", painter(TIERS["T16"]), "T16")


def hashed(lists):
  """Unit vectors of bags of strings, each string its own dimension (nearly always)."""
  out = np.zeros((len(lists), DIM), np.float32)
  for row, words in zip(out, lists):
    for word in words:
      row[zlib.crc32(word.encode()) % DIM] += 1
  return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def towers(of_images, of_texts):
  """Predict functions that embed pictures and texts by numpy functions to lists of strings."""
  made = lambda x: jax.ShapeDtypeStruct((len(x), DIM), jnp.float32)
  call = lambda function, x: jax.pure_callback(lambda x: hashed(function(np.asarray(x))), made(x), x)
  return dict(embed_image=lambda params, image, *, extra=(): call(of_images, image),
              embed_text=lambda params, tokens, mask, *, extra=(): call(of_texts, tokens))


def say(fact):
  return json.dumps(fact, sort_keys=True)


@pytest.mark.parametrize("tier", ["T16", "T32"])
def test_a_model_that_knows_the_facts_is_never_taken_in(tier):
  world = TIERS[tier]

  def seen(images):
    found = []
    for reading in judge(images, tier):
      scene = reading.scene | {"id": "seen"}
      facts = [fact for fact in caption(scene, world, "long")[1] if fact["fact"] != "relation"]
      facts += [relation_fact(a, b, relation(a, b)) for a in scene["objs"] for b in scene["objs"] if a is not b and relation(a, b)]
      found.append(list(map(say, facts)))
    return found
  scalars = evaluate("hard_negatives", towers(seen, lambda tokens: [map(say, parse(text, world)) for text in read(tokens)]), tier,
                     limit=70).scalars
  kinds = set(KINDS) - ({"size"} if tier == "T16" else set())
  assert scalars == {f"accuracy/{kind}": pytest.approx(1.0, abs=0.02) for kind in kinds}


def test_a_bag_of_words_is_right_half_of_the_time():
  words = lambda tokens: [text.replace(".", "").split() for text in read(tokens)]
  found = evaluate("hard_negatives", towers(lambda images: [["red", "left"]] * len(images), words), "T32", limit=70)
  assert all(found.scalars[f"accuracy/{kind}"] == 0.5 for kind in EXCHANGES)
  assert {row["kind"] for row in found.tables["kinds"]} == set(KINDS)
