"""Charts as text: SVG that stretches to its place, and labels beside it that don't. No library; the page's style sheet gives the colours,
and its script, where it runs, the values under the pointer.

A long line is drawn twice: faint, through the least and the largest value of every bucket, so that a spike of one step stays as high as it
was; and bold, as the median of a centred window, which neither lags behind a falling loss nor follows a spike.
"""
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmdiff.report.numbers import number

SIDE = 1_000                 # units of the drawing, both ways
BUCKETS = {False: 200, True: 400}         # of a line in a small and in a big chart
DENSE = 40                   # points from which on a line is smoothed
WINDOW = 20                  # a window is this part of a line
LOG_FROM = 20.0              # ratio of the largest to the least value that asks for a logarithmic axis, and
LOG_POSSIBLE = 2.0           # that allows one

Series = Sequence[tuple[float, float]]


class Line(NamedTuple):
  """What is drawn of one series: `x`, `y` of the raw line, and of the bold one with the range around each of its points."""
  x: np.ndarray
  y: np.ndarray
  at: np.ndarray
  mid: np.ndarray
  low: np.ndarray
  high: np.ndarray
  dense: bool


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Round numbers in [low, high], about `count` of them."""
  span = high - low
  if span <= 0:
    return [low]
  unit = 10 ** math.floor(math.log10(span / count))
  step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= count)
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, int(math.floor(high / step + 1e-9)) + 1)]


def decades(low: float, high: float) -> list[float]:
  """Powers of ten in [low, high], with their two- and fivefold where there are few."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  marks = [m * 10.0 ** power for power in powers for m in ((1, 2, 5) if len(powers) < 4 else (1, 3) if len(powers) < 5 else (1,))]
  marks = [mark for mark in marks if low <= mark <= high]
  return marks[::math.ceil(len(marks) / 5)] if marks else [low]


def thin(x: np.ndarray, y: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
  """At most two points a bucket, its least and its largest, in their order; the first and the last point of all stay."""
  if len(x) <= 2 * buckets:
    return x, y
  kept = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), buckets - 1):
    kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
  rows = sorted(kept)
  return x[rows], y[rows]


def smoothed(y: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """The median around each of `rows`, over a twentieth of the line; towards its ends the window narrows on both sides alike, to a third."""
  half = max(len(y) // (2 * WINDOW), 1)
  reaches = [max(min(half, i, len(y) - 1 - i), half // 3) for i in rows]
  return np.array([np.median(y[max(i - reach, 0):i + reach + 1]) for i, reach in zip(rows, reaches)])


def line_of(series: Series, *, smooth: bool, buckets: int) -> Line | None:
  """What is drawn of a series; None without a finite value."""
  points = np.array([(x, y) for x, y in series if math.isfinite(y)], float).reshape(-1, 2)
  if not len(points):
    return None
  x, y = points.T
  dense = smooth and len(x) >= DENSE or len(x) > buckets
  if not dense:
    return Line(x, y, x, y, y, y, False)
  parts = np.array_split(np.arange(len(x)), min(buckets, len(x)))
  rows = np.array([part[len(part) // 2] for part in parts])
  rows[0], rows[-1] = 0, len(x) - 1
  low, high = (np.array([reduce(y[part]) for part in parts]) for reduce in (np.min, np.max))
  return Line(*thin(x, y, buckets), x[rows], smoothed(y, rows), low, high, True)


def line_chart(title: str, lines: Mapping[str, Series], *, smooth: bool = False, log: bool | None = None, big: bool = False,
               share: bool = False, resumed: Sequence[float] = (), skipped: Sequence[float] = ()) -> str:
  """A figure with one line per entry over steps, "" where nothing changes: without two points, or of one value.

  smooth: the values are noisy, see above. log: whether the axis begins logarithmic, by default where the values span more than `LOG_FROM`
  and are no shares; where they may be drawn so there is a switch. share: values are said in per cent. resumed, skipped: steps where the run
  was started anew, and where updates were refused; with the steps of values that are not finite they are marked.
  """
  made = {name: line for name, series in lines.items() if (line := line_of(series, smooth=smooth, buckets=BUCKETS[big]))}
  xs, ys = (np.concatenate([getattr(line, axis) for line in made.values()] or [np.zeros(0)]) for axis in ("x", "y"))
  if not len(xs) or xs.min() == xs.max() or ys.min() == ys.max():
    return ""
  may_log = bool(ys.min() > 0 and ys.max() / ys.min() > LOG_POSSIBLE)
  log = may_log and (not share and ys.max() / ys.min() > LOG_FROM if log is None else log)
  scales = [(kind, Scale(kind, float(ys.min()), float(ys.max()), share)) for kind in (("lin", "log") if may_log else ("lin",))]
  x0, x1 = float(xs.min()), float(xs.max())
  at_x = lambda x: f"{SIDE * (x - x0) / (x1 - x0):.0f}"
  drawn, labels = [], []
  for kind, scale in scales:
    parts = [f'<path class="grid" d="M0 {scale.place(mark)}H{SIDE}"/>' for mark, _ in scale.marks]
    labels += [f'<span class="{kind}" style="top:{float(scale.place(mark)) / SIDE:.1%}">{label}</span>' for mark, label in scale.marks]
    for i, line in enumerate(made.values()):
      curve = lambda x, y, kind, i=i, scale=scale: f'<polyline class="{kind} c{i % 6}" points="' + \
        " ".join(f"{at_x(a)},{scale.place(b)}" for a, b in zip(x, y)) + '"/>'
      parts += [curve(line.x, line.y, "raw")] if line.dense else []
      parts.append(curve(line.at, line.mid, f"line d{i % 3 if len(made) > 1 and not line.dense else 0}"))
      if len(line.x) <= DENSE:
        parts += [f'<path class="dot c{i % 6}" d="M{at_x(a)} {scale.place(b)}h.01"/>' for a, b in zip(line.x, line.y)]
    drawn.append(f'<g class="{kind}">{"".join(parts)}</g>')
  broken = sorted({x for series in lines.values() for x, y in series if not math.isfinite(y)} | set(skipped))
  marked = [("bad", "not finite", [x for x in broken if x0 <= x <= x1]), ("again", "resumed", [x for x in resumed if x0 <= x <= x1])]
  drawn += [f'<path class="{kind}" d="M{at_x(x)} 0V{SIDE}"><title>{what} at step {x:,.0f}</title></path>'
            for kind, what, places in marked for x in places[:BUCKETS[big]]]
  newest, shares = scales[0][1].said, ' data-share=""' if share else ""
  keys = [f'<span class="key"><i class="k{i % 6}"></i>{html.escape(name) if len(made) > 1 else ""} <b>{newest(line.y[-1])}</b></span>'
          for i, (name, line) in enumerate(made.items())]
  keys += [f'<span class="key {kind}">{len(places):,} × {what}</span>' for kind, what, places in marked if places]
  checked = ' checked=""' if log else ""
  switch = f'<label><input type="checkbox"{checked}/>log</label>' if may_log else ""
  steps = "".join(f'<span style="left:{(mark - x0) / (x1 - x0):.1%}">{number(mark)}</span>' for mark in ticks(x0, x1))
  width = max(len(label) for _, scale in scales for _, label in scale.marks)
  return (f'<figure class="chart{" big" if big else ""}"><figcaption><b>{html.escape(title)}</b>{"".join(keys)}{switch}</figcaption>'
          f'<div class="plot" style="--w:{width}ch"><div class="ys">{"".join(labels)}</div><div class="area">'
          f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" aria-label="{html.escape(title)} by step" '
          f'data-lines="{html.escape(hover(made))}"{shares}>{"".join(drawn)}</svg><i class="at"></i></div>'
          f'<div class="xs">{steps}</div></div><output>step</output></figure>')


class Scale:
  """A vertical axis, linear ("lin") or logarithmic ("log"): where a value stands, and the marks with what they say."""

  def __init__(self, kind: str, least: float, most: float, share: bool):
    self.log, self.share = kind == "log", share
    low, high = (math.log10(value) if self.log else value for value in (least, most))
    pad = (high - low) * 0.05
    self.low, self.high = (0.0 if not self.log and least >= 0 > low - pad else low - pad), high + pad
    if self.log:
      marks = decades(10 ** self.low, 10 ** self.high)
      marks = marks if len(marks) > 1 else [mark for mark in ticks(least, most) if mark > 0]
    else:
      marks = ticks(self.low, self.high)
    said = [self.said(mark) for mark in marks]
    self.marks = list(zip(marks, said if len(set(said)) == len(said) else [f"{mark:.7g}" for mark in marks]))      # narrow, far from zero

  def said(self, value: float) -> str:
    return f"{100 * value:.3g} %" if self.share else number(value)

  def place(self, value: float) -> str:
    """From the top, in units of the drawing."""
    value = math.log10(value) if self.log else value
    return f"{SIDE * (self.high - value) / (self.high - self.low):.0f}"


def hover(lines: Mapping[str, Line]) -> str:
  """[[name, steps, values, least of each bucket, largest]] for the page's script; without the last two where every point is drawn."""
  short = lambda values: [float(f"{value:.4g}") for value in values]
  ranges = lambda line: [short(line.low), short(line.high)] if line.dense else []
  return json.dumps([[name, [round(x) for x in line.at.tolist()], short(line.mid), *ranges(line)] for name, line in lines.items()],
                    separators=(",", ":"))


def interval(value: float, low: float, high: float, *, span: tuple[float, float] = (0.0, 1.0)) -> str:
  """A bar from the left to `value` with a whisker from `low` to `high`."""
  at = lambda v: 120 * min(max((v - span[0]) / (span[1] - span[0]), 0), 1)
  whisker = f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="7" y2="7"/>' + \
    "".join(f'<line x1="{at(v):.1f}" x2="{at(v):.1f}" y1="4" y2="10"/>' for v in (low, high)) if high > low else ""
  return (f'<svg class="bar" viewBox="0 0 120 14" role="img" aria-label="{number(value)}">'
          f'<rect class="track" width="120" height="8" y="3" rx="2"/>'
          f'<rect class="fill" width="{at(value):.1f}" height="8" y="3" rx="2"/>{whisker}</svg>')


def forest(value: float, low: float, high: float, *, reach: float) -> str:
  """One line of a forest plot, from -reach to reach around zero: a difference and its interval, pale where that holds zero."""
  at = lambda v: f"{100 + 96 * min(max(v / reach, -1), 1):.1f}"
  kind = "pale" if low <= 0 <= high else "sure"
  return (f'<svg class="forest" viewBox="0 0 200 16" role="img" aria-label="{number(value)}, from {number(low)} to {number(high)}">'
          f'<line class="zero" x1="100" x2="100" y1="0" y2="16"/><line class="{kind}" x1="{at(low)}" x2="{at(high)}" y1="8" y2="8"/>'
          f'<circle class="{kind}" cx="{at(value)}" cy="8" r="4"/></svg>')
