import subprocess
import sys

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


def test_jax_is_not_imported():
  program = f"import sys; from launch import check; assert check.main({GOOD}) == 0; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", program], check=True)
