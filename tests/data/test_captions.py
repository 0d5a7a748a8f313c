import html
import math

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import captions, draws
from mmdiff.data.loader import dataset
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import Listed, World, tokenizer

KINDS = st.text("abcdefgh_", min_size=1, max_size=6)


def within_binomial_bounds(hits: int, trials: int, share: float) -> bool:
  """Five standard deviations: one false alarm in two million."""
  return abs(hits - trials * share) <= 5 * math.sqrt(trials * share * (1 - share)) + 1


@settings(max_examples=25, deadline=None)
@given(weights=st.dictionaries(KINDS, st.integers(1, 100), min_size=1, max_size=5), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_each_kind_gets_its_share(weights, seed, epoch):
  shares = {kind: weight / sum(weights.values()) for kind, weight in weights.items()}
  mix = captions.mix(shares, on_missing="any")
  drawn = [captions.draw(mix, seed=seed, epoch=epoch, key=f"r{i}") for i in range(1000)]
  assert all(within_binomial_bounds(drawn.count(kind), 1000, share) for kind, share in shares.items())
  assert set(drawn) <= set(shares)


def test_the_paper_mix_over_epochs():
  """95 to 5: each record sees the rare kind in some epochs, and the whole has the ratio in every epoch."""
  mix = captions.mix({"long": 0.95, "original": 0.05}, on_missing="any")
  rare = np.array([[captions.draw(mix, seed=0, epoch=e, key=f"r{i}") == "original" for i in range(500)] for e in range(60)])
  assert all(within_binomial_bounds(int(row.sum()), 500, 0.05) for row in rare)
  assert within_binomial_bounds(int(rare.sum()), rare.size, 0.05)
  assert (rare.sum(0) > 0).mean() == pytest.approx(1 - 0.95 ** 60, abs=0.06)      # draws of one record are independent between epochs


def test_draws_do_not_depend_on_the_order_of_the_config():
  a = captions.mix({"long": 0.6, "original": 0.4}, on_missing="any")
  b = captions.mix({"original": 0.4, "long": 0.6}, on_missing="any")
  drawn = [[captions.draw(mix, seed=1, epoch=0, key=str(i)) for i in range(50)] for mix in (a, b)]
  assert drawn[0] == drawn[1]


@pytest.mark.parametrize("shares, said", [
  ({}, "no kinds"),
  ({"long": 0.9, "original": 0.2}, "long=0.9, original=0.2, which sum to 1.1"),
  ({"long": 1.0, "original": 0.0}, "data.captions.original: a share must be a positive number, found 0.0"),
  ({"long": 2.0, "original": -1.0}, "data.captions.original"),
  ({"long": float("nan")}, "data.captions.long"),
  ({"long": "1"}, "data.captions.long"),
  ({"long": True}, "data.captions.long"),
])
def test_wrong_shares_are_named(shares, said):
  with pytest.raises(ConfigError) as error:
    captions.mix(shares, on_missing="any")
  assert said in str(error.value)


def test_an_unknown_policy_is_named():
  with pytest.raises(ConfigError, match="data.on_missing.*'drop'.*replace"):
    captions.mix({"long": 1.0}, on_missing="drop")


def test_sums_within_a_millionth_are_one():
  captions.mix({"a": 1 / 3, "b": 1 / 3, "c": 0.333333}, on_missing="any")


@settings(max_examples=60, deadline=None)
@given(present=st.lists(st.sampled_from(["long", "original", "short", "other"]), unique=True), wanted=st.sampled_from(["long", "short"]),
       policy=st.sampled_from(captions.POLICIES))
def test_the_fallback_is_what_the_policy_says(present, wanted, policy):
  mix = captions.mix({"long": 0.7, "short": 0.3}, on_missing=policy)
  texts = {kind: kind for kind in present}
  choose = lambda: captions.choose(texts, wanted, mix=mix, key="k")
  if wanted in present:
    assert choose() == wanted
  elif policy == "error":
    with pytest.raises(DataError, match=f"'k' has no caption of kind '{wanted}'"):
      choose()
  elif policy == "replace":
    with pytest.raises(captions.LacksKind):
      choose()
  elif policy == "original" and "original" in present:
    assert choose() == "original"
  elif policy == "any" and present:
    configured = [kind for kind in ("long", "short") if kind in present]
    assert choose() == (configured or present)[0]
  else:
    with pytest.raises(BadRecord, match="missing_caption"):
      choose()


class Partly(World):
  """A tenth of the records lack the long caption."""

  def __getitem__(self, i):
    record = super().__getitem__(i)
    if i % 10 == 0:
      del record["captions"]["long"]
    return record


def totals(ds, rows):
  counts = sum(ds.batch_at(step, batch_size=100)["counts"].sum(0) for step in range(rows // 100))
  return dict(zip(ds.count_names, counts.tolist()))


TOKENIZER = tokenizer()


def make(source, **options):
  return dataset(source, TOKENIZER, **dict(captions={"long": 0.8, "original": 0.2}, image_size=8, text_len=16, seed=5) | options)


@pytest.mark.parametrize("policy", ["any", "original"])
def test_realised_fractions_are_counted_with_the_fallback(policy):
  count = totals(make(Partly(100), on_missing=policy), 2000)
  assert count["caption/long"] + count["caption/original"] + count["caption/other"] == 2000
  assert within_binomial_bounds(count["caption/long"], 1800, 0.8)
  assert within_binomial_bounds(count["missing/long"], 200, 0.8)
  assert count["missing/original"] == count["replaced"] == 0
  assert count["caption/original"] == 2000 - count["caption/long"]


def test_replacing_keeps_the_shares_and_drops_no_row():
  count = totals(make(Partly(100), on_missing="replace"), 2000)
  assert within_binomial_bounds(count["caption/long"], 2000, 0.8)
  assert count["caption/long"] + count["caption/original"] == 2000
  assert count["replaced"] == count["missing/long"] and within_binomial_bounds(count["replaced"], 200, 0.8)
  assert not any(value for name, value in count.items() if name.startswith("bad/"))


def test_replacing_what_no_record_has_is_an_error():
  with pytest.raises(DataError, match="no caption of kind 'short'.*data.on_missing"):
    make(World(50), captions={"short": 0.5, "long": 0.5}, on_missing="replace").batch_at(0, batch_size=20)


def test_kinds_outside_the_mix_are_counted_as_other():
  count = totals(make(World(100, kinds=("short",))), 100)
  assert count["caption/other"] == 100 and count["missing/long"] + count["missing/original"] == 100


def test_one_of_several_captions_is_drawn_anew_each_epoch():
  record = {"key": "a", "image": np.zeros((8, 8, 3), np.uint8), "captions": {"original": [f"text {i}" for i in range(5)]}}
  ds = make(Listed([record]), captions={"original": 1.0})
  texts = [ds.example_at(epoch)[0].text for epoch in range(500)]
  assert all(within_binomial_bounds(texts.count(f"text {i}"), 500, 0.2) for i in range(5))


@pytest.mark.parametrize("value, kind", [
  ("", "empty_caption"), (" \n\t ", "empty_caption"), ("nul \x00 byte", "control_caption"), ("\x1b[31mred", "control_caption"),
  ("a" * 70_000, "long_caption"), (b"\xff\xfe", "non_utf8_caption"), ("half \udcff", "non_utf8_caption"), (7, "bad_type"),
  ([], "missing_caption"), ([3], "bad_type"), (None, "bad_type"), ({"a": 1}, "bad_type"),
])
def test_bad_captions_have_a_kind(value, kind):
  with pytest.raises(BadRecord) as fault:
    captions.text_of(value, key="k")
  assert fault.value.kind == kind and fault.value.key == "k"


def test_text_in_every_script_is_a_caption():
  for text in ("café", "日本語", "\u202eabc", "a\nb\tc", "👩‍👩‍👧", "é".encode()):
    assert captions.text_of(text, key="k")
  assert captions.text_of("", key="k", allow_empty=True) == ""


def test_cleaning_as_clip_does():
  assert captions.clean("  A &amp;amp; B\n\tC  ") == "a & b c"
  assert captions.clean("caf\u00c3\u00a9") == "café"                    # mojibake, which ftfy undoes
  assert captions.clean("“Quotes”") == '"quotes"'
  assert captions.clean("&lt;b&gt;") == "<b>"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_cleaning_ascii_needs_no_ftfy(text):
  text = text.encode("ascii", "ignore").decode()
  assert captions.clean(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def test_digest_parts_are_not_confused():
  assert draws.uniform("caption", 1, 2, "3") != draws.uniform("caption", 1, 23, "")


def test_sentences_after_the_first_are_reordered():
  text = "a picture of two objects. a red circle at the left. it shines! is it new? yes."
  seen = {captions.reordered(text, ("s", epoch)) for epoch in range(40)}
  assert 10 < len(seen) <= 24 and all(made.startswith("a picture of two objects. ") and len(made) == len(text) for made in seen)
  assert captions.reordered(text, ("s", 3)) == captions.reordered(text, ("s", 3))
  for short in ("a red circle", "one. two.", ""):
    assert captions.reordered(short, ("s", 1)) == short
