"""`mmdiff runs`: what it says of runs that are running, finished and stopped, and of those that are broken."""
import json
import subprocess
import sys

import pytest

from mmdiff.__main__ import main
from mmdiff.commands import flags, runs
from mmdiff.core import locks


def make(folder, *, steps=9, step=9, lr=0.1, recall=None):
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(dict(steps=steps, optim=dict(default=dict(lr=lr)), batch_size=8)))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(dict(step=n, loss=1.0)) + "\n" for n in range(1, step + 1)))
  if recall is not None:
    (folder / "eval").mkdir()
    result = dict(name="own", step=step, evaluator=dict(name="retrieval"), scalars=dict(recall_at_1=recall, images=4))
    (folder / "eval" / f"own_{step:08}.json").write_text(json.dumps(result))
  return folder


@pytest.fixture
def three(tmp_path):
  make(tmp_path / "a", recall=0.5)
  make(tmp_path / "deep" / "b", step=3, lr=0.2)
  make(tmp_path / "c", step=4, lr=0.2)
  return tmp_path


def test_a_row_a_run(three, monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "140")
  with locks.held(three / "c", busy=""):
    assert main(["runs", str(three), f"--json={three / 'runs.json'}"]) == 0
  head, a, c, b = capsys.readouterr().out.splitlines()
  assert head.split() == ["run", "state", "age", "score", "optim.default.lr"]
  assert a.startswith("a ") and "finished, step 9 of 9" in a and "own: recall at 1 50.0 % (chance 25.0 %)" in a
  assert a.rstrip().endswith("0.1")
  assert "running, step 4 of 9" in c and "step 3 of 9" in b and "running" not in b and b.startswith("deep/b")
  rows = json.loads((three / "runs.json").read_text())["runs"]
  assert [row["differs"] for row in rows] == [{"optim.default.lr": 0.1}, {"optim.default.lr": 0.2}, {"optim.default.lr": 0.2}]
  assert not (three / "a" / locks.LOCK).exists()


def test_columns_that_do_not_fit_are_left_out(three, monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "80")
  assert main(["runs", str(three)]) == 0
  assert "optim.default.lr" not in capsys.readouterr().out


def test_what_is_broken_or_not_there(tmp_path, capsys):
  assert main(["runs", str(tmp_path)]) == 65 and "no run below it" in capsys.readouterr().err
  assert main(["runs", str(tmp_path / "x")]) == 65 and "no such folder" in capsys.readouterr().err
  (make(tmp_path / "a") / "config.json").write_text("{")
  assert main(["runs", str(tmp_path)]) == 0 and "step 9" in capsys.readouterr().out


def test_ages():
  assert [runs.ago(seconds) for seconds in (None, 5, 90, 7_300, 200_000)] == ["", "5 s", "1 min", "2 h", "2 d"]


def test_it_needs_no_jax(three):
  code = f"import sys\nfrom mmdiff.__main__ import main\nassert main(['runs', {str(three)!r}]) == 0 and 'jax' not in sys.modules"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=flags.ROOT)
  assert done.returncode == 0, done.stderr
