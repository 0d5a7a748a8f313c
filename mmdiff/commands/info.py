"""What a checkpoint is: format, family, sizes, dtypes, and whether every tensor has its place. Of a public checkpoint it reads headers and
configs, not values; of a run directory every file, and says what is damaged. Of a whole Stable Diffusion, folder or single file, all parts.
Of a picture that was drawn, how, and the command that draws it again.

  mmdiff info CLIP-ViT-B-32
  mmdiff info v1-5.safetensors --part=vae
  mmdiff info runs/t2i --json=info.json
  mmdiff info drawn/00000_00.png
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.convert import names
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import write_json
from mmdiff.core.terminal import table

POSITIONAL = ("path",)
FLAGS = {
  "model": dict(type="model", help="folder or weight file in a public format, or run directory (DIR@STEP); or give it as the first word"),
  "prefer": dict(type="str", help="of a training checkpoint with several sets of weights: the one to look at"),
  "variant": dict(type="str", default="", help="of a folder with several: fp16 for NAME.fp16.safetensors, …"),
  "act": dict(choices=("gelu", "gelu_tanh", "quick_gelu", "silu"), help="of a bare state dict: OpenAI's is quick_gelu, others have gelu"),
  "head_width": dict(type="int", help="of a bare state dict: width of an attention head"),
  "part": dict(choices=("unet", "vae", "text", "text_2"), help="of a whole Stable Diffusion: the model to look at; default: all"),
  "json": dict(type="file", help="write the facts to this file, too"),
}


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS, positional=POSITIONAL)
  paths = [path for path in (given["path"], given["model"]) if path]
  if len(paths) != 1:
    raise ConfigError(f"give one path, `mmdiff info PATH` or --model=PATH; found {len(paths)}")
  from mmdiff.data import picture_notes
  if picture_notes.is_png(Path(paths[0])):
    show(about_picture(Path(paths[0])), given, argv)
    return 0
  paths = [names.find(paths[0])]
  from mmdiff.convert import pipelines, public
  options, path = {name: given[name] for name in ("prefer", "variant", "act", "head_width") if given[name] not in (None, "")}, paths[0]
  if not public.is_public(path):
    if given["part"]:
      raise ConfigError(f"--part: {path} is no Stable Diffusion of a public format")
    facts = about_run(path)
  elif not pipelines.is_pipeline(path):
    facts = about_public(path, options | (dict(part=given["part"]) if given["part"] else {}))
  elif given["part"]:
    where, how = pipelines.place_of(path, given["part"], variant=options.pop("variant", ""))
    facts = about_public(str(where), options | how)
  else:
    facts = about_pipeline(path, options)
  show(facts, given, argv)
  return 0


def show(facts: Mapping[str, Any], given: Mapping, argv: Sequence[str]) -> None:
  print(table([dict(what=name, value=said(value)) for name, value in facts.items() if name != "parts"]))
  if given["json"]:
    write_json(Path(given["json"]), dict(facts) | dict(argv=["info", *argv]))


def about_picture(file: Path) -> dict[str, Any]:
  """What a PNG says of itself: prompt, seed, settings, and the command that draws it again."""
  from mmdiff.data import picture_notes
  found = picture_notes.read(file)
  size = dict(path=str(file), size=f"{found.pop('width')} × {found.pop('height')} pixels")
  return size | (found or {"says": "nothing of how it was made"})


def said(value: Any) -> str:
  """A fact on one line."""
  if isinstance(value, Mapping):
    value = {key: inner for key, inner in value.items() if inner is not None}          # what is left to the model's own code
    apart = "; " if any(isinstance(inner, Mapping) for inner in value.values()) else ", "
    return apart.join(f"{key} {said(inner)}" for key, inner in value.items()) or "none"
  if isinstance(value, (list, tuple)):
    return ", ".join(map(str, value[:8])) + (f" and {len(value) - 8} more" if len(value) > 8 else "") if value else "none"
  return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def about_public(path: str, options: Mapping) -> dict[str, Any]:
  """The facts of a public checkpoint. Raises DataError for what is none."""
  from mmdiff.convert import bounds, formats, public, rules
  from mmdiff.convert.tensors import size
  from mmdiff.data import token_facts
  found, source, reading = public.read(path, **options)
  with bounds.understood(f"{source.path} ({found.name})", told=bool(options)):
    shapes = formats.variables(reading.module, reading.inputs)
  bindings = rules.bind(reading.rules, shapes)
  missing, unexpected, ignored = rules.cover(reading.found, bindings, reading.ignorable)
  wrong = [f"{b.theirs} {list(reading.found[b.theirs].shape)}, expected {list(b.shape)}" for b in bindings if b.theirs in reading.found
           and not rules.fits(reading.found[b.theirs], b)]
  dtypes: dict[str, int] = {}
  for tensor in reading.found.values():
    dtypes[str(tensor.dtype)] = dtypes.get(str(tensor.dtype), 0) + 1
  groups: dict[str, int] = {}
  for leaf, shape in shapes.items():
    if not leaf.startswith(formats.STATISTICS):
      group = leaf.split("/")[0]
      groups[group] = groups.get(group, 0) + size(shape)
  folder = public.tokenizer_folder(source.folder)
  words = token_facts.read(folder, reading.like) if folder else None
  model = (reading.config.get("objective") or {}).get("model") or reading.config.get("model") or {}
  return dict(path=str(path), format=found.name, about=found.about, family=found.family, container=source.container.kind,
              objective=(reading.config.get("objective") or {}).get("name", "none"), model=dict(model),
              data=dict(reading.config["data"]), **dict(reading.facts), dtypes=dtypes, parameters=sum(groups.values()), groups=groups,
              tensors=len(reading.found), matched=len(bindings) - len(missing), missing=missing, unexpected=unexpected, ignored=ignored,
              misshapen=wrong, tokenizer=str(folder or "none"), **(dict(texts=words.facts.said()) if words else {}),
              notices=[*reading.notices, *(words.notices if words else ())])


def about_pipeline(path: str, options: Mapping) -> dict[str, Any]:
  """The facts of a whole Stable Diffusion: how it is sampled, and of every part what it is and what is wrong with it. Raises DataError."""
  from mmdiff.convert import containers, pipelines, public, schedulers
  variant, shared = options.get("variant", ""), {name: value for name, value in options.items() if name != "variant"}
  where, single = pipelines.places(path, variant=variant), Path(path).is_file()
  found = {group: about_public(str(place), {**shared, **more}) for group, (place, more) in where.items()}
  wrong = {group: {kind: part[kind] for kind in ("missing", "unexpected", "misshapen") if part[kind]} for group, part in found.items()}
  if single:
    how = pipelines.sampling(containers.read(path, prefer=options.get("prefer")), where=path)
  else:
    denoiser = {group: public.read(place, **{**shared, **more})[2] for group, (place, more) in where.items() if group == "denoiser"}
    how = pipelines.sampling_of_folder(Path(path), denoiser)
  notices = [*pipelines.without(where, variant), *how.notices]
  notices += [] if how.said or not single else ["the file does not say what it predicts"]
  refused = dict(scheduler=schedulers.refusal(how.scheduler))
  refused |= dict(low_res_scheduler=schedulers.refusal(how.small, noise=True)) if how.small else {}
  wrong |= {name: dict(refused=why) for name, why in refused.items() if why}
  wrong |= {group: dict(missing=["all of it"]) for group in pipelines.DRAWING if group not in found}
  scheduler = how.scheduler
  told = dict(scheduler=scheduler.get("_class_name", "not said"), prediction=scheduler.get("prediction_type", "not said"))
  told |= dict(zero_terminal_snr=True) if scheduler.get("rescale_betas_zero_snr") else {}
  return dict(path=str(path), format="ldm" if single else "diffusers", about="a text-to-image model of several parts", **told,
              parameters=sum(part["parameters"] for part in found.values()),
              **{group: f"{part['format']}, {part['parameters']:,} parameters in {part['matched']:,} tensors, {', '.join(part['dtypes'])}"
                 for group, part in found.items()},
              wrong={group: problems for group, problems in wrong.items() if problems},
              notices=[*notices, *dict.fromkeys(note for part in found.values() for note in part["notices"])], parts=found)


def about_run(path: str) -> dict[str, Any]:
  """The facts of a run directory: of its newest checkpoint that is whole, or of the step asked for, and what is damaged. Raises DataError
  if it is none, and for a step that is damaged."""
  from mmdiff.train import checkpoint, inspection, run_directory
  workdir, step = run_directory.locate(path)
  config = run_directory.read_config(workdir)
  steps = checkpoint.available_steps(workdir)
  found = inspection.inspect(workdir)
  meta = found.newest
  if step is not None:
    try:
      meta = checkpoint.meta_of(workdir / "checkpoints" / str(step))[0]
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise DataError(f"{workdir}: checkpoint {step} is damaged or not there ({checkpoint.reason_of(error)}); there are "
                      f"{', '.join(map(str, steps)) or 'none'}") from error
  facts: dict[str, Any] = dict(path=str(workdir), format="mmdiff", objective=config["objective"]["name"],
                               model={key: value for key, value in config["objective"].items() if isinstance(value, Mapping)},
                               steps=steps, averages=sorted(config["ema"]))
  for key in ("prediction", "schedule", "loss"):
    if key in config["objective"]:
      facts[key] = config["objective"][key]
  if meta:
    groups = inspection.held(meta)
    facts |= dict(step=meta["step"], parameters=sum(groups.values()), groups=groups)
  return facts | dict(damaged=found.damaged, unproven=found.unproven)
