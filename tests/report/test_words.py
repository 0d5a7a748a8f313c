"""What a run is for, and what a score is of."""
from mmdiff.report import words

SCENES = dict(name="scenes", tier="T32", split="val_iid")
CONFIG = dict(batch_size=64, objective=dict(name="diffusion", denoiser=dict(name="dit", variant="tiny"), condition=dict(name="conv_text")),
              data=dict(source=dict(name="folder", path="/mine"), captions=dict(long=0.95, original=0.05), image_size=32))


def test_the_goal_and_the_data():
  assert words.goal(CONFIG) == "Draw pictures from texts (denoiser tiny, condition conv_text)"
  assert words.reads(CONFIG, 200) == \
    "Trained on 200 records of folder(path=/mine); captions 95 % long, 5 % original; pictures of 32 px; 64 a step"
  assert words.goal(dict(objective=dict(name="new"))) == "Objective new" and words.reads({}) == ""


def test_a_score_says_which_records_and_how_many():
  result = dict(scalars=dict(recall_at_1=0.5, images=500.0), records={str(SCENES): "2000 of abc"})
  assert words.scored_on(result, dict(source=SCENES, caption="long")) == \
    "500 images of 2,000 records of scenes(tier=T32, split=val_iid), long captions"
  assert words.scored_on(dict(scalars={}), dict(tier="T32", prompts=64)) == "64 prompts of scenes(tier=T32)"
  assert words.scored_on(dict(scalars=dict(images=20.0), records={str(SCENES): "20 of x"}), {}) == \
    "20 images of scenes(tier=T32, split=val_iid)"
  assert words.scored_on(dict(scalars={}, records={"__import__('os')": "x", "[": "1 of"}), {}) == ""


def test_scores_of_other_data_than_those_trained_on_are_known():
  assert words.elsewhere(CONFIG, dict(source=SCENES)) and words.elsewhere(CONFIG, dict(tier="T32"))
  assert not words.elsewhere(CONFIG, dict(source=dict(name="folder", path="/held_out"))) and not words.elsewhere(CONFIG, {})
