"""The page of an ablation needs nothing but itself, and says what it cannot know by leaving it out."""
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mmdiff.commands import comparison
from mmdiff.report import ablation
from tests.commands.test_comparison import CONFIG, STEPS, write
from tests.report.test_run import sheet


class Page(HTMLParser):
  """Balanced tags, and no address but `data:` and links to the runs."""

  def __init__(self):
    super().__init__()
    self.open: list[str] = []
    self.links: list[str] = []

  def handle_starttag(self, tag, attrs):
    if tag not in ("meta", "img", "br", "line", "rect", "circle", "polyline"):
      self.open.append(tag)
    self.links += [value for name, value in attrs if name in ("src", "href")]

  def handle_endtag(self, tag):
    assert tag in ("line", "rect", "circle", "polyline") or self.open.pop() == tag, tag


def test_a_page_of_curves_differences_and_pictures(tmp_path):
  runs = []
  for seed in (0, 1, 2):
    for arm, level in (("low", 0.3), ("high", 0.6)):
      run = write(tmp_path, arm, seed, np.linspace(0, level, 4)[:, None] + np.random.default_rng(seed).random((1, 20)) / 2)
      (run.workdir / "samples").mkdir()
      for step in STEPS:
        Image.fromarray(np.full((16, 70, 3), 20 * step, np.uint8)).save(run.workdir / "samples" / f"alignment_{step:08}.png")
      (run.workdir / "report.html").write_text("")
      runs.append(run)
  found = comparison.compare(CONFIG, runs, tmp_path)
  found["protocol"] = dict(scorer="<clip>", shown=dict(long=["a red <circle>"], original=["clipart"]))
  found["captions"] = dict(long=dict(captions=20, fact_precision=0.97, hallucination=0.05))
  found["prepare"] = dict(captioner=dict(argv=["train", "--config=x.py"], seconds=62.0, scalars={"captions/fact_recall": 0.96}))
  file = ablation.write(found, CONFIG, runs, tmp_path, ["ablate", "--config=x.py"])
  html = file.read_text(encoding="utf-8")
  page = Page()
  page.feed(html)
  assert page.open == [] and "<clip>" not in html and "&lt;clip&gt;" in html and "a red &lt;circle&gt;" in html
  links = [link for link in page.links if not link.startswith("data:image/")]
  assert sorted(links) == sorted(f"{arm}/{seed}/report.html" for arm in ("low", "high") for seed in (0, 1, 2))
  assert html.count("<img") == 4                                            # both arms, half-way and at the end, of the first seed
  assert html.count("<polyline class=\"line d1") and html.index("<img") < html.index("a red &lt;circle&gt;")
  assert "5.0 %" in html and "captions · fact recall" in html and "97.0 %" in html and "low − high" in html and "1:02" in html
  chart = ablation.mean_chart("x", "clipscore_long", found["arms"])
  assert chart.count("<polyline") == 4 and "low" in chart


def test_one_arm_without_pictures_is_a_page_too(tmp_path):
  run = write(tmp_path, "low", 1, np.zeros((4, 3)))
  found = comparison.compare(CONFIG, [run], tmp_path)
  html = ablation.write(found, CONFIG, [run], tmp_path, ["ablate"]).read_text(encoding="utf-8")
  assert "Paired differences" not in html and "Pictures side by side" not in html and "low" in html


def test_pictures_that_come_apart_stand_over_their_prompts():
  made = Image.fromarray(sheet(np.random.default_rng(0), 1, 4)[0])
  html = ablation.side_by_side({"a": made, "b": made}, ["one", "two <b>", "three", "four"])
  assert html.count("<img") == 8 and html.count('class="strip"') == 4 and "two &lt;b&gt;" in html
  assert html.index("<figcaption>a<") < html.index("<figcaption>b<") < html.index("one") < html.index("two")


def test_arms_that_were_not_asked_for_are_no_failure(tmp_path):
  runs = [write(tmp_path, arm, seed, np.full((4, 3), 0.6)) for arm in ("low", "high") for seed in (0, 1, 2)]
  found = comparison.compare(CONFIG, runs, tmp_path)
  more = CONFIG | dict(arms=CONFIG["arms"] | dict(other=("x=1",)))
  html = ablation.summary(found, more)
  assert "<b>6</b><span>runs finished" in html and "Not trained here, so not compared: other, seed 0; other, seed 1; other, seed 2." in html
  assert "6 of" not in html and ablation.left(found, CONFIG) == []


def test_a_difference_is_read_by_its_interval():
  row = dict(arm="a", reference="b", metric="all_facts", step=4, difference=0.05, by_seed={"0": 0.05})
  shown = {name: ablation.difference(row | dict(low=low, high=high), 0.2) for name, low, high in (
    ("higher", 0.01, 0.09), ("not told apart", -0.01, 0.11))}
  assert all(name in shown[name]["reading"] and "+5.0 points" in shown[name]["difference"] for name in shown)
  assert "✗" not in str(shown) and "pale" in shown["not told apart"][" "] and "pale" not in shown["higher"][" "]
