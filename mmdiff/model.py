"""Trained models in Python: loaded, asked and written. What they can be asked is in `mmdiff.abilities` and `mmdiff.prompted`.

  model = mmdiff.load("runs/clip")              # the newest good step; "runs/clip@2000" for another
  model.embed_image(images) @ model.embed_text(texts).T

  model = mmdiff.load("stable-diffusion-v1-5")  # a folder of diffusers, or a single file
  picture, = model.generate("a corgi on a beach", steps=30)         # of PIL
  again, = model.img2img(picture, "a corgi on a snowy beach", strength=0.6)
"""
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from mmdiff import asked, parallel
from mmdiff.abilities import ROWS, Autoencodes, Captions, Compares, EmbedsImages, EmbedsTexts, EncodesTexts, Names
from mmdiff.convert import exports, names, pipelines, public, schedulers, serving
from mmdiff.convert.pipelines import Pipeline
from mmdiff.core import compilation, tree
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.precision import USUAL, all_precise, objective_of
from mmdiff.core.terminal import tell
from mmdiff.core.types import Tree
from mmdiff.data import TOKENIZERS, tokenizers
from mmdiff.data.token_facts import NOBODY, Like
from mmdiff.evaluators import base
from mmdiff.models.tiled import Tiled
from mmdiff.objectives import OBJECTIVES
from mmdiff.objectives.drawing import drawing, served
from mmdiff.prompted import Draws, Edits, Enlarges
from mmdiff.train import checkpoint, run_directory

if TYPE_CHECKING:
  class Model(EmbedsImages, EmbedsTexts, Compares, EncodesTexts, Autoencodes, Edits, Enlarges, Captions):
    """What editors and type checkers take a loaded model to be: every method that some model has; the one at hand names its own."""
else:
  from mmdiff.abilities import Model

ABILITIES = (EmbedsImages, EmbedsTexts, Compares, EncodesTexts, Autoencodes, Edits, Draws, Enlarges, Captions)
NAMED = ("loaded", "reshaped", "missing", "unexpected")                        # of a report: names of tensors
UNREAD = dict(text_len=2, resize="crop", interpolation="bicubic")             # data of encoders alone, for what they have no use of
PUBLIC_ROWS = 4       # pictures that a public text-to-image model draws at a time, unless told otherwise


def load(path: str | Path, *, step: int | None = None, params: str | None = None, mesh: Mapping[str, int] | None = None,
         tokenizer: str | Path | None = None, dtype: Literal["float32", "bfloat16"] | None = None, **options) -> Model:
  """The model of a run directory, or of a folder or file in a public format, ready to use.

  Args:
    path: `DIR` for a run's newest good step, `DIR@STEP` for another; or a public checkpoint, see `mmdiff.convert.public.load`, whole, or of
      a Stable Diffusion the folder of one part ("sd/vae"), or the whole with part="vae" ("unet", "text", "text_2"). `ORG/NAME` is what the
      local Hugging Face cache has of it, and `hf://ORG/NAME@REVISION` fetches it first (`mmdiff.convert.names`).
    step: the same as `@STEP`.
    params: "raw", or the name of an average of `config.ema`; None is "eval" where there is one, else raw.
    mesh: sizes of the axes data, fsdp and tensor; None splits batches over all devices and keeps the parameters whole on each.
    tokenizer: for a public checkpoint without one: a tokenizer.json, or a folder with it or with vocab.json and merges.txt.
    dtype: of a public checkpoint's activations, bfloat16 or float32, which None is too; a run has that of its config.
    **options: of a public checkpoint: precision (of float32 products: default, high or highest; a run has that of its config), and
      allow_missing, image_size, text_len, …, as `mmdiff.convert.public.load` takes them, and of a whole Stable Diffusion those of
      `mmdiff.convert.pipelines.load` and tile (see `models.tiled`).

  Raises:
    DataError: no run directory, checkpoint or average of that name; or what `mmdiff.convert.public.load` raises.
  """
  compilation.prepare()
  path = names.find(path)
  if public.is_public(path):
    if step is not None or params is not None:
      raise ConfigError(f"{path} is a public checkpoint: it has no step and no params to choose from")
    if dtype not in (None, "float32", "bfloat16"):
      raise ConfigError(f"dtype: expected float32 or bfloat16, found {dtype!r}")
    return _load_public(path, mesh=mesh, tokenizer=tokenizer, dtype=dtype or "float32", **options)
  options |= {name: value for name, value in dict(tokenizer=tokenizer, dtype=dtype).items() if value}
  if options:
    raise ConfigError(f"{path} is no public checkpoint, which alone take {', '.join(options)}")
  workdir, at = run_directory.locate(path)
  config = run_directory.read_config(workdir)
  average = run_directory.average(config, params)
  values, extra, meta = checkpoint.restore_params(workdir, step=at if step is None else step, ema=average)
  report = dict(path=str(workdir), step=int(meta["step"]), params=average or run_directory.RAW, objective=config["objective"]["name"])
  tokens = build(TOKENIZERS, dict(name="file", path=str(workdir / "tokenizer.json")))
  predict = objective_of(OBJECTIVES, config).predict
  return _assemble(config, values, extra, report, predict, tokenizer=tokens, workdir=workdir, mesh=mesh)


def _load_pipeline(path: str | Path, *, mesh: Mapping[str, int] | None, tokenizer: str | Path | None, precision: str,
                   dtype: str, tile: int = 0, **options) -> Model:
  asked.numbers(tile=tile or None)
  found = pipelines.load(path, **options)
  lacking = [group for group in pipelines.DRAWING if group not in found.parts]
  if lacking:
    raise ConfigError(f"{path} has no {' and no '.join(lacking)}, without which nothing is drawn; it has {', '.join(found.parts)}")
  unet, vae = found.parts["denoiser"], found.parts["autoencoder"]
  denoiser, condition = computing(unet.module, dtype), computing(found.condition, dtype)
  encode = Tiled(vae.module, tile) if tile else vae.module
  trained = schedulers.facts(found.scheduler)
  made = drawing(denoiser=denoiser, condition=condition, encode=encode, prediction=trained["prediction"], kind=trained["kind"],
                 uncond="zeros" if found.zeros else "empty",
                 more_channels=unet.config["model"]["in_channels"] - denoiser.channels)
  predict = all_precise(served(made, encodes=True), precision) | {
    "plan": functools.wraps(schedulers.plan_of, assigned=())(lambda sampler=None, **how: schedulers.plan_of(
      found.scheduler, sampler=sampler, **how).plan),
    "small_noise": lambda level: schedulers.noise_at(found.small, level, most=found.index.get("max_noise_level", pipelines.MOST_NOISE))}
  data = dict(captions=dict(original=1.0), on_missing="any", image_size=denoiser.image_size * encode.factor, text_len=condition.length,
              resize="crop", interpolation="bicubic")
  sampling = dict(steps=50, guidance=5.0 if denoiser.sizes else 7.5, rows=PUBLIC_ROWS)
  config = dict(seed=0, steps=0, batch_size=PUBLIC_ROWS, ema={}, evals={}, objective=None, data=data, sampling=sampling)
  report = dict(path=str(path), step=0, params=run_directory.RAW, objective="text-to-image",
                format=found.format, notices=list(found.notices),
                parts={group: {name: Names(value) if name in NAMED else value for name, value in part.report._asdict().items()}
                       for group, part in found.parts.items()},
                **{kind: [f"{group}: {name}" for group, part in found.parts.items() for name in getattr(part.report, kind)]
                   for kind in ("loaded", "reshaped", "missing", "unexpected")})
  model = _assemble(config, found.params, (), report, predict, tokenizer=_tokenizer(tokenizer or found.tokenizer), workdir=Path(path),
                    mesh=mesh)
  if tokenizer:
    found = found._replace(tokenizer=Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent)
  model.origin = found._replace(parts={group: part._replace(params=None) for group, part in found.parts.items()})
  return model


def computing(module: Any, dtype: str) -> Any:
  """A module that computes in this type; of one that is made of others (SDXL's two encoders) all of these. Raises ConfigError where nothing
  in it can."""
  if hasattr(module, "dtype"):
    return module.clone(dtype=jax.numpy.dtype(dtype))
  parts = {field.name: getattr(module, field.name) for field in dataclasses.fields(module) if field.name not in ("parent", "name")}
  made = {name: computing(part, dtype) for name, part in parts.items() if dataclasses.is_dataclass(part) and hasattr(part, "clone")}
  if not made and dtype != "float32":
    raise ConfigError(f"dtype: {type(module).__name__} computes in its own type; leave dtype={dtype} out")
  return module.clone(**made) if made else module


def _beside(path: Path) -> Path | None:
  """The folder of the tokenizer of a text encoder alone: that of its single file, or diffusers' beside its own."""
  return public.tokenizer_folder(path.parent if path.is_file() else path.with_name(path.name.replace("text_encoder", "tokenizer")))


def _hint(path: str | Path) -> str:
  """Where a denoiser alone belongs."""
  around = Path(path) if pipelines.is_pipeline(path) else Path(path).resolve().parent
  where = f"mmdiff.load({str(around)!r})" if pipelines.is_pipeline(around) else "the folder or file that it is a part of"
  return f"a denoiser draws only with the autoencoder, the text encoder and the scheduler of its whole pipeline: {where}"


def _tokenizer(folder: str | Path | None, like: Like = NOBODY):
  """The tokenizer of a folder or file, or None. What its files say and we do otherwise is said on stderr."""
  found = tokenizers.of_folder(folder, like) if folder else None
  for notice in found.notices if found else ():
    tell(f"{folder}: {notice}")
  return found


def _load_public(path: str | Path, *, mesh: Mapping[str, int] | None, tokenizer: str | Path | None, dtype: str,
                 precision: str = USUAL, **options) -> Model:
  if precision not in ("default", "high", "highest"):
    raise ConfigError(f"precision: expected default, high or highest, found {precision!r}")
  if pipelines.is_pipeline(path):
    if "part" not in options:
      return _load_pipeline(path, mesh=mesh, tokenizer=tokenizer, precision=precision, dtype=dtype, **options)
    path, how = pipelines.place_of(path, options.pop("part"), variant=options.pop("variant", ""))
    options |= how
  loaded = public.load(path, **options)
  data = dict(captions=dict(original=1.0), on_missing="any") | loaded.config["data"]
  config = dict(seed=0, steps=0, batch_size=ROWS, ema={}, evals={}) | loaded.config | dict(data=data)
  if not tokenizer and not loaded.tokenizer and "text_len" in data:
    loaded = loaded._replace(tokenizer=_beside(Path(path)))
  tokens = _tokenizer(tokenizer or loaded.tokenizer, loaded.like)
  notices = list(loaded.report.notices) + list(tokens.notices if tokens else ())
  length = tokens.facts.length if tokens and "text_len" in data and not options.get("text_len") else None
  if length and length < data["text_len"]:
    notices.append(f"texts are cut and padded to {length} tokens, as the tokenizer's files say; the model takes {data['text_len']}")
    data["text_len"] = length
  data |= {key: value for key, value in UNREAD.items() if key not in data}
  objective = config["objective"]
  if objective:
    predict = build(OBJECTIVES, {**objective, "model": {**objective["model"], "dtype": dtype}}).predict
  else:
    predict = serving.predict(loaded.family, computing(loaded.module, dtype), config)
  predict = all_precise(predict, precision)
  kind = objective["name"] if objective else serving.kind(loaded.family, loaded.module)
  report = dict(path=str(path), step=0, params=run_directory.RAW, objective=kind, hint=_hint(path) if kind == "denoiser" else "",
                format=loaded.format, dtypes=loaded.dtypes) | loaded.report._asdict() | dict(notices=notices)
  model = _assemble(config, loaded.params, loaded.statistics, report, predict, tokenizer=tokens, workdir=Path(path), mesh=mesh)
  files = loaded.tokenizer if not tokenizer else Path(tokenizer) if Path(tokenizer).is_dir() else None
  model.origin = loaded._replace(params=None, statistics=None, tokenizer=files)         # their arrays are on the mesh now
  return model


def _check_vocabulary(tokenizer, values: Tree, where: Path) -> None:
  """Raises DataError for a tokenizer with ids beyond a table of words, where JAX reads NaN."""
  rows = min((leaf.shape[0] for path, leaf in public.flatten(values).items() if path.endswith("embed/embedding")), default=None)
  if tokenizer is not None and rows is not None and tokenizer.vocab_size > rows:
    raise DataError(f"{where}: the tokenizer has {tokenizer.vocab_size:,} tokens and the model was trained with {rows:,}: it belongs to "
                    "another model; give its own (tokenizer=FOLDER, --tokenizer=FOLDER)")


def _assemble(config: Mapping, values: Tree, extra: Tree, report: dict[str, Any], predict: Mapping, *, tokenizer, workdir: Path,
              mesh: Mapping[str, int] | None) -> Model:
  if mesh and set(mesh) - set(parallel.AXES):
    raise ConfigError(f"mesh: expected sizes of {', '.join(parallel.AXES)}, found {mesh!r:.60}")
  _check_vocabulary(tokenizer, values, workdir)
  devices = parallel.make_mesh(**(mesh or {}))
  place = lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
  placed = jax.tree.map(place, values, parallel.shardings(values, devices))
  extra = jax.tree.map(lambda leaf: place(leaf, parallel.replicated(devices)), extra) or ()
  services = base.serve(predict, config, mesh=devices, tokenizer=tokenizer, workdir=workdir)._replace(load=load)
  report |= {name: Names(report[name]) for name in NAMED if name in report}
  report |= dict(parameters={group: tree.count(values[group]) for group in sorted(values)}, mesh=dict(devices.shape))
  return _kind(predict)(config, placed, extra, report, tokenizer=tokenizer, services=services, mesh=devices)


def _kind(predict: Mapping) -> type[Model]:
  """The class of a model with these predict functions: the methods of all that they serve, each of which looks at its options first."""
  public = lambda ability: {name: found for name, found in vars(ability).items() if name.islower() and name[0] != "_"}
  served = tuple(ability for ability in ABILITIES if all(name in predict for name in ability.NEEDS))
  methods = {name: asked.named(found) for ability in served for name, found in public(ability).items() if inspect.isfunction(found)}
  known = tuple(name for ability in ABILITIES for name in public(ability))
  return type("Model", served or (Model,), dict(methods, METHODS=known))


def save(model: Model, path: str | Path, *, format: str | None = None, dtype: str = "float32") -> list[str]:
  """Writes a model as a folder in a public format; the names of the files.

  Args:
    format: a name of `mmdiff.convert.FORMATS`; None is the one that the model was loaded from.
    dtype: of the tensors written: float32, bfloat16 or float16.

  Raises:
    ConfigError: no such format, or it can't express the model.
    CannotWrite: the folder can't be written.
  """
  origin = model.origin
  if format is None and origin is None:
    raise ConfigError(f"format: {model.report['path']} was trained here and has no format of its own; known: {', '.join(public.FORMATS)}")
  format = format or origin.format
  fetch = lambda values: jax.tree.map(model.services.fetch, values)
  if isinstance(origin, Pipeline):
    leaves = public.flatten(fetch(model.params))
    within = lambda group: public.nest({name.removeprefix(f"{group}/"): leaf for name, leaf in leaves.items()
                                        if name.startswith(f"{group}/")})
    whole = origin._replace(parts={group: part._replace(params=within(group)) for group, part in origin.parts.items()})
    return pipelines.save(path, whole, format=format, dtype=dtype)
  if origin is None and format in pipelines.WHOLE:
    return pipelines.save(path, exports.pipeline_of(model.config, fetch(model.params), tokenizer=Path(model.report["path"])),
                          format=format, dtype=dtype)
  own = exports.model_of(model.config, fetch(model.params), fetch(model.extra)) if origin is None else origin._replace(
    params=fetch(model.params), statistics=fetch(model.extra))
  return public.save(path, format=format, module=own.module, config=own.config if origin is None else model.config, params=own.params,
                     statistics=own.statistics, dtype=dtype, tokenizer=model.tokenizer,
                     style=origin.style if origin and origin.format == format else None, files=origin.tokenizer if origin else None)
