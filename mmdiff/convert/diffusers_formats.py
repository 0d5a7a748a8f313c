"""The parts of a diffusers folder that are ours alone: the UNet (UNet2DConditionModel) and the KL autoencoder (AutoencoderKL).

Both tables are made for a number of levels, since diffusers counts the levels on the way up from the deepest and we count them as on the
way down.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmdiff.convert import spellings
from mmdiff.convert.clip_formats import merged
from mmdiff.convert.formats import Format, Reading, Source, Writing, read_json, take
from mmdiff.convert.rules import Rule, norm, pair
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.models.autoencoder import Autoencoder
from mmdiff.models.unet import UNet

POOLED = 1280                  # width of the pooled text of SDXL and its refiner, where no second text encoder says another
PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v"}


def fixed(config: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
  """Raises DataError for a key whose value is another than the only one that we do."""
  for key, value in values.items():
    found = config.get(key, value)
    if found != value and not (found is None and value in (False, None)):
      raise DataError(f"{where}: {key}: {found!r:.60} is a part that mmdiff does not have (it has {value!r})")


def res_block(theirs: str, ours: str) -> tuple[Rule, ...]:
  return (*norm(f"{theirs}.norm1", f"{ours}/norm1"), *pair(f"{theirs}.conv1", f"{ours}/conv1", "conv"),
          *pair(f"{theirs}.time_emb_proj", f"{ours}/project"), *norm(f"{theirs}.norm2", f"{ours}/norm2"),
          *pair(f"{theirs}.conv2", f"{ours}/conv2", "conv"), *pair(f"{theirs}.conv_shortcut", f"{ours}/conv_shortcut", "conv"))


def transformer(theirs: str, ours: str, projection: str) -> tuple[Rule, ...]:
  block, stack = f"{theirs}.transformer_blocks.{{n}}", f"{ours}/stack"
  rules = [*norm(f"{theirs}.norm", f"{ours}/norm"), *pair(f"{theirs}.proj_in", f"{ours}/project_in", projection),
           *pair(f"{theirs}.proj_out", f"{ours}/project_out", projection)]
  for old, new in (("attn1", "attention"), ("attn2", "cross_attention")):
    rules += [Rule(f"{block}.{old}.{there}.weight", f"{stack}/{new}/{here}/kernel[n]", "linear") for here, there in PROJECTIONS.items()]
    rules += pair(f"{block}.{old}.to_out.0", f"{stack}/{new}/out", index="[n]")
  for old, new in (("norm1", "norm_attention"), ("norm2", "norm_cross"), ("norm3", "norm_mlp")):
    rules += norm(f"{block}.{old}", f"{stack}/{new}", "[n]")
  halves = [tuple(f"{stack}/mlp/{part}/{leaf}[n]" for part in ("up", "gate")) for leaf in ("kernel", "bias")]        # GEGLU: values, gates
  return (*rules, Rule(f"{block}.ff.net.0.proj.weight", halves[0], "fused"), Rule(f"{block}.ff.net.0.proj.bias", halves[1], "fused_bias"),
          *pair(f"{block}.ff.net.2", f"{stack}/mlp/down", index="[n]"))


def unet_table(levels: int, *, linear: bool) -> tuple[Rule, ...]:
  projection = "linear" if linear else "conv1"
  rules: list[Rule] = [*pair("conv_in", "conv_in", "conv"), *norm("conv_norm_out", "norm_out"), *pair("conv_out", "conv_out", "conv"),
                       Rule("class_embedding.weight", "embed_level/embedding")]
  for theirs, ours in (("time_embedding", "project_time"), ("add_embedding", "project_vector")):
    rules += [*pair(f"{theirs}.linear_1", f"{ours}_in"), *pair(f"{theirs}.linear_2", f"{ours}_out")]
  for level in range(levels):
    for theirs, ours in ((f"down_blocks.{level}", f"down_{level}"), (f"up_blocks.{levels - 1 - level}", f"up_{level}")):
      rules += res_block(f"{theirs}.resnets.{{m}}", f"{ours}_res_{{m}}")
      rules += transformer(f"{theirs}.attentions.{{m}}", f"{ours}_attention_{{m}}", projection)
    rules += pair(f"down_blocks.{level}.downsamplers.0.conv", f"down_{level}_shrink/conv", "conv")
    rules += pair(f"up_blocks.{levels - 1 - level}.upsamplers.0.conv", f"up_{level}_grow/conv", "conv")
  return (*rules, *res_block("mid_block.resnets.{m}", "middle_res_{m}"),
          *transformer("mid_block.attentions.0", "middle_attention", projection))


# What diffusers assumes, and every published Stable Diffusion has; another value is a part that we do not have.
UNET_FIXED = dict(
  act_fn="silu", center_input_sample=False, class_embeddings_concat=False, conv_in_kernel=3, conv_out_kernel=3, cross_attention_norm=None,
  downsample_padding=1, dual_cross_attention=False, encoder_hid_dim=None, flip_sin_to_cos=True, freq_shift=0, mid_block_scale_factor=1,
  mid_block_type="UNetMidBlock2DCrossAttn", norm_eps=1e-5, resnet_skip_time_act=False, resnet_time_scale_shift="default",
  time_cond_proj_dim=None, time_embedding_type="positional", time_embedding_act_fn=None, timestep_post_act=None, attention_type="default",
  num_attention_heads=None, addition_embed_type_num_heads=64, class_embed_type=None, reverse_transformer_layers_per_block=None,
  encoder_hid_dim_type=None, time_embedding_dim=None, resnet_out_scale_factor=1.0, mid_block_only_cross_attention=None)
# Keys that are read, and those that say what is so anyway: attention is softmaxed in float32, and nothing is dropped out in sampling.
UNET_READ = (
  *UNET_FIXED, "block_out_channels", "down_block_types", "up_block_types", "transformer_layers_per_block", "attention_head_dim",
  "cross_attention_dim", "num_class_embeds", "only_cross_attention", "out_channels", "sample_size", "layers_per_block", "norm_num_groups",
  "in_channels", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
  "upcast_attention", "dropout")


def unread(config: Mapping[str, Any], known: Sequence[str], where: str) -> list[str]:
  """A notice of the keys that nobody here knows and that say something: newer versions of diffusers may write such."""
  odd = [f"{key} ({value!r:.40})" for key, value in config.items()
         if key not in known and key[0] != "_" and value not in (None, False) and value != []]
  return [f"{where}: not read: {', '.join(odd)}; what they change is not done here"] if odd else []


def each(value: Any, count: int) -> list[Any]:
  """One value for each level, from one or from a list."""
  return list(value) if isinstance(value, (list, tuple)) else [value] * count


def read_unet(source: Source) -> Reading:
  config, where = source.config, f"{source.path}: config.json"
  fixed(config, UNET_FIXED, where)
  channels = take(config, "block_out_channels", list, where)
  levels, width = len(channels), channels[0]
  if any(side % width for side in channels):
    raise DataError(f"{where}: block_out_channels: expected multiples of the first, found {channels}")
  kinds, ups = take(config, "down_block_types", list, where), take(config, "up_block_types", list, where)
  attends = ["CrossAttn" in kind for kind in kinds]
  if set(kinds + ups) - {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"} or len(kinds) != levels \
      or ["CrossAttn" in kind for kind in ups[::-1]] != attends:
    raise DataError(f"{where}: blocks of kinds {kinds} and {ups} are not those of Stable Diffusion")
  layers = each(config.get("transformer_layers_per_block", 1), levels)
  heads = each(config.get("attention_head_dim", 8), levels)             # the number of heads, by diffusers' old mistake
  head_dims = {side // count for side, count in zip(channels, heads)}
  if len(set(heads)) > 1 and len(head_dims) > 1:
    raise DataError(f"{where}: attention_head_dim: expected equal numbers of heads or equal widths of heads, found {heads} for {channels}")
  text_width = take(config, "cross_attention_dim", int, where)
  classes = take(config, "num_class_embeds", (int, type(None)), where)
  given = dict(heads=heads[0], head_dim=None) if len(set(heads)) == 1 else dict(heads=None, head_dim=head_dims.pop())
  inputs, sizes = _conditions(source, config, where)
  given |= sizes
  only = tuple(flag and here for flag, here in zip(each(config.get("only_cross_attention", False), levels), attends))
  if any(only):
    given |= dict(text_only=only)
  out, size = take(config, "out_channels", int, where, 4), take(config, "sample_size", int, where, 64)
  module = UNet(image_size=size, channels=out, width=width, mults=tuple(side // width for side in channels),
                depths=tuple(depth if here else 0 for depth, here in zip(layers, attends)), middle=layers[-1],
                blocks=take(config, "layers_per_block", int, where, 2), groups=take(config, "norm_num_groups", int, where, 32),
                levels=classes or 0, **given)
  side, shape = 2 ** (levels - 1), jax.ShapeDtypeStruct
  text = dict(tokens=shape((1, 8, text_width), jnp.float32), mask=shape((1, 8), jnp.bool_)) | inputs
  more = take(config, "in_channels", int, where, 4) - out
  if more:
    text["concat"] = shape((1, side, side, more), jnp.float32)
  if classes:
    text["level"] = shape((1,), jnp.int32)
  linear = bool(config.get("use_linear_projection"))
  scheduler = read_json(source.folder.parent / "scheduler" / "scheduler_config.json") if source.folder else {}
  facts = {key: scheduler[key] for key in ("prediction_type", "beta_schedule", "timestep_spacing") if key in scheduler}
  about = dict(name="unet", linear=linear, text_width=text_width, in_channels=out + more,
               pooled_width=inputs["pooled"].shape[-1] if inputs else 0)
  return Reading(module, dict(objective=None, model=about, data=dict(image_size=size)), unet_table(levels, linear=linear),
                 source.container.tensors,
                 (shape((1, side, side, out), jnp.float32), shape((1,), jnp.float32), text), (), dict(config=dict(config)),
                 unread(config, UNET_READ, where), facts)


def _conditions(source: Source, config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, int]]:
  """(inputs `pooled` and `size`, fields that say how many numbers `size` has: SDXL's six or its refiner's five).

  The config has only the sum of their widths; the second text encoder beside it says how wide the pooled text is.
  """
  if config.get("addition_embed_type") is None:
    return {}, {}
  fixed(config, dict(addition_embed_type="text_time"), where)
  each_width = take(config, "addition_time_embed_dim", int, where)
  total = take(config, "projection_class_embeddings_input_dim", int, where)
  beside = read_json(source.folder.parent / "text_encoder_2" / "config.json") if source.folder else {}
  five, six = (total - count * each_width for count in (5, 6))
  pooled = beside.get("projection_dim") or (five if five == POOLED else six)
  count, rest = divmod(total - pooled, each_width)
  if rest or not 5 <= count <= 6 or pooled < 1:
    raise DataError(f"{where}: projection_class_embeddings_input_dim: {total} is no pooled text and five or six numbers of {each_width} "
                    "features")
  shape = jax.ShapeDtypeStruct
  return (dict(pooled=shape((1, pooled), jnp.float32), size=shape((1, 6), jnp.int32)), dict(sizes=count, size_width=each_width))


def write_unet(module: UNet, config: Mapping, style: Mapping) -> Writing:
  if not isinstance(module, UNet) or module.text_width or module.conditioning != "add":
    raise ConfigError("diffusers-unet holds the UNets of Stable Diffusion only: no transformer over the text, time added")
  linear = bool(config["model"].get("linear"))
  return Writing(unet_table(len(module.mults), linear=linear), {"config.json": dict(style.get("config") or unet_config(module, config))},
                 "diffusion_pytorch_model")


def unet_config(module: UNet, config: Mapping[str, Any]) -> dict[str, Any]:
  """diffusers' config of a UNet; what the module does not say (text and input widths) is in `config["model"]`, see `Reading`."""
  about = config["model"]
  attends = [bool(depth) for depth in module.depths]
  if attends[-1] and module.depths[-1] != module.middle:
    raise ConfigError(f"diffusers-unet: the middle has as many transformers as the deepest level, {module.depths[-1]}; "
                      f"found {module.middle}")
  wide = [module.width * mult for mult in module.mults]
  layers = [*(depth or 1 for depth in module.depths[:-1]), module.middle]
  kinds = [f"{'CrossAttn' * here}DownBlock2D" for here in attends]
  made: dict[str, Any] = dict(
    _class_name="UNet2DConditionModel", act_fn="silu", block_out_channels=wide, layers_per_block=module.blocks,
    cross_attention_dim=about["text_width"], in_channels=about["in_channels"], out_channels=module.channels, down_block_types=kinds,
    up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)], norm_num_groups=module.groups, norm_eps=1e-5,
    attention_head_dim=module.heads or [side // module.head_dim for side in wide], sample_size=module.image_size,
    use_linear_projection=bool(about.get("linear")), transformer_layers_per_block=layers[0] if len(set(layers)) == 1 else layers)
  if module.sizes:
    made |= dict(addition_embed_type="text_time", addition_time_embed_dim=module.size_width,
                 projection_class_embeddings_input_dim=about["pooled_width"] + module.sizes * module.size_width)
  if module.levels:
    made |= dict(num_class_embeds=module.levels)
  if any(module.text_only):
    made |= dict(only_cross_attention=list(module.text_only))
  return made


def vae_table(levels: int, prefix: str = "") -> tuple[Rule, ...]:
  rules: list[Rule] = [rule for name in ("quant_conv", "post_quant_conv") for rule in pair(f"{prefix}{name}", name, "conv")]
  for half in ("encoder", "decoder"):
    whole = f"{prefix}{half}"
    rules += [*pair(f"{whole}.conv_in", f"{half}/conv_in", "conv"), *norm(f"{whole}.conv_norm_out", f"{half}/norm_out"),
              *pair(f"{whole}.conv_out", f"{half}/conv_out", "conv"),
              *res_block(f"{whole}.mid_block.resnets.{{m}}", f"{half}/mid_block{{m}}")]
    there, here = f"{whole}.mid_block.attentions.0", f"{half}/mid_attention"
    rules += norm(f"{there}.group_norm", f"{here}/norm")
    for ours, theirs in {**PROJECTIONS, "out": "to_out.0"}.items():
      rules += pair(f"{there}.{theirs}", f"{here}/attention/{ours}")
  for level in range(levels):
    down, up = f"{prefix}encoder.down_blocks.{level}", f"{prefix}decoder.up_blocks.{levels - 1 - level}"
    rules += res_block(f"{down}.resnets.{{m}}", f"encoder/down{level}_block{{m}}")
    rules += pair(f"{down}.downsamplers.0.conv", f"encoder/down{level}_sample/conv", "conv")
    rules += res_block(f"{up}.resnets.{{m}}", f"decoder/up{level}_block{{m}}")
    rules += pair(f"{up}.upsamplers.0.conv", f"decoder/up{level}_sample/conv", "conv")
  return tuple(rules)


VAE_FIXED = dict(act_fn="silu", in_channels=3, out_channels=3, mid_block_add_attention=True)
# Keys that are read, and (force_upcast) that say what we do anyway: autoencoders run in float32.
VAE_READ = (*VAE_FIXED, "block_out_channels", "latent_channels", "layers_per_block", "norm_num_groups", "sample_size", "scaling_factor",
            "shift_factor", "latents_mean", "latents_std", "use_quant_conv", "use_post_quant_conv", "down_block_types", "up_block_types",
            "force_upcast")


def latent_scale(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The fields `scale` and `shift` of a config: diffusers' pipelines draw in (z - latents_mean) · scaling_factor / latents_std where both
  are there, in (z - shift_factor) · scaling_factor else. Raises DataError."""
  number = (int, float)
  factor = float(take(config, "scaling_factor", number, where, 0.18215))
  mean, std = config.get("latents_mean"), config.get("latents_std")
  if mean is None or std is None:
    if mean is not None or std is not None:
      raise DataError(f"{where}: latents_mean and latents_std belong together, found one of them")
    return dict(scale=factor, shift=float(take(config, "shift_factor", number, where, 0.0) if config.get("shift_factor") else 0.0))
  channels = take(config, "latent_channels", int, where, 4)
  for key, values in (("latents_mean", mean), ("latents_std", std)):
    if not isinstance(values, list) or len(values) != channels or not all(isinstance(value, number) for value in values):
      raise DataError(f"{where}: {key}: expected {channels} numbers, found {values!r:.80}")
  if config.get("shift_factor") or min(std) <= 0:
    raise DataError(f"{where}: expected latents_std above zero and no shift_factor beside latents_mean, found {std} and "
                    f"{config.get('shift_factor')}")
  return dict(scale=tuple(factor / value for value in std), shift=tuple(map(float, mean)))


def said_scale(module: Autoencoder) -> dict[str, Any]:
  """The inverse of `latent_scale`."""
  if not isinstance(module.scale, tuple) and not isinstance(module.shift, tuple):
    return dict(scaling_factor=module.scale) | (dict(shift_factor=module.shift) if module.shift else {})
  each_of = lambda value: value if isinstance(value, tuple) else (value,) * module.latent_channels
  return dict(scaling_factor=1.0, latents_mean=list(each_of(module.shift)), latents_std=[1 / value for value in each_of(module.scale)])


def read_vae(source: Source) -> Reading:
  config, where = source.config, f"{source.path}: config.json"
  fixed(config, VAE_FIXED, where)
  widths, latents = take(config, "block_out_channels", list, where), take(config, "latent_channels", int, where, 4)
  size = take(config, "sample_size", int, where, 32)
  module = Autoencoder(widths=tuple(widths), latent_channels=latents, blocks=take(config, "layers_per_block", int, where, 1),
                       groups=take(config, "norm_num_groups", int, where, 32), image_size=size, **latent_scale(config, where),
                       quant=bool(config.get("use_quant_conv", True)), post_quant=bool(config.get("use_post_quant_conv", True)))
  side = 2 ** (len(widths) - 1)
  return Reading(module, dict(objective=None, model=dict(name="kl"), data=dict(image_size=size)), vae_table(len(widths)),
                 spellings.autoencoder(source.container.tensors, "diffusers"), (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),),
                 (r"loss\..*",), dict(config=dict(config)), unread(config, VAE_READ, where), dict(scale=module.scale, shift=module.shift))


def write_vae(module: Autoencoder, config: Mapping, style: Mapping) -> Writing:
  if not isinstance(module, Autoencoder) or module.patch != 1 or module.attention_levels:
    raise ConfigError("diffusers-vae holds autoencoders without patches and with attention in the middle alone")
  levels = len(module.widths)
  made = dict(_class_name="AutoencoderKL", act_fn="silu", block_out_channels=list(module.widths), in_channels=3, out_channels=3,
              down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
              latent_channels=module.latent_channels, layers_per_block=module.blocks, norm_num_groups=module.groups,
              sample_size=module.image_size, **said_scale(module))
  made |= {} if module.quant and module.post_quant else dict(use_quant_conv=module.quant, use_post_quant_conv=module.post_quant)
  return Writing(vae_table(levels), {"config.json": merged(style.get("config", {}), made)}, "diffusion_pytorch_model")


def _class(source: Source, names: Sequence[str]) -> bool:
  return source.config.get("_class_name") in names


UNET = Format("diffusers-unet", "unet", "diffusers' UNet2DConditionModel", lambda s: _class(s, ["UNet2DConditionModel"]), read_unet,
              write_unet)
VAE = Format("diffusers-vae", "vae", "diffusers' AutoencoderKL", lambda s: _class(s, ["AutoencoderKL"]), read_vae, write_vae)
