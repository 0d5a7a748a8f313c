"""One number an evaluator, with chance beside it where that is known."""
import pytest

from mmdiff.evaluators import EVALUATORS
from mmdiff.train.headlines import NAMES, headline


@pytest.mark.parametrize("name, scalars, said", [
  ("retrieval", {"recall_at_1": 0.535, "images": 200.0}, "recall at 1 53.5 % (chance 0.5 %)"),
  ("zeroshot", {"top_1": 0.25, "top_5": 0.5, "classes": 10.0}, "top 1 25.0 % (chance 10.0 %)"),
  ("scenes_judge", {"all_facts": 0.5, "all_facts_low": 0.4, "all_facts_high": 0.6}, "all facts 50.0 % (40.0 % to 60.0 %)"),
  ("hard_negatives", {"accuracy/a": 0.5, "accuracy/b": 1.0}, "accuracy 75.0 % (chance 50.0 %)"),
  ("loss", {"grad": 1.0, "loss": 2.34567}, "loss 2.346"), ("of a stranger", {"what": 3.0}, "what 3"),
])
def test_what_is_said(name, scalars, said):
  assert headline(name, scalars).said() == said


def test_every_evaluator_has_one():
  assert set(NAMES) | {"hard_negatives"} == set(EVALUATORS) and headline("loss", {}) is None
