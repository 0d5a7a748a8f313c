"""CLIP and SigLIP beside transformers: its tiny random models load here, compute the same, are written back equal and load there again."""
import json

import numpy as np
import pytest

pytestmark = pytest.mark.peers

TEXT = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=100, vocab_size=99, max_position_embeddings=16,
            bos_token_id=97, eos_token_id=98, pad_token_id=1)
IMAGE = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=80, image_size=24, patch_size=8)


def random_weights(model):
  """Larger than the initial ones, so that every part shows in the output."""
  import torch
  generator = torch.Generator().manual_seed(0)
  for name, value in model.state_dict().items():
    if value.dtype.is_floating_point:
      drawn = torch.randn(value.shape, generator=generator)
      value.copy_(drawn * (0.02 if name.startswith("logit") else 0.15) + (1.0 if "norm" in name else 0.0))
  return model.eval()


def inputs(rows=3, length=16, size=24):
  rng = np.random.default_rng(0)
  image, tokens = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8), rng.integers(0, 97, (rows, length))
  ends = np.asarray([15, 4, 9])
  tokens[np.arange(rows), ends] = 98
  tokens[np.arange(length)[None] > ends[:, None]] = 98
  return image, tokens.astype(np.int32), np.arange(length)[None] <= ends[:, None]


def pixels(image, mean, std):
  import torch
  return torch.from_numpy(((image / 255.0 - np.asarray(mean)) / np.asarray(std)).transpose(0, 3, 1, 2).astype(np.float32))


def same_files(first, second):
  """Both weight files hold the same names, shapes, dtypes and values."""
  from safetensors.numpy import load_file
  a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
  assert set(a) == set(b)
  for name in a:
    assert a[name].shape == b[name].shape and a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  before, after = (json.loads((folder / "config.json").read_text()) for folder in (first, second))
  assert {key for key in before if before[key] != after.get(key)} <= {"text_config", "vision_config", "transformers_version"}


def round_trip(model, folder):
  """(what we loaded, the folder that we wrote it back to)."""
  from mmdiff.convert import public
  model.save_pretrained(folder / "theirs")
  loaded = public.load(folder / "theirs", quiet=True)
  assert not (loaded.report.missing or loaded.report.unexpected or loaded.report.reshaped)
  public.save(folder / "ours", format=loaded.format, module=loaded.module, config=loaded.config, params=loaded.params, style=loaded.style)
  same_files(folder / "theirs", folder / "ours")
  return loaded, folder / "ours"


def close(ours, theirs):
  theirs = theirs.detach().numpy()
  assert np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip(tmp_path, act):
  import torch
  from transformers import CLIPConfig, CLIPModel
  config = CLIPConfig(text_config=TEXT | dict(hidden_act=act), vision_config=IMAGE | dict(hidden_act="quick_gelu"), projection_dim=20)
  peer = random_weights(CLIPModel(config))
  loaded, written = round_trip(peer, tmp_path)
  image, tokens, mask = inputs()
  ours = loaded.module.apply({"params": loaded.params}, image, tokens, mask)
  with torch.no_grad():
    theirs = peer(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels(image, loaded.module.mean, loaded.module.std))
  for mine, other in zip(ours, (theirs.image_embeds, theirs.text_embeds)):
    close(np.asarray(mine) / np.linalg.norm(mine, axis=-1, keepdims=True), other)
  again = CLIPModel.from_pretrained(written)
  assert all(torch.equal(value, again.state_dict()[name]) for name, value in peer.state_dict().items())


def test_siglip(tmp_path):
  import torch
  from transformers import SiglipConfig, SiglipModel
  text = {key: value for key, value in TEXT.items() if not key.endswith("token_id")} | dict(hidden_size=32, num_attention_heads=2)
  peer = random_weights(SiglipModel(SiglipConfig(text_config=text, vision_config=IMAGE)))
  loaded, written = round_trip(peer, tmp_path)
  image, tokens, mask = inputs()
  ours = loaded.module.apply({"params": loaded.params}, image, tokens, mask)
  with torch.no_grad():
    theirs = peer(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels(image, (0.5,) * 3, (0.5,) * 3))
  for mine, other in zip(ours, (theirs.image_embeds, theirs.text_embeds)):
    close(np.asarray(mine) / np.linalg.norm(mine, axis=-1, keepdims=True), other)
  assert all(torch.equal(value, SiglipModel.from_pretrained(written).state_dict()[name]) for name, value in peer.state_dict().items())


@pytest.mark.parametrize("projected", [False, True])
def test_text_tower(tmp_path, projected):
  import torch
  from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
  kind = CLIPTextModelWithProjection if projected else CLIPTextModel
  peer = random_weights(kind(CLIPTextConfig(**TEXT, projection_dim=20)))
  loaded, written = round_trip(peer, tmp_path)
  _, tokens, mask = inputs()
  ours = loaded.module.apply({"params": loaded.params}, tokens, mask)
  with torch.no_grad():
    theirs = peer(input_ids=torch.from_numpy(tokens).long())
  close(ours["tokens"], theirs.last_hidden_state)
  close(ours["pooled"], theirs.text_embeds if projected else theirs.pooler_output)
  assert all(torch.equal(value, kind.from_pretrained(written).state_dict()[name]) for name, value in peer.state_dict().items())


@pytest.mark.parametrize("projected", [False, True])
def test_image_tower(tmp_path, projected):
  import torch
  from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
  kind = CLIPVisionModelWithProjection if projected else CLIPVisionModel
  peer = random_weights(kind(CLIPVisionConfig(**IMAGE, projection_dim=20)))
  loaded, written = round_trip(peer, tmp_path)
  image, _, _ = inputs()
  given = pixels(image, loaded.config["model"]["mean"], loaded.config["model"]["std"])
  ours = loaded.module.apply({"params": loaded.params}, given.numpy().transpose(0, 2, 3, 1))
  with torch.no_grad():
    theirs = peer(pixel_values=given)
  close(ours, theirs.image_embeds if projected else theirs.pooler_output)
  assert all(torch.equal(value, kind.from_pretrained(written).state_dict()[name]) for name, value in peer.state_dict().items())


def test_files_of_torch(tmp_path):
  import torch
  from transformers import CLIPConfig, CLIPModel

  from mmdiff.convert import public
  peer = random_weights(CLIPModel(CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=20)))
  peer.save_pretrained(tmp_path)
  first = public.load(tmp_path, quiet=True)
  (tmp_path / "model.safetensors").unlink()
  for legacy in (False, True):
    torch.save(peer.half().state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    loaded = public.load(tmp_path, quiet=True)
    assert set(loaded.dtypes) == {"float16"}
    np.testing.assert_allclose(loaded.params["image"]["projection"]["kernel"], first.params["image"]["projection"]["kernel"], atol=1e-3)
