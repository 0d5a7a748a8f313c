"""What must be alike before two results are compared, and what is the model's own."""
import json

import pytest

from mmdiff.evaluators import likeness
from mmdiff.evaluators.likeness import facts, unlike
from tests.evaluators import toys

RESULT = dict(
  name="evaluate_retrieval", step=4, scalars=dict(recall_at_1=0.5, images=100.0, texts=100.0), images=[],
  evaluator=dict(name="retrieval", source=dict(name="folder", path="a"), every_steps=1, params="", limit=100, caption="long"),
  tables=dict(protocol=[dict(scorer="clip", step=4, params="")]), records={"a": "100 of abc"},
  config=dict(data=dict(image_size=32, resize="crop", interpolation="bicubic", text_len=64)))


def changed(*path_and_value):
  made = json.loads(json.dumps(RESULT))
  *path, last, value = path_and_value
  inner = made
  for key in path:
    inner = inner[key]
  inner[last] = value
  return made


@pytest.mark.parametrize("other,named", [
  (changed("evaluator", "limit", 50), "limit (100, 50)"),
  (changed("evaluator", "caption", "short"), "caption (long, short)"),
  (changed("evaluator", "name", "zeroshot"), "task (retrieval, zeroshot)"),
  (changed("scalars", "images", 50.0), "number of images (100.0, 50.0)"),
  (changed("records", "a", "100 of abd"), "records (['100 of abc'], ['100 of abd'])"),
  (changed("config", "data", "image_size", 64), "image_size (32, 64)"),
  (changed("config", "data", "resize", "pad"), "resize (crop, pad)"),
  (changed("tables", "protocol", 0, "scorer", "other"), "scorer (clip, other)"),
  (changed("evaluator", "seed", 3), "seed (not recorded, 3)")])
def test_what_differs_is_named(other, named):
  assert named in likeness.said(unlike(facts(RESULT), facts(other)))
  assert unlike(facts(RESULT), facts(other), allowed=(named.partition(" (")[0],)) == {}


def test_what_belongs_to_the_model_may_differ():
  """Another step, average, folder of the same records, length of text."""
  other = changed("evaluator", "params", "eval") | dict(step=8)
  other["evaluator"]["source"]["path"], other["tables"]["protocol"][0]["step"], other["config"]["data"]["text_len"] = "b", 8, 77
  assert unlike(facts(RESULT), facts(other)) == {}


def test_records_are_noted_as_they_are_opened_whatever_the_tokenizer():
  services, data, records = likeness.recording(toys.services(toys.CLIP))
  made = services.dataset({"name": "colors"})
  assert data == {"{'name': 'colors'}": made.fingerprint()}
  assert records == {"{'name': 'colors'}": f"{len(made.source)} of {made.source.fingerprint()}"}


def test_clip_scores_of_two_folders_are_alike_in_scorer_and_captions():
  """The pictures are what is compared; one scorer, and the same captions."""
  def result(folder, caption, checkpoint):
    return dict(evaluator=dict(name="clipscore", source=dict(name="folder", path=folder)), records={folder: f"1 of {folder}"}, scalars={},
                tables=dict(pictures=[dict(key="0", caption=caption)]), model=dict(checkpoint=checkpoint))
  differ = lambda *other: list(unlike(facts(result("a", "a cat", "x")), facts(result(*other))))
  assert differ("b", "a cat", "x") == []
  assert differ("b", "a dog", "x") == ["captions"] and differ("b", "a cat", "y") == ["scorer's checkpoint"]
