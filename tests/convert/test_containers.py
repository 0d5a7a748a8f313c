import json
import re
from pathlib import Path

import numpy as np
import pytest
from flax import serialization

from mmdiff.convert import containers, formats, public, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_pipelines

FIXTURES = Path(__file__).parent / "fixtures"
ONE = {"a": tensors.of(np.arange(3, dtype=np.float32))}


def test_the_bytes_decide_what_a_file_is(tmp_path):
  st.write(tmp_path / "really_safetensors.ckpt", ONE)
  assert containers.read(tmp_path / "really_safetensors.ckpt").kind == "safetensors"
  (tmp_path / "really_a_zip.safetensors").write_bytes((FIXTURES / "zip.pt").read_bytes())
  assert containers.read(tmp_path / "really_a_zip.safetensors").kind == "pytorch"
  assert containers.read(FIXTURES / "script.pt").kind == "torchscript"
  assert containers.read(FIXTURES / "values.npz").kind == "npz"
  (tmp_path / "x.bin").write_bytes(b"nothing that is known")
  with pytest.raises(DataError, match="x.bin: neither a PyTorch file nor safetensors"):
    containers.read(tmp_path / "x.bin")
  with pytest.raises(DataError, match="none.bin: no such file"):
    containers.read(tmp_path / "none.bin")


@pytest.mark.parametrize("length", [0x280, 0x580, 0x4b50])
def test_a_header_as_long_as_a_pickle_or_a_zip_begins(tmp_path, length):
  """The first two bytes of a safetensors file are the end of a number, which may be any."""
  st.write(tmp_path / "x.safetensors", ONE, {"format": "pt"})
  short = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
  for more in range(length - short - 24, length - short):
    st.write(tmp_path / "x.safetensors", ONE, {"format": "pt" + "x" * more})
    if int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") == length:
      break
  assert (tmp_path / "x.safetensors").read_bytes()[:2] == length.to_bytes(2, "little")
  assert containers.read(tmp_path / "x.safetensors").kind == "safetensors"


def test_prefixes_of_training_are_taken_off(tmp_path):
  assert "single" in containers.read(FIXTURES / "training.ckpt").tensors
  st.write(tmp_path / "x.safetensors", {f"_orig_mod.module.{name}": tensor for name, tensor in ONE.items()})
  assert set(containers.read(tmp_path / "x.safetensors").tensors) == {"a"}


def test_split_pytorch_files(tmp_path):
  (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes((FIXTURES / "zip.pt").read_bytes())
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text('{"weight_map": {"single": "pytorch_model-00001-of-00001.bin"}}')
  assert containers.find(tmp_path) == index
  assert "single" in containers.read(index).tensors
  index.write_text('{"weight_map": {"nothing": "pytorch_model-00001-of-00001.bin"}}')
  with pytest.raises(DataError, match="do not have: nothing"):
    containers.read(index)


def test_a_folder_has_one_weight_file(tmp_path):
  assert containers.find(tmp_path) is None
  (tmp_path / "odd.pt").touch()
  assert containers.find(tmp_path).name == "odd.pt"
  (tmp_path / "other.pt").touch()
  assert containers.find(tmp_path) is None
  for name in ("pytorch_model.bin", "model.fp16.safetensors", "model.safetensors"):
    (tmp_path / name).touch()
    assert containers.find(tmp_path).name == (name if name != "model.fp16.safetensors" else "pytorch_model.bin")
  assert containers.find(tmp_path, variant="fp16").name == "model.fp16.safetensors"
  with pytest.raises(DataError, match=r"no weights of variant 'bf16'; the variants there are none \(model.safetensors\), fp16 "):
    containers.find(tmp_path, variant="bf16")


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "diffusion_pytorch_model.safetensors.index.fp16.json",
                                   "diffusion_pytorch_model.safetensors.fp16.index.json", "pytorch_model.bin.index.fp16.json"])
def test_split_weights_of_a_variant(tmp_path, index):
  """transformers' and diffusers' names of the index, and both of the shards."""
  stem = index.split(".")[0]
  shards = (f"{stem}.fp16-00001-of-00002.safetensors", f"{stem}-00002-of-00002.fp16.safetensors")
  for i, shard in enumerate(shards):
    st.write(tmp_path / shard, {f"a{i}": tensors.of(np.full(2, i, np.float16))})
  (tmp_path / index).write_text(json.dumps(dict(weight_map=dict(a0=shards[0], a1=shards[1]))))
  assert containers.find(tmp_path) == containers.find(tmp_path, variant="fp16") == tmp_path / index
  found = containers.read(tmp_path / index).tensors
  assert [found[name].read().tolist() for name in ("a0", "a1")] == [[0, 0], [1, 1]]
  st.write(tmp_path / f"{stem}.safetensors", ONE)
  assert containers.find(tmp_path).name == f"{stem}.safetensors" and containers.find(tmp_path, variant="fp16") == tmp_path / index


def test_one_of_several_variants_is_never_taken_silently(tmp_path):
  for name in ("fp16", "non_ema"):
    st.write(tmp_path / f"model.{name}.safetensors", ONE)
  with pytest.raises(DataError, match=r"several variants .*fp16 .*, non_ema .*choose one: variant='fp16' \(--variant=fp16\)"):
    containers.find(tmp_path)
  assert set(containers.weights(tmp_path)) == {"fp16", "non_ema"} and public.is_public(tmp_path)
  with pytest.raises(ConfigError, match="is one file, which has no variants"):
    formats.open_source(tmp_path / "model.fp16.safetensors", variant="fp16")


def flax_names(found):
  """PyTorch's names and layouts as transformers' and diffusers' Flax classes write them."""
  nested = {}
  for name, tensor in found.items():
    value, (*parents, leaf) = tensor.read(), name.split(".")
    path = re.sub(r"\b(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|net|to_out)/(\d+)/", r"\1_\2/",
                  "/".join([*parents, ""])).split("/")[:-1]
    if leaf == "weight":
      kind = "embedding" if "embedding" in parents[-1] and value.ndim == 2 else "scale" if value.ndim == 1 else "kernel"
      value = value.transpose({2: (1, 0), 4: (2, 3, 1, 0)}[value.ndim]) if kind == "kernel" else value
      leaf = kind
    node = nested
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = np.array(value, order="C")
  return nested


def test_flax_checkpoints_are_their_pytorch_twins(tmp_path):
  for source, name in ((FIXTURES / "hf_clip" / "model.safetensors", "flax_model.msgpack"),
                       (toy_pipelines.folder(tmp_path / "sd") / "unet" / "diffusion_pytorch_model.safetensors",
                        "diffusion_flax_model.msgpack")):
    wanted = containers.read(source).tensors
    folder = tmp_path / source.parent.name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((source.parent / "config.json").read_text())
    (folder / name).write_bytes(serialization.msgpack_serialize(flax_names(wanted)))
    found = containers.read(folder / name).tensors
    kept = {key for key in wanted if not key.endswith("position_ids")}
    assert kept <= set(found)
    for key in kept:
      np.testing.assert_array_equal(found[key].read(), wanted[key].read(), err_msg=key)
      assert found[key].shape == wanted[key].shape
    loaded, twin = public.load(folder, quiet=True), public.load(source.parent, quiet=True)
    a, b = public.flatten(loaded.params), public.flatten(twin.params)
    assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
