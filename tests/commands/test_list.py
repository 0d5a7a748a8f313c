"""`mmdiff list`: every table, a line each, without importing what it names."""
import subprocess
import sys

import pytest

from mmdiff.__main__ import main
from mmdiff.commands import flags
from mmdiff.commands import list as command
from mmdiff.convert import FORMATS, public
from mmdiff.core import signatures
from mmdiff.core.build import resolve
from mmdiff.diffusion import plans


@pytest.mark.parametrize("what, names", [
  ("samplers", [*plans.SAMPLERS, *plans.ALIASES]), ("formats", list(FORMATS)),
  ("models", ["clip", "coca", "dit", "unet", "t5", "kl", "patch"]),
  *((what, list(signatures.table(spec))) for what, spec in (
    ("evaluators", "mmdiff.evaluators:EVALUATORS"), ("sources", "mmdiff.data:SOURCES"), ("objectives", "mmdiff.objectives:OBJECTIVES"),
    ("tokenizers", "mmdiff.data:TOKENIZERS"))), ("configs", flags.config_files())])
def test_every_name_is_there_with_a_word_about_it(what, names):
  rows = dict(command.LISTS[what]())
  listed = {name.partition("[")[0]: about for name, about in rows.items()}
  assert set(names) <= set(listed) and all(len(about) > 8 for about in listed.values())


def test_what_is_only_read_is_what_cannot_be_written():
  assert {name for name, about in command.LISTS["formats"]() if "only read" in about} == {
    name for name, spec in FORMATS.items() if resolve(spec).write is None}
  with pytest.raises(Exception, match="only read"):
    public.known("openai")


def test_lines_and_filters(monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "80")
  assert main(["list"]) == 0 and "mmdiff list configs" in capsys.readouterr().out
  assert main(["list", "samplers", "dpm"]) == 0
  out = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in out] == ["ddpm", "dpm++2m", "dpm++2m_karras"]
  assert main(["list", "configs"]) == 0
  assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())
  assert main(["list", "sampler"]) == 64 and "did you mean samplers?" in capsys.readouterr().err
  assert main(["list", "samplers", "qqq"]) == 64


def test_nothing_is_imported():
  code = f"import sys\nfrom mmdiff.__main__ import main\nfor what in {list(command.LISTS)}:\n  assert main(['list', what]) == 0\n" \
         "assert not {'jax', 'numpy', 'ml_collections'} & set(sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=flags.ROOT)
  assert done.returncode == 0, done.stderr
