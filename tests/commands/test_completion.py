"""The shell is told what this version knows: commands, flags, keys of the config on the line, and values."""
import subprocess
import sys

import pytest

from mmdiff import __main__ as cli
from mmdiff.commands import completion
from tests.test_layering import ROOT

CLIP = "mmdiff train --config=configs/clip.py:tiny "


@pytest.mark.parametrize("line, expected", [
  ("mmdiff tra", ["train "]), ("mmdiff data sh", ["shard "]), ("mmdiff sample --se", ["--seed="]),
  ("mmdiff search query --ima", ["--images="]),
  ("mmdiff edit inpaint --ma", ["--masks="]), ("mmdiff edit inpaint --long_prompts=", ["--long_prompts=cut ", "--long_prompts=chunks "]),
  ("mmdiff data build --thr", []),                                # validate has it, build has not
  ("mmdiff train --config=configs/kl", ["--config=configs/kl_f8.py "]),
  ("mmdiff train --config=configs/clip.py", ["--config=configs/clip.py:tiny "]),
  (CLIP + "--config.checkpoint.ke", ["--config.checkpoint.keep="]), (CLIP + "--config.checkp", [
    "--config.checkpoint.", "--config.checkpoint.every_steps=", "--config.checkpoint.keep="]),
  (CLIP + "--config.sharding=r", ["--config.sharding=replicated "]), (CLIP + "--config.ema_warmup=", [
    "--config.ema_warmup=True ", "--config.ema_warmup=False "]),
  ("mmdiff nothing --x", []), ("mmdiff list sam", ["samplers "]), ("mmdiff sample seed", [])])
def test_what_a_word_may_become(line, expected, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert completion.words(line) == expected


def test_half_a_line_is_no_error(capsys):
  for line in ("mmdiff train --config=nope.py --config.s", "mmdiff train --config=configs/clip.py:tny --config.s", "mmdiff 'a"):
    assert cli.main(["completion", "words", line]) == 0
    assert capsys.readouterr().out.strip() == ""
  assert cli.main(["completion", "tcsh"]) == 64
  assert "bash|zsh|fish" in capsys.readouterr().err


def test_bash_completes(tmp_path):
  """The real shell with the real script; bash itself has split the word at "=" and ":"."""
  run = lambda *words: subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
  script = run(sys.executable, "-m", "mmdiff", "completion", "bash").stdout
  (tmp_path / "try.sh").write_text(f'mmdiff() {{ "{sys.executable}" -m mmdiff "$@"; }}\n{script}'
                                   'for COMP_LINE in "mmdiff trai" "mmdiff train --config=configs/kl" "mmdiff train --config.a"; do\n'
                                   'COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _mmdiff; printf "<%s>" "${COMPREPLY[@]}"; echo; done\n')
  made = run("bash", "-e", str(tmp_path / "try.sh"))
  assert made.stdout.splitlines() == ["<train >", "<configs/kl_f8.py >", "<>"] and made.stderr == ""


def test_tables_are_read_without_importing():
  flags, takes = completion.tables("edit")
  assert "masks" in flags and set(takes) == {"img2img", "inpaint", "upscale"}
  assert set(completion.tables("data")[1]["index"]) == {"data", "config"} and completion.tables("completion") == ({}, {})
