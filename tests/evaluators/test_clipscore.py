import numpy as np
import pytest

from mmdiff.core.errors import DataError
from mmdiff.evaluators import clipscore
from tests.evaluators import toys


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_both_conventions_by_hand():
  image = unit(np.asarray([[1.0, 0], [1, 0]]))
  prefixed, bare = unit(np.asarray([[-1.0, 0], [1, 1]])), unit(np.asarray([[0.0, 1], [3, 4]]))
  rows, scalars = clipscore.score(image, prefixed, bare, list(map(str, range(len(bare)))))
  assert rows[0] == dict(clipscore=0.0, clip_similarity=0.0)
  assert rows[1] == dict(clipscore=pytest.approx(2.5 * 0.5 ** 0.5), clip_similarity=pytest.approx(60))
  assert scalars["clip_similarity"] == pytest.approx(30) and scalars["clipscore"] == pytest.approx(1.25 * 0.5 ** 0.5)


def test_r_precision_is_one_for_matching_pairs_and_zero_for_one_point():
  points = unit(np.random.default_rng(0).normal(size=(30, 8)))
  assert clipscore.r_precision(points, points, candidates=30) == 1.0
  assert clipscore.r_precision(points[:1].repeat(30, 0), points[:1].repeat(30, 0), candidates=5) == 0.0
  chance = clipscore.r_precision(points.repeat(20, 0), unit(np.random.default_rng(1).normal(size=(600, 8))), candidates=4)
  assert 0.15 < chance < 0.35
  with pytest.raises(DataError, match="100 captions to choose from, but the set has 30"):
    clipscore.r_precision(points, points, candidates=100)


def test_evaluator_scores_pairs_and_states_its_protocol():
  services, params = toys.services(toys.CLIP), toys.PARAMS
  found = clipscore.clipscore(services, source={}, every_steps=1, params="eval", limit=9, caption="long", candidates=3).run(params, 40)
  data = toys.dataset()
  texts = [toys.Colors()[i]["captions"]["long"][0] for i in range(9)]
  image = np.asarray(toys.embed_image(params, np.stack([toys.Colors()[i]["image"] for i in range(9)])))
  bare = np.asarray(toys.embed_text(params, *data.tokenize(texts)))
  prefixed = np.asarray(toys.embed_text(params, *data.tokenize(["A photo depicts " + text for text in texts])))
  assert found.scalars["clip_similarity"] == pytest.approx(100 * np.mean(np.sum(image * bare, 1)), abs=1e-4)
  assert found.scalars["clipscore"] == pytest.approx(2.5 * np.mean(np.maximum(np.sum(image * prefixed, 1), 0)), abs=1e-6)
  assert found.scalars["records"] == 9 and 0 <= found.scalars["r_precision"] <= 1
  assert [row["key"] for row in found.tables["pictures"]] == [f"r{i}" for i in range(9)]
  assert found.tables["protocol"] == [dict(scorer="toys", step=40, params="eval", prefix="A photo depicts ", weight=2.5, candidates=3,
                                           image_size=4, resize="crop", interpolation="bicubic")]
