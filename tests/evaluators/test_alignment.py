"""Pictures against the captions that they were drawn for: the same prompts and noise each time, scores that numpy can check."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import loader
from mmdiff.data.scenes.render import render
from mmdiff.data.scenes.source import scenes
from mmdiff.data.scenes.tiers import tier_named
from mmdiff.data.scenes.world import sample
from mmdiff.evaluators import base
from mmdiff.evaluators.alignment import alignment
from tests.evaluators import toys


class Scorer:
  """Pictures and texts as angles in a plane: the mean of a picture, the length of a text."""
  report = dict(step=7)

  def embed_image(self, images):
    return self.unit(images.astype(np.float64).mean((1, 2, 3)) / 255)

  def embed_text(self, texts):
    return self.unit(np.array([len(text) / 40 for text in texts]))

  @staticmethod
  def unit(angle):
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def services(**more):
  return toys.services(toys.DRAWS, **more)._replace(load=lambda path: Scorer() if path == "clip" else SimpleNamespace(report={}))


def test_each_picture_is_scored_against_its_own_caption():
  made = alignment(services(), source={}, every_steps=5, scorer="clip", limit=11, guidance=3.0, seed=4, columns=3)
  result = made.run({}, 5)
  for kind, key in (("long", ""), ("original", "original")):
    texts = [base.captions_of(toys.Colors()[i], kind)[0] for i in range(11)]
    pictures = base.to_uint8(base.draw(services(), {}, *toys.dataset().tokenize(texts), np.arange(4, 15), guidance=3.0))
    likeness = 100 * (Scorer().embed_image(pictures) * Scorer().embed_text(texts)).sum(1)
    assert result.scalars[f"clipscore_{kind}"] == pytest.approx(likeness.mean(), rel=1e-6)
    rows = [row for row in result.tables["pictures"] if row["kind"] == kind]
    assert [row["prompt"] for row in rows] == list(range(11))
    np.testing.assert_allclose([row["clip_similarity"] for row in rows], likeness, rtol=1e-5)
    np.testing.assert_array_equal(result.images[key], base.grid(pictures[:16], 3))
  protocol = result.tables["protocol"][0]
  pictures = np.stack([np.asarray(toys.Colors()[i]["image"]) for i in range(11)])
  texts = [toys.Colors()[i]["captions"]["original"] for i in range(11)]
  true = 100 * (Scorer().embed_image(pictures) * Scorer().embed_text(texts)).sum(1).mean()
  assert protocol["true pictures, original"] == pytest.approx(true, rel=1e-6)
  assert protocol["scorer"] == "clip" and protocol["scorer_step"] == 7 and protocol["prompts"] == dict(long=11, original=11)
  assert made.run({}, 10).tables == result.tables and "all_facts" not in result.scalars


def test_on_scenes_the_judge_reads_the_pictures_of_the_first_kind(monkeypatch):
  """A model that draws the truth, but for the first scene, which it draws as the second."""
  source = scenes(tier="T16", split="val_iid", size=12)
  data = loader.dataset(source, toys.dataset().tokenizer, captions={"long": 1.0}, image_size=16, text_len=40)
  truth = np.stack([render(sample(tier_named("T16"), "val_iid", i)) for i in range(12)]).astype(np.float32) / 127.5 - 1
  truth[0] = truth[1]
  drawn = lambda services, params, tokens, mask, seeds, **options: truth[np.asarray(seeds)]
  monkeypatch.setattr("mmdiff.evaluators.alignment.draw", drawn)
  result = alignment(services(data=data), source={}, every_steps=1, limit=12).run({}, 1)
  assert result.scalars["all_facts"] == pytest.approx(11 / 12) and result.scalars["unparseable"] == 0
  assert result.scalars["accuracy/shape"] < 1 and not any(name.startswith("clipscore") for name in result.scalars)
  rows = result.tables["pictures"]
  assert [row["right"] for row in rows if row["kind"] == "long"] == [False] + 11 * [True]
  assert not any("right" in row for row in rows if row["kind"] == "original")
  assert json.loads(json.dumps(rows)) == rows


def test_a_sidecar_gives_the_kind_that_the_source_lacks(tmp_path):
  (tmp_path / "more.jsonl").write_text('{"key": "r1", "rich": "a square"}\n{"key": "r3", "rich": "another"}\n')
  options = dict(source={}, every_steps=1, scorer="clip", limit=6)
  with pytest.raises(DataError, match="none of the first 6 records has a caption of kind rich"):
    alignment(services(), captions=("long", "rich"), **options)
  made = alignment(services(), captions=("rich",), sidecar=str(tmp_path / "more.jsonl"), **options).run({}, 1)
  assert [row["prompt"] for row in made.tables["pictures"]] == [1, 3]


def test_what_cannot_be_scored_is_refused():
  with pytest.raises(ConfigError, match="limit, columns and shown are at least 1"):
    alignment(services(), source={}, every_steps=1, limit=0)
  with pytest.raises(DataError, match="scorer other is no CLIP model"):
    alignment(services(), source={}, every_steps=1, scorer="other")
