"""The numbers of an ablation's report: learning curves by arm and seed, and paired differences with their intervals.

Read from the run directories' eval/*.json. Every run of an ablation draws the same prompts from the same noise, so two arms are compared
prompt by prompt within each seed (`evaluators.statistics.paired`).
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmdiff.core.ablation import AREA, END, HALF
from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object
from mmdiff.train import sums


class Curve(NamedTuple):
  """What one run found, step by step."""
  steps: list[int]
  scalars: dict[str, list[float]]                   # name -> one value a step
  pictures: dict[str, np.ndarray]                   # metric -> float64 [steps prompts]
  prompts: dict[str, list]                          # metric -> the rows that its columns stand for
  protocol: Mapping[str, Any]
  same: Mapping[str, Mapping] = {}                   # metric -> the first prompt of the same text as each of its prompts
  facts: Mapping[str, Any] = {}                     # what the scores depend on besides the model (`evaluators.likeness`)


def read_curve(run, name: str, *, allowed: Sequence[str] = ()) -> Curve | None:
  """The results of entry `name` of a run's config.evals, None without any. Raises DataError for results that do not fit together."""
  from mmdiff.evaluators import likeness
  results = []
  for file in sorted((run.workdir / "eval").glob(f"{name}_*.json")):
    sums.check(run.workdir, f"eval/{file.name}")
    found = read_object(file, nan=True)
    if found.get("name") == name and found["step"] <= run.config["steps"]:
      results.append(found)
  if not results:
    return None
  results.sort(key=lambda found: found["step"])
  facts = [likeness.facts(found) for found in results]
  tables = [metrics_of(found["tables"].get("pictures", ())) for found in results]
  prompts = {metric: list(values) for metric, values in tables[0].items()}
  for found, table in zip(results, tables):
    if {metric: list(values) for metric, values in table.items()} != prompts:
      raise DataError(f"{run.workdir}: the results of {name} at step {found['step']} are of other prompts than those before; "
                      "was evals changed half-way? Train it anew in another --workdir")
  for found, one in zip(results, facts):
    if differences := likeness.unlike(facts[0], one, allowed=allowed):
      raise DataError(f"{run.workdir}: the results of {name} at step {found['step']} and before are not alike in "
                      f"{likeness.said(differences)}")
  shared = [key for key in results[0]["scalars"] if all(key in found["scalars"] for found in results)]
  return Curve([found["step"] for found in results], {key: [found["scalars"][key] for found in results] for key in shared},
               {metric: np.array([list(table[metric].values()) for table in tables], np.float64) for metric in prompts}, prompts,
               next(iter(results[-1]["tables"].get("protocol", ())), {}),
               metrics_of(results[0]["tables"].get("pictures", ()), "same"), facts[0])


def metrics_of(rows: Sequence[Mapping], column: str = "") -> dict[str, dict[int, float]]:
  """{metric: {prompt: value}} of a table `pictures`: `clipscore_KIND`, and `all_facts` where the pictures were judged; or what another
  `column` has there, the prompt itself by default."""
  found: dict[str, dict[int, float]] = {}
  for row in rows:
    for metric, value in (("all_facts", "right"), (f"clipscore_{row['kind']}", "clip_similarity")):
      if value in row:
        found.setdefault(metric, {})[row["prompt"]] = row.get(column, row["prompt"]) if column else float(row[value])
  return found


def compare(config: Mapping, runs: Sequence, workdir: Path, *, unlike: Sequence[str] = ()) -> dict[str, Any] | None:
  """What `report.json` says, None while no run has results. Raises DataError for runs that are not alike in what their scores depend on,
  but for what `unlike` allows."""
  from mmdiff.evaluators.statistics import area
  curves = {(run.arm, run.seed): curve for run in runs if (curve := read_curve(run, config["read"], allowed=unlike))}
  if not curves:
    return None
  check_alike(curves, allowed=unlike)
  arms: dict[str, dict] = {}
  others = [name for name in config["base"]["evals"] if name != config["read"]]
  for run in runs:
    curve = curves.get((run.arm, run.seed))
    if curve:
      areas = {metric: float(area(curve.steps, curve.scalars[metric])) for metric in curve.pictures if metric in curve.scalars}
      arm = arms.setdefault(run.arm, {"overrides": list(config["arms"][run.arm]), "seeds": {}})
      arm["seeds"][str(run.seed)] = {"steps": curve.steps, **curve.scalars, "area": areas, "finished": run.finished, **cost(run.workdir),
                                     "last": last_scalars(run.workdir, others)}
  example = next(iter(curves.values()))
  return {"arms": arms, "reference": config["reference"], "comparisons": comparisons(curves, config),
          "protocol": dict(example.protocol), "prepare": prepared(config, workdir), "captions": captions_used(config),
          "finished": sum(run.finished for run in runs), "runs": len(runs)}


def last_scalars(workdir: Path, names: Sequence[str]) -> dict[str, float]:
  """{entry/scalar: value} of the newest result of each entry."""
  found: dict[str, float] = {}
  for name in names:
    sums.check(workdir, *(f"eval/{file.name}" for file in (workdir / "eval").glob(f"{name}_*.json")))
    results = [read_object(file, nan=True) for file in (workdir / "eval").glob(f"{name}_*.json")]
    results = [result for result in results if result.get("name") == name]
    if results:
      found |= {f"{name}/{key}": value for key, value in max(results, key=lambda result: result["step"])["scalars"].items()}
  return found


def check_alike(curves: Mapping[tuple[str, int], Curve], *, allowed: Sequence[str] = ()) -> None:
  """Raises DataError if two runs were asked different prompts, or asked otherwise: options, records, size of the pictures, protocol."""
  from mmdiff.evaluators import likeness
  (first, example), *others = curves.items()
  for which, curve in others:
    if curve.prompts != example.prompts:
      raise DataError(f"{first[0]}, seed {first[1]}, and {which[0]}, seed {which[1]}, drew different prompts; train them with equal evals")
    if differences := likeness.unlike(example.facts, curve.facts, allowed=allowed):
      raise DataError(f"{first[0]}, seed {first[1]}, and {which[0]}, seed {which[1]}, are not alike in {likeness.said(differences)}")


def comparisons(curves: Mapping[tuple[str, int], Curve], config: Mapping) -> list[dict[str, Any]]:
  """Each arm minus the reference, over the seeds that both have, as far as those have come: half-way, at the last step, and the area under
  the curve of whole runs."""
  from mmdiff.evaluators.statistics import area, paired
  reference, total, rows = config["reference"], config["base"]["steps"], []
  for arm in config["arms"]:
    seeds = [seed for seed in config["seeds"] if (arm, seed) in curves and (reference, seed) in curves]
    if arm == reference or not seeds:
      continue
    pairs = [(curves[arm, seed], curves[reference, seed]) for seed in seeds]
    steps = sorted(set.intersection(*(set(curve.steps) for pair in pairs for curve in pair)))
    if not steps or 2 * steps[-1] < total:
      continue
    half = min(steps, key=lambda step: (abs(2 * step - total), step))
    points = [(HALF, half, lambda y: y[steps.index(half)])]                                                  # noqa: B023
    if steps[-1] == total:
      points += [(END, total, lambda y: y[-1]), (AREA, None, lambda y: area(steps, y))]                      # noqa: B023
    for metric in pairs[0][0].pictures:
      values = [[curve.pictures[metric][[curve.steps.index(step) for step in steps]] for curve in pair] for pair in pairs]   # [S 2 T N]
      for at, step, reduce in points:
        a, b = (np.stack([reduce(pair[side]) for pair in values]) for side in (0, 1))                          # [S N]
        found = paired(a, b, clusters=list(pairs[0][0].same[metric].values()))
        rows.append(dict(arm=arm, reference=reference, metric=metric, at=at, step=step, arm_mean=float(a.mean()),
                         reference_mean=float(b.mean()), difference=found.mean, low=found.low, high=found.high,
                         by_seed={str(seed): float(value) for seed, value in zip(seeds, (a - b).mean(1))}, prompts=a.shape[1]))
  return rows


def cost(workdir: Path) -> dict[str, float]:
  """Seconds of the run's last start, and its images per second in training."""
  from mmdiff.train.writer import read_metrics
  file = workdir / "metrics.jsonl"
  logged = [line for line in read_metrics(file) if "seconds" in line] if file.exists() else []
  return dict(seconds=round(logged[-1]["seconds"], 1), images_per_second=round(float(np.median(
    [line["images_per_second"] for line in logged])), 1)) if logged else {}


def prepared(config: Mapping, workdir: Path) -> dict[str, Any]:
  """{name: command line, seconds, and the newest scalars of every evaluator} of what came before the arms."""
  made: dict[str, Any] = {}
  for name, line in config["prepare"].items():
    marker = workdir / "prepare" / f"{name}.json"
    done = read_object(marker) if marker.exists() else {}
    folder = workdir / "prepare" / name
    entries = read_object(folder / "config.json").get("evals", {}) if (folder / "config.json").exists() else {}
    made[name] = dict(argv=list(line), seconds=done.get("seconds"), scalars=last_scalars(folder, list(entries)))
  return made


def captions_used(config: Mapping, limit: int = 2_000) -> dict[str, dict[str, float]]:
  """How true the side-car's captions are of the first `limit` pictures that the arms train on: {kind: the scalars of
  `evaluators.captions.measure`}. {} where nobody knows the truth, that is for all but the built-in world."""
  data = config["base"]["data"]
  if not data["sidecar"] or data["source"]["name"] != "scenes":
    return {}
  from mmdiff.core.build import build
  from mmdiff.data import SOURCES, sidecar
  from mmdiff.evaluators.captions import measure
  source = build(SOURCES, data["source"])
  try:
    joined = sidecar.join(source, data["sidecar"])
  except DataError:                                # not made yet, or half
    return {}
  kinds, layer = set(), joined
  while isinstance(layer, sidecar.Joined):
    kinds, layer = kinds | set(layer.sidecar.kinds), layer.source
  records = [joined[number] for number in range(min(limit, len(source)))]
  found = {}
  for kind in sorted(kinds):
    told = [record for record in records if isinstance(record["captions"].get(kind), str)]
    if told:
      scalars, _ = measure([record["captions"][kind] for record in told], [record["scene"] for record in told],
                           [record["facts"]["long"] for record in told], source.tier)
      found[kind] = {"captions": len(told), **scalars}
  return found


def lines(found: Mapping[str, Any]) -> list[str]:
  """The report as text: a line for each arm, and the differences half-way and over training."""
  shown = []
  for arm, about in found["arms"].items():
    metrics = [key for key in ("all_facts", "clipscore_long", "clipscore_original") if key in next(iter(about["seeds"].values()))]
    ends = "  ".join(f"{metric} {np.mean([seed[metric][-1] for seed in about['seeds'].values()]):.3f}" for metric in metrics)
    shown.append(f"{arm}: {ends} ({len(about['seeds'])} seeds)")
  for row in found["comparisons"]:
    if row["metric"] == "all_facts" and row["at"] != END:
      by_seed = ", ".join(f"{value:+.3f}" for value in row["by_seed"].values())
      shown.append(f"{row['arm']} - {row['reference']}, all facts {row['at']}: {row['difference']:+.3f} "
                   f"[{row['low']:+.3f}, {row['high']:+.3f}] (by seed {by_seed})")
  return shown
