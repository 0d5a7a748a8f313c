import subprocess
import sys

import pytest

from launch import check

GOOD = ["train", "--config=configs/clip.py:tiny", "--workdir=runs/x"]


def test_a_good_command_line_passes():
  assert check.main(GOOD) == 0


def test_all_mistakes_are_said(capsys):
  assert check.main(["train", "--config=configs/clip.py:tiny", "--wrkdir=x", "--config.stps=3"]) == 64
  said = capsys.readouterr().err
  assert "workdir" in said and "config.steps" in said


def test_unknown_command(capsys):
  assert check.main(["trian"]) == 64
  assert "trian" in capsys.readouterr().err


@pytest.mark.parametrize("argv, code", [
  (["data", "build", "emoji", "--out=x"], 0), (["data", "inspect", "scenes:T32", "--source.split=val_iid"], 0), (["data", "biuld"], 64),
  (["data", "index", "x.tar", "--vocab=3"], 64), (["data", "precompute", "x"], 64), (["info", "CLIP-ViT-B-32"], 0),
  (["info", "a", "b"], 64), (["search", "query", "x"], 64), (["evaluate", "--workdir=x", "--task=retrieval", "--task.limit=3"], 0)])
def test_commands_of_commands(argv, code):
  assert check.main(argv) == code


def test_jax_is_not_imported():
  program = f"import sys; from launch import check; assert check.main({GOOD}) == 0; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", program], check=True)
