"""Files are whole or absent, and say what made them."""
import importlib.metadata
import json
import re
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

import mmdiff
from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.core.files import parse_json, plain, read_object, versions, write_atomically, write_json


def test_what_numpy_makes_becomes_json(tmp_path):
  value = OrderedDict(a=np.float32(0.5), b=np.arange(3), c=(1, {"x", "a"}), d={1: np.bool_(True)}, e="Gemüse")
  assert plain(value) == {"a": 0.5, "b": [0, 1, 2], "c": [1, ["a", "x"]], "d": {"1": True}, "e": "Gemüse"}
  write_json(tmp_path / "deep" / "file.json", value)
  assert json.loads((tmp_path / "deep" / "file.json").read_text(encoding="utf-8")) == plain(value)


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
  file = tmp_path / "file.json"
  write_json(file, 1)
  with pytest.raises(TypeError):
    write_json(file, object())

  def fill(handle):
    handle.write(b"half")
    raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    write_atomically(file, fill)
  assert file.read_text() == "1\n" and [path.name for path in tmp_path.iterdir()] == ["file.json"]
  with pytest.raises(CannotWrite, match="cannot write .*file.json/below"):
    write_json(file / "below", 1)


def test_versions_without_an_import():
  found = versions()
  assert found["numpy"] == np.__version__ and found["python"] == sys.version.split()[0]
  assert found["jax"] == importlib.metadata.version("jax") and "orbax-checkpoint" in found


def test_json_that_the_standard_leaves_open_is_refused_unless_it_is_looked_at(tmp_path):
  for text, said in (('{"a": 1, "a": 2}', "given twice"), ("[" * 100_000, "nested too deeply"), ("NaN", "no number"),
                     ("-Infinity", "no number"), (b"\xff", "utf-8"), ("", "Expecting value")):
    with pytest.raises(ValueError, match=said):
      parse_json(text)
    (tmp_path / "file.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"file.json: not valid JSON: .*{said}"):
      read_object(tmp_path / "file.json")
  assert parse_json("-Infinity", infinities=True) == parse_json(b"-Infinity", nan=True) == float("-inf")
  assert np.isnan(parse_json("NaN", nan=True))
  with pytest.raises(ValueError, match="NaN is no number"):
    parse_json("NaN", infinities=True)


def test_a_file_that_holds_no_object(tmp_path):
  (tmp_path / "list.json").write_text("[1]")
  with pytest.raises(DataError, match="list.json: expected an object, found a list"):
    read_object(tmp_path / "list.json")
  with pytest.raises(DataError, match="none.json: cannot be read: No such file"):
    read_object(tmp_path / "none.json")


def test_every_file_of_json_is_read_by_these():
  """Python's own reader ends the process at what is nested without end, and takes the last of two values."""
  ours = re.compile(r"json\.loads?\((?!json\.dumps\(|self\._backend\.to_str\(\))")      # but of what was made here a moment ago
  package = Path(mmdiff.__file__).parent
  found = {str(file.relative_to(package)) for file in package.rglob("*.py") if ours.search(file.read_text(encoding="utf-8"))}
  assert found == {"core/files.py"}
