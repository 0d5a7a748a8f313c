"""A page needs nothing but itself, runs its own script alone, and can be read on a phone."""
import base64
import hashlib
import re

import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.report import html, style
from mmdiff.report.charts import line_chart


def test_the_policy_allows_the_pages_own_script_and_no_other():
  page = html.page("t", line_chart("x", {"x": [(1, 1.0), (2, 2.0)]}))
  (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#x27;", "'")
  assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'; img-src data:;")
  assert "unsafe-eval" not in policy and "<script" not in html.page("t", "<p>pictures alone</p>")
  assert page.index("Content-Security-Policy") < page.index("<script>") and len(script) <= 3_000
  assert not re.search(r"https?:|//|@import|url\(|fetch|import\b|eval|innerHTML", script + style.STYLE)


def test_cells_break_at_words_and_numbers_not_at_all():
  rules = dict(re.findall(r"([^{}\n]+) \{ ([^{}]*) \}", style.STYLE))
  assert "nowrap" in rules[".n, th.n"] and "nowrap" in rules["th"] and "overflow-x: auto" in rules[".wide"]
  assert all("anywhere" not in body for selector, body in rules.items() if re.search(r"\btd\b|table|\.tile", selector))
  assert "overflow-wrap: break-word" in rules["body"] and "overflow-wrap: break-word" in rules["td code"]
  made = html.table([dict(words="a longer text that says something", count=12_345, share=0.5, right=True)])
  assert made.startswith('<div class="wide">') and made.count('class="n"') == 2 and 'class="l"' in made
  assert ">12,345<" in made and ">50.0 %<" in made


def test_columns_of_fixed_width_fit_a_phone():
  widths = [int(width) for width in re.findall(r"minmax\((?:min\()?(\d+)px(?!, 100%)", style.STYLE)]
  assert widths and all(width <= 140 for width in widths) and "width=device-width" in html.page("t", "")
  assert all(int(width) <= 200 for width in re.findall(r"[^-]\bwidth: (\d+)px", style.STYLE))


def test_intervals_stand_beside_their_value():
  made = html.table([dict(group="a", prompts=5, right=0.5, low=0.4, high=0.6)])
  assert made.index(">right<") < made.index("95 % interval") and "40.0 % – 60.0 %" in made and made.count("<svg") == 1
  assert "1.2 – 3" in html.table([dict(group="a", score=2.0, low=1.2, high=3.0)])


def test_columns_that_are_called_low_and_high_are_columns_too():
  made = html.table([dict(low="x", high="y", prompt="z")])
  assert ">x<" in made and ">y<" in made


def test_every_text_is_escaped():
  made = html.page("<q>", html.heading(1, "<i>", "<u>") + html.tiles({"<a>": "<q>"}) + html.table([{"<k>": "<v>", "list": ["<l>"]}])
                   + html.folded("<s>", "x") + html.link('"<x>', "<y>") + html.whole("<w>"))
  assert not re.search(r"<(q|i|u|a|k|v|l|s|x|y|w)>", made)


def test_only_pages_of_ours_are_written_over(tmp_path):
  out = tmp_path / "x.html"
  html.check_free(out)
  html.write_page(out, "t", "")
  html.check_free(out)
  out.write_text("notes")
  with pytest.raises(ConfigError, match="no page that mmdiff wrote"):
    html.check_free(out)
  with pytest.raises(ConfigError, match="is a folder"):
    html.check_free(tmp_path)
