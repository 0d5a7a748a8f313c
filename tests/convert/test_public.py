import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmdiff.convert import FORMATS, formats, public
from mmdiff.core.build import resolve
from mmdiff.core.errors import CannotWrite, ConfigError, DataError

FIXTURES = Path(__file__).parent / "fixtures"


def test_every_format_has_its_name():
  assert all(resolve(spec).name == name for name, spec in FORMATS.items())


def test_what_is_public(tmp_path):
  assert public.is_public(FIXTURES / "hf_clip") and public.is_public(FIXTURES / "openai.pt")
  assert not public.is_public(tmp_path) and not public.is_public(Path(__file__))
  with pytest.raises(DataError, match="none: no such file or folder"):
    public.is_public(tmp_path / "none")
  (tmp_path / "config.json").write_text(json.dumps(dict(objective=dict(name="contrastive"))))
  (tmp_path / "model.safetensors").touch()
  assert not public.is_public(tmp_path)


def test_the_report_is_said_and_returned(capsys):
  loaded = public.load(FIXTURES / "hf_clip")
  assert len(loaded.report.loaded) == 78 and loaded.dtypes == {"float16": 78}
  assert "hf_clip (hf-clip): 78 loaded, 0 reshaped, 0 missing, 0 unexpected, 0 ignored" in capsys.readouterr().err


def test_unknown_things_are_described(tmp_path):
  with pytest.raises(DataError, match="no known format: 10 tensors such as single"):
    public.load(FIXTURES / "zip.pt")
  with pytest.raises(DataError, match="none: no such file or folder"):
    public.load(tmp_path / "none")
  with pytest.raises(DataError, match="no weights in this folder"):
    public.load(tmp_path)
  shutil.copytree(FIXTURES / "hf_clip", tmp_path / "x")
  (tmp_path / "x" / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(DataError, match="config.json of model_type 'bert'"):
    public.load(tmp_path / "x")
  (tmp_path / "x" / "config.json").write_text("[" * 10)
  with pytest.raises(DataError, match="config.json: not valid JSON"):
    public.load(tmp_path / "x")
  with pytest.raises(ConfigError, match="unknown format 'hf_clip', did you mean 'hf-clip'"):
    public.known("hf_clip")


def test_a_file_is_read_with_its_folders_config():
  loaded = public.load(FIXTURES / "hf_clip" / "model.safetensors", quiet=True)
  assert loaded.format == "hf-clip" and loaded.module == public.load(FIXTURES / "hf_clip", quiet=True).module


def test_missing_tensors_may_be_allowed(tmp_path):
  shutil.copytree(FIXTURES / "hf_clip", tmp_path / "x")
  config = json.loads((tmp_path / "x" / "config.json").read_text())
  config["vision_config"]["num_hidden_layers"] = 3
  (tmp_path / "x" / "config.json").write_text(json.dumps(config))
  loaded = public.load(tmp_path / "x", quiet=True, allow_missing=r"vision_model\.encoder\.layers\.2\..*")
  assert len(loaded.report.missing) == 16
  kernels = loaded.params["image"]["stack"]["mlp"]["up"]["kernel"]
  assert kernels[2].std() > 0.01 and (loaded.params["image"]["stack"]["norm_mlp"]["scale"][2] == 1).all()       # as initialised


def test_large_models_come_in_several_files_with_their_tokenizer(tmp_path):
  loaded = public.load(FIXTURES / "hf_clip", quiet=True)
  (tmp_path / "tokens").mkdir()
  (tmp_path / "tokens" / "vocab.json").write_text("{}")
  (tmp_path / "tokens" / "merges.txt").write_text("")
  assert public.tokenizer_folder(tmp_path / "tokens") == tmp_path / "tokens"
  keep = dict(format="hf-clip", module=loaded.module, config=loaded.config, params=loaded.params, style=loaded.style)
  files = public.save(tmp_path / "out", **keep, shard_bytes=20_000, files=tmp_path / "tokens")
  assert "model.safetensors.index.json" in files and {"vocab.json", "merges.txt", "config.json"} <= set(files)
  again = public.load(tmp_path / "out", quiet=True)
  np.testing.assert_array_equal(again.params["text"]["position"], loaded.params["text"]["position"])
  assert again.tokenizer == tmp_path / "out"
  with pytest.raises(ConfigError, match="dtype: expected one of"):
    public.save(tmp_path / "out", **keep, dtype="int8")
  (tmp_path / "file").touch()
  with pytest.raises(CannotWrite):
    public.save(tmp_path / "file", **keep)


def test_nested_and_flat_are_inverse():
  flat = {"a/b/c": 1, "a/d": 2, "e": 3}
  assert public.flatten(public.nest(flat)) == flat and public.flatten(()) == {}
  assert formats.take(dict(a=3), "a", int, "x") == 3
  with pytest.raises(DataError, match="x: a: expected int, found True"):
    formats.take(dict(a=True), "a", int, "x")

