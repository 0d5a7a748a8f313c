"""1,000 machine-made mistakes in the real configs: each is refused, named, and met with the right suggestion."""
import os
import random
import string
import subprocess
import sys
import time

import pytest

from mmdiff.commands import flags
from mmdiff.core import schema
from mmdiff.core.spelling import edits

CONFIGS = ["clip.py:tiny", "clip.py", "siglip.py:tiny", "t2i_pixels.py", "t2i_pixels.py:emoji", "t2i_latent.py:tiny"]
WRONG = {"int": "abc", "float": "x.5", "bool": "perhaps", "str": None}


def load(name):
  config, problems = flags.read_config(f"configs/{name}", [])
  assert not problems
  return config


def mistype(word, rng, distance, known):
  """A misspelling at exactly that distance of one word of `known`, strictly nearer to it than to any other; None if none was found."""
  letters = string.ascii_lowercase + "_"
  for _ in range(50):
    typed = word
    for _ in range(distance):
      at = rng.randrange(len(typed) + 1)
      kind = rng.choice(["insert", "delete", "replace", "swap"])
      if kind == "insert":
        typed = typed[:at] + rng.choice(letters) + typed[at:]
      elif kind == "delete":
        typed = typed[:at] + typed[at + 1:]
      elif kind == "replace" and at < len(typed):
        typed = typed[:at] + rng.choice(letters) + typed[at + 1:]
      elif at + 1 < len(typed):
        typed = typed[:at] + typed[at + 1] + typed[at] + typed[at + 2:]
    if typed and edits(typed, word) == distance and all(edits(typed, other) > distance for other in known if other != word):
      return typed
  return None


def misspellings(name, rng):
  """(typed path, meant path, value) for every leaf, every part of its path, distances 1 and 2 (2 only from five letters on: nobody can
  tell which two-letter key a two-letter mistake meant)."""
  config = load(name)
  for path, field, value in schema.walk(config):
    if schema.block_of(field) is not None:
      continue
    parts = path.split(".")
    for i, part in enumerate(parts):
      siblings = {p.split(".")[i] for p in schema.dotted_keys(config) if p.split(".")[:i] == parts[:i] and p.count(".") >= i}
      for distance in (1, 2) if len(part) >= 5 else (1,):
        typed = mistype(part, rng, distance, siblings)
        if typed:
          yield ".".join([*parts[:i], typed, *parts[i + 1:]]), path, value


def wrong_values(name):
  """(path, text that its type refuses)."""
  for path, field, _ in schema.walk(load(name)):
    if schema.block_of(field) is not None:
      continue
    for text in ("abc", "1.5", "(1"):
      try:
        schema.parse_text(field, text)
      except ValueError:
        yield path, text


@pytest.fixture(scope="module")
def campaign():
  rng = random.Random(0)
  spelling = [(name, *case) for name in CONFIGS for case in misspellings(name, rng)]
  typing = [(name, *case) for name in CONFIGS for case in wrong_values(name)]
  return rng.sample(spelling, 700), rng.sample(typing, 300)


def test_the_right_key_is_suggested(campaign):
  loaded = {name: load(name) for name in CONFIGS}
  misses = []
  for name, typed, meant, value in campaign[0]:
    _, problems = flags.override(loaded[name], [(typed, "0" if value is schema.REQUIRED else str(value))])
    if not (len(problems) == 1 and problems[0].path == typed and problems[0].meant == meant):
      misses.append((name, typed, meant, [str(p) for p in problems]))
  assert len(misses) <= 0.02 * len(campaign[0]), misses


def test_the_wrong_value_is_named(campaign):
  loaded = {name: load(name) for name in CONFIGS}
  for name, path, text in campaign[1]:
    _, problems = flags.override(loaded[name], [(path, text)])
    assert len(problems) == 1 and problems[0].path == path and "found" in problems[0].message, (name, path, text)


def test_the_same_mistakes_in_a_file_are_found(campaign):
  loaded = {name: load(name) for name in CONFIGS}
  misses = []
  for name, typed, meant, value in campaign[0][::5]:
    config = flags.plain(loaded[name])
    node, parts = config, typed.split(".")
    source, true = loaded[name], meant.split(".")
    for part, right in zip(parts[:-1], true[:-1]):
      source = source[right] if isinstance(source, dict) and source.get(right) is not None else {}
      if part != right:
        node[part] = flags.plain(source)
      node = node.setdefault(part, {}) if node.get(part) is not None else node.__setitem__(part, {}) or node[part]
    node[parts[-1]] = 0 if value is schema.REQUIRED else value
    problems = schema.check(config)
    free = schema.EXPERIMENT
    first = next(i for i, (a, b) in enumerate(zip(parts, true)) if a != b)
    node = loaded[name]
    for part in true[:first]:
      free = schema.block_of(schema.keys_of(free, node)[part])
      node = node.get(part) or {}
    wanted = ".".join(parts[:first + 1])
    # In a file an entry of a free mapping may have any name; its neighbours tell nothing.
    if free.values is None and not any(p.path == wanted and p.meant and p.meant == ".".join(true[:first + 1]) for p in problems):
      misses.append((name, typed, meant, [str(p) for p in problems]))
  assert len(misses) <= 0.02 * len(campaign[0][::5]), misses


def test_every_leaf_can_be_set_by_its_own_value():
  for name in CONFIGS:
    config = load(name)
    for path, field, value in schema.walk(config):
      if schema.block_of(field) is None and value not in (schema.REQUIRED, schema.COMPUTED) and ".captions." not in path:
        text = repr(value) if isinstance(value, tuple) else str(value)
        again, problems = flags.override(config, [(path, text)])
        if not (value is None and ".evals." in path):
          assert not problems and schema.complete(again) == config, (path, text, problems)


def test_every_annotation_of_the_project_can_be_checked():
  tables = ["mmdiff.objectives:OBJECTIVES", "mmdiff.models:MODELS", "mmdiff.models:DENOISERS", "mmdiff.models:TEXT_ENCODERS",
            "mmdiff.data:SOURCES", "mmdiff.data:TOKENIZERS", "mmdiff.evaluators:EVALUATORS", "mmdiff.optim:OPTIMIZERS"]
  for spec in tables:
    for name, target in schema.table(spec).items():
      for key, field in schema.fields(target).items():
        assert schema.understood(field.annotation, field.module), (spec, name, key)


def test_refused_within_a_second_without_jax(tmp_path):
  """Whole processes: exit 64, nothing made, no JAX, processor time below a second (the wall clock of a shared machine proves nothing)."""
  code = "import sys; from mmdiff.__main__ import main; rc = main(sys.argv[1:]); assert 'jax' not in sys.modules; sys.exit(rc)"
  mistakes = ["--config.optim.default.lrr=1", "--config.steps=abc", "--config.batch_size=0", "--config.data.captions.lon=1", "--wordkir=x"]
  for mistake in mistakes:
    argv = ["train", "--config=configs/clip.py:tiny", f"--workdir={tmp_path / 'run'}", mistake]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=flags.ROOT)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 64, done.stderr
    assert mistake.split("=")[0] in done.stderr and "Traceback" not in done.stderr
    assert used < 1.0, (used, time.perf_counter() - start)
  assert not (tmp_path / "run").exists()
