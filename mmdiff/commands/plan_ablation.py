"""What `mmdiff ablate --plan` prints: the arms, what is done already, and what the rest costs."""
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Accelerators that a plan names, with the share of their peak that a training run of this kind is assumed to reach.
MACHINES, SHARE = ("TPU v5e", "TPU v5p", "NVIDIA H100"), 0.4


def lines(config: Mapping, runs: Sequence, workdir: Path) -> list[str]:
  """The plan as text. Builds the objective to count its FLOPs, but compiles and trains nothing."""
  from mmdiff.commands import comparison
  from mmdiff.core.progress import duration
  from mmdiff.train.progress import PEAK_FLOPS
  base = config["base"]
  steps, images = base["steps"], base["steps"] * base["batch_size"]
  shown = [f"{len(config['arms'])} arms × {len(config['seeds'])} seeds = {len(runs)} runs of {steps:,} steps × {base['batch_size']:,} = "
           f"{images:,} images each; the others are compared with {config['reference']}"]
  width = max(map(len, config["arms"]))
  for arm, overrides in config["arms"].items():
    done = [str(run.seed) for run in runs if run.arm == arm and run.finished]
    begun = [str(run.seed) for run in runs if run.arm == arm and not run.finished and (run.workdir / "config.json").exists()]
    state = "; ".join(f"{word}: seeds {', '.join(seeds)}" for word, seeds in (("finished", done), ("begun", begun)) if seeds)
    shown.append(f"  {arm:<{width}}  {' '.join(overrides)}" + (f"  ({state})" if state else ""))
  shown.append(f"seeds: {', '.join(map(str, config['seeds']))}")
  if config["prepare"]:
    shown.append("first:")
    for name, line in config["prepare"].items():
      ready = (workdir / "prepare" / f"{name}.json").exists()
      shown.append(f"  {name}{' (done)' if ready else ''}: mmdiff {shlex.join(line)}")
  for name, entry in base["evals"].items():
    times = len({*range(entry["every_steps"], steps + 1, entry["every_steps"]), steps})
    shown.append(f"evaluation {name}: {times} times a run, {prompts_of(entry)}")
  left = [run for run in runs if not run.finished]
  total = flops(base)
  if total:
    hours = [f"{total * len(left) / SHARE / PEAK_FLOPS[name] / 3_600:,.3g} hours of one {name}" for name in MACHINES]
    shown.append(f"training: {total:.2e} FLOPs a run, {total * len(runs):.2e} in all, {total * len(left):.2e} left; at {SHARE:.0%} of the "
                 f"peak {', '.join(hours)}")
  timed = [found["seconds"] for run in runs if run.finished and (found := comparison.cost(run.workdir))]
  if timed:
    mean = sum(timed) / len(timed)
    shown.append(f"measured here: {duration(mean)} a run; {duration(mean * len(left))} for the {len(left)} left")
  return shown


def prompts_of(entry: Mapping[str, Any]) -> str:
  """What one evaluation draws."""
  if "limit" not in entry or "captions" not in entry:
    return ", ".join(f"{key} {value}" for key, value in entry.items() if isinstance(value, int) and key != "every_steps") or entry["name"]
  return f"{entry['limit']:,} pictures for each of {', '.join(entry['captions'])}, {entry['steps']} sampling steps"


def flops(config: Mapping) -> float | None:
  """Of training one run; None where the objective does not count."""
  from mmdiff.core.build import build
  from mmdiff.objectives import OBJECTIVES
  count = build(OBJECTIVES, config["objective"]).predict.get("flops")
  return float(count(config["batch_size"], config["data"]["text_len"])) * config["steps"] if count else None
