"""`import mmdiff`: what it shows, and what it costs."""
import inspect
import os
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import mmdiff
import mmdiff.model
from mmdiff.abilities import Model


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


SNIPPET = """import mmdiff
model = mmdiff.load("x")
reveal_type(model.embed_image("a.png"))
reveal_type(model.generate("a", steps=3))
reveal_type(mmdiff.train("x", "y", steps=3).load().caption("a.png"))
model.encode_image
"""


def test_the_mark_of_its_types_is_packaged():
  assert (Path(mmdiff.__file__).parent / "py.typed").is_file()
  assert '"py.typed"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


@pytest.mark.long
def test_editors_and_checkers_know_the_methods(tmp_path):
  """Those of all abilities, since the class at hand is made when a model is loaded."""
  (tmp_path / "snippet.py").write_text(SNIPPET)
  options = ("--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={tmp_path}", "--config-file=")
  done = subprocess.run([sys.executable, "-m", "mypy", *options, "snippet.py"], cwd=tmp_path, capture_output=True, text=True,
                        env=dict(os.environ, MYPYPATH=str(Path(__file__).parents[1])))
  said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
  assert "numpy.ndarray" in said[0] and "list[PIL.Image.Image]" in said[1] and said[2] == 'note: Revealed type is "list[str]"'
  assert said[3].startswith('error: "Model" has no attribute "encode_image"')
