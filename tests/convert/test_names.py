"""What a name of a model means, without JAX and without a network."""
import subprocess
import sys

import pytest

from mmdiff.commands import flags
from mmdiff.convert import names
from mmdiff.core.errors import DataError


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache with two revisions of one model, in the layout of the hub's tools."""
  root = tmp_path / "cache"
  monkeypatch.setenv("HF_HUB_CACHE", str(root))
  monkeypatch.chdir(tmp_path)
  stored = root / "models--openai--clip"
  for commit, ref in (("aaaa", "main"), ("bbbb", "v2")):
    (stored / "snapshots" / commit / "vae").mkdir(parents=True)
    (stored / "refs").mkdir(exist_ok=True)
    (stored / "refs" / ref).write_text(commit)
  return stored


def test_ids_are_found_in_the_cache(cache):
  at = cache / "snapshots"
  assert names.find("openai/clip") == str(at / "aaaa") and names.find("openai/clip/vae") == str(at / "aaaa" / "vae")
  assert names.find("openai/clip@v2") == names.find("openai/clip@bbbb") == str(at / "bbbb")
  assert names.find(cache) == str(at / "aaaa")                 # the folder of the cache itself
  assert names.title(at / "aaaa") == "clip" and names.title(at / "aaaa" / "vae") == "clip-vae" and names.title("a/b.safetensors") == "b"


def test_where_the_cache_is(monkeypatch, tmp_path):
  for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert names.cache() == tmp_path / ".cache" / "huggingface" / "hub"
  monkeypatch.setenv("HF_HOME", "/hf")
  assert str(names.cache()) == "/hf/hub"


def test_what_is_here_goes_first(cache, tmp_path):
  (tmp_path / "openai" / "clip").mkdir(parents=True)
  assert names.find("openai/clip") == "openai/clip" and names.find("openai/clip@2000") == "openai/clip@2000"


@pytest.mark.parametrize("name, says", [
  ("stable-diffusion", "stable-diffusion: no such file or folder; expected a run directory"), ("/nope", "/nope: no such file or folder"),
  ("runs/clp", "did you mean runs/clip[?]; expected a run directory"),
  ("openai/clop", "did you mean openai/clip[?]. `mmdiff get openai/clop`"),
  ("openai/clip@v3", "with revision v3; there are main, v2"), ("openai/clip/unet", "aaaa has no unet"), ("a/b/../c", "no such file")])
def test_what_means_nothing(cache, tmp_path, name, says):
  (tmp_path / "runs" / "clip").mkdir(parents=True)
  with pytest.raises(DataError, match=says):
    names.find(name)


def test_what_is_no_model_is_said(tmp_path):
  (tmp_path / "pictures").mkdir()
  for name in ("a.jpg", "b.PNG"):
    (tmp_path / "pictures" / name).touch()
  (tmp_path / "x.tar").touch()
  assert names.what(tmp_path / "pictures") == "a folder of 2 pictures" and names.what(tmp_path / "x.tar").startswith("a tar")
  (tmp_path / "b.safetensors").touch()
  (tmp_path / "x.tar").unlink()
  assert "several weight files, b.safetensors" in names.what(tmp_path)


def test_a_missing_model_is_said_before_jax_is_imported(tmp_path):
  lines = [["sample", "--model=no-such", "--prompts=a", "--out=o"], ["info", "a/b"], ["convert", "--src=/nope", "--to=hf-clip", "--out=o"],
           ["evaluate", "--model=a/b", "--task=loss"], ["caption", "--model=a/b", "--data=scenes:T16", "--out=o"],
           ["search", "build", "--model=a/b", "--data=scenes:T16", "--out=o"],
           ["train", "--config=configs/clip.py:tiny", "--workdir=w", "--config.init.path=a/b"]]
  code = f"import sys\nfrom mmdiff.__main__ import main\nfor line in {lines}:\n" \
         "  assert main(line) == 65, line\n  assert 'jax' not in sys.modules, line\n"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                        env={"PYTHONPATH": str(flags.ROOT), "HF_HUB_CACHE": str(tmp_path)})
  assert done.returncode == 0, done.stderr
