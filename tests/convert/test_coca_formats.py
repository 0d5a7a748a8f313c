"""CoCa in open_clip's layout: every tensor has its place both ways, and the numbers are those of code written after open_clip's."""
import json
import math

import numpy as np
import pytest

import mmdiff
from mmdiff.convert import coca_formats, formats, public, rules, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.convert.containers import Container
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_pipelines, toy_runs

MODEL = dict(
  embed_dim=16, custom_text=True,
  vision_cfg=dict(image_size=16, layers=2, width=24, patch_size=8, head_width=8, attentional_pool=True, attn_pooler_heads=2,
                  output_tokens=True),
  text_cfg=dict(context_length=10, vocab_size=len(toy_pipelines.WORDS), layers=2, heads=2, width=16, embed_cls=True, output_tokens=True),
  multimodal_cfg=dict(context_length=10, vocab_size=len(toy_pipelines.WORDS), layers=2, heads=2, width=16, attn_pooler_heads=2))
PUBLISHED = {
  "B/32": (dict(embed_dim=512, custom_text=True,
                vision_cfg=dict(image_size=224, layers=12, width=768, patch_size=32, attentional_pool=True, attn_pooler_heads=8,
                                output_tokens=True),
                text_cfg=dict(context_length=76, vocab_size=49408, layers=12, heads=8, width=512, embed_cls=True, output_tokens=True),
                multimodal_cfg=dict(context_length=76, vocab_size=49408, layers=12, heads=8, width=512, attn_pooler_heads=8)),
           "ViT-B/32", 629, 253_560_065),
  "L/14": (dict(embed_dim=768, custom_text=True,
                vision_cfg=dict(image_size=224, layers=24, width=1024, patch_size=14, attentional_pool=True, attn_pooler_heads=8,
                                output_tokens=True),
                text_cfg=dict(context_length=76, vocab_size=49408, layers=12, heads=12, width=768, embed_cls=True, output_tokens=True),
                multimodal_cfg=dict(context_length=76, vocab_size=49408, layers=12, heads=12, width=768, attn_pooler_heads=12)),
           "ViT-L/14", 773, 638_450_177)}


def source(path, model):
  return formats.Source(path, None, {}, dict(model_cfg=model), {}, Container({}, {}, "safetensors"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(tmp_path, name):
  model, variant, count, parameters = PUBLISHED[name]
  reading = coca_formats.read(source(tmp_path, model))
  assert reading.config["objective"]["model"] == dict(name="coca", variant=variant)
  bindings = rules.bind(reading.rules, formats.variables(reading.module, reading.inputs))
  assert (len(bindings), sum(tensors.size(binding.shape) for binding in bindings)) == (count, parameters)


def weights(model=MODEL, seed=0):
  reading = coca_formats.read(source("x", model))
  bindings = rules.bind(reading.rules, formats.variables(reading.module, reading.inputs))
  rng = np.random.default_rng(seed)
  return {b.theirs: (rng.normal(scale=0.3, size=b.shape) + (".ln" in b.theirs and b.theirs.endswith("weight"))).astype(np.float32)
          for b in bindings}


def folder(path, named, model=MODEL):
  path.mkdir()
  (path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=model, preprocess_cfg={})))
  st.write(path / "open_clip_model.safetensors", {name: tensors.of(value) for name, value in named.items()})
  toy_pipelines.tokenizer(path)
  return path


class OpenClip:
  """The forward pass after open_clip's coca_model.py and transformer.py, in numpy."""
  def __init__(self, named):
    self.w = named

  def norm(self, x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

  def attend(self, q, kv, name, heads, mask=None):
    w, width = self.w, self.w[f"{name}.out_proj.weight"].shape[0]
    three = np.split(w[f"{name}.in_proj_weight"], 3) if f"{name}.in_proj_weight" in w else [w[f"{name}.{c}_proj_weight"] for c in "qkv"]
    q, k, v = (x @ part.T + bias for x, part, bias in zip((q, kv, kv), three, np.split(w[f"{name}.in_proj_bias"], 3)))
    split = lambda x: x.reshape(*x.shape[:2], heads, width // heads).swapaxes(1, 2)
    scores = split(q) @ split(k).swapaxes(2, 3) / math.sqrt(width // heads)
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = ((p / p.sum(-1, keepdims=True)) @ split(v)).swapaxes(1, 2).reshape(q.shape)
    return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]

  def block(self, x, name, heads, mask=None, kv=None):
    one = self.norm(x, f"{name}.ln_1")
    x = x + self.attend(one, one if kv is None else self.norm(kv, f"{name}.ln_1_kv"), f"{name}.attn", heads, mask)
    h = self.norm(x, f"{name}.ln_2") @ self.w[f"{name}.mlp.c_fc.weight"].T + self.w[f"{name}.mlp.c_fc.bias"]
    h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    return x + h @ self.w[f"{name}.mlp.c_proj.weight"].T + self.w[f"{name}.mlp.c_proj.bias"]

  def image(self, pixels):
    kernel, size = self.w["visual.conv1.weight"], 8
    patches = pixels.reshape(len(pixels), 3, 2, size, 2, size).transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), 4, -1)
    x = patches @ kernel.reshape(kernel.shape[0], -1).T
    x = np.concatenate([np.broadcast_to(self.w["visual.class_embedding"], (len(x), 1, x.shape[-1])), x], 1)
    x = self.norm(x + self.w["visual.positional_embedding"], "visual.ln_pre")
    for n in range(2):
      x = self.block(x, f"visual.transformer.resblocks.{n}", 3)
    query = self.norm(self.w["visual.attn_pool.query"], "visual.attn_pool.ln_q")
    query = np.broadcast_to(query, (len(x), *query.shape))
    x = self.norm(self.attend(query, self.norm(x, "visual.attn_pool.ln_k"), "visual.attn_pool.attn", 2), "visual.ln_post")
    return x[:, 0] @ self.w["visual.proj"], x[:, 1:]

  def text(self, tokens, pad):
    """Embedding and states; the class token's row of the mask is shifted by one, as open_clip's padding of it makes it."""
    x = self.w["text.token_embedding.weight"][tokens]
    x = np.concatenate([x, np.broadcast_to(self.w["text.cls_emb"], (len(x), 1, x.shape[-1]))], 1) + self.w["text.positional_embedding"]
    length = x.shape[1]
    real = np.concatenate([np.ones((len(x), 1), bool), tokens != pad], 1)
    mask = np.tile(np.tri(length, dtype=bool), (len(x), 1, 1))
    mask[:, -1] &= real
    for n in range(2):
      x = self.block(x, f"text.transformer.resblocks.{n}", 2, mask[:, None])
    return self.norm(x[:, -1], "text.ln_final") @ self.w["text.text_projection"], x[:, :-1]

  def logits(self, words, image):
    x, causal = words, np.tri(words.shape[1], dtype=bool)
    for n in range(2):
      x = self.block(x, f"text_decoder.resblocks.{n}", 2, causal)
      x = self.block(x, f"text_decoder.cross_attn.{n}", 2, kv=image)
    return self.norm(x, "text_decoder.ln_final") @ self.w["text_decoder.text_projection"]


@pytest.mark.parametrize("width", [24, 16], ids=["two widths", "one width"])
def test_the_same_numbers_and_the_same_file(tmp_path, width):
  model = MODEL | dict(vision_cfg=MODEL["vision_cfg"] | dict(width=width, head_width=width // 3 if width == 24 else 16))
  if width == 16:
    model["vision_cfg"]["head_width"] = 16
  named = weights(model)
  loaded = public.load(folder(tmp_path / "a", named, model), quiet=True)
  rng = np.random.default_rng(1)
  pixels = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
  tokens = rng.integers(1, 50, (2, 10)).astype(np.int32)
  tokens[0, 6:] = 0
  import jax
  mask = tokens != 0
  image, text, hidden = jax.jit(loaded.module.apply)({"params": loaded.params}, pixels, tokens, mask)
  if width == 24:
    mean, std = (np.asarray(value) for value in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    theirs = OpenClip(named)
    one, image_tokens = theirs.image((((pixels + 1) / 2 - mean) / std).transpose(0, 3, 1, 2))
    other, words = theirs.text(tokens, 0)
    np.testing.assert_allclose(image, one, atol=1e-4)
    np.testing.assert_allclose(text, other, atol=1e-4)
    ours = np.asarray(hidden) @ loaded.params["decoder"]["project_vocab"]["kernel"]
    np.testing.assert_allclose(ours, theirs.logits(words[:, :-1], image_tokens), atol=1e-3)
  public.save(tmp_path / "b", format="open_clip-coca", module=loaded.module, config=loaded.config, params=loaded.params, style=loaded.style)
  again = public.formats.open_source(tmp_path / "b").container.tensors
  assert set(again) == set(named) and all(np.array_equal(again[name].read(), named[name]) for name in named)
  public.save(tmp_path / "c", format="open_clip-coca", module=loaded.module, config=loaded.config, params=loaded.params)
  assert public.load(tmp_path / "c", quiet=True).module == loaded.module


def test_a_loaded_captioner_writes_and_compares(tmp_path):
  model = mmdiff.load(folder(tmp_path / "a", weights()))
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 17, 3), np.uint8)
  assert model.embed_image(images).shape == model.embed_text(["a", "b", "c d"]).shape == (3, 16)
  assert len(model.caption(images, max_len=6)) == 3


def test_what_it_can_not_express_is_said(tmp_path):
  for part, change, message in (("vision_cfg", dict(attentional_pool="cascade"), "attentional_pool 'cascade'"),
                                ("text_cfg", dict(hf_model_name="roberta"), "hf_model_name 'roberta'"),
                                ("multimodal_cfg", dict(width=32), "of one width and number of heads")):
    with pytest.raises(DataError, match=message):
      coca_formats.read(source(tmp_path, MODEL | {part: MODEL[part] | change}))
  model = mmdiff.load(toy_runs.make(tmp_path / "run", toy_runs.coca()))
  with pytest.raises(ConfigError, match="models of open_clip's structure only"):
    mmdiff.save(model, tmp_path / "out", format="open_clip-coca")
  named = weights()
  del named["text.cls_emb"]
  with pytest.raises(DataError, match="1 tensors are missing: text.cls_emb"):
    public.load(folder(tmp_path / "less", named), quiet=True)
