"""A run that starts from weights that exist: `config.init`.

  init = dict(path="runs/clip", params="", map={"decoder": "", "image": "visual"})
  init = dict(path="", parts={"autoencoder": "sd/vae", "text": "sd/text_encoder"})

A path is a run directory, DIR or DIR@STEP, or a checkpoint in a public format (`mmdiff info PATH`); that of a whole Stable Diffusion, a
folder of diffusers or a single file, has its models under `denoiser`, `autoencoder` and `text`. The longest entry of `map` that is a
leaf's path or the start of it says where the leaf is in the source: "image/position" is then "visual/position". The value "" leaves it as
it was initialised. What no entry names has the same path in the source. An entry of `parts` fills what begins with it from a source of its
own: from there what has the same name, its group's name, or everything.

Tables of learned positions and patch embeddings of another size are resized (`convert.resize`), and a line on stderr says so: a model may
go on with larger pictures, smaller patches or longer texts.
"""
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mmdiff.convert import pipelines, public, resize
from mmdiff.core import tree
from mmdiff.core.errors import DataError
from mmdiff.train import checkpoint, run_directory
from mmdiff.train.state import TrainState

SHOWN = 8


class Weights(NamedTuple):
  """The leaves of a source, and what it is."""
  leaves: Mapping[str, np.ndarray]
  about: str
  public: bool = False

  def has(self, entry: str) -> bool:
    return any(within(name, entry) for name in self.leaves)


def within(path: str, entry: str) -> bool:
  """Whether an entry is a path or the start of it."""
  return path == entry or path.startswith(f"{entry}/")


def longest(path: str, entries: Iterable[str]) -> str | None:
  """The longest entry that a path is within."""
  return max((entry for entry in entries if within(path, entry)), key=len, default=None)


def source_path(path: str, map: Mapping[str, str]) -> str | None:
  """Where the leaf at `path` is in the source, or None if it starts fresh."""
  entry = longest(path, map)
  if entry is None:
    return path
  return map[entry] + path[len(entry):] if map[entry] else None


def part_path(path: str, entry: str, weights: Weights) -> str:
  """Where the leaf at `path`, within a part, is in the source of that part."""
  root = next((root for root in (entry, entry.split("/")[0]) if weights.has(root)), "")
  return f"{root}{path[len(entry):]}".lstrip("/")


def resizable(path: str, names: Iterable[str]) -> str:
  """The kind of leaf that `convert.resize` knows at a path among others, or ""."""
  parent, _, name = path.rpartition("/")
  if name == "position":                # of an image tower, which has patches or convolutions beside it, or of tokens
    return "grid" if {f"{parent}/patchify/kernel".lstrip("/"), f"{parent}/conv1/kernel".lstrip("/")} & set(names) else "rows"
  return "patch" if path.endswith("patchify/kernel") else ""


def tokenizer_of(path: str) -> Path | None:
  """The tokenizer that the run at `path` was trained with; None for a public checkpoint. Raises DataError."""
  if public.is_public(path):
    return None
  file = run_directory.locate(path)[0] / "tokenizer.json"
  if not file.is_file():
    raise DataError(f"init.path: {file} is missing; give a run directory of `mmdiff train`")
  return file


def weights_of(path: str, params: str = "") -> Weights:
  """The parameters at a path. Raises DataError."""
  leaves = lambda values, prefix="": {prefix + name: leaf for name, leaf in zip(tree.paths(values), jax.tree.leaves(values))}
  quiet = jax.process_index() > 0
  if pipelines.is_pipeline(path):
    loaded = pipelines.load(path, quiet=quiet).parts
    return Weights({name: leaf for group, part in loaded.items() for name, leaf in leaves(part.params, f"{group}/").items()},
                   f"{path} ({', '.join(loaded)})", public=True)
  if public.is_public(path):
    one = public.load(path, quiet=quiet)
    if jax.tree.leaves(one.statistics):
      raise DataError(f"init: {path} ({one.format}) has batch statistics, which a run does not start from yet; use a model without them")
    return Weights(leaves(one.params), f"{path} ({one.format})", public=True)
  if not Path(path.rpartition("@")[0] or path).exists() and not Path(path).exists():
    raise DataError(f"init: {path}: no such file or folder; give a run directory of `mmdiff train`, or a public checkpoint")
  workdir, step = run_directory.locate(path)
  average = run_directory.average(run_directory.read_config(workdir), params or None)
  values, _, meta = checkpoint.restore_params(workdir, step=step, ema=average)
  return Weights(leaves(values), f"{path} (step {meta['step']}, {average or run_directory.RAW} parameters)")


def initialised(state: TrainState, *, path: str = "", params: str = "", map: Mapping[str, str] = {},  # noqa: B006
                parts: Mapping[str, str] = {}) -> TrainState:  # noqa: B006
  """The fresh state with the parameters of what `path` and `parts` name in all of params, frozen ones and averages.

  params: an average of a run, "raw", or "" for its `eval` average where it has one, else raw.

  A stack of layers may be the first ones of a public checkpoint's: SDXL needs 11 layers of the 12 that its first encoder has. A line
  on stderr says so.

  Raises DataError that names every leaf that a source lacks or holds in another shape, and every entry that names nothing.
  """
  full = state.full()
  names = tree.paths(full)
  problems = [f"{what} names {entry!r}, which is no parameter here" for what, entries in (("map", map), ("parts", parts))
              for entry in entries if not any(within(name, entry) for name in names)]
  sources = {entry: weights_of(where, params) for entry, where in parts.items() if not problems}
  whole = weights_of(path, params) if path else None
  taken: dict[str, np.ndarray] = {}
  told = set()
  for name, leaf in zip(names, jax.tree.leaves(full)):
    part = longest(name, sources)
    weights = whole if part is None else sources[part]
    where = source_path(name, map) if part is None else part_path(name, part, sources[part])
    if weights is None or where is None:
      continue
    value = weights.leaves.get(where)
    if value is None:
      problems.append(f"{name}: {weights.about} has no {where}")
      continue
    if weights.public and "stack" in where.split("/") and value.ndim and value.shape[0] > leaf.shape[0]:
      told.add(f"{name.partition('/stack/')[0]}: the first {leaf.shape[0]} of {value.shape[0]} layers of {weights.about}")
      value = value[:leaf.shape[0]]
    kind = resizable(name, names) if value.shape != leaf.shape else ""
    if resize.can_fit(kind, value.shape, leaf.shape):
      try:
        value, how = resize.fitted(kind, np.asarray(value), leaf.shape)
        told.add(f"{name}: {how}")
      except DataError as error:
        problems.append(f"{name}: {error}")
        continue
    if value.shape != leaf.shape:
      problems.append(f"{name}: {list(leaf.shape)} here, {where} is {list(value.shape)} in {weights.about}")
    else:
      taken[name] = value
  if problems:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError("init does not fit: " + "; ".join(problems[:SHOWN]) + more
                    + '. Change init.map: {"part of the path here": "part of the path there"}, with "" for what shall start fresh')

  if told and jax.process_index() == 0:
    print("\n".join(f"init: {line}" for line in sorted(told)), file=sys.stderr)

  def placed(name: str, leaf):
    if name not in taken:
      return leaf
    value = np.asarray(taken[name], leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])
  put = lambda part: tree.map_with_path(placed, part)
  return state.replace(params=put(state.params), frozen=put(state.frozen), ema={name: put(part) for name, part in state.ema.items()})
