"""open_clip's own code on what we read and write: its CLIP and CoCa, OpenAI's state dicts and big_vision's npz as it takes them in."""
from functools import partial

import numpy as np
import pytest

from tests.convert.test_clip_formats import EXPECTED, FIXTURES
from tests.convert.test_open_clip_own import OWN, TEXTS

pytestmark = pytest.mark.peers


def unit(x):
  import torch
  return torch.nn.functional.normalize(x.float(), dim=-1).detach().numpy()


def pixels(images, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)):
  import torch
  return torch.from_numpy(((images / 255.0 - np.asarray(mean)) / np.asarray(std)).transpose(0, 3, 1, 2).astype(np.float32))


def close(ours, theirs, what):
  error = np.abs(np.asarray(ours) - theirs).max()
  print(f"{what}: largest difference {error:.2g}")
  assert error <= 1e-5


@pytest.mark.parametrize("name", ["clip", "resnet", "coca"])
def test_what_we_write_loads_there(tmp_path, name):
  """The committed files were written by open_clip; ours go into its classes without a name missing or left over."""
  import json

  import mmdiff
  from tests.peers.without_torchvision import open_clip
  model = mmdiff.load(OWN / name, quiet=True)
  mmdiff.save(model, tmp_path)
  config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
  config.pop("custom_text", None)
  peer = (open_clip.CoCa if name == "coca" else open_clip.model.CLIP)(**config).eval()
  peer.load_state_dict(open_clip.factory.load_state_dict(str(tmp_path / "open_clip_model.safetensors")))
  images = np.random.default_rng(1).integers(0, 256, (4, *[config["vision_cfg"]["image_size"]] * 2, 3), dtype=np.uint8)
  close(model.embed_image(images), unit(peer.encode_image(pixels(images))), f"{name}: pictures")
  tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}") if name == "resnet" else None
  if tokenizer:                                   # the others have OpenAI's vocabulary, whose file is open_clip's own
    close(model.embed_text(TEXTS), unit(peer.encode_text(tokenizer(TEXTS))), f"{name}: texts")


def test_openais_vocabulary_and_cleaning(tmp_path):
  """Texts of every kind have the ids that open_clip's copy of OpenAI's tokenizer gives them."""
  import json

  from mmdiff.data import tokenizers
  from tests.peers.test_texts_and_pictures import TEXTS as MORE
  from tests.peers.without_torchvision import open_clip
  theirs = open_clip.tokenizer.SimpleTokenizer()
  renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
  (tmp_path / "vocab.json").write_text(json.dumps({renamed.get(token, token): i for token, i in theirs.encoder.items()}))
  ranks = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.get)
  (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, ranks)) + "\n")
  ours = tokenizers.clip(path=str(tmp_path))
  texts = [*TEXTS, *MORE, "cafÃ©", "&lt;b&gt;bold&lt;/b&gt; &amp;amp; more", "ＦＵＬＬ ｗｉｄｔｈ", "don't you're I'll", "x" * 300]
  tokens, mask = ours.batch(texts, 77)
  assert np.array_equal(np.where(mask, tokens, 0), theirs(texts).numpy())


@pytest.mark.parametrize("resnet", [False, True])
def test_openais_state_dict(tmp_path, resnet):
  """open_clip's `build_model_from_openai_state_dict` finds the same architecture in the shapes of the same names."""
  import torch

  import mmdiff
  from tests.convert.fixtures.make_clip import random_halves
  from tests.peers.without_torchvision import open_clip
  vision = dict(image_size=64, layers=[1, 2, 1, 1], width=8, patch_size=None) if resnet else dict(image_size=24, layers=2, width=64,
                                                                                                  patch_size=8)
  made = open_clip.model.CLIP(20, vision, dict(context_length=10, vocab_size=60, width=128, heads=2, layers=2), quick_gelu=True)
  weights = random_halves(made).state_dict() | dict(input_resolution=torch.tensor(vision["image_size"]), context_length=torch.tensor(10),
                                                    vocab_size=torch.tensor(60))
  torch.save(weights, tmp_path / "openai.pt")
  peer = open_clip.model.build_model_from_openai_state_dict(dict(weights), cast_dtype=torch.float32).float().eval()
  model = mmdiff.load(tmp_path / "openai.pt", quiet=True)
  size = vision["image_size"]
  images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
  close(model.embed_image(images), unit(peer.encode_image(pixels(images))), "pictures")
  tokens = np.random.default_rng(1).integers(1, 58, (3, 10)).astype(np.int32)
  tokens[np.arange(10)[None] >= np.asarray([9, 4, 6])[:, None]] = 0
  tokens[np.arange(3), [9, 4, 6]] = 59
  mask = np.arange(10)[None] <= np.asarray([9, 4, 6])[:, None]
  ours = model.origin.module.apply({"params": model.params}, tokens, mask, method="encode_text")
  close(ours / np.linalg.norm(ours, axis=-1, keepdims=True), unit(peer.encode_text(torch.from_numpy(tokens).long())), "texts")


def test_big_visions_npz():
  """open_clip's `load_big_vision_weights` takes every array of the committed npz by its name, into timm's and its own towers."""
  from types import SimpleNamespace

  import torch
  from torch import nn

  from mmdiff.convert import public
  from tests.peers.without_torchvision import open_clip, vision_transformer
  path = FIXTURES / "siglip_big_vision.npz"
  loaded = public.load(path, quiet=True)
  image, text = loaded.module.image, loaded.module.text
  act, norm = partial(nn.GELU, approximate="tanh"), partial(nn.LayerNorm, eps=1e-6)
  trunk = vision_transformer.VisionTransformer(
    img_size=loaded.module.image_size, patch_size=image.patch, embed_dim=image.width, depth=image.depth, num_heads=image.heads,
    mlp_ratio=image.mlp_dim / image.width, class_token=False, global_pool="map", num_classes=0, act_layer=act, norm_layer=norm)
  words = open_clip.transformer.TextTransformer(
    context_length=text.length, vocab_size=text.vocab, width=text.width, heads=text.heads, layers=text.depth,
    mlp_ratio=text.mlp_dim / text.width, output_dim=text.embed_dim, no_causal_mask=True, pool_type="last", proj_bias=True, act_layer=act,
    norm_layer=norm)
  peer = SimpleNamespace(visual=SimpleNamespace(trunk=trunk.eval()), text=words.eval(), logit_scale=nn.Parameter(torch.zeros(())),
                         logit_bias=nn.Parameter(torch.zeros(())))
  from open_clip.convert import load_big_vision_weights
  taken: set = set()
  load_big_vision_weights(peer, path)
  taken |= set(np.load(path).files)
  tokens = EXPECTED["tokens"]
  mine = loaded.module.apply({"params": loaded.params}, EXPECTED["image"], tokens, np.ones(tokens.shape, bool))
  half = pixels(EXPECTED["image"], (0.5,) * 3, (0.5,) * 3)
  theirs = trunk(half), words(torch.from_numpy(tokens).long())
  for ours, other, what in zip(mine, theirs, ("pictures", "texts")):
    close(np.asarray(ours) / np.linalg.norm(ours, axis=-1, keepdims=True), unit(other), f"big_vision: {what}")
  assert np.isclose(peer.logit_scale.item(), np.asarray(loaded.params["logit_scale"]).item())
  assert np.isclose(peer.logit_bias.item(), np.asarray(loaded.params["logit_bias"]).item())
