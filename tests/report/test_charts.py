"""What a chart shows is where the numbers are: spikes, breaks and ends, on either axis."""
import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mmdiff.report import charts

RUN = [(step, 6 * math.exp(-step / 1_500) + 0.25) for step in range(10, 10_001, 10)]


def drawn(chart: str, kind: str, scale: str = "lin") -> np.ndarray:
  """The points of the first polyline of a class, in units of the drawing."""
  group = chart.split(f'<g class="{scale}">')[1].split("</g>")[0]
  return np.array([list(map(float, point.split(","))) for point in re.search(rf'class="{kind}[^"]*" points="([^"]*)"', group)[1].split()])


def values(chart: str) -> list:
  return json.loads(html.unescape(re.search(r'data-lines="([^"]*)"', chart)[1]))


@pytest.mark.parametrize("big", [False, True])
def test_a_spike_of_one_step_keeps_its_height(big):
  spiked = [(x, 30.2 if x == 7_000 else y) for x, y in RUN]
  chart = charts.line_chart("loss", {"loss": spiked}, smooth=True, big=big, log=False)
  top = drawn(chart, "raw")[:, 1].min()
  assert top == pytest.approx(charts.SIDE * 0.05 / 1.05, abs=2) and max(values(chart)[0][4]) == 30.2
  assert max(values(chart)[0][2]) < 7 and len(drawn(chart, "raw")) <= 2 * charts.BUCKETS[big] + 2


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.5])
def test_the_bold_line_is_where_a_falling_loss_is(share):
  """A running mean from the left would be 64 % too high at a fifth of such a run."""
  noisy = [(x, y * (1 + 0.02 * (i % 3 - 1))) for i, (x, y) in enumerate(RUN)]
  _, steps, bold, _, _ = values(charts.line_chart("loss", {"loss": noisy}, smooth=True))[0]
  i = int(share * len(steps))
  assert bold[i] == pytest.approx(6 * math.exp(-steps[i] / 1_500) + 0.25, rel=0.03)


def test_the_first_and_the_last_point_stay():
  chart = charts.line_chart("loss", {"loss": RUN}, smooth=True)
  assert drawn(chart, "raw")[[0, -1], 0].tolist() == [0, charts.SIDE]


def test_what_breaks_a_run_is_marked():
  broken = [(x, math.nan if x == 500 else math.inf if x == 900 else y) for x, y in RUN]
  chart = charts.line_chart("loss", {"loss": broken}, smooth=True, resumed=[4_000], skipped=[900, 6_000])
  assert chart.count('<path class="bad"') == 3 and chart.count('<path class="again"') == 1
  assert "not finite at step 500" in chart and "resumed at step 4,000" in chart and "3 × not finite" in chart


@pytest.mark.parametrize("series", [[], [(1, 2.0)], [(1, math.nan), (2, 1.0)], [(1, 3.0), (2, 3.0), (9, 3.0)],
                                    [(1, math.nan), (2, math.inf)]])
def test_what_says_nothing_is_not_drawn(series):
  assert charts.line_chart("x", {"x": series}) == ""


def test_constants_beside_each_other_are_drawn():
  assert charts.line_chart("x", {"a": [(1, 1.0), (2, 1.0)], "b": [(1, 2.0), (2, 2.0)]}).count("<polyline") == 2


@pytest.mark.parametrize("low,high,switch,begins_log", [(0.01, 10, True, True), (1, 6, True, False), (0, 10, False, False),
                                                        (5, 6, False, False), (-1, 1, False, False)])
def test_a_chart_can_be_logarithmic_where_that_means_something(low, high, switch, begins_log):
  chart = charts.line_chart("x", {"x": [(1, low), (2, high)]})
  assert ("checkbox" in chart) == ('<g class="log">' in chart) == switch and ("checked" in chart) == begins_log
  assert "checked" not in charts.line_chart("x", {"x": [(1, 1e-8), (2, 1e-3)]}, log=False)


def test_both_axes_show_the_same_points():
  chart = charts.line_chart("x", {"x": [(0, 1.0), (1, 10.0), (2, 100.0)]})
  linear, log = (drawn(chart, "line", scale)[:, 1] for scale in ("lin", "log"))
  assert linear[0] > linear[1] > linear[2] and log[0] - log[1] == pytest.approx(log[1] - log[2], abs=1)


@pytest.mark.parametrize("values", [[2.0, 3.0], [1e-6, 1.0, 1e3], [0.0, 1.0], [-1.0, 1.0], list(range(5_000)),
                                    [math.nan, 1.0, math.inf, 2.0]])
def test_charts_are_xml_inside_their_frame(values):
  root = ElementTree.fromstring(charts.line_chart("a <b> & c", {"x": list(enumerate(values))}, smooth=True))
  assert list(root.iter("polyline"))
  for line in root.iter("polyline"):
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert all(0 <= x <= charts.SIDE and 0 <= y <= charts.SIDE for x, y in points)


def test_labels_have_the_width_that_the_longest_needs():
  chart = charts.line_chart("rate", {"rate": [(1, 0.00051), (2, 0.00059)]})
  labels = re.findall(r'<span class="lin" style="top:[^"]*">([^<]*)</span>', chart)
  assert f"--w:{max(map(len, labels))}ch" in chart and len(set(labels)) == len(labels) > 1


@pytest.mark.parametrize("low,high", [(0, 1), (0, 400), (-3.2, 7.9), (1e-9, 2e-9), (99.5, 100), (5, 5), (0, 1e12)])
def test_ticks_are_few_round_and_inside(low, high):
  made = charts.ticks(low, high)
  span = high - low
  assert 1 <= len(made) <= 6 and all(low - 1e-9 * span <= t <= high + 1e-9 * span for t in made)


@pytest.mark.parametrize("low,high", [(0.004, 0.4), (1e-9, 1e3), (1, 60), (2e-5, 9e-4)])
def test_decades_are_inside(low, high):
  made = charts.decades(low, high)
  assert 1 <= len(made) <= 5 and all(low <= mark <= high for mark in made)


def test_ticks_of_a_narrow_range_differ():
  chart = charts.line_chart("x", {"x": [(1, 127.2001), (2, 127.2009)]})
  labels = re.findall(r'<span class="lin"[^>]*>([^<]*)</span>', chart)
  assert len(labels) > 1 and len(set(labels)) == len(labels)


def test_a_difference_that_may_be_none_is_pale():
  assert "pale" in charts.forest(0.1, -0.1, 0.3, reach=0.5) and "pale" not in charts.forest(0.2, 0.1, 0.3, reach=0.5)
  assert 'cx="100.0"' in charts.forest(0.0, -0.1, 0.1, reach=0.1)
