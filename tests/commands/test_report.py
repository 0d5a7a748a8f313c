"""The command writes the page of one run or several, at any time, and over nothing of others."""
import subprocess
import sys

import pytest

from mmdiff.__main__ import main
from mmdiff.commands import report
from mmdiff.core.errors import ConfigError, DataError
from tests.report.test_run import make_run


def test_one_run_and_several(tmp_path, capsys):
  a, b = (make_run(tmp_path / name) for name in "ab")
  assert main(["report", str(a)]) == 0 and capsys.readouterr().out == f"{a / 'report.html'}\n"
  assert report.main([str(a), str(b), "--csv"]) == 0
  assert capsys.readouterr().out.split() == [str(tmp_path / "comparison.html"), str(tmp_path / "comparison.csv")]
  out = tmp_path / "elsewhere" / "x.html"
  assert report.main([f"--out={out}", str(a), str(a), "--csv"]) == 0 and out.exists() and out.with_suffix(".csv").exists()
  assert report.main([f"--out={out}", str(b), "--csv"]) == 0                  # its own files are written anew


@pytest.mark.parametrize("words,said", [([], "which run"), (["nowhere"], "no such folder; expected a run"), (["a@400"], "whole run"),
                                        (["a", "--out=a"], "is a folder"), (["a", "--out=notes"], "no page that mmdiff wrote"),
                                        (["a", "--out=x.html", "--csv"], "no table that this command wrote"),
                                        (["a", "--cvs"], "did you mean --csv")])
def test_what_it_refuses(tmp_path, monkeypatch, words, said):
  monkeypatch.chdir(tmp_path)
  make_run(tmp_path / "a")
  for name in ("notes", "x.csv"):
    (tmp_path / name).write_text("mine")
  with pytest.raises((ConfigError, DataError), match=said):
    report.main(words)
  assert (tmp_path / "notes").read_text() == (tmp_path / "x.csv").read_text() == "mine" and not (tmp_path / "x.html").exists()


def test_it_needs_no_jax(tmp_path):
  """So that it takes a second, and can run beside a training that has taken the accelerator."""
  a, b = (make_run(tmp_path / name) for name in "ab")
  program = "import sys; from mmdiff.commands import report; report.main(sys.argv[1:]); assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", program, str(a), str(b)], check=True, capture_output=True)
