import json

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.evaluators import zeroshot
from tests.evaluators import toys


def test_templates_are_seven_and_eighty_texts_with_one_gap():
  assert [len(set(zeroshot.TEMPLATES[name])) for name in ("bare", "plain", "openai-7", "openai-80")] == [1, 1, 7, 80]
  assert all(text.count("{}") == 1 and "@" not in text for texts in zeroshot.TEMPLATES.values() for text in texts)
  assert set(zeroshot.TEMPLATES["openai-7"]) < set(zeroshot.TEMPLATES["openai-80"])


def test_templates_mix_and_misspelt_ones_are_refused():
  assert zeroshot.expand(("plain", "a drawing of {}")) == ("a photo of a {}.", "a drawing of {}")
  with pytest.raises(ConfigError, match="did you mean 'openai-7'"):
    zeroshot.expand(("openai7",))


def test_class_weights_are_normalised_means_of_normalised_embeddings():
  vectors = {"a x": [1, 0], "b x": [0, 1], "a y": [0, 1], "b y": [0, 1]}
  made = zeroshot.class_weights(lambda texts: np.asarray([vectors[t] for t in texts], np.float32), ("x", "y"), ("a {}", "b {}"))
  np.testing.assert_allclose(made, [[0.5 ** 0.5, 0.5 ** 0.5], [0, 1]], rtol=1e-6)


def test_scores():
  weights = np.eye(6, dtype=np.float32)
  image = np.asarray([[1, 0, 0, 0, 0, 0], [.9, .8, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [.1, .2, .3, .4, .5, 0]], np.float32)
  found = zeroshot.score(image, weights, np.asarray([0, 0, 0, 5]), toys.NAMES + ("none",))
  assert found.scalars == dict(top_1=0.5, top_5=0.5, mean_per_class=pytest.approx((2 / 3 + 0) / 2), classes=6, records=4)
  assert found.tables["classes"] == [dict(label="red", records=3, top_1=pytest.approx(2 / 3)), dict(label="none", records=1, top_1=0.0)]


def test_evaluator_reads_names_from_the_source_a_list_or_a_file(tmp_path):
  services = toys.services(toys.CLIP)
  run = lambda **kw: zeroshot.zeroshot(services, source={}, every_steps=1, templates=("openai-7",), **kw).run(toys.PARAMS, 1)
  expected = run()
  assert expected.scalars["records"] == 21 and expected.scalars["classes"] == 5
  for name, text in (("a.txt", "\n".join(toys.NAMES) + "\n"), ("a.json", json.dumps(toys.NAMES))):
    (tmp_path / name).write_text(text)
    assert run(class_file=str(tmp_path / name)) == expected
  assert run(classes=toys.NAMES) == expected
  assert run(limit=3).scalars["records"] == 3


def test_what_cannot_be_scored_is_named(tmp_path):
  make = lambda **kw: zeroshot.zeroshot(toys.services(toys.CLIP), source={}, every_steps=1, **kw)
  with pytest.raises(ConfigError, match="more than one class is called 'red'"):
    make(classes=("red", "blue", "red"))
  with pytest.raises(DataError, match="cannot read"):
    make(class_file=str(tmp_path / "none.txt"))
  with pytest.raises(DataError, match="'r2' has label 2; expected one of the 2 classes"):
    make(classes=("red", "green")).run(toys.PARAMS, 1)


def test_a_class_file_with_a_byte_order_mark_and_one_of_numbers(tmp_path):
  for text in ("\ufeffcat\ndog\n", '\ufeff["cat", "dog"]'):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    assert zeroshot.class_names((), str(tmp_path / "classes.txt"), ()) == ("cat", "dog")
  (tmp_path / "classes.txt").write_text("[1, {}]")
  with pytest.raises(DataError, match="expected names, found 1"):
    zeroshot.class_names((), str(tmp_path / "classes.txt"), ())


@pytest.mark.parametrize("label, index", [("dog", 1), (1, 1), ("1", 1), ("cat", 0), ("2", None), ("", None), (True, None), (1.0, None),
                                          (None, None), ("-1", None), ("9" * 5000, None)])
def test_a_label_is_a_name_or_an_index_be_it_from_a_table_or_not(label, index):
  if index is not None:
    assert zeroshot.label_of(dict(key="a", label=label), ("cat", "dog")) == index
  else:
    with pytest.raises(DataError, match="record 'a' has label .*expected one of the 2 classes, by index or name"):
      zeroshot.label_of(dict(key="a", label=label), ("cat", "dog"))
