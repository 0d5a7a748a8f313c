"""Files are whole or absent, and say what made them."""
import importlib.metadata
import json
import sys
from collections import OrderedDict

import numpy as np
import pytest

from mmdiff.core.errors import CannotWrite
from mmdiff.core.files import plain, versions, write_atomically, write_json


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
