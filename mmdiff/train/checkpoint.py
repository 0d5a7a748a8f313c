"""Checkpoints: Orbax for the arrays, and two digests beside them, because Orbax restores a flipped bit without a word.

`checkpoints/STEP/` holds the items `params`, `ema` and `rest` (optimiser, data accounting, key, …) as flat dicts from leaf path to array,
and `meta` (JSON): step, data position, and a fingerprint of every leaf, computed on the device and independent of the mesh.
`manifest.json`, written when the asynchronous save is done, has the sha256 of every file. Frozen parameters are saved once, in `frozen/`.
"""
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mmdiff.core import tree
from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.core.types import Array, Tree
from mmdiff.train.state import TrainState

ITEMS = ("params", "ema", "rest")


def flatten(state: Tree) -> dict[str, Array]:
  """{"image.stack.attention.query.kernel": array}: one name per leaf, whatever the containers; PRNG keys as their words."""
  flat = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    name = tree.path_str(path).replace("/", ".")
    flat[name] = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
  return flat


def unflatten(flat: Mapping[str, Array], like: Tree) -> Tree:
  """The inverse of `flatten`, given a tree of the same structure."""
  leaves = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(like):
    value = flat[tree.path_str(path).replace("/", ".")]
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    leaves.append(jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf)) if is_key else value)
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def nest(flat: Mapping[str, Any]) -> dict:
  """{"a.b": x} -> {"a": {"b": x}}."""
  nested: dict = {}
  for name, value in flat.items():
    *parents, last = name.split(".")
    node = nested
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = value
  return nested


def items_of(state: TrainState) -> dict[str, dict[str, Array]]:
  """The state as the items of a checkpoint; frozen parameters are not among them."""
  rest = dict(step=state.step, opt_state=state.opt_state, extra=state.extra, key=state.key, counts=state.counts, skipped=state.skipped,
              skipped_in_a_row=state.skipped_in_a_row)
  return dict(params=flatten(state.params), ema=flatten(dict(state.ema)), rest=flatten(rest))


def state_of(items: Mapping[str, Mapping[str, Array]], frozen: Tree, like: TrainState) -> TrainState:
  """The inverse of `items_of`."""
  rest_like = dict(step=like.step, opt_state=like.opt_state, extra=like.extra, key=like.key, counts=like.counts, skipped=like.skipped,
                   skipped_in_a_row=like.skipped_in_a_row)
  rest = unflatten(items["rest"], rest_like)
  return TrainState(params=unflatten(items["params"], like.params), frozen=frozen, ema=unflatten(items["ema"], dict(like.ema)), **rest)


def fingerprint(x: Array) -> Array:
  """uint32 [] over the bits of `x`: a sum of words, each times an odd number drawn from its position. Any one flipped bit changes it, and
  the order of summation, hence the mesh, does not."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    index = index * jnp.uint32(words.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  weight = (index * jnp.uint32(2_654_435_761) + jnp.uint32(0x9E37_79B9)) | jnp.uint32(1)
  return jnp.sum(words * weight, dtype=jnp.uint32)


@jax.jit
def fingerprints(items: Tree) -> Tree:
  return jax.tree.map(fingerprint, items)


def _as_ints(prints: Tree) -> dict:
  return {item: {name: int(value) for name, value in leaves.items()} for item, leaves in jax.device_get(prints).items()}


def _file_digests(folder: Path) -> dict[str, str]:
  return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
          for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "manifest.json"}


def _check_files(folder: Path) -> None:
  """Raises ValueError if a file is not what the manifest says. A checkpoint whose writer was killed before its manifest has none."""
  manifest = folder / "manifest.json"
  if not manifest.exists():
    return
  expected, found = json.loads(manifest.read_text()), _file_digests(folder)
  wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
  if wrong:
    raise ValueError(f"files differ from the manifest: {', '.join(wrong[:4])}")


def _check_fingerprints(expected: Mapping, items: Tree) -> None:
  found = _as_ints(fingerprints(items))
  wrong = [name for item, leaves in found.items() for name, value in leaves.items() if expected[item][name] != value]
  if wrong:
    raise ValueError(f"arrays differ from their fingerprints: {', '.join(wrong[:4])}")


class Checkpoints:
  """The checkpoints of one run directory."""

  def __init__(self, workdir: Path, *, keep: int = 3):
    self.workdir = Path(workdir).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, create=True)
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ITEMS} | {"meta": ocp.JsonCheckpointHandler()}
    try:
      self.manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options, item_names=(*ITEMS, "meta"),
                                           item_handlers=handlers)
    except OSError as error:
      raise CannotWrite(f"cannot make checkpoints in {self.workdir}: {error}") from error
    self.pending: list[int] = []

  def steps(self) -> list[int]:
    return sorted(self.manager.all_steps())

  def save(self, state: TrainState, meta: Mapping[str, Any], *, wait: bool = False) -> None:
    """Saves the state of its step in the background; a failure of the save before comes up here. Raises CannotWrite."""
    step = int(state.step)
    if step in self.manager.all_steps():
      return
    items = items_of(state)
    if jax.default_backend() == "cpu":
      items = jax.tree.map(jnp.copy, items)      # host arrays would alias buffers that the next step donates
    meta = dict(meta, step=step, fingerprints=_as_ints(fingerprints(items)),
                shapes={item: {name: list(x.shape) for name, x in leaves.items()} for item, leaves in items.items()})
    try:
      self._save_frozen(state.frozen)
      self.finish()
      args = {name: ocp.args.PyTreeSave(leaves) for name, leaves in items.items() if leaves}
      self.manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args))
      self.pending.append(step)
      if wait:
        self.finish()
    except (OSError, ValueError) as error:
      raise CannotWrite(f"cannot save step {step} in {self.workdir}: {error}") from error

  def _save_frozen(self, frozen: Tree) -> None:
    folder = self.workdir / "frozen"
    if not jax.tree.leaves(frozen) or folder.exists():
      return
    flat = flatten(frozen)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      checkpointer.save(folder, args=ocp.args.PyTreeSave(flat))

  def finish(self) -> None:
    """Waits for saves under way and writes their manifests."""
    self.manager.wait_until_finished()
    if jax.process_index() == 0:
      for step in self.pending:
        folder = self.workdir / "checkpoints" / str(step)
        if folder.exists():
          part = folder / "manifest.json.part"
          part.write_text(json.dumps(_file_digests(folder)))
          os.replace(part, folder / "manifest.json")
    self.pending = []

  def close(self) -> None:
    self.finish()
    self.manager.close()

  def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """(state, meta) of the newest checkpoint that proves whole, or None if there is none.

    like: the state as it would start, in place on the mesh; a checkpoint from another mesh lands on this one. A damaged checkpoint is set
    aside in `corrupt/` with a line on stderr. Raises DataError when the model's parameters are not those of the checkpoint.
    """
    for step in reversed(self.steps()):
      folder = self.workdir / "checkpoints" / str(step)
      try:
        _check_files(folder)
        meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        target = items_of(like)
      except Exception as error:       # Orbax raises whatever its layers do: bare Exception, KeyError, JSONDecodeError, …
        self._set_aside(folder, error)
        continue
      _same_shapes(meta["shapes"], target, step)
      try:
        args = {}
        for name, leaves in target.items():
          if leaves:
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), leaves)
            args[name] = ocp.args.PyTreeRestore(item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        items = {name: restored[name] if name in args else {} for name in ITEMS}
        _check_fingerprints(meta["fingerprints"], items)
      except Exception as error:
        self._set_aside(folder, error)
        continue
      return state_of(items, self._restore_frozen(like.frozen), like), meta
    return None

  def _restore_frozen(self, like: Tree) -> Tree:
    folder = self.workdir / "frozen"
    if not jax.tree.leaves(like) or not folder.exists():
      return like
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), flatten(like))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      flat = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(
        item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)))
    return unflatten(flat, like)

  def _set_aside(self, folder: Path, error: Exception) -> None:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"checkpoint {folder.name} is damaged ({reason}); set aside, falling back to the one before", file=sys.stderr, flush=True)
    if jax.process_index() == 0 and folder.exists():
      aside = self.workdir / "corrupt" / folder.name
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      shutil.move(folder, aside)
    self.manager.reload()


def _same_shapes(saved: Mapping, target: Mapping, step: int) -> None:
  problems = []
  for item, leaves in target.items():
    wanted = {name: list(x.shape) for name, x in leaves.items()}
    found = saved.get(item, {})
    problems += [f"{item}.{name}: checkpoint has {found.get(name, 'nothing')}, the config asks for {wanted.get(name, 'nothing')}"
                 for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
  if problems:
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    raise DataError(f"checkpoint {step} is of another model: " + "; ".join(problems[:5]) + more
                    + ". Restore the config that the run began with, or choose another --workdir")


def available_steps(workdir: Path) -> list[int]:
  """Steps with a committed checkpoint, ascending."""
  folder = Path(workdir) / "checkpoints"
  return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def restore_params(workdir: Path, *, step: int | None = None, ema: str = "") -> tuple[dict, dict, dict]:
  """(params, extra, meta) as numpy, frozen parameters merged in, of `step` or the newest step that proves whole.

  ema: the name of an average, or "" for the raw parameters. Raises DataError if there is no such checkpoint or average.
  """
  workdir = Path(workdir).absolute()
  steps = available_steps(workdir)
  if not steps:
    raise DataError(f"{workdir}: no checkpoints found; expected a run directory with checkpoints/STEP/ (train it first)")
  if step is not None and step not in steps:
    raise DataError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
  for candidate in [step] if step is not None else reversed(steps):
    folder = workdir / "checkpoints" / str(candidate)
    try:
      _check_files(folder)
      meta = json.loads((folder / "meta" / "metadata").read_text())
      averages = sorted({name.split(".")[0] for name in meta["shapes"]["ema"]})
      if ema and ema not in averages:
        raise DataError(f"{workdir}: no average named {ema!r}; there are {', '.join(averages) or 'none'} (and the raw parameters)")
      params = {name.removeprefix(f"{ema}.") if ema else name: value for name, value in
                _read(folder / ("ema" if ema else "params")).items() if not ema or name.startswith(f"{ema}.")}
      extra = {name.removeprefix("extra."): value for name, value in _read(folder / "rest", only="extra.").items()}
    except DataError:
      raise
    except Exception as error:
      if step is not None:
        raise DataError(f"{folder} is damaged: {error}") from error
      print(f"checkpoint {candidate} is damaged ({error}); using the one before", file=sys.stderr, flush=True)
      continue
    frozen = _read(workdir / "frozen") if (workdir / "frozen").exists() else {}
    return nest(dict(params) | dict(frozen)), nest(extra), meta
  raise DataError(f"{workdir}: every checkpoint is damaged")


def _read(folder: Path, only: str = "") -> dict[str, np.ndarray]:
  """The arrays of one item, on the host; `only` keeps the names with that prefix."""
  logging.getLogger("absl").setLevel(logging.ERROR)        # Orbax warns that one item alone is not a whole checkpoint
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    names = checkpointer.metadata(folder).item_metadata.tree
    wanted = {name: 0 for name in names if name.startswith(only)}
    if not wanted:
      return {}
    restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
    return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True))
