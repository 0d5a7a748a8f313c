"""CoCa as open_clip keeps it: CLIP's names for the image tower, `text.` for the half of the decoder without and `text_decoder.` for the one
with the picture, and one attentional pooler between them."""
from collections.abc import Mapping
from typing import Any

from mmdiff.convert import clip_tables, preprocessing
from mmdiff.convert.clip_configs import square
from mmdiff.convert.clip_formats import OPENAI_TEXTS, clip_inputs
from mmdiff.convert.formats import Format, Reading, Source, Writing, take
from mmdiff.convert.rules import Rule, norm, pair
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.models.coca import PRESETS, CoCa, coca

POOL, FUSED = "visual.attn_pool", ("query", "key", "value")
KNOWN = {
  "vision_cfg": ("image_size", "layers", "width", "patch_size", "head_width", "attentional_pool", "attn_pooler_heads",
                 "attn_pooler_queries", "output_tokens"),
  "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "embed_cls", "output_tokens", "pad_id"),
  "multimodal_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "attn_pooler_heads"),
}
INERT = {"mlp_ratio": 4.0, "attentional_pool": True, "embed_cls": True}       # other values are parts that we do not have


def table(*, same_width: bool) -> tuple[Rule, ...]:
  """same_width: the image tower is as wide as the pooler, whose projections PyTorch then keeps in one tensor."""
  attention = tuple(f"pool/caption/attention/{part}" for part in FUSED)
  kernels = tuple(f"{part}/kernel" for part in attention)
  projections = (Rule(f"{POOL}.attn.in_proj_weight", kernels, "fused"),) if same_width else tuple(
    Rule(f"{POOL}.attn.{letter}_proj_weight", kernel, "linear") for letter, kernel in zip("qkv", kernels))
  decoder = "text_decoder"
  return (
    Rule("logit_scale", "logit_scale"), *clip_tables.openai_image(), Rule("visual.proj", "pool/projection/kernel"),
    *norm("visual.ln_post", "pool/norm_post"), Rule(f"{POOL}.query", "pool/caption/query_tokens"), *projections,
    Rule(f"{POOL}.attn.in_proj_bias", tuple(f"{part}/bias" for part in attention), "fused_bias"),
    *pair(f"{POOL}.attn.out_proj", "pool/caption/attention/out"), *norm(f"{POOL}.ln_q", "pool/caption/norm_queries"),
    *norm(f"{POOL}.ln_k", "pool/caption/norm_keys"), *clip_tables.openai_text("text.", "text/"), Rule("text.cls_emb", "text/class_token"),
    *clip_tables.openai_block(f"{decoder}.resblocks.{{n}}", "decoder/stack/self"),
    *clip_tables.openai_block(f"{decoder}.cross_attn.{{n}}", "decoder/stack/cross"),
    *norm(f"{decoder}.cross_attn.{{n}}.ln_1_kv", "decoder/stack/cross/norm_kv", "[n]"), *norm(f"{decoder}.ln_final", "decoder/norm_post"),
    Rule(f"{decoder}.text_projection", "decoder/project_vocab/kernel"))


def options(source: Source, where: str) -> dict[str, Any]:
  """The keys of `coca` for an open_clip_config.json. Raises DataError for a part that our CoCa does not have."""
  model = take(source.open_clip, "model_cfg", dict, where)
  parts = {name: take(model, name, dict, where) for name in KNOWN}
  for name, part in parts.items():
    odd = [f"{key} {value!r:.40}" for key, value in part.items() if (key in INERT and value != INERT[key])
           or (key not in KNOWN[name] and key not in INERT and value)]
    if odd:
      raise DataError(f"{where}: {name}: {', '.join(odd)}: no part of mmdiff's CoCa")
  image, text, both = parts.values()
  if text.get("pad_id"):
    raise DataError(f"{where}: text_cfg: pad_id {text['pad_id']!r:.40}: mmdiff's CoCa pads with token 0, as open_clip's tokenizer does")
  width, embed_dim = take(text, "width", int, where, 512), take(model, "embed_dim", int, where)
  shape = lambda part: (take(part, "width", int, where, 512), take(part, "heads", int, where, 8))
  if embed_dim != width or shape(text) != shape(both):
    raise DataError(f"{where}: expected embed_dim and both halves of the decoder of one width and number of heads")
  size = square(image.get("image_size", 224), where)
  mean_std, _, _ = preprocessing.open_clip(source.open_clip.get("preprocess_cfg") or {}, where, image_size=size)
  if "pixels" not in mean_std:
    raise DataError(f"{where}: preprocess_cfg: {mean_std} are neither CLIP's nor one half")
  image_width = take(image, "width", int, where, 768)
  query = source.container.tensors.get(f"{POOL}.query")
  return dict(
    variant="ViT-B/32", embed_dim=embed_dim, image_size=size, image_width=image_width,
    image_depth=take(image, "layers", int, where, 12), image_heads=image_width // take(image, "head_width", int, where, 64),
    patch=square(image.get("patch_size", 16), where), pool_heads=take(image, "attn_pooler_heads", int, where, 8),
    queries=query.shape[0] if query else take(image, "attn_pooler_queries", int, where, 256), text_width=width,
    text_heads=take(text, "heads", int, where, 8), unimodal_depth=take(text, "layers", int, where, 12),
    multimodal_depth=take(both, "layers", int, where, 12), vocab=take(text, "vocab_size", int, where, 49_408),
    text_len=take(text, "context_length", int, where, 77), act="quick_gelu" if model.get("quick_gelu") else "gelu", **mean_std)


def shortest(given: Mapping[str, Any]) -> dict[str, Any]:
  """The fewest keys that make the same model: a preset's name alone where it is one."""
  module = coca(**given)
  for name, preset in PRESETS.items():
    if preset.get("open_clip") and coca(variant=name) == module:
      return dict(name="coca", variant=name)
  needed = dict(given)
  for key in [key for key in given if key != "variant"]:
    rest = {name: value for name, value in needed.items() if name != key}
    try:
      needed = rest if coca(**rest) == module else needed
    except ConfigError:                 # a size that the preset's patch does not divide
      continue
  return dict(name="coca", **needed)


def read(source: Source, *, image_size: int | None = None) -> Reading:
  where = f"{source.path}: open_clip_config.json"
  own = options(source, where)
  given = own | (dict(image_size=image_size) if image_size else {})
  module = coca(**given)
  _, pixels, notices = preprocessing.open_clip(source.open_clip.get("preprocess_cfg") or {}, where, image_size=own["image_size"])
  data = dict(image_size=module.image_size, text_len=module.text.length) | pixels
  objective = dict(name="coca", lambda_con=1.0, lambda_cap=2.0, model=shortest(given))
  return Reading(module, dict(objective=objective, data=data), table(same_width=given["image_width"] == given["text_width"]),
                 source.container.tensors, clip_inputs(module.image_size, module.text.length),
                 (*clip_tables.IGNORABLE, r"(.*\.)?attn_mask"), dict(config=dict(source.open_clip)), notices, like=OPENAI_TEXTS)


def write(module: CoCa, config: Mapping, style: Mapping) -> Writing:
  if not isinstance(module, CoCa) or not module.pool.single:
    raise ConfigError("open_clip-coca holds models of open_clip's structure only: one pooler whose first query is for contrast "
                      "(objective.model.open_clip=True)")
  if style.get("pad"):
    raise ConfigError(f"open_clip pads texts with token 0, which its class token sees behind a text: this model's tokenizer pads with "
                      f"{style['pad']}, and its texts would get other embeddings there (data.tokenizer.pad=zero trains for it)")
  image, text, decoder = module.image, module.text, module.decoder
  ratios = {image.mlp_dim / image.width, text.mlp_dim / text.width}
  if image.act not in ("gelu", "quick_gelu") or module.pool.embed_dim != text.width or ratios != {4.0}:
    raise ConfigError("open_clip's CoCa has activation gelu or quick_gelu, MLPs of four times the width and an embed_dim of the text's "
                      "width")
  made: dict[str, Any] = dict(
    embed_dim=module.pool.embed_dim, custom_text=True,
    vision_cfg=dict(image_size=module.image_size, layers=image.depth, width=image.width, patch_size=image.patch,
                    head_width=image.width // image.heads, attentional_pool=True, attn_pooler_heads=module.pool.heads,
                    attn_pooler_queries=module.pool.queries, output_tokens=True),
    text_cfg=dict(context_length=text.length, vocab_size=text.vocab, layers=text.depth, heads=text.heads, width=text.width, embed_cls=True,
                  output_tokens=True),
    multimodal_cfg=dict(context_length=text.length, vocab_size=text.vocab, width=text.width, heads=decoder.heads, layers=decoder.depth,
                        attn_pooler_heads=module.pool.heads))
  made |= dict(quick_gelu=True) if image.act == "quick_gelu" else {}
  data, before = config["data"], style.get("config", {})
  preprocess = preprocessing.to_open_clip(module.mean, module.std, data, before.get("preprocess_cfg", {}))
  files = {"open_clip_config.json": dict(model_cfg=before.get("model_cfg") or made, preprocess_cfg=preprocess)}
  return Writing(table(same_width=image.width == module.pool.width), files, "open_clip_model")


def fits(source: Source) -> bool:
  return "multimodal_cfg" in (source.open_clip.get("model_cfg") or {})


FORMAT = Format("open_clip-coca", "coca", "open_clip's CoCa", fits, read, write, ("image_size",))
