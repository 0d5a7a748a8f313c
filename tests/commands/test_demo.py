"""The demo's summary is read from what its runs found."""
import json

import pytest

from mmdiff.commands import demo, flags


def result(run, name, step, **scalars):
  (run / "eval").mkdir(parents=True, exist_ok=True)
  (run / "eval" / f"{name}_{step:08}.json").write_text(json.dumps(dict(name=name, step=step, scalars=scalars)))


def test_the_summary_takes_the_last_result_of_each(tmp_path):
  runs = {part: tmp_path / part for part in demo.PARTS}
  result(runs["clip"], "retrieval", 10, recall_at_1=0.1)
  result(runs["clip"], "retrieval", 20, recall_at_1=0.8)
  result(runs["clip"], "hard_negatives", 20, **{"accuracy/color": 0.9, "accuracy/count": 1.0})
  result(runs["t2i"], "judge", 20, all_facts=0.9, all_facts_held_out=0.8, unparseable=0.0)
  facts = dict(fact_precision=0.97, fact_recall=0.96, hallucination=0.05)
  arms = {arm: {"seeds": {"0": {"steps": [1, 2], "all_facts": [0.0, end], "area": {"all_facts": end / 2}}}}
          for arm, end in (("original", 0.01), ("long95", 0.94))}
  found = demo.summary(runs, {"captions": {"long": facts | {"captions": 2_000}}, "arms": arms}, seconds=61.23)
  assert found == {"clip": {"recall_at_1": 0.8, "hard_negatives": {"color": 0.9, "count": 1.0}},
                   "t2i": {"all_facts": 0.9, "all_facts_held_out": 0.8}, "captioner": facts,
                   "caption_mix": {"original": {"all_facts": 0.01, "area": 0.005}, "long95": {"all_facts": 0.94, "area": 0.47}},
                   "seconds": 61.2}
  assert "0.800" in demo.lines(found)[0] and "color 0.90, count 1.00" in demo.lines(found)[0] and "0.900" in demo.lines(found)[1]
  assert len(demo.story(found)) == len(demo.PAGES) and "captioner" in demo.PAGES[2] and "caption_mix/report.html" in demo.PAGES[3]
  assert "0.970" in demo.lines(found)[2] and "long95 0.940 (0.470)" in demo.lines(found)[3]


@pytest.mark.parametrize("part", demo.PARTS)
@pytest.mark.parametrize("tiny", ["", ",tiny"])
def test_its_configs_are_valid_and_ask_for_what_the_summary_reads(part, tiny):
  config = flags.load_config([f"--config=configs/demo.py:part={part}{tiny}"])
  names = {name: entry["name"] for name, entry in config["evals"].items()}
  wanted = {"clip": {"retrieval": "retrieval", "hard_negatives": "hard_negatives"}, "t2i": {"judge": "scenes_judge"}}[part]
  assert wanted.items() <= names.items()
  assert all(config["steps"] % config["evals"][name]["every_steps"] == 0 for name in wanted)
