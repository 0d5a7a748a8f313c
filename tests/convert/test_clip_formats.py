"""The committed checkpoints compute what their makers computed, and are written back as they were."""
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mmdiff.convert import containers, formats, public, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import tokenizers
from mmdiff.models.clip import clip
from mmdiff.models.text import ClipStates
from mmdiff.nn.embed import patches, unpatch
from tests.data.test_tokenizers import BPE

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = dict(np.load(FIXTURES / "clip_expected.npz"))


def outputs(loaded, image="image"):
  """Unit embeddings of the expected file's pictures and texts."""
  mask = np.arange(8)[None] < EXPECTED["lengths"][:, None]
  variables = {"params": loaded.params} | ({"batch_stats": loaded.statistics} if loaded.statistics else {})
  made = jax.jit(loaded.module.apply)(variables, EXPECTED[image], EXPECTED["tokens"], mask)
  return [np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in made]


def load(name, **options):
  return public.load(FIXTURES / name, quiet=True, **options)


def write_back(loaded, folder, **options):
  return public.save(folder, **(dict(format=loaded.format, module=loaded.module, config=loaded.config, params=loaded.params,
                                     statistics=loaded.statistics, style=loaded.style, dtype="float16") | options))


def same_weights(first, second):
  a, b = (containers.read(containers.find(folder)).tensors for folder in (first, second))
  assert set(a) == set(b)
  for name in a:
    assert a[name].shape == b[name].shape and a[name].dtype == b[name].dtype, name
    np.testing.assert_array_equal(a[name].read(), b[name].read(), err_msg=name)


@pytest.mark.parametrize("name, format, kind, image, options", [
  ("hf_clip", "hf-clip", "clip", "image", {}), ("hf_siglip", "hf-siglip", "siglip", "image", {}),
  ("open_clip_vit", "open_clip", "clip", "image", {}), ("open_clip_rn", "open_clip", "resnet", "large", {}),
  ("openai.pt", "openai", "clip", "image", dict(head_width=8)), ("siglip_big_vision.npz", "big_vision", "siglip", "image", {})])
def test_forward_and_back(tmp_path, name, format, kind, image, options):
  loaded = load(name, **options)
  assert loaded.format == format and not (loaded.report.missing or loaded.report.unexpected)
  made = outputs(loaded, image)
  np.testing.assert_allclose(made[0], EXPECTED[f"{kind}_image"], atol=1e-5)
  np.testing.assert_allclose(made[1], EXPECTED["siglip_text" if kind == "siglip" else "clip_text"], atol=1e-5)
  assert loaded.config["objective"]["loss"] == ("sigmoid" if kind == "siglip" else "softmax")
  if format in ("openai", "big_vision"):
    with pytest.raises(ConfigError, match=f"format '{format}' is only read; written are hf-clip"):
      write_back(loaded, tmp_path)
  else:
    write_back(loaded, tmp_path)
    same_weights(FIXTURES / name, tmp_path)
    again = public.load(tmp_path, quiet=True)
    assert again.module == loaded.module and again.config == loaded.config


def test_any_to_any_within_the_family(tmp_path):
  openai, hf = load("openai.pt", head_width=8), load("hf_clip")
  write_back(openai, tmp_path / "hf", format="hf-clip", style=None)
  same_weights(FIXTURES / "hf_clip", tmp_path / "hf")
  write_back(hf, tmp_path / "open", format="open_clip", style=None)
  same_weights(FIXTURES / "open_clip_vit", tmp_path / "open")
  config = json.loads((tmp_path / "open" / "open_clip_config.json").read_text())
  assert config == json.loads((FIXTURES / "open_clip_vit" / "open_clip_config.json").read_text())
  write_back(load("siglip_big_vision.npz"), tmp_path / "siglip", format="hf-siglip", style=None)
  same_weights(FIXTURES / "hf_siglip", tmp_path / "siglip")
  for name, format in (("hf_siglip", "hf-clip"), ("hf_siglip", "open_clip"), ("hf_clip", "hf-siglip")):
    with pytest.raises(ConfigError, match="can't express this model"):
      write_back(load(name), tmp_path / "x", format=format, style=None)
  with pytest.raises(ConfigError, match="has no ResNets: convert to open_clip"):
    write_back(load("open_clip_rn"), tmp_path / "x", format="hf-clip", style=None)


def copied(name, folder, change=lambda config: None, file="config.json"):
  shutil.copytree(FIXTURES / name, folder)
  config = json.loads((folder / file).read_text())
  change(config)
  (folder / file).write_text(json.dumps(config))
  return folder


def test_configs_decide_and_must_fit_the_weights(tmp_path):
  other = copied("hf_clip", tmp_path / "a", lambda config: config["vision_config"].update(hidden_act="gelu"))
  assert np.abs(outputs(public.load(other, quiet=True))[0] - EXPECTED["clip_image"]).max() > 1e-4
  deeper = copied("hf_clip", tmp_path / "b", lambda config: config["text_config"].update(num_hidden_layers=3))
  with pytest.raises(DataError, match=r"16 tensors are missing: text_model.encoder.layers.2.*and 8 more"):
    public.load(deeper, quiet=True)
  wider = copied("hf_clip", tmp_path / "c", lambda config: config.update(projection_dim=24))
  with pytest.raises(DataError, match=r"text_projection.weight \[20, 16\], expected \[24, 16\]"):
    public.load(wider, quiet=True)
  larger = copied("hf_clip", tmp_path / "d", lambda config: config["vision_config"].update(image_size=32))
  with pytest.raises(DataError, match=r"position_embedding.weight \[5, 24\], expected \[17, 24\]"):
    public.load(larger, quiet=True)
  odd = copied("hf_clip", tmp_path / "e", lambda config: config["text_config"].update(hidden_act="mish"))
  with pytest.raises(DataError, match="text_config: unknown activation 'mish'"):
    public.load(odd, quiet=True)


@pytest.mark.parametrize("name, lacking", [
  ("hf_clip", "text_projection.weight"), ("hf_clip", "visual_projection.weight"), ("open_clip_vit", "text_projection"),
  ("open_clip_vit", "visual.proj"), ("open_clip_rn", "visual.attnpool.positional_embedding"), ("hf_siglip", "text_model.head.weight")])
def test_a_missing_tensor_is_named(tmp_path, name, lacking):
  shutil.copytree(FIXTURES / name, tmp_path / "x")
  file = containers.find(tmp_path / "x")
  found = {name: tensors.of(np.array(tensor.read())) for name, tensor in containers.read(file).tensors.items() if name != lacking}
  st.write(file, found)
  with pytest.raises(DataError, match=rf"missing: {re.escape(lacking)}"):
    public.load(tmp_path / "x", quiet=True)


@pytest.mark.parametrize("lacking", ["text_projection", "token_embedding.weight", "ln_final.weight", "positional_embedding", "visual.proj",
                                     "visual.positional_embedding", "visual.conv1.weight"])
def test_a_missing_tensor_of_a_bare_state_dict_is_named(tmp_path, lacking):
  found = containers.read(FIXTURES / "open_clip_vit" / "open_clip_model.safetensors").tensors
  st.write(tmp_path / "x.safetensors", {name: tensor for name, tensor in found.items() if name != lacking})
  with pytest.raises(DataError, match=rf"x.safetensors: {re.escape(lacking)} is missing|no known format") as error:
    public.load(tmp_path / "x.safetensors", quiet=True, act="quick_gelu", head_width=8)
  assert lacking == "visual.proj" or "is missing, from which the architecture is read" in str(error.value)


@pytest.mark.parametrize("lacking", ["img/embedding/kernel", "txt/head/kernel", "txt/Embed_0/embedding", "txt/pos_embedding"])
def test_a_missing_tensor_of_big_vision_is_named(tmp_path, lacking):
  named = dict(np.load(FIXTURES / "siglip_big_vision.npz"))
  np.savez(tmp_path / "x.npz", **{name: value for name, value in named.items() if not name.endswith(lacking)})
  assert any(name.endswith(lacking) for name in named)
  with pytest.raises(DataError, match=lacking if lacking != "img/embedding/kernel" else "no known format"):
    public.load(tmp_path / "x.npz", quiet=True)


def test_a_tower_with_a_projection_by_its_class_lacks_none(tmp_path):
  """Without it the pooled text would be another one, of the wrong width at best."""
  module = ClipStates(vocab=20, length=6, width=12, depth=1, heads=2, mlp_dim=16, embed_dim=8)
  shapes = formats.variables(module, clip_inputs(8, 6)[1:])
  params = public.nest({name: np.ones(shape, np.float32) for name, shape in shapes.items()})
  public.save(tmp_path, format="hf-clip-text", module=module, config=dict(data={}), params=params)
  file = tmp_path / "model.safetensors"
  st.write(file, {name: tensor for name, tensor in containers.read(file).tensors.items() if name != "text_projection.weight"})
  with pytest.raises(DataError, match="text_projection.weight is missing"):
    public.load(tmp_path, quiet=True)
  bare = {name.replace("text_model.", ""): tensor for name, tensor in containers.read(file).tensors.items()}
  st.write(tmp_path / "bare.safetensors", bare | {"text_projection.weight": tensors.of(np.ones((8, 12), np.float32))})
  file.unlink()
  loaded = public.load(tmp_path, quiet=True)
  public.save(tmp_path / "again", format="hf-clip-text", module=loaded.module, config=loaded.config, params=loaded.params,
              style=loaded.style)
  again = containers.read(tmp_path / "again" / "model.safetensors").tensors
  assert set(again) == {*bare, "text_projection.weight"} and "embeddings.token_embedding.weight" in again


@pytest.mark.parametrize("change, message", [
  (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="vit"), "timm_model_name: 'vit' is a part that mmdiff's CLIP does not"),
  (lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True), "no_causal_mask"),
  (lambda c: c["model_cfg"].pop("embed_dim"), "embed_dim: expected int, found None"),
  (lambda c: c["preprocess_cfg"].update(resize_mode="zoom"), "unknown resize_mode")])
def test_parts_that_are_not_modelled_are_refused(tmp_path, change, message):
  with pytest.raises(DataError, match=message):
    public.load(copied("open_clip_vit", tmp_path / "x", change, "open_clip_config.json"), quiet=True)


def test_a_bare_state_dict_has_to_be_told_what_it_lacks(tmp_path):
  shutil.copyfile(FIXTURES / "open_clip_vit" / "open_clip_model.safetensors", tmp_path / "x.safetensors")
  with pytest.raises(DataError, match="the weights of a CLIP without its config: put open_clip_config.json beside them, or say"):
    public.load(tmp_path / "x.safetensors", quiet=True)
  loaded = public.load(tmp_path / "x.safetensors", quiet=True, act="quick_gelu", head_width=8)
  np.testing.assert_allclose(outputs(loaded)[0], EXPECTED["clip_image"], atol=1e-5)
  with pytest.raises(ConfigError, match="takes no act; it takes image_size, text_len"):
    load("hf_clip", act="gelu")


def test_pictures_of_another_size_and_longer_texts():
  loaded = load("hf_clip", image_size=32, text_len=12)
  assert loaded.module.image_size == 32 and loaded.params["image"]["position"].shape == (17, 24)
  assert loaded.params["text"]["position"].shape == (12, 16) and len(loaded.report.notices) == 2
  assert "5 positions were interpolated to 17" in "\n".join(loaded.report.notices)


@pytest.mark.parametrize("name", ["hf_clip", "open_clip_vit"])
def test_patches_of_another_size(name, tmp_path):
  """Patches twice as large on pictures twice as large see what they saw."""
  small = load(name)
  large = load(name, patch=2 * small.module.image.patch, image_size=2 * small.module.image_size)
  assert large.module.image.patch == 2 * small.module.image.patch and "pixels were resized to" in large.report.notices[-1]
  write_back(large, tmp_path / "x")
  assert public.load(tmp_path / "x", quiet=True).module == large.module
  picture = np.random.default_rng(0).uniform(-1, 1, (2, small.module.image_size, small.module.image_size, 3)).astype(np.float32)
  corner = lambda loaded, picture: np.asarray(loaded.module.apply({"params": loaded.params}, picture, method="encode_image"))
  side = small.module.image.patch       # each patch enlarged by itself, as the kernel's matrix does it
  cut = patches(picture, side).reshape(-1, side, side, 3)
  grown = np.asarray(jax.image.resize(cut, (len(cut), 2 * side, 2 * side, 3), "linear")).reshape(2, -1, 12 * side * side)
  rebuilt = np.asarray(unpatch(grown, 2 * side, height=2 * picture.shape[1], width=2 * picture.shape[2]))
  np.testing.assert_allclose(corner(large, rebuilt), corner(small, picture), atol=2e-5)


def test_the_end_of_a_text_is_never_token_2(tmp_path):
  """transformers' CLIP reads a text at its highest id where eos_token_id is 2, which is what tokenizers trained here end with."""
  module = clip(variant="tiny", vocab=BPE.vocab_size, text_len=16)
  shapes, rng = formats.variables(module, clip_inputs(32, 16)), np.random.default_rng(0)
  params = public.nest({name: rng.normal(scale=0.2, size=shape).astype(np.float32) for name, shape in shapes.items()})
  config = dict(objective=dict(name="contrastive", loss="softmax"), data={})
  keep = dict(module=module, config=config, params=params, tokenizer=BPE)
  public.save(tmp_path / "hf", format="hf-clip", **keep)
  text = json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]
  assert (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"]) == (1, BPE.vocab_size - 1, 0)
  public.save(tmp_path / "open", format="open_clip", **keep)
  about = json.loads((tmp_path / "open" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
  assert (about["pool_type"], about["eos_id"]) == ("eos", 2) and about["hf_tokenizer_name"]
  texts = ["a red circle", "", "a blue square on the grass, and many more words than fit"]
  encode = jax.jit(lambda values, *words: module.apply({"params": values}, *words, method="encode_text"))
  expected = encode(params, *BPE.batch(texts, 16))
  for name in ("hf", "open"):
    loaded = public.load(tmp_path / name, quiet=True)
    tokenizer = tokenizers.of_folder(tmp_path / name, loaded.like)
    assert tokenizer.decode(tokenizer.encode(texts[2])) == texts[2]
    np.testing.assert_allclose(encode(loaded.params, *tokenizer.batch(texts, 16)), expected, atol=1e-6)


def test_preprocessing_travels_with_the_weights(tmp_path):
  change = lambda config: config.update(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5], resample=2, do_center_crop=False)
  loaded = public.load(copied("hf_clip", tmp_path / "a", change, "preprocessor_config.json"), quiet=True)
  assert loaded.module.mean == (0.1, 0.2, 0.3) and loaded.config["data"]["resize"] == "squash"
  assert loaded.config["data"]["interpolation"] == "bilinear"
  write_back(loaded, tmp_path / "b")
  again = public.load(tmp_path / "b", quiet=True)
  assert again.module == loaded.module and again.config == loaded.config
  assert "no preprocessing beside the weights" in load("hf_siglip").report.notices[0]
