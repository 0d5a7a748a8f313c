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

Numbers alone are half of what a model is. Facts that no shape tells (`train.sources`), such as the activation or eps against v, must be
those of the source; one that is meant to differ is named in `differs`, e.g. ("denoiser/prediction",). Batch statistics come with the
parameters that they belong to. The tokenizer is the one of what the text tower starts from. And a frozen group that starts from
nothing is told of on stderr, unless it has an entry "" in `map`.
"""
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmdiff.convert import resize
from mmdiff.core import tree
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.terminal import tell
from mmdiff.core.types import Tree
from mmdiff.train.sources import Weights, weights_of, within
from mmdiff.train.state import TrainState

SHOWN = 8
# Facts of the towers of CLIP and CoCa -> keys of `objective.model`, where the field has another name.
KEYS = {"image/heads": "image_heads", "text/heads": "text_heads", "text/act": "text_act", "text/pool": "text_pool"}
GROUPS = {"denoiser": "denoiser", "text": "condition", "autoencoder": "encode"}           # of the diffusion objective


class Start(NamedTuple):
  """What a fresh state takes over: values by the paths of its parameters and of its batch statistics."""
  values: Mapping[str, np.ndarray] = {}
  statistics: Mapping[str, np.ndarray] = {}


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


def found(full: Tree, extra: Tree = (), *, path: str = "", params: str = "", map: Mapping[str, str] = {},  # noqa: B006
          parts: Mapping[str, str] = {}, differs: Sequence[str] = (), facts: Mapping[str, Any] = {}) -> Start:  # noqa: B006
  """What `path` and `parts` hold for all of the parameters `full` and the batch statistics `extra`, frozen ones included.

  params: an average of a run, "raw", or "" for its `eval` average where it has one, else raw. facts: of the model here, by path.

  A stack of layers may be the first ones of a public checkpoint's: SDXL needs 11 layers of the 12 that its first encoder has. A line
  on stderr says so.

  Raises DataError that names every leaf that a source lacks or holds in another shape, and every entry that names nothing; ConfigError that
  names every fact that is another one there.
  """
  names = tree.paths(full)
  problems = [f"{what} names {entry!r}, which is no parameter here" for what, entries in (("map", map), ("parts", parts))
              for entry in entries if not any(within(name, entry) for name in names)]
  sources = {entry: weights_of(where, params) for entry, where in parts.items() if not problems}
  whole = weights_of(path, params) if path else None
  taken: dict[str, np.ndarray] = {}
  origins: dict[str, tuple[Weights, str]] = {}
  told = set()

  def origin(name: str) -> tuple[Weights, str] | None:
    part = longest(name, sources)
    weights = whole if part is None else sources[part]
    where = source_path(name, map) if part is None else part_path(name, part, sources[part])
    return None if weights is None or where is None else (weights, where)

  for name, leaf in zip(names, jax.tree.leaves(full)):
    there = origin(name)
    if there is None:
      continue
    weights, where = origins[name] = there
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
  statistics, wrong = _statistics(extra, origin, origins)
  problems += wrong
  if problems:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError("init does not fit: " + "; ".join(problems[:SHOWN]) + more
                    + '. Change init.map: {"part of the path here": "part of the path there"}, with "" for what shall start fresh')
  _check_facts(facts, origins, differs)
  if told and jax.process_index() == 0:
    tell("\n".join(f"init: {line}" for line in sorted(told)))
  return Start(taken, statistics)


def _statistics(extra: Tree, origin, origins: Mapping[str, tuple[Weights, str]]) -> tuple[dict[str, np.ndarray], list[str]]:
  """(batch statistics by their path here, what is wrong): they come from where the parameters beside them come from."""
  statistics: dict[str, np.ndarray] = {}
  wrong = []
  names = tree.paths(extra)
  for name, leaf in zip(names, jax.tree.leaves(extra)):
    there = origin(name)
    if there is None:
      continue
    weights, where = there
    value = weights.statistics.get(where)
    if value is None or value.shape != leaf.shape:
      wrong.append(f"{name}: " + (f"{weights.about} has no batch statistics {where}" if value is None else
                                  f"{list(leaf.shape)} here, the batch statistics {where} are {list(value.shape)} in {weights.about}"))
    else:
      statistics[name] = value
  kept = {name.split("/")[0] for name in names}
  for name, (weights, where) in origins.items():
    group = where.split("/")[0]
    if name.split("/")[0] not in kept and any(within(one, group) for one in weights.statistics):
      wrong.append(f"{name.split('/')[0]}: {weights.about} has batch statistics of {group}, and this model keeps none")
      break
  return statistics, wrong


def _check_facts(facts: Mapping[str, Any], origins: Mapping[str, tuple[Weights, str]], differs: Collection[str]) -> None:
  """Raises ConfigError for every fact that the source of the parameters beneath it says otherwise, and for a name in `differs` that is
  none."""
  unknown = [name for name in differs if name not in facts]
  if unknown and facts:
    raise ConfigError(f"init.differs names {', '.join(unknown)}; the facts of this model are {', '.join(sorted(facts))}")
  lines = []
  for name, here in facts.items():
    node, _, field = name.rpartition("/")
    inside = next((leaf for leaf in origins if within(leaf, node) or not node), None)
    if inside is None or name in differs:
      continue
    weights, where = origins[inside]
    rest = inside[len(node):].lstrip("/")
    if not where.endswith(rest):
      continue
    there = weights.facts.get(f"{where.removesuffix(rest)}{field}", here)
    if not _same(here, there):
      key = key_of(name, drawing=any(within(one, "denoiser") for one in facts))
      lines.append(f"init: {name} is {_said(here)} here and {_said(there)} in {weights.about}; set {key} to that, or, if the change is "
                   f"meant, add {name!r} to --config.init.differs")
  if lines:
    raise ConfigError("\n".join(lines))


def _same(a: Any, b: Any) -> bool:
  if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
    return len(a) == len(b) and all(map(_same, a, b))
  if isinstance(a, float) or isinstance(b, float):
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9)
  return bool(a == b)


def _said(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def key_of(fact: str, *, drawing: bool) -> str:
  """The key of the config that a fact is set by; drawing: of the diffusion objective."""
  group, _, field = fact.rpartition("/")
  top = group.split("/")[0]
  if fact == "text/text_len":
    return "--config.data.text_len"
  if fact in ("denoiser/prediction", "denoiser/schedule", "denoiser/zero_terminal_snr", "denoiser/uncond"):
    return f"--config.objective.{field}"
  if drawing:
    return f"--config.objective.{'.'.join([GROUPS.get(top, top), *group.split('/')[1:]])}.{field}"
  return f"--config.objective.model.{KEYS.get(fact, field)}"


def say_what_stays_random(frozen: Iterable[str], *, path: str = "", map: Mapping[str, str] = {},  # noqa: B006
                          parts: Mapping[str, str] = {}, given: Collection[str] = (), **_: Any) -> None:  # noqa: B006
  """A line on stderr for each frozen group that starts from nothing, unless an entry "" of `map` says that this is meant.

  frozen: the paths. given: groups whose initial values are weights already.
  """
  groups: dict[str, str] = {}
  for name in frozen:
    entry = longest(name, map)
    meant = entry is not None and map[entry] == ""
    if not (meant or path or longest(name, parts) or name.split("/")[0] in given):
      groups.setdefault(name.split("/")[0], name)
  for group, name in groups.items() if jax.process_index() == 0 else ():
    tell(f"WARNING: freeze holds {group} ({name}, …) and nothing initialises it: the rest is trained against random weights that never "
         f"change. Set --config.init.path or --config.init.parts.{group} to a run or a public checkpoint, or say that it is meant with "
         f"--config.init.map.{group}=")


def initialised(state: TrainState, start: Start) -> TrainState:
  """The fresh state with what it takes over in all of params, frozen ones, statistics and averages."""
  def put(part: Tree, values: Mapping[str, np.ndarray]) -> Tree:
    def placed(name: str, leaf):
      if name not in values:
        return leaf
      value = np.asarray(values[name], leaf.dtype)
      return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])
    return tree.map_with_path(placed, part)
  params = lambda part: put(part, start.values)
  statistics = lambda part: put(part, start.statistics)
  each = lambda place, averages: {name: place(part) for name, part in averages.items()}
  return state.replace(params=params(state.params), frozen=params(state.frozen), ema=each(params, state.ema),
                       extra=statistics(state.extra), ema_extra=each(statistics, state.ema_extra))
