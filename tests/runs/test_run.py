import json
import sys
import types

import numpy as np
import pytest

import mmdiff
from mmdiff.core.errors import DataError
from mmdiff.runs import run as module
from tests import toy_runs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("run"), toy_runs.clip(), steps=(2, 4), results=True)


def test_a_run_says_what_it_was_told_and_how_it_went(workdir):
  run = mmdiff.Run(workdir)
  assert run.config["objective"]["name"] == "contrastive" and run.steps == [2, 4]
  assert run.metrics["step"].tolist() == [2, 4] and run.metrics["loss"].tolist() == [0.5, 0.25]
  assert run.evals["probe"]["step"].tolist() == [2, 4] and run.evals["probe"]["x"].tolist() == [0.5, 0.5]
  assert repr(run) == f"<Run {workdir}: contrastive, step 4 of 4, loss 0.25; checkpoints 2, 4; evals probe>"
  assert repr(run.metrics) == "<2 lines, steps 2 to 4: step, loss>"
  with pytest.raises(KeyError, match="accuracy: not measured here; there are step, loss"):
    run.metrics["accuracy"]


def test_a_run_loads_its_model(workdir):
  assert mmdiff.Run(workdir).load().report["step"] == 4
  assert mmdiff.Run(f"{workdir}@2").load().report["step"] == mmdiff.Run(workdir).load(2).report["step"] == 2


def test_lines_of_one_step_are_one_row():
  """Evaluators and the loop write lines of their own; the strings of infinities are numbers by now, and other texts are none."""
  found = module.collected([dict(step=10, loss=1.0), dict(step=20, loss=float("inf"), note="x"), {"step": 10, "retrieval/r1": 0.5},
                            dict(step=20, loss=0.5), dict(step=30)])
  assert found["step"].tolist() == [10, 20, 30] and list(found) == ["step", "loss", "retrieval/r1"]
  np.testing.assert_array_equal(found["loss"], [1.0, 0.5, np.nan])
  np.testing.assert_array_equal(found["retrieval/r1"], [0.5, np.nan, np.nan])


def test_a_frame_is_of_pandas(monkeypatch):
  made = types.SimpleNamespace(DataFrame=lambda columns, index: (columns, index), Index=lambda values, name: (name, values.tolist()))
  monkeypatch.setitem(sys.modules, "pandas", made)
  columns, index = module.collected([dict(step=1, loss=2.0)]).frame()
  assert list(columns) == ["loss"] and index == ("step", [1])


def test_what_is_no_run(tmp_path, workdir):
  with pytest.raises(DataError, match="expected a run directory of"):
    mmdiff.Run(tmp_path)
  (tmp_path / "eval").mkdir()
  (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
  run = mmdiff.Run(tmp_path)
  assert run.steps == [] and len(run.metrics["step"]) == 0
  assert repr(run) == f"<Run {tmp_path}: contrastive, no step of 4 yet; checkpoints none; evals none>"
  (tmp_path / "eval" / "odd.json").write_text(json.dumps(dict(name="odd")))
  with pytest.raises(DataError, match="odd.json: no result of an evaluator"):
    run.evals  # noqa: B018
