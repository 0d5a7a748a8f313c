"""Hostile values: every key of every factory takes what it means or is refused with a line, before anything is built."""
import ast
import copy
import json
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from mmdiff.__main__ import main
from mmdiff.commands import flags
from mmdiff.core import consistency, ranges, schema
from mmdiff.core.signatures import table

TABLES = {"objective": "mmdiff.objectives:OBJECTIVES", "data.source": "mmdiff.data:SOURCES", "data.tokenizer": "mmdiff.data:TOKENIZERS",
          "evals.one": "mmdiff.evaluators:EVALUATORS", "optim.default": "mmdiff.optim:OPTIMIZERS"}
ODD = ("x" * 200_000, "\ud800", "a\0b", "", [], {}, None, [[1]], {"a": 1}, [1] * 100_000, 0, -1, 10 ** 9, 10 ** 400, 1e308, float("nan"))
# Whole numbers of which a billion is as good as any: nothing is made of that size.
COUNTS = ("seed", "steps", "every_steps", "chunk", "start", "limit", "max_pixels", "sample", "size", "min_factored", "bad_steps")


def example(field: schema.Field, depth: int = 0):
  """A value that a key takes; blocks are the first of their table, with what they need."""
  block = schema.block_of(field)
  if block is None:
    said = schema.describe(field.annotation, field.module).split(" or ")[0]
    return {"int": 2, "float": 0.5, "str": "a", "bool": False}.get(said) if not said.startswith("one of") else \
      ast.literal_eval(said.removeprefix("one of ").split(", ")[0])
  return filled(block, next(iter(table(block.table)))) if block.table else {}


def filled(block: schema.Block, name: str) -> dict:
  """A block of that name with every key it may have."""
  made = {"name": name}
  for key, field in schema.keys_of(block, made).items():
    if key != "name":
      made[key] = example(field) if field.default in (schema.REQUIRED, schema.COMPUTED) or field.default is None else field.default
  return made


def configs() -> Iterator[tuple[str, str, dict]]:
  """(what is odd, path of its block, a config with one factory of each table in its place)."""
  base, problems = flags.read_config("configs/clip.py:tiny", [])
  assert not problems
  for path, spec in TABLES.items():
    for name in table(spec):
      config = copy.deepcopy(base)
      node, parts = config, path.split(".")
      for part in parts[:-1]:
        node = node[part]
      node[parts[-1]] = filled(schema.Block(table=spec), name)
      yield f"{path}={name}", path, config
  for role in ("CAPTIONERS", "DENOISERS", "TEXT_ENCODERS", "AUTOENCODERS", "FEATURES", "DISCRIMINATORS"):
    place = {"CAPTIONERS": ("coca", "model"), "DENOISERS": ("diffusion", "denoiser"), "TEXT_ENCODERS": ("diffusion", "condition"),
             "AUTOENCODERS": ("diffusion", "encode"), "FEATURES": ("autoencoder", "perceptual"),
             "DISCRIMINATORS": ("autoencoder", "discriminator")}[role]
    for name in table(f"mmdiff.models:{role}"):
      config = copy.deepcopy(base)
      config["objective"] = filled(schema.Block(table=TABLES["objective"]), place[0])
      config["objective"][place[1]] = filled(schema.Block(table=f"mmdiff.models:{role}"), name)
      yield f"objective.{place[1]}={name}", f"objective.{place[1]}", config
  yield "all", "", base


def found(config: dict) -> list:
  return schema.check(config) or consistency.check(schema.complete(config))


def put(config: dict, path: str, value) -> dict:
  """A copy along the path with another value."""
  key, _, rest = path.partition(".")
  return config | {key: put(config[key], rest, value) if rest else value}


def puts(config: dict, paths: set, value) -> dict:
  for path in paths:
    config = put(config, path, value)
  return config


CASES = list(configs())


@pytest.mark.parametrize("where,path,config", CASES, ids=[case[0] for case in CASES])
def test_hostile_values(where, path, config):
  """Refused with short lines, or taken because it means something; never an exception, and at once. All keys of a block at once: those
  that take a value's type once more without the others, since ranges are looked at when types are right."""
  ours = lambda name: name.rpartition(".")[0] == path or not path and not name.startswith(tuple(TABLES))
  own = {name for name, field, _ in schema.walk(config) if ours(name) and schema.block_of(field) is None and not name.endswith(".name")}
  assert not schema.check(config), where
  started = time.process_time()
  for value in ODD:
    refused, more = set(), own
    while more:
      problems = found(puts(config, own - refused, value))
      assert all(len(str(problem)) < 2_000 and "\n" not in str(problem) for problem in problems), str(value)[:40]
      more = {problem.path for problem in problems} & own - refused
      refused |= more
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and value not in (0, -1) and value != 10 ** 9 or isinstance(value, str) and value not in ("", "a"):
      assert not sorted(own - refused), str(value)[:40]
    if value == 10 ** 9:
      assert not [name for name in own - refused if name.startswith("objective") and not name.endswith(COUNTS)]
  assert time.process_time() - started < 0.2 * len(ODD)


def test_blocks_are_blocks():
  """What should be a block and is none, and what should be a value and is a block."""
  config = CASES[-1][2]
  for name, field, _ in schema.walk(config):
    if schema.block_of(field) is not None and not schema.optional(field):
      for value in (None, 1, "a", [1], True):
        assert any(problem.path == name for problem in found(put(config, name, value))), (name, value)


@pytest.mark.parametrize("value", ["0", "-1", "1000000000", "1000000000000000000", "1e308", "nan", "", "[]", "{}", "none", "9" * 6_000])
def test_the_command_says_so_in_a_line(value, capsys):
  key = "--config.objective.model.image_depth"
  started = time.process_time()
  if value != "none":
    assert main(["train", "--config=configs/clip.py:tiny", "--workdir=never", f"{key}={value}"]) == 64
    said = capsys.readouterr().err
    assert key in said and "Traceback" not in said and len(said) < 500
  assert time.process_time() - started < 1


@pytest.mark.parametrize("text,says", [
  ("[" * 100_000, "nested too deeply"), ("{" + '"a":{' * 900 + "}" * 901, "unknown key"), ('{"seed": NaN}', "NaN is no number"),
  ('{"seed": 1, "seed": 2}', "'seed' is given twice"), ("[]", "expected a config"), ('{"seed": 1' + "0" * 5_000 + "}", "not valid JSON"),
  ('{"seed": [1], "steps": {"a": 1}, "optim": 5, "data": null, "objective": []}', "config.seed: expected int, found tuple (1,)")])
def test_a_config_file_of_strangers(text, says, tmp_path, capsys):
  (tmp_path / "config.json").write_text(text)
  assert main(["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path}"]) == 64
  said = capsys.readouterr().err
  assert says in said and "Traceback" not in said, said[:500]
  assert all(len(line) < 2_000 for line in said.splitlines())


def test_a_pattern_that_is_none():
  config = put(CASES[-1][2], "freeze", ("image/(",))
  assert [problem.path for problem in found(config)] == ["freeze"]


def test_no_file_has_such_a_name():
  config = CASES[-1][2]
  for name in ("init.path", "data.sidecar", "data.tokenizer.path"):
    for text in ("x" * 300, "runs/" + "ü" * 200 + "/a"):
      assert [problem.path for problem in found(put(config, name, text))] == [name]
  assert not found(put(config, "data.sidecar", "/".join(["long" * 20] * 20)))


def test_names_are_files():
  for name in ("../escape", "a/b", "", " ", "a.b", "raw"):         # the last two: no path of a parameter, and no name of an average
    assert [problem.path for problem in found(put(CASES[-1][2], "ema", {name: 0.5}))] == ["ema"], name


def test_a_refusal_makes_nothing():
  config = put(CASES[-1][2], "objective.model.image_size", 10 ** 9)
  tracemalloc.start()
  assert json.dumps([str(problem) for problem in found(config)])
  assert tracemalloc.get_traced_memory()[1] < 2e7
  tracemalloc.stop()


def test_published_values_are_far_within():
  """Of every number that a preset says, the bounds leave four times as much."""
  for spec in ("mmdiff.models.clip:PRESETS", "mmdiff.models.coca:PRESETS", "mmdiff.models.unet:PRESETS"):
    for row in table(spec).values():
      for key, value in (row or {}).items():
        if isinstance(value, int) and not isinstance(value, bool):
          assert 4 * value <= ranges.numbers_of(f"objective.model.{key}", whole=True)[1], (spec, key)
