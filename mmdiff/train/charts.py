"""Small SVG charts as text: no library, no script, colours from the page's style sheet."""
import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 24
POINTS = 500           # of a line; longer ones are averaged in equal buckets

Series = Sequence[tuple[float, float]]


def number(value: float) -> str:
  """Few digits, whatever the size: 1234567 -> "1.23M", 0.000012 -> "1.2e-05"."""
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return str(value)
  if not math.isfinite(value):
    return str(value)
  for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= limit:
      return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
  if isinstance(value, int) or value == int(value):
    return f"{int(value)}"
  return f"{value:.1e}" if abs(value) < 1e-4 else f"{value:.4g}"


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
  """Powers of ten in [low, high], with their threefold where there are few."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  marks = [m * 10.0 ** power for power in powers for m in ((1, 3) if len(powers) < 5 else (1,))]
  marks = [mark for mark in marks if low <= mark <= high]
  return marks[::math.ceil(len(marks) / 5)] if marks else [low]


def thin(series: Series) -> list[tuple[float, float]]:
  """At most `POINTS` points; the last one is kept as it is."""
  if len(series) <= POINTS:
    return list(series)
  size = math.ceil(len(series) / POINTS)
  buckets = [series[i:i + size] for i in range(0, len(series), size)]
  return [tuple(sum(column) / len(bucket) for column in zip(*bucket)) for bucket in buckets[:-1]] + [series[-1]]


def line_chart(title: str, lines: Mapping[str, Series], *, smooth: bool = False) -> str:
  """A figure with one line per entry over steps; points that are not finite are left out. `smooth` adds a running mean over the raw line.

  The y axis is logarithmic where all values are positive and span more than a factor of 50.
  """
  clean = {name: [(x, y) for x, y in series if math.isfinite(y)] for name, series in lines.items()}
  clean = {name: thin(series) for name, series in clean.items() if series}
  if not clean:
    return ""
  xs = [x for series in clean.values() for x, _ in series]
  ys = [y for series in clean.values() for _, y in series]
  log = min(ys) > 0 and max(ys) / min(ys) > 50
  scale = math.log10 if log else float
  x0, x1 = min(xs), max(xs)
  y0, y1 = scale(min(ys)), scale(max(ys))
  pad = (y1 - y0) * 0.06 or abs(y1) * 0.1 or 1.0
  low, high = y0 - pad, y1 + pad
  if not log and min(ys) >= 0 and low < 0:
    low = 0.0
  at_x = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)
  at_y = lambda y: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(y) - low) / (high - low)
  parts = []
  marks = decades(10 ** low, 10 ** high) if log else ticks(low, high)
  labels = [number(mark) for mark in marks]
  if len(set(labels)) < len(labels):          # a narrow range far from zero
    labels = [f"{mark:.7g}" for mark in marks]
  for mark, label in zip(marks, labels):
    y = at_y(mark)
    parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                 f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
  for mark in ticks(x0, x1) if x1 > x0 else [x0]:
    parts.append(f'<text class="tick" x="{at_x(mark):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{number(mark)}</text>')
  for i, (name, series) in enumerate(clean.items()):
    hue = f"c{i % 6}"
    draw = lambda points, kind, hue=hue: f'<polyline class="{kind} {hue}" points="' + \
      " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points) + '"/>'
    dense = smooth and len(series) >= 100
    parts.append(draw(series, "raw" if dense else "line"))
    if dense:
      parts.append(draw(running_mean(series), "line"))
    if len(series) <= 60:
      parts += [f'<circle class="dot {hue}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.4"><title>'
                f'{html.escape(name)} · step {number(x)}: {number(y)}</title></circle>' for x, y in series]
  named = lambda name: html.escape(name) if len(clean) > 1 else ""
  last = " ".join(f'<span class="key"><i class="k{i % 6}"></i>{named(name)} <b>{number(series[-1][1])}</b></span>'
                  for i, (name, series) in enumerate(clean.items()))
  return (f'<figure class="chart"><figcaption><span>{html.escape(title)}{" (log)" if log else ""}</span>{last}</figcaption>'
          f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)} by step">{"".join(parts)}</svg></figure>')


def running_mean(series: Series) -> list[tuple[float, float]]:
  """Exponential mean over about a twentieth of the line, without the bias of its start."""
  keep, mean, weight, made = 1 - min(20 / len(series), 0.5), 0.0, 0.0, []
  for x, y in series:
    mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
    made.append((x, mean / weight))
  return made


def interval(value: float, low: float, high: float, *, span: tuple[float, float] = (0.0, 1.0)) -> str:
  """A bar from the left to `value` with a whisker from `low` to `high`."""
  at = lambda v: 120 * min(max((v - span[0]) / (span[1] - span[0]), 0), 1)
  whisker = f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="7" y2="7"/>' + \
    "".join(f'<line x1="{at(v):.1f}" x2="{at(v):.1f}" y1="4" y2="10"/>' for v in (low, high)) if high > low else ""
  return (f'<svg class="bar" viewBox="0 0 120 14" role="img" aria-label="{number(value)}">'
          f'<rect class="track" width="120" height="8" y="3" rx="2"/>'
          f'<rect class="fill" width="{at(value):.1f}" height="8" y="3" rx="2"/>{whisker}</svg>')
