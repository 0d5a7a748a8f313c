"""CLIP and SigLIP in the layouts that they are published in: transformers' (hf-…), open_clip's folder, OpenAI's file, big_vision's npz."""
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.convert import clip_configs, clip_tables, preprocessing, rules, spellings, tensors
from mmdiff.convert.clip_configs import HF_IMAGE, HF_TEXT, hf_tower, square
from mmdiff.convert.formats import STATISTICS, Format, Reading, Source, Writing, need, take, variables
from mmdiff.convert.rules import Rule
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import DataError
from mmdiff.data import cleaning, token_facts, tokenizers
from mmdiff.data.token_facts import NOBODY, Like
from mmdiff.models.clip import CLIP, PIXELS
from mmdiff.models.resnet import ResNet
from mmdiff.models.text import ClipStates
from mmdiff.models.vit import ViT

OPENAI_TEXTS = Like("CLIPTokenizer", cleaning.OPENAI, only=True, pad=0)
OVERRIDES = ("image_size", "text_len", "patch") # what a load may change: position tables and patch embeddings are resized


def clip_inputs(size: int, length: int) -> tuple:
  """Abstract image, tokens and mask."""
  shape = jax.ShapeDtypeStruct
  return shape((1, size, size, 3), jnp.uint8), shape((1, length), jnp.int32), shape((1, length), jnp.bool_)


def two_towers(source: Source, given: Mapping[str, Any], table, *, data: Mapping[str, Any], overrides: Mapping[str, Any],
               loss: str = "softmax", style: Mapping[str, Any] = {}, found: Mapping[str, Tensor] | None = None, like: Like = NOBODY,
               notices: Sequence[str] = ()) -> Reading:
  """A model from the keys of `clip`; `data` are the settings of a run's data that the weights were trained for."""
  given = dict(given) | {key: value for key, value in overrides.items() if value is not None}
  module, model = clip_configs.shortest(given)
  objective = dict(name="contrastive", loss=loss, model=model)
  if loss == "sigmoid":
    module = module.clone(bias_init=-10.0)
  data = dict(image_size=module.image_size, text_len=module.text.length, resize="crop", interpolation="bicubic") | dict(data)
  notices = [*notices] if source.preprocessor or source.open_clip.get("preprocess_cfg") else [
    *notices, f"no preprocessing beside the weights: pixels are normalised by mean {module.mean} and std {module.std}, after a "
    f"{data['interpolation']} resize ({data['resize']})"]
  return Reading(module, dict(objective=objective, data=data), table, source.container.tensors if found is None else found,
                 clip_inputs(module.image_size, module.text.length), clip_tables.IGNORABLE, style, notices, like=like)


# transformers: CLIPModel, SiglipModel

def read_hf(source: Source, **overrides) -> Reading:
  siglip = source.model_type == "siglip"
  given = clip_configs.hf_options(source.config, f"{source.path}: config.json", siglip=siglip)
  pixels, data, notices = preprocessing.hf(source.preprocessor, image_size=given["image_size"], siglip=siglip)
  if siglip and not source.preprocessor:
    data = dict(resize="squash")
  given |= pixels
  return two_towers(source, given, clip_tables.HF_SIGLIP if siglip else clip_tables.HF_CLIP, data=data, overrides=overrides,
                    loss="sigmoid" if siglip else "softmax", style=dict(config=dict(source.config)), notices=notices,
                    like=Like("SiglipTokenizer" if siglip else "CLIPTokenizer"))


def write_hf_clip(module: CLIP, config: Mapping, style: Mapping, *, siglip: bool = False) -> Writing:
  made = clip_configs.to_hf(module, siglip=siglip, end=style.get("end", module.text.vocab - 1), start=style.get("start"),
                            pad=style.get("pad"))
  files = {"config.json": merged(style.get("config", {}), made),
           "preprocessor_config.json": preprocessing.to_hf(module.image_size, module.mean, module.std, config["data"], siglip=siglip)}
  return Writing(clip_tables.HF_SIGLIP if siglip else clip_tables.HF_CLIP, files, "model")


def write_hf_siglip(module: CLIP, config: Mapping, style: Mapping) -> Writing:
  return write_hf_clip(module, config, style, siglip=True)


def merged(before: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
  """A config as it was, with what we know of it. Token ids and versions of the original stay."""
  keep = {key: value for key, value in before.items() if key.endswith("_token_id") or key not in made}
  inner = {key: merged(before[key], value) for key, value in made.items() if isinstance(value, dict) and isinstance(before.get(key), dict)}
  return {**made, **inner, **keep}


# open_clip's folder and OpenAI's file

def read_open_clip(source: Source, **overrides) -> Reading:
  where = f"{source.path}: open_clip_config.json"
  given = clip_configs.open_clip_options(source.open_clip, where)
  pixels, data, notices = preprocessing.open_clip(source.open_clip.get("preprocess_cfg") or {}, where, image_size=given["image_size"])
  given |= pixels
  custom = source.has("text.token_embedding.weight")
  return _openai_names(source, given, data, overrides, custom=custom, style=dict(config=dict(source.open_clip), custom_text=custom),
                       like=clip_configs.open_clip_like(source.open_clip, where), notices=notices)


def _openai_names(source: Source, given, data, overrides, *, custom: bool, style: Mapping[str, Any], like: Like,
                  notices: Sequence[str] = ()) -> Reading:
  found = source.container.tensors
  table = clip_tables.open_clip(resnet="visual.proj" not in found and "visual.layer1.0.conv1.weight" in found, custom_text=custom)
  counters = {name: int(tensor.read()) for name, tensor in found.items() if name.endswith("num_batches_tracked") and not tensor.shape}
  return two_towers(source, given, table, data=data, overrides=overrides, loss="sigmoid" if "logit_bias" in found else "softmax",
                    style={**style, "counters": counters}, like=like, notices=notices)


def read_openai(source: Source, *, act: str | None = None, head_width: int | None = None, **overrides) -> Reading:
  """OpenAI's own files carry three buffers that state dicts of other code lack, and all have the activation quick_gelu and heads of 64."""
  own = source.container.kind == "torchscript" or source.has("input_resolution", "context_length", "vocab_size")
  if not own and (act is None or head_width is None):
    raise DataError(f"{source.path}: the weights of a CLIP without its config: put open_clip_config.json beside them, or say what they do "
                    "not: act (gelu or quick_gelu) and head_width (64 but for the largest)")
  given = clip_configs.openai_options(source.container.tensors, str(source.path), act=act or "quick_gelu", head_width=head_width)
  return _openai_names(source, given, {}, overrides, custom=False, style=dict(custom_text=False), like=OPENAI_TEXTS)


def write_open_clip(module: CLIP, config: Mapping, style: Mapping) -> Writing:
  sigmoid = config["objective"].get("loss") == "sigmoid"
  model_cfg = clip_configs.to_open_clip(module, bias=sigmoid, end=style.get("end"), facts=style.get("facts"))
  resnet = isinstance(module.image, ResNet)
  if style.get("custom_text"):
    model_cfg["custom_text"] = True
  before = style.get("config", {})
  kept = before.get("model_cfg", {})
  model_cfg = {key: {**known, **value} if isinstance(value, dict) and isinstance(known := kept.get(key), dict) else value
               for key, value in model_cfg.items()}
  made = dict(model_cfg={**kept, **model_cfg}, preprocess_cfg=preprocessing.to_open_clip(module.mean, module.std, config["data"],
                                                                                           before.get("preprocess_cfg", {})))
  table = clip_tables.open_clip(resnet=resnet, custom_text=bool(style.get("custom_text")))
  return Writing(table, {"open_clip_config.json": made}, "open_clip_model", _counters(module, table, style) if resnet else {})


def _counters(module: CLIP, table: tuple[Rule, ...], style: Mapping) -> dict[str, Tensor]:
  """PyTorch's batch norms count their batches; we do not."""
  shapes = variables(module, clip_inputs(module.image_size, module.text.length))
  names = [binding.theirs for binding in rules.bind(table, shapes) if binding.parts[0][0].startswith(STATISTICS)]
  norms = sorted({name.rpartition(".")[0] for name in names})
  return {f"{norm}.num_batches_tracked": tensors.of(np.asarray(style.get("counters", {}).get(f"{norm}.num_batches_tracked", 0), np.int64))
          for norm in norms}


# One tower of transformers' CLIP: CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

def read_hf_text(source: Source, *, text_len: int | None = None) -> Reading:
  where = f"{source.path}: config.json"
  config = {**HF_TEXT, **source.config}
  tower = hf_tower(config, {}, where)
  projected = is_projected(source, "text_projection.weight")
  vocab = take(config, "vocab_size", int, where)
  pad = pad_of(source, vocab)
  module = ClipStates(vocab=vocab, length=text_len or take(config, "max_position_embeddings", int, where),
                      embed_dim=take(config, "projection_dim", int, where) if projected else None, pad=pad, **tower)
  start = spellings.start(source.container.tensors, spellings.TEXT)
  return Reading(module, dict(objective=None, model=dict(name="clip_text"), data=dict(text_len=module.length)),
                 text_table(start), source.container.tensors, clip_inputs(8, module.length)[1:],
                 (*clip_tables.IGNORABLE, "logit_scale"), dict(config=dict(source.config), group=start), like=Like("CLIPTokenizer"))


def is_projected(source: Source, name: str) -> bool:
  """Whether a tower ends in a projection. Raises DataError where its class has one and its weights have not."""
  if "WithProjection" in str(source.config.get("architectures")):
    need(source.container.tensors, name, str(source.path))
  return name in source.container.tensors


def text_table(theirs: str = "text_model.") -> tuple[Rule, ...]:
  return (*clip_tables.hf_text(theirs, ""), Rule("text_projection.weight", "projection/kernel", "linear"))


def pad_of(source: Source, vocab: int) -> int:
  """The id that a folder's tokenizer pads with, or that of diffusers' folder beside it; without a vocabulary there 0 for "!" (Stable
  Diffusion 2), else the end token. A config.json alone says nothing of it: SDXL's two encoders are of one class and pad differently."""
  folders = (source.folder, source.folder.parent / source.folder.name.replace("text_encoder", "tokenizer")) if source.folder else ()
  for folder in folders:
    if tokenizers.vocabulary(folder):
      return tokenizers.of_folder(folder, Like("CLIPTokenizer")).pad
  for said in map(token_facts.read, folders):
    if "pad" not in said.assumed:
      return 0 if said.facts.pad == "!" else vocab - 1
  return vocab - 1


def write_hf_text(module: ClipStates, config: Mapping, style: Mapping) -> Writing:
  end = style.get("end", module.vocab - 1)
  made = dict(architectures=["CLIPTextModelWithProjection" if module.embed_dim else "CLIPTextModel"], model_type="clip_text_model",
              dtype="float32", hidden_size=module.width, intermediate_size=module.mlp_dim, num_hidden_layers=module.depth,
              num_attention_heads=module.heads, max_position_embeddings=module.length, vocab_size=module.vocab,
              hidden_act=clip_configs.HF_ACTIVATIONS[module.act], layer_norm_eps=module.eps, attention_dropout=0.0,
              bos_token_id=end - 1, eos_token_id=end, pad_token_id=end)
  made |= dict(projection_dim=module.embed_dim) if module.embed_dim else {}
  return Writing(text_table(style.get("group", spellings.TEXT)), {"config.json": merged(style.get("config", {}), made)}, "model")


def read_hf_image(source: Source, *, image_size: int | None = None, patch: int | None = None) -> Reading:
  where = f"{source.path}: config.json"
  config, found = {**HF_IMAGE, **source.config}, source.container.tensors
  projected = is_projected(source, "visual_projection.weight")
  tower = hf_tower(config, {}, where)
  module = ViT(patch=patch or square(config["patch_size"], where),
               embed_dim=take(config, "projection_dim", int, where) if projected else None, **tower)
  size = image_size or square(config["image_size"], where)
  pixels, data, notices = preprocessing.hf(source.preprocessor, image_size=square(config["image_size"], where))
  mean, std = PIXELS[pixels.get("pixels", "clip")]
  mean, std = pixels.get("mean", mean), pixels.get("std", std)
  if not source.preprocessor:
    notices = [*notices, f"no preprocessing beside the weights: pixels are normalised by mean {mean} and std {std}"]
  start = spellings.start(found, spellings.IMAGE)
  model = dict(name="clip_image", mean=mean, std=std)
  data = dict(image_size=size, resize="crop", interpolation="bicubic") | data
  return Reading(module, dict(objective=None, model=model, data=data), image_table(start), found,
                 (jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),),
                 (*clip_tables.IGNORABLE, "logit_scale"), dict(config=dict(source.config), group=start), notices)


def image_table(theirs: str) -> tuple[Rule, ...]:
  return (*clip_tables.hf_image(theirs, ""), Rule("visual_projection.weight", "projection/kernel", "linear"))


def write_hf_image(module: ViT, config: Mapping, style: Mapping) -> Writing:
  size = config["data"]["image_size"]
  made = dict(architectures=["CLIPVisionModelWithProjection" if module.embed_dim else "CLIPVisionModel"], model_type="clip_vision_model",
              dtype="float32", hidden_size=module.width, intermediate_size=module.mlp_dim, num_hidden_layers=module.depth, num_channels=3,
              num_attention_heads=module.heads, image_size=size, patch_size=module.patch, attention_dropout=0.0,
              hidden_act=clip_configs.HF_ACTIVATIONS[module.act], layer_norm_eps=module.eps)
  made |= dict(projection_dim=module.embed_dim) if module.embed_dim else {}
  pixels = preprocessing.to_hf(size, config["model"]["mean"], config["model"]["std"], config["data"], siglip=False)
  files = {"config.json": merged(style.get("config", {}), made), "preprocessor_config.json": pixels}
  return Writing(image_table(style.get("group", spellings.IMAGE)), files, "model")


# big_vision

def read_big_vision(source: Source, **overrides) -> Reading:
  found = rules.renamed(source.container.tensors, [(r"^params/", "")])
  try:
    kernel, heads = found["img/embedding/kernel"].shape, "MultiHeadDotProductAttention_0/query/kernel"
    stacked = {part: f"{part}/encoderblock/{heads}" in found for part in ("img/Transformer", "txt/Encoder_0")}
    tower = {}
    for part, here in stacked.items():
      query = found[f"{part}/encoderblock/{heads}" if here else f"{part}/encoderblock_0/{heads}"].shape[-3:]
      up = found[f"{part}/encoderblock{'' if here else '_0'}/MlpBlock_0/Dense_0/kernel"].shape
      depth = found[f"{part}/encoderblock/{heads}"].shape[0] if here else len(
        {name.split("/")[2] for name in found if name.startswith(f"{part}/encoderblock_")})
      tower[part] = dict(width=query[0], heads=query[1], depth=depth, mlp_dim=up[-1], act="gelu_tanh", eps=1e-6)
    image, text = tower.values()
    given = clip_configs.options(text, image, variant="SigLIP-B/16", patch=kernel[0],
                                 image_size=kernel[0] * math.isqrt(found["img/pos_embedding"].shape[-2]),
                                 vocab=found["txt/Embed_0/embedding"].shape[0], text_len=found["txt/pos_embedding"].shape[-2],
                                 embed_dim=found["txt/head/kernel"].shape[1])
  except (KeyError, IndexError, ValueError) as error:
    raise DataError(f"{source.path}: an .npz that is no SigLIP of big_vision: {error}") from None
  table = clip_tables.big_vision(image_stacked=stacked["img/Transformer"], text_stacked=stacked["txt/Encoder_0"])
  return two_towers(source, given, table, data=dict(resize="squash"), overrides=overrides, loss="sigmoid", found=found,
                    like=Like("big_vision"))


def _has(source: Source, *patterns: str) -> bool:
  return all(any(re.fullmatch(pattern, name) for name in source.container.tensors) for pattern in patterns)


HF_CLIP = Format("hf-clip", "clip", "transformers' CLIPModel", lambda s: s.model_type == "clip" and _has(s, r"(text|vision)_model\..*"),
                 read_hf, write_hf_clip, OVERRIDES)
HF_SIGLIP = Format("hf-siglip", "clip", "transformers' SiglipModel", lambda s: s.model_type == "siglip", read_hf, write_hf_siglip,
                   OVERRIDES)
HF_CLIP_TEXT = Format("hf-clip-text", "text", "transformers' CLIPTextModel and CLIPTextModelWithProjection",
                      lambda s: s.model_type == "clip_text_model", read_hf_text, write_hf_text, ("text_len",))
HF_CLIP_IMAGE = Format("hf-clip-image", "image", "transformers' CLIPVisionModel and CLIPVisionModelWithProjection",
                       lambda s: s.model_type == "clip_vision_model", read_hf_image, write_hf_image, ("image_size", "patch"))
OPEN_CLIP = Format("open_clip", "clip", "open_clip's folder",
                   lambda s: _has(s, r"visual\..*") and "text_cfg" in (model_cfg := s.open_clip.get("model_cfg") or {})
                   and "multimodal_cfg" not in model_cfg, read_open_clip, write_open_clip, OVERRIDES)
OPENAI = Format("openai", "clip", "OpenAI's file",
                lambda s: not s.open_clip and _has(s, r"visual\.(proj|layer1\.0\.conv1\.weight)", r"transformer\.resblocks\..*"),
                read_openai, None, ("act", "head_width", *OVERRIDES))
BIG_VISION = Format("big_vision", "clip", "big_vision's npz of SigLIP", lambda s: _has(s, "(params/)?img/embedding/kernel"),
                    read_big_vision, None, OVERRIDES)
