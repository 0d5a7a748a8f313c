"""`import mmdiff`: what it shows, and what it costs."""
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import mmdiff
import mmdiff.model
from mmdiff.abilities import Model
from mmdiff.model import ABILITIES


def test_importing_it_imports_no_jax():
  code = ("import sys, mmdiff; assert callable(mmdiff.train) and 'load' in dir(mmdiff) and 'jax' not in sys.modules and 'numpy' not in "
          "sys.modules; mmdiff.Run; assert 'jax' not in sys.modules, 'a run is read without JAX'")
  subprocess.run([sys.executable, "-c", code], check=True)


def test_help_shows_the_real_thing():
  assert mmdiff.load is mmdiff.model.load and mmdiff.save is mmdiff.model.save and mmdiff.Model is Model
  assert {"path", "step", "params", "mesh", "tokenizer", "dtype"} < set(inspect.signature(mmdiff.load).parameters)
  shown = pydoc.plain(pydoc.render_doc(mmdiff.load))
  assert "-> mmdiff.abilities.Model" in shown and "tokenizer: for a public checkpoint without one" in shown
  with pytest.raises(AttributeError, match="module 'mmdiff' has no attribute 'laod'"):
    mmdiff.laod  # noqa: B018


def test_its_types_are_there_and_packaged():
  """Type checkers read `Model` as every ability (`mmdiff.model`), since the class at hand is made when a model is loaded."""
  assert (Path(mmdiff.__file__).parent / "py.typed").is_file()
  source = inspect.getsource(mmdiff.model)
  listed = source.partition("  class Model(")[2].partition(")")[0].split(", ")
  bases = {base.__name__ for ability in ABILITIES if ability.__name__ in listed for base in ability.__mro__}
  assert {ability.__name__ for ability in ABILITIES} <= bases
