"""What a machine lacks is told in one line with the way out and exit code 70, a full disk with 73; a bug is seen whole."""
import errno
import sys
import types

import pytest

from mmdiff import __main__ as cli
from mmdiff.core import faults
from mmdiff.core.errors import CannotWrite, GaveUp
from tests.test_main import command


class JaxRuntimeError(RuntimeError):
  pass


@pytest.mark.parametrize("error, said", [
  (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1118696127896 bytes."), "out of memory (1.0 TiB more were asked for, "),
  (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.50GiB."), "out of memory (2.5 GiB more were asked for, "),
  (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"), "out of memory (7.5 GiB more"),
  (RuntimeError("Unable to initialize backend 'cuda': no GPU"), "EXTRAS=cuda"),
  (RuntimeError("Unknown backend qpu. Available backends are ['cpu']"), "JAX knows none of that name"),
])
def test_a_line_and_exit_code_70(monkeypatch, capsys, error, said):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)

  def behaviour(argv):
    raise error
  command(monkeypatch, behaviour)
  assert cli.main(["train"]) == 70
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1 and ("--config.batch_size" in err) == ("memory" in said)


def test_the_empty_assertion_of_jax_is_a_back_end_that_is_not_there(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  module = types.ModuleType("xla_bridge")
  exec(compile("def backends():\n  assert None is not None\n", "jax/_src/xla_bridge.py", "exec"), module.__dict__)
  with pytest.raises(AssertionError) as met:
    module.backends()
  assert "JAX has no cuda back end on this machine" in str(faults.told(met.value))
  assert faults.told(AssertionError("ours")) is None and faults.told(KeyError("a bug")) is None


def test_a_full_disk(monkeypatch, capsys, tmp_path):
  told = faults.told(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x")))
  assert isinstance(told, CannotWrite) and str(tmp_path / "x") in str(told) and "no space" in str(told)
  assert isinstance(faults.told(MemoryError()), GaveUp) and faults.told(FileNotFoundError(errno.ENOENT, "no", "x")) is None


def test_a_full_output_is_told(capfd):
  import subprocess
  with open("/dev/full", "w") as full:
    made = subprocess.run([sys.executable, "-m", "mmdiff", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
  assert made.returncode == 73 and made.stderr == "mmdiff: cannot write the output: no space left\n"
