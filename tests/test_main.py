"""The command line around the commands: help, versions, exit codes, messages."""
import subprocess
import sys
import types

import pytest

import mmdiff
from mmdiff import __main__ as cli
from mmdiff.commands import flags
from mmdiff.core.errors import CannotWrite, ConfigError, DataError, GaveUp, Interrupted

THERE = [name for name in cli.COMMANDS if (flags.ROOT / "mmdiff" / "commands" / f"{name}.py").exists()]


def command(monkeypatch, behaviour):
  monkeypatch.setitem(sys.modules, "mmdiff.commands.train", types.SimpleNamespace(main=behaviour))


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_usage_names_every_command(argv, capsys):
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in cli.COMMANDS)


def test_version(capsys):
  assert cli.main(["--version"]) == 0 and cli.main(["-V"]) == 0
  assert capsys.readouterr().out == (mmdiff.__version__ + "\n") * 2


@pytest.mark.parametrize("typed,meant", [("trian", "train"), ("doctr", "doctor"), ("evalute", "evaluate"), ("xxxxxxxxx", None)])
def test_unknown_commands_meet_the_nearest(typed, meant, capsys):
  assert cli.main([typed]) == 64
  err = capsys.readouterr().err
  assert f"unknown command {typed!r}" in err and "known: train, " in err and (f"did you mean {meant}?" in err if meant else True)


@pytest.mark.parametrize("error,code", [(ConfigError("bad"), 64), (DataError("bad"), 65), (GaveUp("bad"), 70), (CannotWrite("bad"), 73),
                                        (Interrupted("bad"), 75), (KeyboardInterrupt(), 75)])
def test_errors_are_a_line_and_a_code(monkeypatch, capsys, error, code):
  def behaviour(argv):
    raise error
  command(monkeypatch, behaviour)
  assert cli.main(["train", "--x"]) == code
  err = capsys.readouterr().err
  assert err == ("mmdiff train: bad\n" if str(error) else "mmdiff train: interrupted; the same command goes on\n")
  monkeypatch.setenv("MMDIFF_TRACEBACK", "1")
  with pytest.raises(type(error)):
    cli.main(["train"])


def test_several_problems_are_listed(monkeypatch, capsys):
  def behaviour(argv):
    raise ConfigError("--a: wrong\n--b: missing")
  command(monkeypatch, behaviour)
  assert cli.main(["train"]) == 64
  assert capsys.readouterr().err == "mmdiff train: 2 problems\n  --a: wrong\n  --b: missing\n"


def test_bugs_keep_their_traceback(monkeypatch):
  def behaviour(argv):
    raise KeyError("a bug")
  command(monkeypatch, behaviour)
  with pytest.raises(KeyError):
    cli.main(["train"])


def test_arguments_and_result_pass_through(monkeypatch):
  seen = []
  command(monkeypatch, lambda argv: seen.append(argv))
  assert cli.main(["train", "--a=1", "b"]) == 0 and seen == [["--a=1", "b"]]
  command(monkeypatch, lambda argv: 65)
  assert cli.main(["train"]) == 65


@pytest.mark.parametrize("name", THERE)
def test_help_of_every_command_needs_no_import(name, capsys):
  before = set(sys.modules)
  assert cli.main([name, "--help"]) == 0
  out = capsys.readouterr().out
  assert len(out) > 100 and "--" in out
  assert f"mmdiff.commands.{name}" in before or f"mmdiff.commands.{name}" not in sys.modules
  assert cli.main(["help", name]) == 0 and capsys.readouterr().out == out


def test_no_command_imports_jax_before_its_flags_are_checked():
  """One process for all: a wrong flag exits 64 with JAX still unimported."""
  code = f"import sys\nfrom mmdiff.__main__ import main\nfor name in {THERE}:\n  assert main([name, '--no_such_flag=1']) == 64, name\n" \
         "  assert 'jax' not in sys.modules, name\nassert main([]) == 0 and main(['train', '--help']) == 0 and 'jax' not in sys.modules\n"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=flags.ROOT)
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr


def test_help_of_one_of_a_commands_commands_lists_its_own_flags(capsys):
  assert cli.main(["data", "index", "--help"]) == 0
  out = capsys.readouterr().out
  assert "--config" in out and "--vocab" not in out.partition("Flags:")[2] and "--per_shard" not in out
  assert cli.main(["data", "--help"]) == 0 and "--vocab" in capsys.readouterr().out
