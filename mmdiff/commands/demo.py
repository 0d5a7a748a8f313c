"""The loop of DALL·E 3 on captioned scenes: train a CLIP model, a text-to-image model and a captioner, let the captioner describe a
training set, compare mixtures of its captions with the original ones, and write it all down.

  mmdiff demo --workdir=runs/demo            17 minutes on two CPU cores
  mmdiff demo --workdir=runs/demo --tiny     the same path in two minutes, to see that it works; its scores mean nothing

Stopped half-way, the same command goes on. Results: summary.json and report.html in the run directory, caption_mix/report.html for the
comparison.
"""
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.core.files import read_object, write_json

FLAGS = {
  "workdir": dict(type="dir", default="runs/demo", help="where the two runs and the report go"),
  "tiny": dict(type="bool", default=False, help="a few steps only"),
}
PARTS = ("clip", "t2i")
ABLATION, ARMS = "caption_mix", ("original", "long65", "long95")
PAGES = (*PARTS, "captioner", f"{ABLATION}/report.html", "")         # which say more of what `story` tells: runs, a page, nothing


def main(argv: list[str]) -> int:
  from mmdiff.commands import ablate, flags, train
  given = flags.parse(argv, FLAGS)
  workdir, started, tiny = Path(given["workdir"]), time.time(), ",tiny" if given["tiny"] else ""
  spent = read(workdir / "spent.json").get("seconds", 0.0)
  seconds = lambda: spent + time.time() - started
  for part in PARTS:
    print(f"demo: {part}", flush=True)
    train.run(flags.load_config([f"--config=configs/demo.py:part={part}{tiny}"]), workdir / part, argv=["demo", *argv])
    write_json(workdir / "spent.json", dict(seconds=seconds()))
  print(f"demo: {ABLATION}", flush=True)
  ablate.main([f"--config=configs/ablations/caption_mix.py:demo,seeds=1{tiny}", f"--workdir={workdir / ABLATION}",
               "--arm=" + ",".join(ARMS)])
  found = summary({part: workdir / part for part in PARTS}, read(workdir / ABLATION / "report.json"), seconds=seconds())
  write_json(workdir / "summary.json", found)
  from mmdiff.report.comparison import write_story
  captioner = workdir / ABLATION / "prepare" / "captioner_long"
  write_story(workdir, "mmdiff demo", [(*line, page) for line, page in zip(story(found), PAGES, strict=True)],
              {**{part: workdir / part for part in PARTS}, "captioner": captioner})
  print("\n".join(lines(found)))
  print(f"reports: {workdir / 'report.html'}, {workdir / ABLATION / 'report.html'}")
  return 0


def read(file: Path) -> dict[str, Any]:
  return read_object(file, nan=True) if file.exists() else {}


def newest(run: Path, name: str) -> dict[str, float]:
  """The scalars of an evaluator's last result."""
  files = sorted((run / "eval").glob(f"{name}_*.json"))
  return read(files[-1])["scalars"] if files else {}


def summary(runs: Mapping[str, Path], ablation: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
  """What the demo shows, as numbers.

  {"clip": {"recall_at_1", "hard_negatives"}, "t2i": {"all_facts", "all_facts_held_out"}, "captioner": facts in its captions of the training
  set, "caption_mix": {arm: {"all_facts", "area"}} at the end and over the learning curve, "seconds"}.
  """
  retrieval, negatives, judged = newest(runs["clip"], "retrieval"), newest(runs["clip"], "hard_negatives"), newest(runs["t2i"], "judge")
  arms = {arm: next(iter(about["seeds"].values())) for arm, about in ablation["arms"].items()}
  return dict(
    clip=dict(recall_at_1=retrieval["recall_at_1"],
              hard_negatives={key.removeprefix("accuracy/"): value for key, value in negatives.items() if key.startswith("accuracy/")}),
    t2i=dict(all_facts=judged["all_facts"], all_facts_held_out=judged["all_facts_held_out"]),
    captioner={key: ablation["captions"]["long"][key] for key in ("fact_precision", "fact_recall", "hallucination")},
    caption_mix={arm: dict(all_facts=seed["all_facts"][-1], area=seed["area"]["all_facts"]) for arm, seed in arms.items()},
    seconds=round(seconds, 1))


def lines(found: Mapping[str, Any]) -> list[str]:
  """The summary as text."""
  return [f"{title}: {sentence}" for title, sentence in story(found)]


def story(found: Mapping[str, Any]) -> list[tuple[str, str]]:
  """(what, what was found) in the order in which it was made."""
  negatives = ", ".join(f"{kind} {value:.2f}" for kind, value in found["clip"]["hard_negatives"].items())
  arms = ", ".join(f"{arm} {about['all_facts']:.3f} ({about['area']:.3f})" for arm, about in found["caption_mix"].items())
  captioner = found["captioner"]
  return [
    ("CLIP", f"retrieval R@1 on held-out scenes {found['clip']['recall_at_1']:.3f}; hard negatives by kind of fact: {negatives}"),
    ("text-to-image", f"every fact right in {found['t2i']['all_facts']:.3f} of the long prompts, "
    f"{found['t2i']['all_facts_held_out']:.3f} with shape-colour pairs never trained on"),
    ("captioner", f"{captioner['fact_precision']:.3f} of the facts that it says are true, "
    f"and it says {captioner['fact_recall']:.3f} of those there are"),
    ("caption mixtures", f"every fact right at the end (and over the learning curve): {arms}"),
    ("time", f"{found['seconds']:.0f} s"),
  ]
