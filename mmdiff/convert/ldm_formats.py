"""Single files of Stable Diffusion 1.x, 2.x, XL and its refiner, as CompVis' and Stability's code writes them and the web UIs trade them:
UNet, autoencoder and text encoders under one name each. One `part` is read at a time; its architecture comes from the shapes.

What shapes don't say is said by what else is in the file: a text of width 768 belongs to UNets with eight heads, all others have heads of
64; UNets of SDXL read a vector of sizes, and their autoencoder's latents have another scale; `convert.marks` knows the rest. The options
`heads`, `head_dim`, `scale` and `skip` override.

A file may also hold one autoencoder, or one of CLIP's text encoders under transformers' names (clip_l.safetensors, clip_g.safetensors).
"""
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmdiff.convert import clip_tables, diffusers_formats, marks, spellings
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.convert.diffusers_formats import POOLED, transformer
from mmdiff.convert.formats import Format, Reading, Source, Writing, need
from mmdiff.convert.rules import Rule, norm, pair
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import ConfigError, DataError, OptionError
from mmdiff.data.token_facts import Like
from mmdiff.models.autoencoder import VARIANTS, Autoencoder
from mmdiff.models.text import CLIP_STATES, ClipStates
from mmdiff.models.unet import SIZE_WIDTH, UNet

UNET, VAE = "model.diffusion_model.", "first_stage_model."
HF_TEXT, HF_FIRST = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
OPEN_TEXT, OPEN_FIRST, OPEN_SECOND = "cond_stage_model.model.", "conditioner.embedders.0.model.", "conditioner.embedders.1.model."
# Part -> prefixes that it may have; the text encoders' variants of `models.text.CLIP_STATES` by prefix.
PARTS = {"unet": (UNET,), "vae": (VAE,), "text": (HF_TEXT, OPEN_TEXT, HF_FIRST, OPEN_FIRST), "text_2": (OPEN_SECOND,)}
OPEN = (OPEN_TEXT, OPEN_FIRST, OPEN_SECOND)
ENCODERS = {HF_TEXT: "sd1", OPEN_TEXT: "sd2", HF_FIRST: "sdxl-1", OPEN_FIRST: "sdxl-2", OPEN_SECOND: "sdxl-2"}
# Text encoders that are published alone, by width: the variant whose activation and padding they have, and its name.
LONE = {768: ("sd1", "OpenAI's ViT-L/14"), 1024: ("sd2", "OpenCLIP's ViT-H/14"), 1280: ("sdxl-2", "OpenCLIP's ViT-bigG/14")}
READ_LAYERS = {"sd2": 23}               # of the 24 layers of OpenCLIP's encoder; files made from folders of diffusers end there
SIZES = {"sd": 64, "xl": 128, "x4": 128}          # sides of the latents that the published models are made for
X4_SCALE = 0.08333                      # of the latents of Stable Diffusion 2's upscaler
TEXT_TAKES = ("skip", "text_len")
TAKES = {"unet": ("heads", "head_dim", "ema"), "vae": ("scale",), "text": TEXT_TAKES, "text_2": TEXT_TAKES}      # options by part
NUMBER = r"(\d+)"
RES = {"norm1": "in_layers.0", "norm2": "out_layers.0", "conv1": "in_layers.2", "conv2": "out_layers.3"}


def parts_in(found: Mapping[str, Tensor]) -> dict[str, str]:
  """The parts of a file: {part: its prefix}. The own file of an autoencoder, or of a text encoder, has none."""
  made = {part: prefix for part, prefixes in PARTS.items() for prefix in prefixes if any(name.startswith(prefix) for name in found)}
  alone = ("encoder.down.0.block.0.norm1.weight", "encoder.down_blocks.0.resnets.0.norm1.weight")
  if made or any(name in found for name in alone):
    return made or {"vae": ""}
  words = any(f"{start}embeddings.token_embedding.weight" in found for start in (spellings.TEXT, ""))
  return {"text": ""} if words and not any(name.startswith((spellings.IMAGE, f"{spellings.TEXT}head.")) for name in found) else {}


def kind_of(found: Mapping[str, Tensor]) -> str:
  """"x4", "xl" (its refiner too) or "sd", by the UNet's further inputs; without a UNet by the text encoders."""
  if f"{UNET}label_emb.weight" in found:
    return "x4"
  if any(name.startswith(UNET) for name in found):
    return "xl" if f"{UNET}label_emb.0.0.weight" in found else "sd"
  return "xl" if any(name.startswith("conditioner.") for name in found) else "sd"


def read(source: Source, *, part: str | None = None, heads: int | None = None, head_dim: int | None = None, scale: float | None = None,
         skip: int | None = None, text_len: int | None = None, ema: bool | None = None) -> Reading:
  """Raises ConfigError when the file has several parts and `part` names none of them, or has no averages for `ema`."""
  tensors, where = source.container.tensors, str(source.path)
  known = parts_in(tensors)
  if part is None and len(known) == 1:
    part, = known
  if part not in known:
    raise OptionError(f"{where} holds {', '.join(known)}; expected part to be one of them, found {part!r}")
  given = dict(heads=heads, head_dim=head_dim, scale=scale, skip=skip, text_len=text_len)
  if idle := [name for name, value in given.items() if value is not None and name not in TAKES[part]]:
    raise OptionError(f"{where}: part {part} takes no {', '.join(idle)}; it takes {', '.join(TAKES[part])}")
  prefix = known[part]
  others = tuple(re.escape(other) + ".*" for name, other in known.items() if name != part)
  ignorable = (*marks.READ, *marks.DERIVED, *marks.LOSSES, r"model_ema\..*", *others,
               *(f"{re.escape(prefix)}{name}" for name in (*clip_tables.IGNORABLE, "logit_scale")))
  said, kind = marks.own_fields(source.container, part, where), kind_of(tensors)
  if part == "vae":
    source = source._replace(container=source.container._replace(tensors=spellings.autoencoder(tensors, "ldm", prefix)))
    tensors = source.container.tensors
  own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
  if ema:
    if part != "unet":
      raise OptionError(f"ema: a single file has averages of its UNet alone, found part {part!r}")
    own = averages(own, tensors, source)
    source = source._replace(container=source.container._replace(tensors={**tensors, **{prefix + name: own[name] for name in own}}))
  if part == "unet":
    told = heads or head_dim
    if not told:
      heads, head_dim = said.pop("heads", None), said.pop("head_dim", None)
    size = (marks.resolution(source.container.metadata) or 8 * SIZES[kind]) // 8
    fault = OptionError if told else DataError
    reading = _unet(source, own, prefix, ignorable, heads=heads, head_dim=head_dim, size=size, fault=fault)
  elif part == "vae":
    assumed = X4_SCALE if kind == "x4" else VARIANTS["sdxl" if kind == "xl" else "sd"]["scale"]
    latents = dict(scale=scale) if scale else marks.latents(tensors, assumed, where)
    reading = _vae(source, own, prefix, ignorable, latents, told=bool(prefix or scale) or latents["scale"] != assumed)
  else:
    variant = "sd2" if prefix == OPEN_FIRST and kind == "sd" else ENCODERS.get(prefix, "")          # SD-Turbo's files have SDXL's names
    reading = _text(source, own, prefix, ignorable, variant, text_len=text_len, skip=skip)
  if said:
    chosen = dict(heads=heads, head_dim=heads or head_dim, scale=scale, shift=scale, skip=skip, length=text_len)
    reading = reading._replace(module=reading.module.clone(**{key: value for key, value in said.items() if not chosen.get(key)}))
  told = [] if ema or skip is not None else marks.notices(tensors if part == "unet" else own, source.container.metadata, part, where)
  return reading._replace(style=dict(reading.style, prefix=prefix, more=others_of(tensors, part, prefix, ignorable)),
                          notices=[*reading.notices, *told])


def averages(own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
  """The UNet's tensors as their averages, whose names have lost their dots (LitEma of CompVis/latent-diffusion, ema.py)."""
  there = {name: "model_ema." + f"diffusion_model.{name}".replace(".", "") for name in own}
  lacking = [name for name in there.values() if name not in found]
  if lacking:
    raise DataError(f"{source.path}: {len(lacking)} of {len(there)} averages are missing, {lacking[0]} for one; leave out ema")
  return {name: found[average] for name, average in there.items()}


def others_of(found: Mapping[str, Tensor], part: str, prefix: str, ignorable: tuple[str, ...]) -> dict[str, Tensor]:
  """What a save of the part repeats though no model reads it: counters and buffers under its own prefix, and those of no part with the
  UNet. Averages are not among them: they are not those of what is saved."""
  known = tuple(parts_in(found).values())
  belongs = lambda name: name.startswith(prefix) if prefix else True
  unread = lambda name: any(re.fullmatch(pattern, name) for pattern in ignorable) and not name.startswith("model_ema.")
  mine = {name: tensor for name, tensor in found.items() if belongs(name) and unread(name)}
  loose = {name: tensor for name, tensor in found.items() if part == "unet" and unread(name) and not name.startswith(known)}
  return {**loose, **mine}


def table(group: str, module: Any, config: Mapping[str, Any], style: Mapping[str, Any]) -> tuple[Rule, ...]:
  """The rules of a part, by its parameter group, under the prefix that it came with or else has. Raises ConfigError for another model."""
  if group == "denoiser":
    if not isinstance(module, UNet) or module.text_width or module.conditioning != "add":
      raise ConfigError("ldm holds the UNets of Stable Diffusion only: no transformer over the text, time added")
    return unet_table(tuple(map(bool, module.depths)), module.blocks, linear=bool(config["model"].get("linear")))
  if group == "autoencoder":
    if not isinstance(module, Autoencoder) or module.patch != 1 or module.attention_levels:
      raise ConfigError("ldm holds autoencoders without patches and with attention in the middle alone")
    return vae_table(len(module.widths), style.get("prefix", VAE))
  if not isinstance(module, ClipStates):
    raise ConfigError(f"ldm holds CLIP's text encoders only, found {type(module).__name__}")
  own = {"text/first": HF_FIRST, "text/second": OPEN_SECOND}.get(
    group, HF_TEXT if module.act == "quick_gelu" else OPEN_TEXT if module.norm else OPEN_FIRST)
  prefix = style.get("prefix", own)
  return clip_tables.openai_text(prefix, "") if prefix in OPEN else hf_table(prefix, style.get("group", spellings.TEXT))


def count(own: Mapping[str, Tensor], pattern: str) -> int:
  """How many numbers a pattern with one group takes."""
  return len({found[1] for name in own if (found := re.match(pattern, name))})


# The UNet

def res_block(theirs: str, ours: str) -> tuple[Rule, ...]:
  rules: list[Rule] = []
  for here, there in RES.items():
    rules += norm(f"{theirs}.{there}", f"{ours}/{here}") if here.startswith("norm") else pair(f"{theirs}.{there}", f"{ours}/{here}", "conv")
  return (*rules, *pair(f"{theirs}.emb_layers.1", f"{ours}/project"),
          *pair(f"{theirs}.skip_connection", f"{ours}/conv_shortcut", "conv"))


def unet_table(attends: tuple[bool, ...], blocks: int, *, linear: bool, prefix: str = UNET) -> tuple[Rule, ...]:
  """attends: by level, whether its blocks have transformers: where they have none, what comes after them moves up a place."""
  projection, levels, run = "linear" if linear else "conv1", len(attends), blocks + 1
  rules: list[Rule] = [*pair(f"{prefix}input_blocks.0.0", "conv_in", "conv"), *norm(f"{prefix}out.0", "norm_out"),
                       *pair(f"{prefix}out.2", "conv_out", "conv"), Rule(f"{prefix}label_emb.weight", "embed_level/embedding")]
  for theirs, ours in (("time_embed", "project_time"), ("label_emb.0", "project_vector")):
    rules += [*pair(f"{prefix}{theirs}.0", f"{ours}_in"), *pair(f"{prefix}{theirs}.2", f"{ours}_out")]
  for level in range(levels):
    for m in range(blocks):
      at = f"{prefix}input_blocks.{1 + level * run + m}"
      rules += [*res_block(f"{at}.0", f"down_{level}_res_{m}"), *transformer(f"{at}.1", f"down_{level}_attention_{m}", projection)]
    rules += pair(f"{prefix}input_blocks.{(level + 1) * run}.0.op", f"down_{level}_shrink/conv", "conv")
    for m in range(run):
      at = f"{prefix}output_blocks.{(levels - 1 - level) * run + m}"
      rules += [*res_block(f"{at}.0", f"up_{level}_res_{m}"), *transformer(f"{at}.1", f"up_{level}_attention_{m}", projection)]
    rules += pair(f"{prefix}output_blocks.{(levels - level) * run - 1}.{2 if attends[level] else 1}.conv", f"up_{level}_grow/conv", "conv")
  return (*rules, *res_block(f"{prefix}middle_block.0", "middle_res_0"),
          *transformer(f"{prefix}middle_block.1", "middle_attention", projection), *res_block(f"{prefix}middle_block.2", "middle_res_1"))


def _unet(source: Source, own: Mapping[str, Tensor], prefix: str, ignorable: tuple[str, ...], *, heads: int | None,
          head_dim: int | None, size: int, fault: type[ValueError]) -> Reading:
  where = str(source.path)
  shape_of = lambda name: need(own, name, where, prefix)
  width, inside, *_ = shape_of("input_blocks.0.0.weight")
  out = shape_of("out.2.weight")[0]
  last = count(own, r"input_blocks\.(\d+)\.") - 1
  shrinks = [n for n in range(1, last + 1) if f"input_blocks.{n}.0.op.weight" in own]
  run = shrinks[0] if shrinks else last + 1
  firsts = [1, *(n + 1 for n in shrinks)]
  wide = [shape_of(f"input_blocks.{n}.0.out_layers.3.weight")[0] for n in firsts]
  deep = lambda at: count(own, re.escape(at) + r"\.transformer_blocks\.(\d+)\.")
  depths = tuple(deep(f"input_blocks.{n}.1") for n in firsts)
  if any(side % width for side in wide) or (last + 1) % run:
    raise DataError(f"{source.path}: {prefix}: widths {wide} over {width} or {last} input blocks are not those of a Stable Diffusion")
  text_width = shape_of("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1]
  only = tuple(bool(depth) and shape_of(f"input_blocks.{n}.1.transformer_blocks.0.attn1.to_k.weight")[1] != side
               for depth, n, side in zip(depths, firsts, wide))
  classes = own["label_emb.weight"].shape[0] if "label_emb.weight" in own else 0
  if heads is None and head_dim is None:
    heads, head_dim = (8, None) if text_width == CLIP_STATES["sd1"][0] or classes else (None, 64)
  if (head_dim or heads) and any(depth and side % (head_dim or heads) for depth, side in zip(depths, wide)):
    raise fault(f"{source.path}: {prefix}: widths {wide} are no heads of {head_dim}; say heads or head_dim" if head_dim else
                f"{source.path}: {prefix}: widths {wide} are not {heads} heads; say heads or head_dim")
  given: dict[str, Any] = dict(heads=heads, head_dim=head_dim, levels=classes)
  shape, side = jax.ShapeDtypeStruct, 2 ** (len(wide) - 1)
  text = dict(tokens=shape((1, 8, text_width), jnp.float32), mask=shape((1, 8), jnp.bool_))
  if "label_emb.0.0.weight" in own:
    total = shape_of("label_emb.0.0.weight")[1]
    five, six = (total - numbers * SIZE_WIDTH for numbers in (5, 6))
    pooled = five if five == POOLED else six
    given |= dict(sizes=(total - pooled) // SIZE_WIDTH)
    text |= dict(pooled=shape((1, pooled), jnp.float32), size=shape((1, 6), jnp.int32))
  if any(only):
    given |= dict(text_only=only)
  if inside > out:
    text["concat"] = shape((1, side, side, inside - out), jnp.float32)
  if classes:
    text["level"] = shape((1,), jnp.int32)
  linear = len(shape_of("middle_block.1.proj_in.weight")) == 2
  module = UNet(image_size=size, channels=out, width=width, mults=tuple(one // width for one in wide), depths=depths,
                middle=deep("middle_block.1"), blocks=run - 1, **given)
  about = dict(name="unet", linear=linear, text_width=text_width, in_channels=inside,
               pooled_width=text["pooled"].shape[-1] if "pooled" in text else 0)
  return Reading(module, dict(objective=None, model=about, data=dict(image_size=size)),
                 unet_table(tuple(map(bool, depths)), run - 1, linear=linear, prefix=prefix), source.container.tensors,
                 (shape((1, side, side, out), jnp.float32), shape((1,), jnp.float32), text), ignorable)


# The autoencoder

def vae_table(levels: int, prefix: str = VAE) -> tuple[Rule, ...]:
  rules: list[Rule] = [rule for name in ("quant_conv", "post_quant_conv") for rule in pair(f"{prefix}{name}", name, "conv")]

  def block(theirs: str, ours: str) -> list[Rule]:
    return [*norm(f"{theirs}.norm1", f"{ours}/norm1"), *pair(f"{theirs}.conv1", f"{ours}/conv1", "conv"),
            *norm(f"{theirs}.norm2", f"{ours}/norm2"), *pair(f"{theirs}.conv2", f"{ours}/conv2", "conv"),
            *pair(f"{theirs}.nin_shortcut", f"{ours}/conv_shortcut", "conv")]
  for half in ("encoder", "decoder"):
    there = f"{prefix}{half}"
    rules += [*pair(f"{there}.conv_in", f"{half}/conv_in", "conv"), *norm(f"{there}.norm_out", f"{half}/norm_out"),
              *pair(f"{there}.conv_out", f"{half}/conv_out", "conv"), *norm(f"{there}.mid.attn_1.norm", f"{half}/mid_attention/norm")]
    for number in (0, 1):
      rules += block(f"{there}.mid.block_{number + 1}", f"{half}/mid_block{number}")
    for ours, theirs in dict(query="q", key="k", value="v", out="proj_out").items():
      rules += pair(f"{there}.mid.attn_1.{theirs}", f"{half}/mid_attention/attention/{ours}", "conv1")
  for level in range(levels):
    rules += block(f"{prefix}encoder.down.{level}.block.{{m}}", f"encoder/down{level}_block{{m}}")
    rules += pair(f"{prefix}encoder.down.{level}.downsample.conv", f"encoder/down{level}_sample/conv", "conv")
    rules += block(f"{prefix}decoder.up.{level}.block.{{m}}", f"decoder/up{level}_block{{m}}")
    rules += pair(f"{prefix}decoder.up.{level}.upsample.conv", f"decoder/up{level}_sample/conv", "conv")
  return tuple(rules)


def _vae(source: Source, own: Mapping[str, Tensor], prefix: str, ignorable: tuple[str, ...], scaling: Mapping[str, Any], *,
         told: bool) -> Reading:
  """scaling: `scale` and `shift` of the latents; told: whether they are more than what is usual."""
  where = str(source.path)
  theirs = any(name.startswith("encoder.down_blocks.") for name in own)              # diffusers' names, of its folder's weights alone
  down, block = ("down_blocks", "resnets") if theirs else ("down", "block")
  levels = count(own, rf"encoder\.{down}\.(\d+)\.")
  widths = tuple(need(own, f"encoder.{down}.{level}.{block}.0.conv2.weight", where, prefix)[0] for level in range(levels))
  quant, post_quant = ("quant_conv.weight" in own, "post_quant_conv.weight" in own)
  latents = need(own, "decoder.conv_in.weight", where, prefix)[1]
  notices = () if told else (f"the file does not say how its latents are scaled; took Stable Diffusion's {scaling['scale']}",)
  module = Autoencoder(widths=widths, latent_channels=latents, blocks=count(own, rf"encoder\.{down}\.0\.{block}\.(\d+)\."),
                       image_size=256, quant=quant, post_quant=post_quant, **scaling)
  side, found = 2 ** (levels - 1), source.container.tensors
  table = diffusers_formats.vae_table(levels, prefix) if theirs else vae_table(levels, prefix)
  return Reading(module, dict(objective=None, model=dict(name="kl"), data=dict(image_size=256)), table,
                 spellings.autoencoder(found, "diffusers", prefix) if theirs else found,
                 (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),), ignorable, {}, notices,
                 dict(scale=module.scale, shift=module.shift))


# The text encoders

def _text(source: Source, own: Mapping[str, Tensor], prefix: str, ignorable: tuple[str, ...], variant: str, *,
          text_len: int | None, skip: int | None) -> Reading:
  """variant: of `CLIP_STATES`; "" of an encoder alone is what its width says."""
  where, open_clip = str(source.path), prefix in OPEN
  start = "" if open_clip else spellings.start(own, spellings.TEXT)
  layers = r"transformer\.resblocks\." + NUMBER + r"\." if open_clip else re.escape(start) + r"encoder\.layers\." + NUMBER + r"\."
  embedding = "token_embedding.weight" if open_clip else f"{start}embeddings.token_embedding.weight"
  position = "positional_embedding" if open_clip else f"{start}embeddings.position_embedding.weight"
  hidden = "transformer.resblocks.0.mlp.c_fc.weight" if open_clip else f"{start}encoder.layers.0.mlp.fc1.weight"
  vocab, width = need(own, embedding, where, prefix)
  depth, notices = count(own, layers), []
  if not variant:
    variant, notices = _lone(width, depth, where)
  _, _, _, pooled, own_skip, norm_it, act, pad = CLIP_STATES[variant]
  if prefix:
    embed_dim = need(own, "text_projection", where, prefix)[1] if pooled or "text_projection" in own else None
  else:                                 # read as transformers' folder of the same is: its last layer, whatever a pipeline would take
    embed_dim = own["text_projection.weight"].shape[0] if "text_projection.weight" in own else None
    skip, norm_it = skip or 0, True
  if skip is None:
    skip = max(depth - READ_LAYERS[variant], 0) if variant in READ_LAYERS else own_skip
  if not 0 <= skip < depth:
    raise OptionError(f"skip: {source.path}: {prefix} has {depth} layers, found {skip}; use 0 to {depth - 1}")
  module = ClipStates(vocab=vocab, length=text_len or need(own, position, where, prefix)[0], width=width, depth=depth,
                      heads=max(width // 64, 1), mlp_dim=need(own, hidden, where, prefix)[0], embed_dim=embed_dim, skip=skip, norm=norm_it,
                      act=act, pad=vocab - 1 if pad == "end" else 0, whole=True)
  table = clip_tables.openai_text(prefix, "") if open_clip else hf_table(prefix, start)
  return Reading(module, dict(objective=None, model=dict(name="clip_text"), data=dict(text_len=module.length)), table,
                 source.container.tensors, clip_inputs(8, module.length)[1:], ignorable, dict(group=start), notices,
                 like=Like("CLIPTokenizer"))


def _lone(width: int, depth: int, where: str) -> tuple[str, list[str]]:
  """(variant, notices) of a text encoder alone. Raises DataError for one that is none of the published ones."""
  variant, name = LONE.get(width, ("", ""))
  about = f"{where} is a CLIP text encoder alone, {width} wide, with {depth} layers, and no config.json says"
  if not variant or depth not in (CLIP_STATES[variant][1], READ_LAYERS.get(variant)):
    known = " or ".join(f"{other} with {CLIP_STATES[kind][1]}" for other, (kind, _) in LONE.items())
    raise DataError(f"{about} its activation and its heads, which are known of {known} layers only: put its config.json beside it, in a "
                    "folder of their own")
  return variant, [f"{about} more: took the activation ({CLIP_STATES[variant][6]}), the heads of 64 and the padding of {name}"]


def hf_table(prefix: str, start: str) -> tuple[Rule, ...]:
  """A text encoder under transformers' names."""
  return (*clip_tables.hf_text(prefix + start, ""), Rule(f"{prefix}text_projection.weight", "projection/kernel", "linear"))


def fits(source: Source) -> bool:
  known = parts_in(source.container.tensors)
  return "_class_name" not in source.config and bool(known) and not (known == {"text": ""} and source.model_type)


def write(module: UNet | Autoencoder | ClipStates, config: Mapping, style: Mapping) -> Writing:
  """One part in a file of its own; `pipelines.save` puts several into one."""
  group = "denoiser" if isinstance(module, UNet) else "autoencoder" if isinstance(module, Autoencoder) else "text"
  return Writing(table(group, module, config, style), {}, "model", style.get("more", {}))


LDM = Format("ldm", "ldm", "a single file of Stable Diffusion, or of one of its parts", fits, read, write,
             options=("part", "heads", "head_dim", "scale", "skip", "text_len", "ema"))
