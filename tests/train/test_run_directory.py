import json
import subprocess
import sys

import pytest

from mmdiff.core.errors import DataError
from mmdiff.train import run_directory
from tests import toy_runs


def test_a_step_follows_an_at_sign_unless_the_folder_is_called_so(tmp_path):
  for name in ("run", "run@7"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
  assert run_directory.locate(tmp_path / "run") == (tmp_path / "run", None)
  assert run_directory.locate(f"{tmp_path}/run@12") == (tmp_path / "run", 12)
  assert run_directory.locate(f"{tmp_path}/run@7") == (tmp_path / "run@7", None)
  with pytest.raises(DataError, match="did you mean .*run, .*run@7"):
    run_directory.locate(tmp_path)


def test_a_saved_config_comes_back_whole(tmp_path):
  config = toy_runs.clip()
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert run_directory.read_config(tmp_path) == config
  for content, message in (("{", "not valid JSON"), (json.dumps(config | dict(sed=1)), "not a config of this version: sed: unknown key")):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=message):
      run_directory.read_config(tmp_path)


def test_the_average_that_a_flag_names():
  names = [run_directory.average(dict(ema=ema), params) for ema in ({}, dict(eval=0.9)) for params in (None, "raw", "slow")]
  assert names == ["", "", "slow", "eval", "", "slow"]


def test_jax_is_not_imported():
  program = "import sys; from mmdiff.train import run_directory; from mmdiff.commands import evaluate, sample; print('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "False"
