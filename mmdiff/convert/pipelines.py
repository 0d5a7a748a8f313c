"""Models that belong together: a diffusers folder with a model_index.json, or a single file of Stable Diffusion.

Their parts go by the parameter groups that the same models have in `objectives.diffusion`: `denoiser`, `autoencoder`, and `text`, or
`text/first` and `text/second` where there are two encoders.
"""
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from mmdiff.convert import containers, formats, ldm_formats, marks, public, rules, safetensors_file
from mmdiff.convert.public import Loaded
from mmdiff.core.errors import CannotWrite, ConfigError, DataError, OptionError
from mmdiff.core.files import write_json
from mmdiff.core.terminal import tell
from mmdiff.data import token_facts, tokenizers
from mmdiff.data.token_facts import Like
from mmdiff.models.text import SideBySide
from mmdiff.models.unet import UNet

WHOLE = ("diffusers", "ldm")          # formats of whole pipelines
FOLDERS = {"unet": "unet", "vae": "vae", "text_encoder": "text", "text_encoder_2": "text_2"}      # of diffusers -> part
FORMATS = {"denoiser": "diffusers-unet", "autoencoder": "diffusers-vae", "text": "hf-clip-text"}  # group -> format of its folder
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
SMALL = "low_res_scheduler/scheduler_config.json"                         # of an upscaler: the noise added to what it enlarges
# What the authors' own code samples Stable Diffusion with; single files don't say.
SD_SCHEDULER = dict(_class_name="DDIMScheduler", num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012,
                    beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
XL_SCHEDULER = SD_SCHEDULER | dict(_class_name="EulerDiscreteScheduler", prediction_type="epsilon")
# Of Stable Diffusion 2's upscaler, as its configs say.
X4_SCHEDULER = SD_SCHEDULER | dict(beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction")
X4_SMALL = dict(_class_name="DDPMScheduler", num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
V2_SIDE = 96                            # of the latents of Stable Diffusion 2's models that predict v
DRAWING = ("denoiser", "autoencoder")            # groups that every pipeline needs beside its texts
MOST_NOISE = 350                        # levels of it, where the index does not say
OF_PARTS = {name for names in ldm_formats.TAKES.values() for name in names}                  # options of a part of a single file
PREDICTIONS = ("eps", "v")


class Pipeline(NamedTuple):
  """Parts that draw together.

  parts: by parameter group. scheduler: of `schedulers.plan_of`. index: the folder's model_index.json, {} of a single file. tokenizer:
  folder of its files, or None. zeros: whether no caption is zeros instead of the encoder's states. notices: what was assumed. small: of an
  upscaler, the scheduler of the noise that is added to what it enlarges.
  """
  parts: dict[str, Loaded]
  scheduler: dict[str, Any]
  index: dict[str, Any]
  tokenizer: Path | None
  zeros: bool
  notices: tuple[str, ...]
  format: str                           # "diffusers" or "ldm"
  small: Mapping[str, Any] = {}

  @property
  def condition(self) -> nn.Module:
    """The text encoders as one module of the parameters `text`."""
    if "text" in self.parts:
      return self.parts["text"].module
    return SideBySide(*(self.parts[f"text/{which}"].module.clone() for which in ("first", "second")))

  @property
  def params(self) -> dict[str, Any]:
    """By group, the encoders' under `text`."""
    return public.nest({group: part.params for group, part in self.parts.items()})


def is_pipeline(path: str | os.PathLike) -> bool:
  """Whether a path holds several models. Reads names at most."""
  path = Path(path)
  if path.is_dir():
    return (path / INDEX).is_file()
  return path.is_file() and path.suffix in containers.WEIGHTS and len(ldm_formats.parts_in(containers.read(path).tensors)) > 1


def groups(parts: list[str]) -> dict[str, str]:
  """{part: parameter group} of the parts that there are."""
  named = {"unet": "denoiser", "vae": "autoencoder", "text": "text/first", "text_2": "text/second"}
  if "text" not in parts or "text_2" not in parts:
    named |= {"text": "text", "text_2": "text"}
  return {part: named[part] for part in parts}


def load(path: str | os.PathLike, *, quiet: bool = False, prediction: str | None = None, variant: str = "", **options) -> Pipeline:
  """Every part of a pipeline, and how it is sampled.

  Args:
    prediction: "eps" or "v", of a single file; None is what it says of itself (see `convert.marks`), or eps.
    variant: of a folder, as of `public.load`; a part that lacks it has the weights that no variant is said of, with a notice.
    **options: for every part, as `public.load` takes them: allow_missing, prefer; and of a single file for the part that they belong to:
      ema (whether to take the averages of the UNet's weights that are beside them), heads, head_dim, scale, skip (layers that the first
      text encoder leaves out, "clip skip" less one).

  Raises:
    DataError: as `public.load`, and for a folder without a part that is known.
    ConfigError: an option that does not apply.
  """
  path = Path(path)
  if prediction not in (None, *PREDICTIONS):
    raise ConfigError(f"prediction: expected {' or '.join(PREDICTIONS)}, found {prediction!r}")
  if path.is_file():
    if variant:
      raise ConfigError(f"{path} is one file, which has no variants; leave out variant")
    return told(_file(path, quiet=quiet, prediction=prediction, **options), quiet=quiet)
  wrong = [name for name in ("prediction", *sorted(OF_PARTS))
           if (prediction if name == "prediction" else options.get(name))]
  if wrong:
    raise ConfigError(f"{path} is a folder, whose configs say more than a single file does; leave out {', '.join(wrong)}")
  where = places(path, variant=variant)
  parts = {group: public.load(folder, quiet=quiet, **how, **options) for group, (folder, how) in where.items()}
  index, how = formats.read_json(path / INDEX), sampling_of_folder(path, parts)
  tokenizer = next((folder for name in ("tokenizer", "tokenizer_2") if (folder := public.tokenizer_folder(path / name))), None)
  return told(Pipeline(_penultimate(parts), how.scheduler, index, tokenizer, how.zeros, (*without(where, variant), *how.notices),
                       "diffusers", how.small), quiet=quiet)


def told(pipeline: Pipeline, *, quiet: bool) -> Pipeline:
  """The same, after a line on stderr for each of its notices."""
  if pipeline.notices and not quiet:
    tell("\n".join(pipeline.notices))
  return pipeline


def places(path: str | os.PathLike, *, variant: str = "") -> dict[str, tuple[Path, dict[str, str]]]:
  """{parameter group: (folder or file, options of `public.load`)} of the parts that there are. Reads names at most.

  variant: of the weights of the folders that have it; others have none. Raises DataError where none of them has it.
  """
  path = Path(path)
  parts = parts_of(path)
  named = groups(list(parts))
  if path.is_file():
    return {named[part]: (path, dict(part=part)) for part in parts}
  there = {part: containers.weights(path / name) for part, name in parts.items()}
  if variant and not any(variant in files for files in there.values()):
    known = sorted({name for files in there.values() for name in files if name})
    raise DataError(f"{path}: no weights of variant {variant!r}; the variants there are {', '.join(known) or 'none'}")
  return {named[part]: (path / name, dict(variant=variant) if variant and variant in there[part] else {}) for part, name in parts.items()}


def parts_of(path: str | os.PathLike) -> dict[str, str]:
  """{part: its folder's name, or its prefix in a single file}. Reads names at most. Raises DataError."""
  path = Path(path)
  if path.is_file():
    return ldm_formats.parts_in(containers.read(path).tensors)
  found = {part: name for name, part in FOLDERS.items() if (path / name / "config.json").is_file()}
  if not found:
    raise DataError(f"{path}: {INDEX} is there, and none of the folders {', '.join(FOLDERS)} with a config.json; is the download complete?")
  return found


def place_of(path: str | os.PathLike, part: str, *, variant: str = "") -> tuple[Path, dict[str, str]]:
  """(folder or file, options of `public.load`) of one part: "unet", "vae", "text" or "text_2". Raises OptionError for one that is not
  there."""
  parts = list(parts_of(path))
  if part not in parts:
    raise OptionError(f"{path} holds {', '.join(parts)}; expected part to be one of them, found {part!r}")
  return places(path, variant=variant)[groups(parts)[part]]


def without(where: Mapping[str, tuple[Path, dict[str, str]]], variant: str) -> tuple[str, ...]:
  """A notice of the parts that lack a variant."""
  lacking = [folder.name for folder, how in where.values() if variant and "variant" not in how]
  return (f"no weights of variant {variant!r} in {', '.join(lacking)}: took those without one",) if lacking else ()


def _file(path: Path, *, quiet: bool, prediction: str | None, **options) -> Pipeline:
  where, shared = places(path), {name: value for name, value in options.items() if name not in OF_PARTS}
  takes = {how["part"]: [name for name in ldm_formats.TAKES[how["part"]] if (how["part"], name) != ("text_2", "skip")]
           for _, how in where.values()}                                     # "clip skip" is the first encoder's
  own_options = lambda part: {name: options[name] for name in takes[part] if name in options}
  if idle := [name for name in options if name in OF_PARTS and not any(name in names for names in takes.values())]:
    raise OptionError(f"{path} holds {', '.join(takes)}, none of which takes {', '.join(idle)}; leave it out")
  parts = {group: public.load(path, quiet=quiet, **shared, **how, **own_options(how["part"])) for group, (_, how) in where.items()}
  container = containers.read(path, prefer=options.get("prefer"))
  how = sampling(container, prediction=prediction, where=str(path))
  said, notices = marks.own(container), list(how.notices)
  if _second(parts):
    if not how.said:
      notices.append(f"{path.name} does not say what it predicts: took eps; a Stable Diffusion 2 for 768 pixels needs prediction=\"v\"")
    if how.scheduler.get("prediction_type") == "v_prediction" and not said and not marks.resolution(container.metadata):
      parts["denoiser"] = sized(parts["denoiser"], V2_SIDE)
  return Pipeline(parts, how.scheduler, {}, public.tokenizer_folder(path.parent), how.zeros, tuple(notices), "ldm", how.small)


class Sampling(NamedTuple):
  """How a folder or a single file is sampled: as of `Pipeline`, and `said`, whether it says what it predicts."""
  scheduler: dict[str, Any]
  zeros: bool
  small: Mapping[str, Any]
  said: bool
  notices: list[str]


def sampling_of_folder(path: Path, parts: Mapping[str, Any]) -> Sampling:
  """What a folder says of how it is sampled, or else what is usual for its kind. parts: of which the `module` is read. Raises DataError."""
  index, scheduler, notices = formats.read_json(path / INDEX), formats.read_json(path / SCHEDULER), []
  formats.take(index, "max_noise_level", int, f"{path / INDEX}", MOST_NOISE)
  if not scheduler:
    scheduler, notices = dict(XL_SCHEDULER if _xl(parts) else SD_SCHEDULER), [f"no {SCHEDULER}: took Stable Diffusion's levels"]
  small = formats.read_json(path / SMALL) or (X4_SMALL if _enlarges(parts) else {})
  return Sampling(scheduler, bool(index.get("force_zeros_for_empty_prompt")), small, "prediction_type" in scheduler, notices)


def sampling(container: containers.Container, *, prediction: str | None = None, where: str) -> Sampling:
  """What a single file says of how it is sampled, or else what is usual for its kind. Reads names and marks. Raises DataError."""
  kind, own = ldm_formats.kind_of(container.tensors), marks.own(container)
  if own.get("scheduler"):
    if prediction:
      raise ConfigError(f"{where} says how it is sampled (metadata {marks.OWN}); leave out prediction")
    return Sampling(own["scheduler"], bool(own.get("zeros")), own.get("small") or {}, True, [])
  assumed = {"x4": X4_SCHEDULER, "xl": XL_SCHEDULER, "sd": SD_SCHEDULER | dict(prediction_type="epsilon")}[kind]
  found = marks.scheduler(container, assumed, asked=prediction, where=where)
  scheduler = found.scheduler if "_class_name" in found.scheduler else {**assumed, **found.scheduler}
  low = marks.levels_of(container.tensors, X4_SMALL, where, found.notices, prefix="low_scale_model.") if kind == "x4" else {}
  return Sampling(scheduler, kind == "xl", X4_SMALL | low if kind == "x4" else {}, found.said, found.notices)


def _second(parts: Mapping[str, Loaded]) -> bool:
  """Whether parts are those of a Stable Diffusion 2, by its text encoder."""
  return "denoiser" in parts and "text" in parts and not _xl(parts) and not _enlarges(parts) and parts["text"].module.act != "quick_gelu"


def sized(part: Loaded, side: int) -> Loaded:
  """A UNet that draws latents of this side where the caller names none."""
  config = {**part.config, "data": {**part.config["data"], "image_size": side}}
  return part._replace(module=part.module.clone(image_size=side), config=config)


def _xl(parts: Mapping[str, Any]) -> bool:
  return "denoiser" in parts and bool(getattr(parts["denoiser"].module, "sizes", 0))


def _enlarges(parts: Mapping[str, Any]) -> bool:
  return "denoiser" in parts and bool(getattr(parts["denoiser"].module, "levels", 0))


def _penultimate(parts: dict[str, Loaded]) -> dict[str, Loaded]:
  """SDXL and its refiner read the last layer but one of transformers' encoders, without the final norm."""
  if not _xl(parts):
    return parts
  read = lambda part: part._replace(module=part.module.clone(skip=1, norm=False, whole=True))
  return {group: read(part) if group.startswith("text") else part for group, part in parts.items()}


def save(path: str | os.PathLike, pipeline: Pipeline, *, format: str = "diffusers", dtype: str = "float32") -> list[str]:
  """Writes a whole pipeline: a folder of diffusers, or (`ldm`) a folder with one file, model.safetensors. The names of the files.

  Raises ConfigError for another format, and CannotWrite.
  """
  folder = Path(path)
  if format not in WHOLE:
    raise ConfigError(f"format: a whole pipeline is written as diffusers or ldm, found {format!r}; for one part give its folder")
  if dtype not in public.DTYPES:
    raise ConfigError(f"dtype: expected one of {', '.join(public.DTYPES)}, found {dtype!r}")
  if format == "ldm":
    return _save_file(folder, pipeline, dtype)
  index: dict[str, Any] = dict(_diffusers_version="0.30.0") | {
    key: value for key, value in pipeline.index.items() if not isinstance(value, list)}
  written = []
  tokenized = {}
  for group, part in pipeline.parts.items():
    name = folder_of(group, pipeline)
    if group.startswith("text"):
      part = as_last_layer(part)
      part = part._replace(module=part.module.clone(skip=0))           # which layer is read is the pipeline's to know
    kind = FORMATS[group.partition("/")[0]]
    files = public.save(folder / name, format=kind, module=part.module, config=part.config, params=part.params, dtype=dtype,
                        style=part.style if part.format == kind else None)
    written += [f"{name}/{file}" for file in files]
    config = formats.read_json(folder / name / "config.json")
    index[name] = ["transformers", config["architectures"][0]] if group.startswith("text") else ["diffusers", config["_class_name"]]
    if group.startswith("text"):
      tokenized[name.replace("text_encoder", "tokenizer")] = part.module.pad
  if pipeline.tokenizer:
    for name, pad in tokenized.items():
      written += _copy_tokenizer(pipeline.tokenizer, folder / name, pad)
      index[name] = ["transformers", "CLIPTokenizer"]
  index["scheduler"] = ["diffusers", pipeline.scheduler["_class_name"]]
  write_json(folder / SCHEDULER, pipeline.scheduler)
  if pipeline.small:
    index |= dict(low_res_scheduler=["diffusers", pipeline.small["_class_name"]], max_noise_level=index.get("max_noise_level", MOST_NOISE))
    write_json(folder / SMALL, pipeline.small)
    written.append(SMALL)
  index.setdefault("_class_name", class_of(pipeline))
  if "XL" not in index["_class_name"]:
    index |= dict(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
  elif "text" in pipeline.parts:
    index.setdefault("requires_aesthetics_score", True)
  else:
    index.setdefault("force_zeros_for_empty_prompt", pipeline.zeros)
  write_json(folder / INDEX, index)
  return [*written, SCHEDULER, INDEX]


def class_of(pipeline: Pipeline) -> str:
  """diffusers' class that draws with these parts."""
  unet = pipeline.parts.get("denoiser")
  if pipeline.small:
    return "StableDiffusionUpscalePipeline"
  inpaints = "Inpaint" * bool(unet and unet.config["model"].get("in_channels", 0) == 2 * unet.module.channels + 1)
  if not _xl(pipeline.parts):
    return f"StableDiffusion{inpaints}Pipeline"
  return "StableDiffusionXLImg2ImgPipeline" if "text" in pipeline.parts else f"StableDiffusionXL{inpaints}Pipeline"


def folder_of(group: str, pipeline: Pipeline) -> str:
  """Where diffusers keeps a part; the only encoder of SDXL's refiner is a second one."""
  if group == "text" and (_xl(pipeline.parts) or (pipeline.index.get("text_encoder_2") and not pipeline.index.get("text_encoder"))):
    return "text_encoder_2"
  return {"denoiser": "unet", "autoencoder": "vae", "text": "text_encoder", "text/first": "text_encoder",
          "text/second": "text_encoder_2"}[group]


def as_last_layer(part: Loaded) -> Loaded:
  """An encoder whose states are the normed ones of an earlier layer as one without the layers beyond, which is how diffusers keeps
  Stable Diffusion 2's."""
  import jax
  module = part.module
  if not (module.skip and module.norm and (module.whole or module.embed_dim)):
    return part
  taken = module.depth - module.skip
  params = {name: value for name, value in part.params.items() if name != "projection"}
  params["stack"] = jax.tree.map(lambda leaf: leaf[:taken], params["stack"])
  return part._replace(module=module.clone(depth=taken, skip=0, embed_dim=None, whole=False), params=params)


def _copy_tokenizer(source: Path, folder: Path, pad_id: int) -> list[str]:
  """The tokenizer's files, with the padding of the encoder beside it."""
  made = tokenizers.of_folder(source, Like("CLIPTokenizer"))
  pad = made.token(pad_id) or made.facts.pad
  try:
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in formats.TOKENIZER_FILES if (source / name).is_file()]
    told: dict[str, Any] = {}
    if names == ["tokenizer.json"]:             # with nothing beside it, as a run's: what it says alone is written out
      made.export(folder)
      told = {token_facts.KEY: made.facts._replace(pad=pad).said()}
    for name in names if not told else ():
      if (source / name).resolve() != (folder / name).resolve():
        shutil.copyfile(source / name, folder / name)
    special = formats.read_json(source / "special_tokens_map.json") or dict(
      bos_token=made.facts.start, eos_token=made.facts.end, unk_token=made.facts.end)
    (folder / "special_tokens_map.json").write_text(json.dumps(special | dict(pad_token=pad), indent=2) + "\n", encoding="utf-8")
    about = dict(tokenizer_class="CLIPTokenizer", model_max_length=77) | formats.read_json(source / "tokenizer_config.json") | told
    (folder / "tokenizer_config.json").write_text(json.dumps(about | dict(pad_token=pad), indent=2) + "\n", encoding="utf-8")
  except OSError as error:
    raise CannotWrite(f"cannot write {folder}: {error}") from error
  return [f"{folder.name}/{name}" for name in sorted({*names, "special_tokens_map.json", "tokenizer_config.json"})]


def _alone(source: formats.Source, name: str, module: nn.Module) -> nn.Module:
  """The module that a file's names and shapes make of a part; a UNet whose heads none of them tells has none."""
  try:
    return ldm_formats.read(source, part=name).module
  except DataError:
    if not isinstance(module, UNet):
      raise
    return ldm_formats.read(source, part=name, heads=module.heads, head_dim=module.head_dim).module.clone(heads=None, head_dim=None)


def _save_file(folder: Path, pipeline: Pipeline, dtype: str) -> list[str]:
  """One file of all parts under the names of CompVis' and Stability's code, with the marks of `convert.marks`.

  What neither says goes into the metadata for this project, and a line on stderr names it, since other programs will not know it.
  """
  named: dict[str, Any] = {}
  for group, part in pipeline.parts.items():
    leaves = public.flatten(part.params)
    table = ldm_formats.table(group, part.module, part.config, part.style)
    named |= rules.save(leaves, rules.bind(table, {name: tuple(value.shape) for name, value in leaves.items()}), dtype)
    named |= part.style.get("more", {})
  vae = pipeline.parts.get("autoencoder")
  named = marks.written(named, pipeline.scheduler, vae.module if vae else None)
  names = {group: part for part, group in groups(list(ldm_formats.parts_in(named))).items()}
  source = formats.Source(folder / "model.safetensors", None, {}, {}, {}, containers.Container(named, {}, "safetensors"))
  unsaid = {names[group]: marks.unsaid(part.module, _alone(source, names[group], part.module)) for group, part in pipeline.parts.items()}
  unsaid = {name: fields for name, fields in unsaid.items() if fields}
  if unsaid:
    shown = "; ".join(f"{name}: " + ", ".join(f"{key} {value}" for key, value in fields.items()) for name, fields in unsaid.items())
    tell(f"{source.path}: no name and no shape in it says {shown}. Its metadata does ({marks.OWN}), which other programs do not read")
  about = dict(scheduler=pipeline.scheduler, zeros=pipeline.zeros, small=dict(pipeline.small), parts=unsaid)
  metadata = {"format": "pt", marks.OWN: json.dumps(about)} | marks.metadata_of(pipeline.scheduler)
  return safetensors_file.write_sharded(folder, "model", named, shard_bytes=2**62, metadata=metadata)
