import numpy as np
import pytest
from PIL import Image

from mmdiff.data import captions, pipelines
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import encode, noise

RECIPE = pipelines.Recipe(captions.mix({"long": 0.5, "original": 0.5}, on_missing="any"), 8)
RECORD = {"key": "k", "image": noise(8, 8), "captions": {"long": ["a", "b", "c"], "original": "o"}}


def test_an_example_is_a_function_of_seed_epoch_and_key():
  recipe = RECIPE._replace(crop=(0.2, 0.8), flip=True)
  make = lambda seed, epoch, key: pipelines.image_text(RECORD | {"key": key}, recipe, seed=seed, epoch=epoch)
  a, b = make(0, 1, "k"), make(0, 1, "k")
  assert a[2:] == b[2:] and (a.image == b.image).all()
  others = [make(seed, epoch, key) for seed in range(3) for epoch in range(9) for key in ("k", "l")]
  assert len({other.image.tobytes() for other in others}) > 0.8 * len(others)
  assert {other.text for other in others} == {"a", "b", "c", "o"}


def test_half_of_the_pictures_are_mirrored():
  recipe = RECIPE._replace(flip=True)
  images = [pipelines.image_text(RECORD, recipe, seed=0, epoch=epoch).image for epoch in range(400)]
  mirrored = sum((image == RECORD["image"][:, ::-1]).all() for image in images)
  assert 150 < mirrored < 250 and mirrored + sum((image == RECORD["image"]).all() for image in images) == 400


def test_without_augmentation_a_picture_of_the_right_size_is_the_array_itself():
  assert pipelines.image_text(RECORD, RECIPE, seed=0, epoch=0).image is RECORD["image"]


def test_evaluation_takes_the_first_caption_of_the_kind_asked_for():
  recipe = RECIPE._replace(crop=(0.1, 0.2), flip=True)
  example = pipelines.plain(RECORD, recipe, seed=0, kind="long")
  assert (example.text, example.kind, example.missing) == ("a", "long", "") and (example.image == RECORD["image"]).all()
  with pytest.raises(BadRecord, match="missing_caption: no caption of kind 'dense' among: long, original"):
    pipelines.plain(RECORD, recipe, seed=0, kind="dense")
  bare = pipelines.plain({"key": "k", "image": RECORD["image"]}, recipe, seed=0)
  assert (bare.text, bare.kind, bare.missing) == ("", "", "")


def test_evaluation_needs_no_more_of_a_record_than_it_asks_for():
  """Training's kind is `long`, and its rule for missing ones error, replace or original: none of that is evaluation's business."""
  odd = RECORD | {"captions": {"tags": "t", "dense": "d"}}
  for policy in ("error", "replace", "original"):
    recipe = RECIPE._replace(mix=captions.mix({"long": 1.0}, on_missing=policy))
    found = [pipelines.plain(odd, recipe, seed=0, kind=kind) for kind in (pipelines.NO_CAPTION, pipelines.OWN_CAPTION, "dense")]
    assert [(example.kind, example.text) for example in found] == [("", ""), ("tags", "t"), ("dense", "d")]
    for none in ({}, None):
      assert pipelines.plain(RECORD | {"captions": none}, recipe, seed=0, kind=pipelines.NO_CAPTION).text == ""
      with pytest.raises(BadRecord, match="missing_caption"):
        pipelines.plain(RECORD | {"captions": none}, recipe, seed=0, kind=pipelines.OWN_CAPTION)
  assert pipelines.plain(RECORD, RECIPE, seed=0, kind=pipelines.OWN_CAPTION).kind == "original"


def test_faults_carry_the_record_s_key():
  for record, kind in ((RECORD | {"image": b""}, "undecodable"), (RECORD | {"captions": {"long": 3}}, "bad_type"),
                       (RECORD | {"image": np.zeros((2, 2))}, "bad_type"), ({"key": "k", "captions": {}}, "missing_key")):
    with pytest.raises(BadRecord) as fault:
      pipelines.image_text(record, RECIPE, seed=0, epoch=0)
    assert (fault.value.kind, fault.value.key) == (kind, "k")
  for record in ({}, RECORD | {"key": ""}, RECORD | {"key": 7}, "no mapping"):
    with pytest.raises(BadRecord):
      pipelines.image_text(record, RECIPE, seed=0, epoch=0)


def test_a_large_jpeg_is_reduced_no_further_than_the_crop_allows():
  """The smallest crop still has at least as many pixels as the example on its shorter side."""
  y, x = np.mgrid[0:512, 0:512]
  board = (((y // 64 + x // 64) % 2) * 255).astype(np.uint8)
  data = encode(Image.fromarray(np.repeat(board[..., None], 3, -1)), "JPEG", quality=95)
  full = pipelines.image_text(RECORD | {"image": np.repeat(board[..., None], 3, -1)}, RECIPE._replace(image_size=32), seed=0, epoch=0).image
  reduced = pipelines.image_text(RECORD | {"image": data}, RECIPE._replace(image_size=32), seed=0, epoch=0).image
  assert np.abs(full.astype(int) - reduced).mean() < 4
  cropped = pipelines.image_text(RECORD | {"image": data}, RECIPE._replace(image_size=32, crop=(0.01, 0.02)), seed=0, epoch=0).image
  assert cropped.shape == (32, 32, 3) and (cropped.max() > 230 or cropped.min() < 25)      # of one or two fields of the board


def test_the_order_of_sentences_changes_with_the_epoch_and_never_in_evaluation():
  record = dict(key="a", image=np.zeros((8, 8, 3), np.uint8), captions=dict(long="one. two. three. four."))
  recipe = RECIPE._replace(mix=captions.mix({"long": 1.0}, on_missing="any"), sentences=True)
  texts = {pipelines.image_text(record, recipe, seed=0, epoch=epoch).text for epoch in range(20)}
  assert len(texts) == 6 and all(sorted(text.split()) == ["four.", "one.", "three.", "two."] and text.startswith("one.") for text in texts)
  assert pipelines.plain(record, recipe, seed=0).text == "one. two. three. four."
