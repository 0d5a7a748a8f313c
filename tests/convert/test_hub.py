"""Which files of a model on the hub are fetched. Fetching itself, from a stand-in of the hub: tests/commands/test_get.py."""
import pytest

from mmdiff.convert import hub
from mmdiff.core.errors import ConfigError, DataError


@pytest.mark.parametrize("there, within, variant, come", [
  (["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "x.py"], "", "", ["config.json", "tokenizer.json",
                                                                                                  "model.safetensors"]),
  (["config.json", "pytorch_model.bin", "flax_model.msgpack"], "", "", ["config.json", "pytorch_model.bin"]),
  (["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"], "", "",
   ["open_clip_config.json", "open_clip_model.safetensors"]),
  (["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "", "",
   ["model.safetensors.index.json"]),
  (["model_index.json", "v1-5.safetensors", "v1-5.ckpt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors", "vae/diffusion_pytorch_model.bin"], "", "",
   ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"]),
  (["model_index.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"], "", "fp16",
   ["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors"]),
  (["model_index.json", "unet/a.json", "vae/config.json", "vae/x.safetensors"], "vae", "", ["vae/config.json", "vae/x.safetensors"]),
  (["model_index.json", "a.safetensors", "b.ckpt", "tokenizer.json"], "b.ckpt", "", ["model_index.json", "tokenizer.json", "b.ckpt"]),
])
def test_what_comes(there, within, variant, come):
  assert hub.wanted(there, within, variant=variant) == come


def test_what_cannot_be_chosen():
  with pytest.raises(DataError, match="several weight files, a.safetensors, b.safetensors; name one: o/n/a.safetensors"):
    hub.wanted(["a.safetensors", "b.safetensors", "c.ckpt"], where="o/n")
  with pytest.raises(DataError, match="o/n: no weights that are read here; its files are model.gguf, x.py"):
    hub.wanted(["model.gguf", "x.py"], where="o/n")
  with pytest.raises(DataError, match="variants fp16, fp8; choose one with --variant=fp16"):
    hub.wanted(["model.fp16.safetensors", "model.fp8.safetensors"], where="o/n")
  with pytest.raises(ConfigError, match="expected ORG/NAME"):
    hub.fetch("hf://one")


def test_an_index_names_files_beside_it_only(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text('{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}')
  assert hub.shards(index, "vae/model.safetensors.index.json", ["vae/x.safetensors"]) == ["vae/x.safetensors"]
  for text, there in (('{"weight_map": {"a": "../x"}}', ["x"]), ('{"weight_map": {"a": "x"}}', []), ('{"weight_map": [3]}', ["vae/3"])):
    index.write_text(text)
    with pytest.raises(DataError, match="index"):
      hub.shards(index, "vae/model.safetensors.index.json", there)


def test_nothing_of_others_is_overwritten(tmp_path):
  hub.refuse_others(tmp_path / "new")
  (tmp_path / "mine.txt").touch()
  with pytest.raises(ConfigError, match="holds other files"):
    hub.refuse_others(tmp_path)
