"""Runs over each other: one chart, one table of what differs, one table of numbers."""
import csv
import json

from mmdiff.report import comparison
from tests.report.test_run import CONFIG, Page, make_run, write


def two(tmp_path):
  runs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(["long95", "original"])]
  other = json.loads(json.dumps(CONFIG))
  other["optim"]["default"]["lr"], other["data"]["captions"] = 1e-3, dict(original=1.0)
  write(runs[1] / "config.json", other)
  return runs


def test_curves_over_each_other_and_the_keys_that_differ(tmp_path):
  path = comparison.write_comparison(two(tmp_path), tmp_path / "all" / "page.html")
  text = path.read_text()
  page, words = Page(text), " ".join(Page(text).words)
  assert not page.open and "Curves over each other" in words and "3 keys" in words
  big = text.split('class="chart big"')[1].split("</figure>")[0]
  assert big.count('class="line') == 4 and big.index(">long95 <") < big.index(">original <")         # two runs on either axis
  for key in ("optim.default.lr", "data.captions.long", "data.captions.original"):
    assert f"<code>{key}</code>" in text
  assert text.count("<code>seed</code>") == 0 and "0.002" in words and "0.001" in words


def test_names_are_the_ends_of_paths_that_differ(tmp_path):
  folders = [tmp_path / "a" / "clip", tmp_path / "b" / "clip"]
  assert list(comparison.named(folders)) == ["a/clip", "b/clip"]
  assert list(comparison.named([tmp_path / "x", tmp_path / "y"])) == ["x", "y"]


def test_scores_of_other_questions_are_said(tmp_path):
  runs = two(tmp_path)
  result = json.loads((runs[1] / "eval" / "judge_00000400.json").read_text())
  write(runs[1] / "eval" / "judge_00000400.json", result | dict(evaluator=dict(name="scenes_judge", guidance=3.0)))
  text = comparison.write_comparison(runs, tmp_path / "page.html").read_text()
  assert "judge: the scores of long95 and original are not of the same question; they differ in" in text and "guidance" in text


def test_the_csv_holds_every_number(tmp_path):
  path = comparison.write_csv(two(tmp_path), tmp_path / "x.csv")
  rows = list(csv.DictReader(path.read_text().splitlines()))
  assert len(rows) == 80 and rows[0]["run"] == "long95" and rows[-1]["run"] == "original" and rows[-1]["step"] == "400"
  line = json.loads((tmp_path / "long95" / "metrics.jsonl").read_text().splitlines()[0])
  assert all(float(rows[0][key]) == value for key, value in line.items()) and path.read_text().startswith(comparison.COLUMNS)


def test_a_story_is_told_in_its_order(tmp_path):
  runs = dict(zip(("one", "two"), two(tmp_path)))
  chapters = [("A", "first", "one"), ("B", "second", "mix/report.html"), ("C", "third", "")]
  text = comparison.write_story(tmp_path, "t", chapters, runs).read_text()
  places = [text.index(part) for part in ("first", 'href="#run0"', "second", 'href="mix/report.html"', "third", 'id="run0"', 'id="run1"')]
  assert places == sorted(places)
