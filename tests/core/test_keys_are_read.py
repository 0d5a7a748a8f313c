"""No key is accepted and then dropped: every parameter of every factory is used in its body, every key of a block is asked for by name."""
import ast
import functools
from pathlib import Path

import pytest

from mmdiff.core import schema
from mmdiff.core.signatures import definition, fields, table

PACKAGE = Path(schema.__file__).parents[1]
TABLES = ("mmdiff.objectives:OBJECTIVES", "mmdiff.data:SOURCES", "mmdiff.data:TOKENIZERS", "mmdiff.evaluators:EVALUATORS",
          "mmdiff.optim:OPTIMIZERS", *(f"mmdiff.models:{name}" for name in (
            "MODELS", "CAPTIONERS", "DENOISERS", "TEXT_ENCODERS", "AUTOENCODERS", "FEATURES", "DISCRIMINATORS")))
FACTORIES = sorted({target for spec in TABLES for target in table(spec).values()})


@pytest.mark.parametrize("spec", FACTORIES)
def test_a_factory_uses_what_it_takes(spec):
  module, name = spec.split(":")
  node, _ = definition(name, module)
  read = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load)}
  assert not set(fields(spec)) - read


@functools.cache
def asked() -> dict[str, set[str]]:
  """{key: files that read it: as a subscript, in `.get`, in a tuple of names, or as a parameter or keyword of that name}."""
  found: dict[str, set[str]] = {}
  for path in PACKAGE.rglob("*.py"):
    if path.name in ("experiment.py", "ablation.py", "ranges.py", "consistency.py", "sizes.py", "train.py") and path.parent.name == "core":
      continue
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      keys = []
      if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.ctx, ast.Load):
        keys = [node.slice.value]
      elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        keys = [getattr(node.args[0], "value", None)]
      elif isinstance(node, ast.FunctionDef):
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        keys = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs) if argument.arg in used]
      for key in keys:
        if isinstance(key, str):
          found.setdefault(key, set()).add(str(path.relative_to(PACKAGE)))
  return found


@pytest.mark.parametrize("name", ["Experiment", "Checkpoint", "Mesh", "Augment", "Data", "Init"])
def test_every_key_of_a_block_is_asked_for(name):
  """`Data`, `Augment`, `Init` and `Mesh` are handed on as parameters of functions, the others read by key."""
  homes = {"Data": "data/", "Augment": "data/", "Init": "train/", "Mesh": "parallel.py", "Checkpoint": ("train/", "commands/"),
           "Experiment": ("train/", "commands/", "model.py", "evaluators/", "optim.py")}[name]
  dropped = [key for key in fields(f"mmdiff.core.experiment:{name}")
             if not any(path.startswith(homes) for path in asked().get(key, ()))]
  assert not dropped


def test_keys_of_an_ablation_are_asked_for():
  assert not [key for key in fields("mmdiff.core.ablation:Ablation") if "commands/ablate.py" not in asked().get(key, ())
              and key != "prepare"]
