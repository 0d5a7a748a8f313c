"""The schema is the signatures: what it accepts, refuses, fills in and says, on a small project of its own."""
import json
import sys

import pytest

from mmdiff.core import schema, signatures
from mmdiff.core.schema import Block, check, complete, describe, dotted_keys, fields, parse_text

TOY = {
  "__init__.py": "",
  "shared.py": '''
from typing import Literal
Dtype = Literal["float32", "bfloat16"]
MEAN = (0.5, 0.25)
class Inner:
  size: int
  flip: bool = False                     # mirror
''',
  "parts.py": '''
from typing import Literal
from collections.abc import Mapping
from toyproject.shared import MEAN, Dtype, Inner
VARIANTS = {"tiny": dict(width=8), "big": dict(width=64)}
MODELS = {"net": "toyproject.parts:net", "other": "toyproject.parts:other"}

def net(given, *, variant: OneOf["VARIANTS"] = "tiny", width: int | None = None, dtype: Dtype = "float32", mean: tuple[float, ...] = MEAN,
        note: str = "", rate: float = 2 ** 3, steps: int | float = 1, last: "int" = 2,
        urls: str | tuple[str, ...] | None = None):   # two on a line
  """A net.

  width: channels; None takes
    the variant's
  rate, steps: how often
  """

def other(given, *, depth: int):
  """Another."""

class Root:
  seed: int                              # of everything
  lr: float = 1e-3
  model: Built["toyproject.parts:MODELS"]
  models: Mapping[str, Built["toyproject.parts:MODELS"]] = {}
  shares: Mapping[str, float] = {}
  inner: Inner | None = None
  names: tuple[str, ...] = ()
''',
}
ROOT = Block(spec="toyproject.parts:Root")


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
  (tmp_path / "toyproject").mkdir()
  for name, text in TOY.items():
    (tmp_path / "toyproject" / name).write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("toyproject", None)
  for cached in (signatures._source, signatures._module_tree, signatures._comments, signatures.definition, signatures.table, fields):
    cached.cache_clear()


def config(**changes):
  return dict(seed=1, model=dict(name="net")) | changes


def said(**changes):
  return [str(problem) for problem in check(config(**changes), ROOT)]


def test_a_right_config_has_no_problems():
  assert said() == []
  assert said(lr=1, inner=dict(size=3), models=dict(a=dict(name="other", depth=2)), shares=dict(x=0.5, y=1), names=["a"]) == []
  assert said(model=dict(name="net", variant="big", width=3, dtype="bfloat16", mean=(1, 2.5), steps=2.5), inner=None) == []


def test_every_problem_is_named_at_once():
  assert said(sed=1, lr="x", model=dict(name="net", dtyp="float32", width=1.5), inner=dict(size=True, flp=1)) == [
    "model.dtyp: unknown key; did you mean model.dtype?",
    "model.width: expected int, found float 1.5",
    "sed: unknown key; did you mean seed?",
    "lr: expected float, found str 'x'",
    "inner.size: expected int, found bool True",
    "inner.flp: unknown key; did you mean inner.flip?",
  ]
  problems = {p.path: p for p in check(dict(config(), sed=1, lr="x", model=dict(name="net", dtyp="float32", width=1.5)), ROOT)}
  assert {path: p.meant for path, p in problems.items()} == {"sed": "seed", "lr": None, "model.dtyp": "model.dtype", "model.width": None}
  assert problems["lr"].text("--config.") == "--config.lr: expected float, found str 'x'"


def test_missing_keys_are_named_once():
  assert [str(p) for p in check(dict(model={}), ROOT)] == ["model.name: missing; expected one of 'net', 'other'",
                                                           "seed: missing; expected int"]
  assert said(model=dict(name="other")) == ["model.depth: missing; expected int"]
  misspelt = dict(config(), sead=1)
  del misspelt["seed"]
  assert [str(p) for p in check(misspelt, ROOT)] == ["sead: unknown key; did you mean seed?"]


@pytest.mark.parametrize("model,message", [
  (dict(name="nett"), "model.name: expected one of 'net', 'other', found 'nett'; did you mean 'net'?"),
  (dict(name=3), "model.name: expected one of 'net', 'other', found 3"),
  (dict(name="net", variant="tinny"), "model.variant: expected one of 'tiny', 'big', found 'tinny'; did you mean 'tiny'?"),
  (dict(name="net", dtype="bfloat61"), "model.dtype: expected one of 'float32', 'bfloat16', found 'bfloat61'; did you mean 'bfloat16'?"),
  (dict(name="net", mean=0.5), "model.mean: expected tuple of float, found float 0.5"),
  (dict(name="net", mean=(0.5, "x")), "model.mean: expected float, found str 'x' in (0.5, 'x')"),
  (dict(name="net", steps="x"), "model.steps: expected int or float, found str 'x'"),
  (dict(name="net", note=None), "model.note: expected str, found None"),
  (dict(name="net", last=1.5), "model.last: expected int, found float 1.5"),
  ("net", "model: expected a block of keys, found str 'net'"),
])
def test_wrong_values_say_found_and_expected(model, message):
  assert said(model=model) == [message]


def test_defaults_and_comments_come_from_the_source():
  net = fields("toyproject.parts:net")
  assert net["mean"].default == (0.5, 0.25)
  assert net["rate"].default is schema.COMPUTED
  assert net["width"].comment == "channels; None takes the variant's"
  assert net["last"].comment == "" and net["rate"].comment == net["steps"].comment == "how often"
  assert fields("toyproject.parts:Root")["seed"].comment == "of everything"
  assert "given" not in net


def test_complete_fills_in_and_is_stable():
  whole = complete(config(lr=1, models=dict(a=dict(name="other", depth=2)), inner=dict(size=1)), ROOT)
  assert whole["lr"] == 1.0 and isinstance(whole["lr"], float)
  assert whole["model"] == dict(name="net", variant="tiny", width=None, dtype="float32", mean=(0.5, 0.25), note="", steps=1, last=2,
                                urls=None)
  assert whole["inner"] == dict(size=1, flip=False) and whole["names"] == () and whole["shares"] == {}
  saved = json.loads(json.dumps(whole))
  assert check(saved, ROOT) == []
  assert complete(saved, ROOT) == whole


def test_settable_keys_include_those_left_out():
  keys = dotted_keys(config(), ROOT)
  assert {"seed", "lr", "model", "model.name", "model.width", "inner.flip", "shares"} <= set(keys)
  assert "models.a.depth" in dotted_keys(config(models=dict(a=dict(name="other"))), ROOT)


@pytest.mark.parametrize("key,text,value", [
  ("width", "3", 3), ("width", "none", None), ("note", "none", "none"), ("note", "", ""), ("mean", "3,4.5", (3.0, 4.5)),
  ("mean", "", ()), ("mean", "(1,)", (1,)), ("mean", "[1, 2]", (1, 2)), ("dtype", "bfloat16", "bfloat16"),
  ("steps", "2", 2), ("steps", "2.5", 2.5), ("urls", "a,b", "a,b"), ("urls", "('a', 'b')", ("a", "b")),
  ("urls", "none", None), ("last", "1_000", 1000),
])
def test_text_is_read_by_type(key, text, value):
  assert parse_text(fields("toyproject.parts:net")[key], text) == value


@pytest.mark.parametrize("key,text", [("width", "1.5"), ("mean", "3,x"), ("mean", "(1,"), ("dtype", "float"), ("steps", "x"), ("last", "")])
def test_text_of_another_type_is_refused(key, text):
  with pytest.raises(ValueError, match="expected .*found"):
    parse_text(fields("toyproject.parts:net")[key], text)


def test_annotations_in_words():
  net = fields("toyproject.parts:net")
  assert describe(net["width"].annotation, net["width"].module) == "int or None"
  assert describe(net["mean"].annotation, net["mean"].module) == "tuple of float"
  assert describe(net["variant"].annotation, net["variant"].module) == "one of 'tiny', 'big'"


def test_booleans():
  flip = fields("toyproject.shared:Inner")["flip"]
  assert [parse_text(flip, text) for text in ("true", "1", "False", "f")] == [True, True, False, False]
  with pytest.raises(ValueError, match="expected bool, found 'yess'"):
    parse_text(flip, "yess")
