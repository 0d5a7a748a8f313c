"""The public configs of CLIP and SigLIP, both ways: transformers' config.json, open_clip_config.json, and OpenAI's shapes.

Reading gives the keys of `models.clip.clip`; nothing is taken from a model's name. What a config says that our model does not do is an
error, never dropped.
"""
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmdiff.convert import choices
from mmdiff.convert.formats import need, take
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import cleaning
from mmdiff.data.token_facts import Facts, Like
from mmdiff.models.clip import CLIP, PRESETS, clip
from mmdiff.models.resnet import ResNet

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "silu": "silu",
               "swish": "silu"}
HF_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
# What transformers assumes where a config.json is silent (configuration_clip.py, configuration_siglip.py).
TOWER = dict(num_hidden_layers=12, attention_dropout=0.0)
HF_TEXT = TOWER | dict(vocab_size=49_408, hidden_size=512, intermediate_size=2048, num_attention_heads=8, max_position_embeddings=77,
                       hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512)
HF_IMAGE = TOWER | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224, patch_size=32, num_channels=3,
                        hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512)
SIGLIP_TEXT = TOWER | dict(vocab_size=32_000, hidden_size=768, intermediate_size=3072, num_attention_heads=12, max_position_embeddings=64,
                           hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
SIGLIP_IMAGE = TOWER | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224, patch_size=16, num_channels=3,
                            hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=True)
# open_clip's own (CLIPVisionCfg, CLIPTextCfg) for what we do not model: any other value is refused.
INERT = dict(patch_dropout=None, output_tokens=None, pos_embed_type="learnable", proj_type="linear",
             proj_bias=False, final_ln_after_pool=False, no_ln_pre=False, attentional_pool=False, ls_init_value=None,
             input_patchnorm=False, embed_cls=False, global_average_pool=False, no_causal_mask=False, pad_id=None, hf_model_name=None,
             timm_model_name=None, act_kwargs=None, norm_kwargs=None, attn_pooler_heads=None,
             attn_pooler_queries=None, init_logit_scale=None, dynamic_image_size=False)


# open_clip's keys of the text tower that say how texts become tokens.
TOKENS = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "eos_id")


def activation(name: Any, where: str) -> str:
  if not isinstance(name, str) or name not in ACTIVATIONS:
    raise DataError(f"{where}: unknown activation {name!r:.40} (known: {', '.join(ACTIVATIONS)})")
  return ACTIVATIONS[name]


def hf_tower(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
  """width, depth, heads, mlp_dim, act and eps of a sub-config."""
  config = {**defaults, **given}
  number = lambda key: take(config, key, int, where)
  return dict(width=number("hidden_size"), depth=number("num_hidden_layers"), heads=number("num_attention_heads"),
              mlp_dim=number("intermediate_size"), act=activation(config["hidden_act"], where),
              eps=float(take(config, "layer_norm_eps", (int, float), where)))


def hf_options(config: Mapping[str, Any], where: str, *, siglip: bool = False) -> dict[str, Any]:
  """The keys of `clip` for the config.json of a CLIPModel or SiglipModel."""
  parts = []
  for name, defaults in (("text_config", SIGLIP_TEXT if siglip else HF_TEXT), ("vision_config", SIGLIP_IMAGE if siglip else HF_IMAGE)):
    parts.append({**defaults, **(config.get(name) or {}), **(config.get(f"{name}_dict") or {})})        # …_dict: files before 2023
  text_config, image_config = parts
  text, image = hf_tower(text_config, {}, f"{where}: text_config"), hf_tower(image_config, {}, f"{where}: vision_config")
  if text["eps"] != image["eps"]:
    raise DataError(f"{where}: layer_norm_eps is {text['eps']} for texts and {image['eps']} for images; mmdiff's CLIP has one")
  if image_config["num_channels"] != 3 or image_config.get("vision_use_head") is False:
    raise DataError(f"{where}: vision_config: expected 3 channels and a head")
  embed_dim = text_config.get("projection_size") or text["width"] if siglip else take(config, "projection_dim", int, where, 512)
  return options(text, image, variant="SigLIP-B/16" if siglip else "ViT-B/32", image_size=square(image_config["image_size"], where),
                 patch=square(image_config["patch_size"], where), vocab=take(text_config, "vocab_size", int, where),
                 text_len=take(text_config, "max_position_embeddings", int, where), embed_dim=embed_dim)


def options(text: Mapping[str, Any], image: Mapping[str, Any], **more) -> dict[str, Any]:
  """Two towers as keys of `clip`."""
  return dict(more, image_width=image["width"], image_depth=image["depth"], image_heads=image["heads"], image_mlp_dim=image["mlp_dim"],
              text_width=text["width"], text_depth=text["depth"], text_heads=text["heads"], text_mlp_dim=text["mlp_dim"],
              act=image["act"], text_act=text["act"], eps=image["eps"])


def square(value: Any, where: str) -> int:
  sides = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(sides) != 1 or not isinstance(next(iter(sides)), int):
    raise DataError(f"{where}: expected a square size, found {value!r:.40}")
  return sides.pop()


def open_clip_options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The keys of `clip` for an open_clip_config.json."""
  model = take(config, "model_cfg", dict, where)
  image_config, text_config = take(model, "vision_cfg", dict, where), take(model, "text_cfg", dict, where)
  for part, pools, known in (
      (image_config, ("tok",), ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio")),
      (text_config, ("argmax", "eos"), ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", *TOKENS))):
    for key, value in part.items():
      if key not in known and value and value != INERT.get(key, "") and key != "output_tokens" and not (
          key == "pool_type" and value in pools):
        raise DataError(f"{where}: {key}: {value!r:.60} is a part that mmdiff's CLIP does not have")
  act = "quick_gelu" if model.get("quick_gelu") else "gelu"
  width, layers = take(image_config, "width", int, where, 768), image_config.get("layers", 12)
  embed_dim, size = take(model, "embed_dim", int, where), square(image_config.get("image_size", 224), where)
  text_width = take(text_config, "width", int, where, 512)
  text = dict(text_width=text_width, text_heads=take(text_config, "heads", int, where, 8),
              text_depth=take(text_config, "layers", int, where, 12), text_mlp_dim=int(text_width * text_config.get("mlp_ratio", 4.0)),
              vocab=take(text_config, "vocab_size", int, where, 49_408), text_len=take(text_config, "context_length", int, where, 77))
  head_width = take(image_config, "head_width", int, where, 64)
  if isinstance(layers, (list, tuple)):
    return dict(text, variant="RN50", image_size=size, embed_dim=embed_dim, act=act, image_width=width, blocks=tuple(layers),
                image_heads=pool_heads(width, head_width))
  return dict(text, variant="ViT-B/32", image_size=size, embed_dim=embed_dim, act=act, image_width=width, image_depth=layers,
              image_heads=width // head_width, image_mlp_dim=int(width * image_config.get("mlp_ratio", 4.0)),
              patch=square(image_config.get("patch_size", 16), where))


def open_clip_like(config: Mapping[str, Any], where: str) -> Like:
  """Whose tokenizer an open_clip_config.json means: OpenAI's, or with `hf_tokenizer_name` one of transformers, whose texts are cleaned
  first (open_clip/factory.py get_tokenizer). Raises DataError for what else is to be done to tokens."""
  text = (config.get("model_cfg") or {}).get("text_cfg") or {}
  kwargs, theirs = text.get("tokenizer_kwargs") or {}, bool(text.get("hf_tokenizer_name"))
  odd = {key: value for key, value in kwargs.items() if key != "clean" and value} | (
    dict(tokenizer_mode=text["tokenizer_mode"]) if text.get("tokenizer_mode") else {})
  if odd:
    listed = ", ".join(f"{key} {value!r:.40}" for key, value in odd.items())
    raise DataError(f"{where}: text_cfg: {listed}: texts are not treated like that here")
  name = kwargs.get("clean", "whitespace" if theirs else "lower")
  if name not in cleaning.OPEN_CLIP:
    raise DataError(f"{where}: text_cfg: tokenizer_kwargs: unknown clean {name!r:.40} (known: {', '.join(cleaning.OPEN_CLIP)})")
  end = text.get("eos_id", 2) if text.get("pool_type") == "eos" else None
  return Like("" if theirs else "CLIPTokenizer", cleaning.OPEN_CLIP[name], only=not theirs, end=end, pad=None if theirs else 0)


def openai_options(found: Mapping[str, Tensor], where: str, *, act: str, head_width: int | None = None) -> dict[str, Any]:
  """The keys of `clip` from the shapes of OpenAI's tensors, as `build_model` of openai/CLIP model.py takes them.

  head_width: of the image tower, and of the text tower where it divides that one's width: those of the largest CLIPs differ, and their
  texts' are 64. None is 64. Raises DataError, and OptionError for a width that does not divide.
  """
  shape = lambda name: need(found, name, where)
  count = lambda pattern: len({name.split(".")[-3] for name in found if name.startswith(pattern[0]) and name.endswith(pattern[1])})
  text_width = shape("ln_final.weight")[0]
  apart = head_width is not None and text_width % head_width and not text_width % 64
  heads = lambda width, of: max(width // 64, 1) if head_width is None else choices.divided(width, head_width, "head_width", of)
  common = dict(embed_dim=shape("text_projection")[1], text_len=shape("positional_embedding")[0], vocab=shape("token_embedding.weight")[0],
                text_width=text_width, text_heads=text_width // 64 if apart else heads(text_width, "the text tower"), act=act,
                text_depth=count(("transformer.resblocks.", ".attn.in_proj_weight")))
  if "visual.proj" in found:
    width, _, patch, _ = shape("visual.conv1.weight")
    return dict(common, variant="ViT-B/32", patch=patch, image_size=patch * math.isqrt(shape("visual.positional_embedding")[0] - 1),
                image_width=width, image_heads=heads(width, "the image tower"),
                image_depth=count(("visual.transformer.resblocks.", ".attn.in_proj_weight")))
  width = shape("visual.layer1.0.conv1.weight")[0]
  heads(32 * width, "the attention pool")
  blocks = tuple(count((f"visual.layer{stage}.", ".conv1.weight")) for stage in (1, 2, 3, 4))
  return dict(common, variant="RN50", image_width=width, blocks=blocks, image_heads=pool_heads(width, head_width or 64),
              image_size=32 * math.isqrt(shape("visual.attnpool.positional_embedding")[0] - 1))


def pool_heads(width: int, head_width: int) -> int | None:
  """Heads of a ResNet's attention pool; None where they are 64 wide, as by default."""
  return None if head_width == 64 and width % 2 == 0 else max(width * 32 // head_width, 1)


def shortest(given: Mapping[str, Any]) -> tuple[CLIP, dict[str, Any]]:
  """The model of these keys, and the fewest keys that make it: a preset's name alone where it is one."""
  module = clip(**given)
  for name in PRESETS:
    preset = clip(variant=name)
    if dataclasses.replace(preset, scale_init=module.scale_init, bias_init=module.bias_init) == module:
      return module, dict(name="clip", variant=name)
  needed = dict(given)
  for key in given:
    rest = {name: value for name, value in needed.items() if name != key}
    if key != "variant" and _same(rest, module):
      needed = rest
  return module, dict(name="clip", **needed)


def _same(given: Mapping[str, Any], module: CLIP) -> bool:
  try:
    return clip(**given) == module
  except ConfigError:
    return False


def to_hf(module: CLIP, *, siglip: bool, end: int, start: int | None = None, pad: int | None = None) -> dict[str, Any]:
  """The config.json of a model; end, start, pad: ids of its tokenizer. Raises ConfigError for what transformers' classes can't express."""
  image, text = module.image, module.text
  if isinstance(image, ResNet):
    raise ConfigError(f"{'hf-siglip' if siglip else 'hf-clip'} has no ResNets: convert to open_clip")
  pool, text_pool, causal, bias = ("map", "last", False, True) if siglip else ("cls", "eot", True, False)
  if (image.pool, text.pool, text.causal, text.projection_bias) != (pool, text_pool, causal, bias) or text.masked:
    raise ConfigError(f"{'hf-siglip' if siglip else 'hf-clip'} can't express this model: it has {pool!r} and {text_pool!r} pooling, "
                      f"{'no ' * (not causal)}causal mask and sees padding")
  tower = lambda part: dict(hidden_size=part.width, intermediate_size=part.mlp_dim, num_hidden_layers=part.depth,
                            num_attention_heads=part.heads, hidden_act=HF_ACTIVATIONS[part.act], layer_norm_eps=part.eps,
                            attention_dropout=0.0)
  kind = "siglip" if siglip else "clip"
  text_config = tower(text) | dict(model_type=f"{kind}_text_model", vocab_size=text.vocab, max_position_embeddings=text.length)
  vision_config = tower(image) | dict(model_type=f"{kind}_vision_model", image_size=module.image_size, patch_size=image.patch,
                                      num_channels=3)
  if siglip:
    text_config |= dict(projection_size=text.embed_dim) | ({} if pad is None else dict(pad_token_id=pad, eos_token_id=end))
    return dict(architectures=["SiglipModel"], model_type="siglip", dtype="float32", text_config=text_config,
                vision_config=vision_config | dict(vision_use_head=True))
  text_config |= dict(projection_dim=text.embed_dim, eos_token_id=end, bos_token_id=end - 1 if start is None else start,
                      pad_token_id=end if pad is None else pad)
  return dict(architectures=["CLIPModel"], model_type="clip", dtype="float32", projection_dim=text.embed_dim, logit_scale_init_value=2.6592,
              text_config=text_config, vision_config=vision_config | dict(projection_dim=text.embed_dim))


def to_open_clip(module: CLIP, *, bias: bool, end: int | None = None, facts: Facts | None = None) -> dict[str, Any]:
  """The model_cfg of open_clip_config.json; end, facts: of the tokenizer, where there is one. Raises ConfigError for what open_clip's CLIP
  can't express."""
  image, text = module.image, module.text
  vit = not isinstance(image, ResNet)
  acts = {text.act} | ({image.act} if vit else set())
  plain = (text.pool, text.causal, text.masked, text.projection_bias, text.eps) == ("eot", True, False, False, 1e-5)
  if acts not in ({"gelu"}, {"quick_gelu"}) or not plain or vit and (image.pool != "cls" or image.eps != 1e-5 or image.width % image.heads):
    raise ConfigError("open_clip can't express this model: it has class-token and end-token pooling, a causal text tower that sees "
                      "padding, eps 1e-5 and one activation, gelu or quick_gelu")
  text_cfg = dict(context_length=text.length, vocab_size=text.vocab, width=text.width, heads=text.heads, layers=text.depth)
  if text.mlp_dim != 4 * text.width:
    text_cfg |= dict(mlp_ratio=_ratio(text.mlp_dim, text.width))
  if facts and facts.start != "<|startoftext|>":       # its own tokenizer is OpenAI's, which ends a text with the highest id
    if end is None:
      raise ConfigError("open_clip reads a text at its end token, which this tokenizer lacks")
    name = next((name for name, steps in cleaning.OPEN_CLIP.items() if steps == facts.clean), "whitespace")
    text_cfg |= dict(pool_type="eos", eos_id=end, hf_tokenizer_name="local-dir", tokenizer_kwargs=dict(clean=name))
  if vit:
    vision_cfg = dict(image_size=module.image_size, layers=image.depth, width=image.width, patch_size=image.patch)
    if image.mlp_dim != 4 * image.width:
      vision_cfg |= dict(mlp_ratio=_ratio(image.mlp_dim, image.width))
    if image.width // image.heads != 64:
      vision_cfg |= dict(head_width=image.width // image.heads)
  else:
    vision_cfg = dict(image_size=module.image_size, layers=list(image.blocks), width=image.width, patch_size=None)
    heads = image.heads or image.width // 2
    if heads * 64 != image.width * 32:
      vision_cfg |= dict(head_width=image.width * 32 // heads)
  made = dict(embed_dim=text.embed_dim, vision_cfg=vision_cfg, text_cfg=text_cfg)
  return made | (dict(quick_gelu=True) if acts == {"quick_gelu"} else {}) | (dict(init_logit_bias=-10.0) if bias else {})


def _ratio(mlp_dim: int, width: int) -> float:
  """A ratio that gives the same integer back: open_clip truncates width · ratio."""
  ratio = mlp_dim / width
  return ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width
