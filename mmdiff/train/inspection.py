"""What is whole and what is damaged in a run directory. Nothing is changed or set aside."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.train import integrity, sums
from mmdiff.train.checkpoint import FROZEN, available_steps, meta_of, reason_of
from mmdiff.train.writer import changed


class Inspection(NamedTuple):
  """newest: the meta of the newest checkpoint whose files prove whole. damaged, unproven: a line for each part by its name."""
  newest: dict[str, Any] | None
  damaged: list[str]
  unproven: list[str]


def inspect(workdir: Path) -> Inspection:
  """Reads every file of a run directory that is ever read back."""
  damaged, unproven = sums.inspect(workdir)
  newest: dict[str, Any] | None = None
  frozen: dict[str, int] = {}
  for step in reversed(available_steps(workdir)):
    try:
      meta, proven = meta_of(workdir / "checkpoints" / str(step))
    except (ValueError, KeyError, TypeError, OSError) as error:
      damaged.append(f"checkpoints/{step}: damaged: {reason_of(error)}")
      continue
    unproven += [] if proven else [f"checkpoints/{step}: has no {integrity.MANIFEST}, only the fingerprints of its arrays"]
    newest = newest or meta
    if meta.get(FROZEN):
      frozen.setdefault(meta[FROZEN], step)
  for name, step in frozen.items():
    folder, whose = workdir / FROZEN / name, f"{FROZEN}/{name}, to which checkpoint {step} belongs"
    try:
      if not folder.is_dir():
        damaged.append(f"{whose}: missing")
      elif not integrity.check_files(folder):
        unproven.append(f"{whose}: has no {integrity.MANIFEST}, only the fingerprints of its arrays")
    except (ValueError, OSError) as error:
      damaged.append(f"{whose}: damaged: {reason_of(error)}")
  if newest and (fault := changed(workdir / "metrics.jsonl", newest.get("metrics"))):
    damaged.append(fault)
  return Inspection(newest, damaged, unproven)


def held(meta: Mapping[str, Any]) -> dict[str, int]:
  """{parameter group: elements} of a checkpoint, frozen ones included."""
  groups: dict[str, int] = {}
  for item in ("params", FROZEN):
    for name, shape in meta["shapes"].get(item, {}).items():
      size = 1
      for side in shape:
        size *= side
      groups[name.split(".")[0]] = groups.get(name.split(".")[0], 0) + size
  return groups
