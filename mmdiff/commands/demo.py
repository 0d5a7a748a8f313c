"""Train a CLIP model and a text-to-image model on captioned scenes, draw, score, and write one report.

  mmdiff demo --workdir=runs/demo            15 minutes on two busy CPU cores
  mmdiff demo --workdir=runs/demo --tiny     the same path in a minute, to see that it works; its scores mean nothing

Stopped half-way, the same command goes on. Results: summary.json and report.html in the run directory.
"""
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLAGS = {
  "workdir": dict(type="str", default="runs/demo", help="where the two runs and the report go"),
  "tiny": dict(type="bool", default=False, help="a few steps only"),
}
PARTS = ("clip", "t2i")


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags, train
  given = flags.parse(argv, FLAGS)
  workdir, started = Path(given["workdir"]), time.time()
  spent = read(workdir / "spent.json").get("seconds", 0.0)
  for part in PARTS:
    arguments = f"configs/demo.py:part={part}" + (",tiny" if given["tiny"] else "")
    print(f"demo: {part}", flush=True)
    train.run(flags.load_config([f"--config={arguments}"]), workdir / part, argv=["demo", *argv])
    train.write_json(workdir / "spent.json", dict(seconds=spent + time.time() - started))
  found = summary({part: workdir / part for part in PARTS}, seconds=spent + time.time() - started)
  train.write_json(workdir / "summary.json", found)
  from mmdiff.train.report import write_report
  write_report(workdir, runs={part: workdir / part for part in PARTS}, title="mmdiff demo", summary=found)
  print("\n".join(lines(found)))
  print(f"report: {workdir / 'report.html'}")
  return 0


def read(file: Path) -> dict[str, Any]:
  return json.loads(file.read_text()) if file.exists() else {}


def newest(run: Path, name: str) -> dict[str, float]:
  """The scalars of an evaluator's last result."""
  files = sorted((run / "eval").glob(f"{name}_*.json"))
  return read(files[-1])["scalars"] if files else {}


def summary(runs: Mapping[str, Path], *, seconds: float) -> dict[str, Any]:
  """What the demo shows, as numbers: {"clip": {"recall_at_1", "hard_negatives"}, "t2i": {"all_facts", "all_facts_held_out"}, "seconds"}."""
  retrieval, negatives, judged = newest(runs["clip"], "retrieval"), newest(runs["clip"], "hard_negatives"), newest(runs["t2i"], "judge")
  return dict(
    clip=dict(recall_at_1=retrieval["recall_at_1"],
              hard_negatives={key.removeprefix("accuracy/"): value for key, value in negatives.items() if key.startswith("accuracy/")}),
    t2i=dict(all_facts=judged["all_facts"], all_facts_held_out=judged["all_facts_held_out"]),
    seconds=round(seconds, 1))


def lines(found: Mapping[str, Any]) -> list[str]:
  """The summary as text."""
  negatives = ", ".join(f"{kind} {value:.2f}" for kind, value in found["clip"]["hard_negatives"].items())
  return [
    f"CLIP: retrieval R@1 on held-out scenes {found['clip']['recall_at_1']:.3f}; hard negatives by kind of fact: {negatives}",
    f"text-to-image: every fact right in {found['t2i']['all_facts']:.3f} of the long prompts, "
    f"{found['t2i']['all_facts_held_out']:.3f} with shape-colour pairs never trained on",
    f"{found['seconds']:.0f} s",
  ]
