"""Checkpoints: Orbax for the arrays, and what proves them beside them (`train.integrity`).

`checkpoints/STEP/` holds the items `params`, `ema` and `rest` (optimiser, data accounting, key, …) as flat dicts from leaf path to array,
and `meta` (JSON): step, data position, shapes, and a fingerprint of every leaf. Frozen parameters are saved once, in `frozen/NAME/`; the
name is a digest of what is in them, and each checkpoint's meta says which it belongs to.
"""
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmdiff.core import tree
from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.core.files import parse_json
from mmdiff.core.terminal import tell
from mmdiff.core.types import Array, Tree
from mmdiff.train import integrity
from mmdiff.train.state import TrainState

ITEMS = ("params", "ema", "rest")
FROZEN = "frozen"


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
              skipped_in_a_row=state.skipped_in_a_row, ema_extra=dict(state.ema_extra))
  return dict(params=flatten(state.params), ema=flatten(dict(state.ema)), rest=flatten(rest))


def state_of(items: Mapping[str, Mapping[str, Array]], frozen: Tree, like: TrainState) -> TrainState:
  """The inverse of `items_of`."""
  rest_like = dict(step=like.step, opt_state=like.opt_state, extra=like.extra, key=like.key, counts=like.counts, skipped=like.skipped,
                   skipped_in_a_row=like.skipped_in_a_row, ema_extra=dict(like.ema_extra))
  rest = unflatten(items["rest"], rest_like)
  return TrainState(params=unflatten(items["params"], like.params), frozen=frozen, ema=unflatten(items["ema"], dict(like.ema)), **rest)


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
  """A meta with a digest of itself, which holds until there is a manifest."""
  return dict(meta, digest=hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest())


def meta_of(folder: Path) -> tuple[dict[str, Any], bool]:
  """(the meta of a checkpoint's folder, whether its files are proven). Raises ValueError, KeyError or OSError for a damaged one."""
  proven = integrity.check_files(folder)
  meta = parse_json((folder / "meta" / "metadata").read_bytes(), nan=True)
  bare = {key: value for key, value in meta.items() if key != "digest"}
  if "digest" in meta and sealed(bare) != meta:
    raise ValueError("meta differs from its digest")
  if not all(isinstance(meta[key], dict) for key in ("fingerprints", "shapes")) or meta["step"] != int(folder.name):
    raise ValueError("meta is not that of this checkpoint")
  return meta, proven


def _not_of_a_failed_save(record: logging.LogRecord) -> bool:
  """A save that fails comes up as an error; Orbax's threads log it with a traceback each, and asyncio for each part of it."""
  ours = f"{os.sep}orbax{os.sep}" in record.pathname or record.name == "asyncio" and "never retrieved" in record.getMessage()
  return not (record.levelno >= logging.ERROR and ours)


class Checkpoints:
  """The checkpoints of one run directory."""

  def __init__(self, workdir: Path, *, keep: int = 3):
    self.workdir = Path(workdir).absolute()
    for name in ("absl", "asyncio"):
      logging.getLogger(name).addFilter(_not_of_a_failed_save)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, create=True)
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ITEMS} | {"meta": ocp.JsonCheckpointHandler()}
    try:
      self.manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options, item_names=(*ITEMS, "meta"),
                                           item_handlers=handlers)
    except OSError as error:
      raise CannotWrite(f"cannot make checkpoints in {self.workdir}: {error}") from error
    self.pending: list[int] = []
    self.known: set[str] = set()                   # frozen parameters that are on disk and whole

  def steps(self) -> list[int]:
    return sorted(self.manager.all_steps())

  def save(self, state: TrainState, meta: Mapping[str, Any], *, wait: bool = False) -> None:
    """Saves the state of its step in the background; a failure of the save before comes up here. Raises CannotWrite."""
    step = int(state.step)
    if step in self.manager.all_steps():
      return
    items, frozen = items_of(state), flatten(state.frozen)
    if jax.default_backend() == "cpu":
      items = jax.tree.map(jnp.copy, items)      # host arrays would alias buffers that the next step donates
    held = dict(items, **({FROZEN: frozen} if frozen else {}))
    prints = integrity.as_ints(integrity.fingerprints(held))
    shapes = {item: {name: list(x.shape) for name, x in leaves.items()} for item, leaves in held.items()}
    name = integrity.name_of(prints[FROZEN], shapes[FROZEN]) if frozen else ""
    meta = sealed(dict(meta, step=step, fingerprints=prints, shapes=shapes, frozen=name))
    try:
      if name:
        self._save_frozen(name, frozen)
      self.finish()
      args = {name: ocp.args.PyTreeSave(leaves) for name, leaves in items.items() if leaves}
      self.manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args))
      self.pending.append(step)
      if wait:
        self.finish()
    except (OSError, ValueError) as error:
      failed = self.pending[-1] if self.pending else step
      raise CannotWrite(f"cannot save step {failed} in {self.workdir}: {cause_of(error)}") from error

  def _save_frozen(self, name: str, flat: Mapping[str, Array]) -> None:
    """Saves frozen parameters, unless these are there and whole."""
    folder = self.workdir / FROZEN / name
    if name in self.known:
      return
    if not agreed(lambda: _is_whole(folder)):
      if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
      agreed(lambda: True)                         # nobody begins before the first process is through
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(dict(flat)))
      if jax.process_index() == 0:
        integrity.write_manifest(folder)
    self.known.add(name)

  def finish(self) -> None:
    """Waits for saves under way and writes their manifests."""
    self.manager.wait_until_finished()
    if jax.process_index() == 0:
      for step in self.pending:
        folder = self.workdir / "checkpoints" / str(step)
        if folder.exists():
          integrity.write_manifest(folder)
    self.pending = []

  def close(self) -> None:
    self.finish()
    self.manager.close()

  def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """(state, meta) of the newest checkpoint that proves whole, or None if there is none.

    like: the state as it would start, in place on the mesh; a checkpoint from another mesh lands on this one. A damaged checkpoint is set
    aside in `corrupt/` with a line on stderr. Raises DataError when the model's parameters are not those of the checkpoint, when the frozen
    parameters that it belongs to are missing or damaged, and when there are checkpoints and none of them is whole.
    """
    steps, target = self.steps(), dict(items_of(like), **{FROZEN: flatten(like.frozen)})
    for step in reversed(steps):
      folder = self.workdir / "checkpoints" / str(step)
      try:
        meta, _ = meta_of(folder)
      except Exception as error:       # Orbax and damaged JSON raise whatever their layers do
        self._set_aside(folder, error)
        continue
      _same_shapes(meta["shapes"], {item: leaves for item, leaves in target.items() if item in ITEMS or FROZEN in meta}, step)
      try:
        args = {name: restoring(target[name]) for name in ITEMS if target[name]}
        restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        items = {name: restored[name] if name in args else {} for name in ITEMS}
        for item, found in integrity.as_ints(integrity.fingerprints(items)).items():
          integrity.wrong_arrays(meta["fingerprints"].get(item, {}), found)
      except Exception as error:
        self._set_aside(folder, error)
        continue
      return state_of(items, self._restore_frozen(meta, like.frozen), like), meta
    if steps:
      raise DataError(f"{self.workdir}: every checkpoint is damaged ({', '.join(map(str, steps))}, now in {self.workdir / 'corrupt'}); "
                      f"put a whole one back in {self.workdir / 'checkpoints'}, or choose another --workdir; the same command would begin "
                      "at step 0")
    return None

  def _restore_frozen(self, meta: Mapping, like: Tree) -> Tree:
    target = flatten(like)
    if not target:
      return like
    folder = frozen_folder(self.workdir, meta)
    try:
      integrity.check_files(folder)
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        flat = checkpointer.restore(folder, args=restoring(target))
      if FROZEN in meta:
        integrity.wrong_arrays(meta["fingerprints"][FROZEN], integrity.as_ints(integrity.fingerprints({FROZEN: flat}))[FROZEN])
    except Exception as error:
      raise damaged_frozen(folder, meta["step"], error) from error
    self.known.add(folder.name)
    return unflatten(flat, like)

  def _set_aside(self, folder: Path, error: Exception) -> None:
    tell(f"checkpoint {folder.name} is damaged ({reason_of(error)}); set aside, falling back to the one before")
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


def agreed(ask) -> bool:
  """What the first process finds, in all of them."""
  if jax.process_count() == 1:
    return bool(ask())
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(jax.process_index() == 0 and bool(ask()))))


def restoring(leaves: Mapping[str, Array]) -> ocp.args.PyTreeRestore:
  """Orbax's arguments for arrays that land where `leaves` are."""
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(leaves))
  return ocp.args.PyTreeRestore(item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _is_whole(folder: Path) -> bool:
  try:
    return integrity.check_files(folder)
  except (ValueError, OSError):
    return False


def frozen_folder(workdir: Path, meta: Mapping[str, Any]) -> Path:
  """Where the frozen parameters of a checkpoint are. Runs from before they had names keep them in `frozen` itself."""
  if FROZEN in meta:
    return workdir / FROZEN / meta[FROZEN]
  tell(f"{workdir / FROZEN}: written without digests, so that damage to the frozen parameters would go unnoticed")
  return workdir / FROZEN


def damaged_frozen(folder: Path, step: int, error: Exception) -> DataError:
  reason = reason_of(error) if folder.exists() else "no such folder"
  return DataError(f"{folder}: the frozen parameters that checkpoint {step} belongs to are missing or damaged ({reason}); put the folder "
                   "back from a copy of the run directory")


def cause_of(error: Exception) -> str:
  """What the system said, of an error that tells the whole way there."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else reason_of(error)


def reason_of(error: Exception) -> str:
  return str(error).splitlines()[0] if str(error) else type(error).__name__


def available_steps(workdir: Path) -> list[int]:
  """Steps with a committed checkpoint, ascending."""
  folder = Path(workdir) / "checkpoints"
  return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch("[0-9]{1,18}", entry.name)) if folder.is_dir() else []


def newest_whole(workdir: Path) -> tuple[dict[str, Any] | None, dict[int, str]]:
  """(the meta of the newest checkpoint whose files prove whole, {newer step: what is wrong with it})."""
  wrong: dict[int, str] = {}
  for step in reversed(available_steps(workdir)):
    try:
      return meta_of(Path(workdir) / "checkpoints" / str(step))[0], wrong
    except (ValueError, KeyError, TypeError, OSError) as error:
      wrong[step] = reason_of(error)
  return None, wrong


def restore_params(workdir: Path, *, step: int | None = None, ema: str = "") -> tuple[dict, dict, dict]:
  """(params, extra, meta) as numpy, frozen parameters merged in, of `step` or the newest step that proves whole.

  ema: the name of an average, or "" for the raw parameters. Raises DataError if there is no such checkpoint or average, and for frozen
  parameters that are missing or damaged.
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
      meta, proven = meta_of(folder)
      averages = sorted({name.split(".")[0] for name in meta["shapes"]["ema"]})
      if ema and ema not in averages:
        raise DataError(f"{workdir}: no average named {ema!r}; there are {', '.join(averages) or 'none'} (and the raw parameters)")
      item = "ema" if ema else "params"
      own = f"ema_extra.{ema}."                    # an average's statistics
      prefix = own if ema and any(name.startswith(own) for name in meta["shapes"]["rest"]) else "extra."
      params, rest = _read(folder / item, only=f"{ema}." if ema else ""), _read(folder / "rest", only=prefix)
      if not proven:
        for kind, leaves in ((item, params), ("rest", rest)):
          expected = {name: value for name, value in meta["fingerprints"][kind].items() if name in leaves}
          integrity.wrong_arrays(expected, {name: integrity.fingerprint_here(value) for name, value in leaves.items()})
    except DataError:
      raise
    except Exception as error:
      if step is not None:
        raise DataError(f"{folder} is damaged: {reason_of(error)}") from error
      tell(f"checkpoint {candidate} is damaged ({reason_of(error)}); using the one before")
      continue
    params = {name.removeprefix(f"{ema}.") if ema else name: value for name, value in params.items()}
    extra = {name.removeprefix(prefix): value for name, value in rest.items()}
    return nest(params | read_frozen(workdir, meta)), nest(extra), meta
  raise DataError(f"{workdir}: every checkpoint is damaged ({', '.join(map(str, steps))}); put a whole one back from a copy")


def read_frozen(workdir: Path, meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The frozen parameters that a checkpoint belongs to, on the host. Raises DataError when they are missing or damaged."""
  if not meta.get(FROZEN, (workdir / FROZEN).exists()):
    return {}
  folder = frozen_folder(workdir, meta)
  try:
    integrity.check_files(folder)
    frozen = _read(folder)
    if FROZEN in meta:
      integrity.wrong_arrays(meta["fingerprints"][FROZEN], {name: integrity.fingerprint_here(value) for name, value in frozen.items()})
  except Exception as error:
    raise damaged_frozen(folder, meta["step"], error) from error
  return frozen


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
