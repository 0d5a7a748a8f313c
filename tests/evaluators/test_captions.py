"""Captions read back: gold captions are perfect, what is wrong is found where it is wrong, and degeneration is seen."""
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import decode
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.data import loader, tokenizers
from mmdiff.data.scenes.source import scenes
from mmdiff.data.scenes.tiers import tier_named
from mmdiff.evaluators import EVALUATORS
from mmdiff.evaluators.captions import degeneration, measure
from tests.evaluators import toys

T32 = tier_named("T32")
RECORDS = [scenes(tier="T32", split="val_iid")[i] for i in range(60)]


def measured(texts, records=RECORDS):
  return measure(texts, [r["scene"] for r in records], [r["facts"]["long"] for r in records], T32)


def test_gold_long_captions_are_perfect_and_short_ones_true_but_incomplete():
  found, rows = measured([r["captions"]["long"] for r in RECORDS])
  assert found["fact_precision"] == found["fact_recall"] == found["perfect"] == 1 and found["hallucination"] == 0
  assert all(found[f"recall/{name}"] == 1 for name in ("shape", "color", "tex", "size")) and all(row["right"] for row in rows)
  found, _ = measured([r["captions"]["short"] for r in RECORDS])
  assert found["fact_precision"] == 1 and found["fact_recall"] == 0 and found["perfect"] == 0


def test_a_wrong_word_counts_once_where_it_is_wrong():
  record = next(r for r in RECORDS if len(r["scene"]["objs"]) == 2 and len(r["facts"]["long"]) == 4)
  text, thing = record["captions"]["long"], record["scene"]["objs"][0]
  other = "triangle" if thing["shape"] != "triangle" else "circle"
  wrong = text.replace(f"{thing['color']} {thing['shape']}", f"{thing['color']} {other}", 1)
  found, (row,) = measured([wrong], [record])
  assert found["fact_precision"] == found["fact_recall"] == 0.75 and found["hallucination"] == 1
  assert found["recall/shape"] == 0.5 and found["recall/color"] == 1 and (row["false"], row["missed"]) == (1, 1)
  first_sentence = text.split(".")[0] + "."
  found, _ = measured([first_sentence], [record])
  assert found["fact_precision"] == 1 and found["fact_recall"] == 0.5
  assert measured([""], [record])[0]["fact_recall"] == 0


def test_degeneration():
  lively = degeneration(["a red circle", "two blue squares"], [False, False])
  assert lively["distinct_1"] == lively["distinct_2"] == 1 and lively["duplicates"] == lively["truncated"] == lively["repetitive"] == 0
  assert lively["words"] == 3
  stuck = degeneration(["a b a b a b a b", "x", "x", ""], [True, False, False, False])
  assert stuck["repetitive"] == stuck["truncated"] == stuck["empty"] == 0.25 and stuck["duplicates"] == 0.5
  assert stuck["distinct_1"] == pytest.approx(3 / 10)
  assert degeneration([]) == {}


def services(noise: int):
  """A captioner that knows the pictures by heart and is wrong about every `noise`-th."""
  data = scenes(tier="T32", split="val_iid", size=30)
  tokenizer = tokenizers.train((data[i]["captions"]["long"] for i in range(30)), vocab=400)
  dataset = loader.dataset(data, tokenizer, captions={"long": 1.0}, image_size=32, text_len=80)
  known = {data[i]["image"].tobytes(): i for i in range(30)}

  def caption(params, images, seeds, settings, *, extra=()):
    rows = [known[np.asarray(image).tobytes()] for image in images]
    texts = [data[(i + 1) % 30 if noise and i % noise == 0 else i]["captions"]["long"] for i in rows]
    tokens, mask = (part[:, 1:settings.max_len + 1] for part in tokenizer.batch(texts, 81))
    assert int(settings.end) == tokenizer.end
    return decode.Decoded(jnp.asarray(tokens), jnp.asarray(mask.sum(1)))
  return toys.services(dict(caption=caption), data=dataset)


def test_the_evaluator_runs_the_captioner(monkeypatch):
  monkeypatch.setattr("jax.jit", lambda fn: fn)                # the captioner above is no traceable one
  options = dict(name="captions", tier="T32", every_steps=1, limit=20, splits=("val_iid",))
  evaluator = build(EVALUATORS, options, services(0))
  result = evaluator.run({}, 1)
  assert result.scalars["perfect"] == 1 and result.scalars["truncated"] == 0 and result.scalars["recall/color"] == 1
  rows = result.tables["captions"]
  assert len(rows) == 20 and rows[0]["caption"] == rows[0]["wanted"] and rows[0]["split"] == "val_iid"
  assert 0.4 <= build(EVALUATORS, options, services(2)).run({}, 1).scalars["perfect"] <= 0.6
  assert build(EVALUATORS, options | dict(max_len=5), services(0)).run({}, 1).scalars["truncated"] == 1
  with pytest.raises(ConfigError, match="needs the predict functions caption"):
    build(EVALUATORS, options, toys.services(toys.CLIP))
  with pytest.raises(ConfigError, match="splits among"):
    build(EVALUATORS, options | dict(splits=("val",)), services(0))
