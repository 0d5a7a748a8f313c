import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff import parallel
from mmdiff.evaluators import retrieval
from tests.evaluators import toys


def slow_rank(score, right):
  """Position of the best right key when wrong ones of the same score stand before it."""
  best = max(s for s, r in zip(score, right) if r)
  return 1 + sum(s >= best for s, r in zip(score, right) if not r)


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_ranks_are_those_of_a_sorted_list_whatever_the_chunk(seed, images, per_image):
  rng = np.random.default_rng(seed)
  image = rng.integers(-2, 3, (images, 3)).astype(np.float32)            # whole numbers: ties happen
  owner = rng.permutation(np.repeat(np.arange(images), per_image))
  text = rng.integers(-2, 3, (len(owner), 3)).astype(np.float32)
  found = retrieval.ranks(image, text, np.arange(images), owner, rows=2)
  assert found.tolist() == [slow_rank(image[i] @ text.T, owner == i) for i in range(images)]
  back = retrieval.ranks(text, image, owner, np.arange(images), rows=3)
  assert back.tolist() == [slow_rank(text[j] @ image.T, np.arange(images) == owner[j]) for j in range(len(text))]


def test_any_of_an_images_captions_counts():
  image = np.eye(3, dtype=np.float32)
  text = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2, 0]]
  found = retrieval.scores(image, text, np.asarray([0, 0, 1, 1, 2, 2]))
  # Image 0 ties with the wrong captions 3 and 5; image 1 with caption 1; image 2 has caption 4 to itself.
  assert found["image_to_text/recall_at_1"] == 1 / 3 and found["image_to_text/recall_at_5"] == 1.0
  assert found["text_to_image/recall_at_1"] == 3 / 6
  assert found["images"] == 3 and found["texts"] == 6


def test_collapsed_and_broken_models_find_nothing():
  owner = np.arange(20)
  for value in (1.0, np.nan):
    same = np.full((20, 4), value, np.float32)
    found = retrieval.scores(same, same, owner)
    assert found["recall_at_10"] == 0 and found["image_to_text/median_rank"] == 20


def test_evaluator_is_numpy_on_all_captions_of_the_kind():
  data, params = toys.dataset(), toys.PARAMS
  texts = [text for i in range(13) for text in toys.Colors()[i]["captions"]["long"]]
  image = np.asarray(toys.embed_image(params, np.stack([toys.Colors()[i]["image"] for i in range(13)])))
  text = np.asarray(toys.embed_text(params, *data.tokenize(texts)))
  expected = retrieval.scores(image, text, np.repeat(np.arange(13), 2))
  for devices in (1, 8):
    mesh = parallel.make_mesh(data=devices, devices=jax.devices()[:devices])
    services = toys.services(toys.CLIP, data=data, mesh=mesh)
    made = retrieval.retrieval(services, source={}, every_steps=5, params="eval", limit=13, caption="long")
    assert (made.every_steps, made.params) == (5, "eval")
    with jax.set_mesh(mesh):
      assert made.run(params, 1).scalars == expected
      one = retrieval.retrieval(services, source={}, every_steps=1, limit=13, caption="long", captions_per_image=1)
      assert one.run(params, 1).scalars["texts"] == 13
