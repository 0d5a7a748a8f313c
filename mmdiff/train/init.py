"""A run that starts from another run's weights: `config.init`.

  init = dict(path="runs/clip", params="", map={"decoder": "", "image": "visual"})

The longest entry of `map` that is a leaf's path or the start of it says where the leaf is in the source: "image/position" is then
"visual/position". The value "" leaves it as it was initialised. What no entry names has the same path in the source.
"""
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from mmdiff.core import tree
from mmdiff.core.errors import DataError
from mmdiff.train import checkpoint, run_directory
from mmdiff.train.state import TrainState

SHOWN = 8


def source_path(path: str, map: Mapping[str, str]) -> str | None:
  """Where the leaf at `path` is in the source, or None if it starts fresh."""
  entries = [entry for entry in map if path == entry or path.startswith(f"{entry}/")]
  if not entries:
    return path
  entry = max(entries, key=len)
  return map[entry] + path[len(entry):] if map[entry] else None


def tokenizer_of(path: str) -> Path:
  """The tokenizer that the run at `path` was trained with. Raises DataError."""
  file = run_directory.locate(path)[0] / "tokenizer.json"
  if not file.is_file():
    raise DataError(f"init.path: {file} is missing; give a run directory of `mmdiff train`")
  return file


def initialised(state: TrainState, *, path: str, params: str = "", map: Mapping[str, str] = {}) -> TrainState:  # noqa: B006
  """The fresh state with the parameters of the run at `path` (`DIR` or `DIR@STEP`) in all of params, frozen ones and averages.

  params: an average of that run, "raw", or "" for its `eval` average where it has one, else raw.

  Raises DataError that names every leaf that the source lacks or holds in another shape, and every entry of `map` that names nothing.
  """
  workdir, step = run_directory.locate(path)
  average = run_directory.average(run_directory.read_config(workdir), params or None)
  values, _, meta = checkpoint.restore_params(workdir, step=step, ema=average)
  found = dict(zip(tree.paths(values), jax.tree.leaves(values)))
  full = state.full()
  names = tree.paths(full)
  problems = [f"map names {entry!r}, which is no parameter here" for entry in map
              if not any(name == entry or name.startswith(f"{entry}/") for name in names)]
  taken: dict[str, np.ndarray] = {}
  for name, leaf in zip(names, jax.tree.leaves(full)):
    where = source_path(name, map)
    if where is None:
      continue
    if where not in found:
      problems.append(f"{name}: the source has no {where}")
    elif found[where].shape != leaf.shape:
      problems.append(f"{name}: {list(leaf.shape)} here, {where} is {list(found[where].shape)} there")
    else:
      taken[name] = found[where]
  if problems:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError(f"init.path {path} (step {meta['step']}, {average or run_directory.RAW} parameters) does not fit: "
                    + "; ".join(problems[:SHOWN]) + more
                    + '. Change init.map: {"part of the path here": "part of the path there"}, with "" for what shall start fresh')

  def placed(name: str, leaf):
    if name not in taken:
      return leaf
    value = np.asarray(taken[name], leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])
  put = lambda part: tree.map_with_path(placed, part)
  return state.replace(params=put(state.params), frozen=put(state.frozen), ema={name: put(part) for name, part in state.ema.items()})
