"""Where a run's first weights come from: other runs and public checkpoints, with what else there is to know of them.

A leaf's numbers are half of it. The other half are facts that no shape tells, such as the activation, the epsilon of the norms, the heads,
the mean and deviation of pixels, the scale of latents, eps or v (`convert.facts`), batch statistics, and the tokenizer.
"""
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmdiff.convert import exports, facts, names, pipelines, public
from mmdiff.core import tree
from mmdiff.core.build import build
from mmdiff.core.errors import DataError
from mmdiff.data import tokenizers
from mmdiff.models import AUTOENCODERS, CAPTIONERS, DENOISERS, MODELS, TEXT_ENCODERS
from mmdiff.train import checkpoint, run_directory

# Objective -> its models: key of the config -> (table, parameter group).
PARTS: dict[str, dict[str, tuple[Mapping[str, str], str]]] = {
  "contrastive": {"model": (MODELS, "")},
  "coca": {"model": (CAPTIONERS, "")},
  "autoencoder": {"model": (AUTOENCODERS, "autoencoder")},
  "diffusion": {"denoiser": (DENOISERS, "denoiser"), "condition": (TEXT_ENCODERS, "text"), "encode": (AUTOENCODERS, "autoencoder")},
}
# What a denoiser learned to do: keys of the objective.
LEARNED = ("prediction", "schedule", "zero_terminal_snr", "uncond")
# A text encoder alone, as published, does not say which of its layers is read, nor how, nor with what its texts are padded.
NOT_SAID = ("layers", "norm", "pad")


class Weights(NamedTuple):
  """The leaves of a source, its batch statistics, its facts by path, and what it is."""
  leaves: Mapping[str, np.ndarray]
  about: str
  public: bool = False
  statistics: Mapping[str, np.ndarray] = {}
  facts: Mapping[str, Any] = {}

  def has(self, entry: str) -> bool:
    return any(within(name, entry) for name in self.leaves)


def within(path: str, entry: str) -> bool:
  """Whether an entry is a path or the start of it."""
  return path == entry or path.startswith(f"{entry}/")


def leaves_of(values: Any, prefix: str = "") -> dict[str, np.ndarray]:
  return {prefix + name: leaf for name, leaf in zip(tree.paths(values), jax.tree.leaves(values))}


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The facts of a run's models, by the path of their parameters."""
  objective, made = config["objective"], dict[str, Any]()
  for key, (table, group) in PARTS.get(objective["name"], {}).items():
    if objective.get(key):
      made |= facts.of_module(build(table, objective[key]), group)
  if objective["name"] == "diffusion":
    made |= {f"denoiser/{key}": objective[key] for key in LEARNED if key in objective}
    if objective["schedule"] not in exports.BETAS:
      made.pop("denoiser/zero_terminal_snr", None)       # of discrete schedules
  if made.get("text/pool") == "last":                    # the embedding of a text is at the end of its padding
    made["text/text_len"] = config["data"]["text_len"]
  return of_pixels(made)


def of_pipeline(pipeline: pipelines.Pipeline) -> dict[str, Any]:
  """The facts of a pipeline's parts, and what its denoiser was trained for, as far as its files say so."""
  made = facts.of_pipeline(pipeline)
  silent = ("prediction",) if any("does not say what it predicts" in notice for notice in pipeline.notices) else ()
  learned = {f"denoiser/{key}": made[key] for key in LEARNED if key in made and key not in silent}
  return {name: fact for name, fact in made.items() if "/" in name} | learned


def of_pixels(made: Mapping[str, Any]) -> dict[str, Any]:
  """The pixels' mean and deviation, which a whole model has, as facts of its image tower."""
  towers = any(key.startswith("image/") for key in made)
  return {f"image/{key}" if towers and key in ("mean", "std") else key: value for key, value in made.items()}


def weights_of(path: str, params: str = "") -> Weights:
  """The parameters at a path. Raises DataError."""
  quiet = jax.process_index() > 0
  path = names.find(path)
  if pipelines.is_pipeline(path):
    whole = pipelines.load(path, quiet=quiet)
    return Weights({name: leaf for group, part in whole.parts.items() for name, leaf in leaves_of(part.params, f"{group}/").items()},
                   f"{path} ({', '.join(whole.parts)})", public=True, facts=of_pipeline(whole))
  if public.is_public(path):
    one = public.load(path, quiet=quiet)
    made = of_pixels(facts.of_loaded(one))
    if one.config["objective"] is None:
      made = {key: value for key, value in made.items() if key not in NOT_SAID}
    elif made.get("text/pool") == "last":
      made["text/text_len"] = one.config["data"]["text_len"]
    return Weights(leaves_of(one.params), f"{path} ({one.format})", public=True, statistics=leaves_of(one.statistics), facts=made)
  workdir, step = run_directory.locate(path)
  config = run_directory.read_config(workdir)
  average = run_directory.average(config, params or None)
  values, extra, meta = checkpoint.restore_params(workdir, step=step, ema=average)
  return Weights(leaves_of(values), f"{path} (step {meta['step']}, {average or run_directory.RAW} parameters)",
                 statistics=leaves_of(extra), facts=facts_of(config))


def text_sources(init: Mapping[str, Any]) -> Iterator[str]:
  """The paths that a run's text tower starts from, the most particular one first."""
  parts = init.get("parts") or {}
  yield from (parts[entry] for entry in sorted(parts, key=len, reverse=True) if entry.split("/")[0] == "text")
  entry = max((entry for entry in init.get("map") or {} if within("text", entry)), key=len, default=None)
  if init.get("path") and "text" not in parts and not (entry is not None and init["map"][entry] == ""):
    yield init["path"]


def tokenizer_of(path: str) -> tokenizers.Tokenizer | None:
  """The tokenizer that the run at `path` was trained with, or that lies beside public weights; None where there is none. Raises
  DataError."""
  path = names.find(path)
  if pipelines.is_pipeline(path):
    where = Path(path)
    folders = [where.parent] if where.is_file() else [where / "tokenizer", where / "tokenizer_2"]
    folder = next((one for one in map(public.tokenizer_folder, folders) if one), None)
    return tokenizers.of_folder(folder) if folder else None
  if public.is_public(path):
    _, source, reading = public.read(path)
    folder = public.tokenizer_folder(source.folder)
    return tokenizers.of_folder(folder, reading.like) if folder else None
  file = run_directory.locate(path)[0] / "tokenizer.json"
  if not file.is_file():
    raise DataError(f"init: {file} is missing; give a run directory of `mmdiff train`")
  return tokenizers.file(path=str(file))
