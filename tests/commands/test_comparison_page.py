"""The page of an ablation needs nothing but itself, and says what it cannot know by leaving it out."""
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mmdiff.commands import comparison, comparison_page
from tests.commands.test_comparison import CONFIG, STEPS, write


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
  file = comparison_page.write(found, CONFIG, runs, tmp_path, ["ablate", "--config=x.py"])
  html = file.read_text(encoding="utf-8")
  page = Page()
  page.feed(html)
  assert page.open == [] and "<clip>" not in html and "&lt;clip&gt;" in html and "a red &lt;circle&gt;" in html
  links = [link for link in page.links if not link.startswith("data:image/png;base64,")]
  assert sorted(links) == sorted(f"{arm}/{seed}/report.html" for arm in ("low", "high") for seed in (0, 1, 2))
  assert html.count("data:image/png") == 4                                  # both arms, half-way and at the end, of the first seed
  assert "5.00 %" in html and "captions/fact_recall" in html and "low − high" in html and "1:02" in html
  chart = comparison_page.mean_chart("x", "clipscore_long", found["arms"])
  assert chart.count("<polyline") == 2 and "low" in chart


def test_one_arm_without_pictures_is_a_page_too(tmp_path):
  run = write(tmp_path, "low", 1, np.zeros((4, 3)))
  found = comparison.compare(CONFIG, [run], tmp_path)
  html = comparison_page.write(found, CONFIG, [run], tmp_path, ["ablate"]).read_text(encoding="utf-8")
  assert "Paired differences" not in html and "Pictures side by side" not in html and "low" in html


def test_small_sheets_are_enlarged_by_whole_numbers():
  assert comparison_page.enlarged(Image.new("RGB", (100, 50))).size == (300, 150)
  assert comparison_page.enlarged(Image.new("RGB", (300, 20))).size == (300, 20)
