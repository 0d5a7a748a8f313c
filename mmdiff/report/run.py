"""`report.html`: a run on one page. It opens with what the run is for and how it goes; then curves; then tables.

Read from the run directory (`report.reading`) and `samples/*.png`, so it can be written at any time.
"""
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core import schema
from mmdiff.core.progress import duration
from mmdiff.report import words
from mmdiff.report.charts import interval, line_chart
from mmdiff.report.html import Markup, folded, heading, table, text, tiles, whole, write_page
from mmdiff.report.numbers import DASH, between, flat, percent, said, written
from mmdiff.report.pictures import caption_of, pictures
from mmdiff.report.reading import Run, Score, read_run, score
from mmdiff.train.headlines import is_share

ROWS = 60              # shown of a long table
LONG_TABLE = 20        # rows from which on it is folded
EARLIER = 6            # sheets of earlier steps
CHARTS = 12            # of one evaluator
COLUMN = 10            # scores under each other, before the next ones stand beside them


def write_report(workdir: Path | str, *, out: Path | str | None = None) -> Path:
  """Writes `report.html` in `workdir` (or at `out`) and returns its path. Raises CannotWrite."""
  workdir = Path(workdir)
  run = read_run(workdir, workdir.name or workdir.resolve().name)
  return write_page(Path(out or workdir / "report.html"), run.name, heading(1, run.name) + run_section(run))


def run_section(run: Run) -> str:
  return "".join([opening(run), loss_chart(run), curves(run), *(eval_section(run, name, results) for name, results in run.evals.items()),
                  accounting(run), history(run), settings(run)])


# What it is for and how it goes

def opening(run: Run) -> str:
  """Goal, state, scores and the newest pictures."""
  records = run.about.get("records")
  lead = [words.goal(run.config), words.reads(run.config, records)] if run.config else []
  goal = f'<p class="goal">{text(". ".join(filter(None, lead)))}.</p>' if lead else ""
  return goal + f'<p class="soft">{text(run.state())}</p>' + tiles(going(run)) + scores(run) + newest_pictures(run)


def going(run: Run) -> dict[str, Any]:
  """How far it came, how fast it went."""
  seconds, is_all = run.seconds()
  shown = {"newest loss": run.last("loss"), "images per second": run.last("images_per_second")}
  shown |= {name: percent(run.last(key)) for key, name in (("mfu", "MFU"), ("data_wait", "waiting for data")) if run.last(key) is not None}
  starts = f" of {len(run.starts)} starts" if len(run.starts) > 1 else ""
  shown |= {f"wall time{starts}": ("" if is_all else "at least ") + duration(seconds)} if seconds else {}
  devices = f"{run.about['device_count']} × {run.about['devices'][0]}" if run.about.get("devices") else ""
  return shown | {"devices": devices, "updates refused (not finite)": run.last("skipped") or None}


def scores(run: Run) -> str:
  """A card for each evaluator: its number, interval and chance, where it was best, and of which records it is."""
  cards = [score_card(run, name, found) for name in run.evals if (found := score(run, name))]
  return f'{heading(3, "Scores")}<div class="tiles scores">{"".join(cards)}</div>' if cards else ""


def score_card(run: Run, name: str, found: Score) -> str:
  newest, key = found.newest, found.newest.name
  beside = []
  if newest.low is not None and newest.high is not None:
    bar = interval(newest.value, newest.low, newest.high) if is_share(key) else ""
    beside.append(bar + text(f"95 % interval {between(key, newest.low, newest.high)}"))
  if newest.chance is not None:
    beside.append(text(f"chance {written(key, float(newest.chance))}"))
  when = f"at step {found.newest_step:,}"
  if found.best_step == found.newest_step and len(run.evals[name]) > 1:
    when += ", the best so far"
  elif found.best_step != found.newest_step:
    when += f"; best {written(key, float(found.best.value))} at step {found.best_step:,}"
  options = found.result.get("evaluator") or run.config.get("evals", {}).get(name) or {}
  warning = '<p class="changed">These are not data of the kind that it is trained on.</p>' if words.elsewhere(run.config, options) else ""
  lines = [" · ".join(beside), text(when), text(words.scored_on(found.result, options))]
  return (f'<div class="tile"><span>{text(name)} · {text(said(key))}</span><b>{text(written(key, float(newest.value)))}</b>'
          + "".join(f"<p>{line}</p>" for line in lines if line) + f"{warning}</div>")


def captions_in(result: Mapping) -> Sequence[Mapping]:
  """The rows that say what a result's pictures show."""
  return next((rows for rows in result.get("tables", {}).values() if rows and caption_of(rows[0])), [])


def newest_pictures(run: Run) -> str:
  """Of every evaluator that makes some; those before, folded."""
  parts = []
  for name, results in run.evals.items():
    drawn = [result for result in results if result.get("images")]
    if not drawn:
      continue
    file = lambda image: run.samples / Path(str(image)).name
    sheets = [pictures(file(image), captions_in(drawn[-1]) if i == 0 else []) for i, image in enumerate(drawn[-1]["images"])]
    before = "".join(heading(4, f"step {result['step']:,}") + pictures(file(result["images"][0])) for result in drawn[:-1][-EARLIER:])
    parts.append(heading(3, f"Pictures of {name}", f"step {drawn[-1]['step']:,}") + "".join(sheets))
    parts.append(folded("the same at earlier steps", before))
  return "".join(parts)


# Curves

def loss_chart(run: Run, **options) -> str:
  return line_chart("loss", {"loss": run.series("loss")}, smooth=True, big=True, resumed=run.resumed(), skipped=run.refused())


def curves(run: Run) -> str:
  """Scores first, then every other logged number that is no count."""
  charts = [chart for name, results in run.evals.items() for chart in score_charts(name, results)]
  keys = dict.fromkeys(key for line in run.metrics for key in line)
  rates = {key.removeprefix("learning_rate/"): run.series(key) for key in keys if key.startswith("learning_rate/")}
  skip = ("step", "seconds", "loss", *(() if run.last("skipped") else ("skipped", "skipped_in_a_row")))
  skipped_prefixes = (*(f"{name}/" for name in run.evals), "count/", "learning_rate/")
  charts.append(line_chart("learning rate", rates, log=False))
  charts += [line_chart(said(key), {key: run.series(key)}, smooth=True, share=is_share(key), resumed=run.resumed())
             for key in keys if key not in skip and not key.startswith(skipped_prefixes)]
  return f'{heading(3, "Curves")}<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def score_charts(name: str, results: Sequence[Mapping]) -> list[str]:
  keys = dict.fromkeys(key for result in results for key in result.get("scalars", {}) if not key.endswith(("_low", "_high")))
  points = {key: [(r["step"], float(r["scalars"][key])) for r in results if key in r.get("scalars", {})] for key in list(keys)[:CHARTS]}
  return [line_chart(f"{name} · {said(key)}", {key: found}, share=is_share(key), log=False) for key, found in points.items()]


# Tables

def eval_section(run: Run, name: str, results: Sequence[Mapping]) -> str:
  """An evaluator's newest scalars and tables."""
  newest = results[-1]
  about = newest.get("evaluator", {})
  options = ", ".join(f"{key} {value}" for key, value in about.items()
                      if isinstance(value, (int, float, str)) and key not in ("name", "every_steps") and value != "")
  note = "; ".join(filter(None, [f"step {newest['step']:,}", words.scored_on(newest, about), options]))
  parts = [heading(3, name, note), scalar_table(newest.get("scalars", {}))]
  for title, rows in newest.get("tables", {}).items():
    rest = f"<p class='soft'>{len(rows) - ROWS:,} further rows are in eval/.</p>" if len(rows) > ROWS else ""
    body = table(rows[:ROWS]) + rest
    parts.append(folded(f"{title}: {len(rows):,} rows", body) if len(rows) > LONG_TABLE or caption_of(rows[0] if rows else {}) else
                 heading(4, title) + body)
  return "".join(parts)


def scalar_table(scalars: Mapping[str, Any]) -> str:
  """Scalars, with the interval of those that have `_low` and `_high` beside them."""
  rows = []
  for key, value in scalars.items():
    if not key.endswith(("_low", "_high")):
      low, high = scalars.get(f"{key}_low"), scalars.get(f"{key}_high")
      bounds = isinstance(low, (int, float)) and isinstance(high, (int, float))
      beside = {"95 % interval": whole(between(key, low, high))} if bounds else {}
      rows.append({"score": said(key), "value": whole(written(key, value))} | beside)
  return '<div class="tables">' + "".join(table(rows[i:i + COLUMN]) for i in range(0, len(rows), COLUMN)) + "</div>"


def accounting(run: Run) -> str:
  """What happened to the records: captions drawn against the shares asked for, faults by kind, steps refused."""
  line: Mapping[str, Any] = next((line for line in reversed(run.metrics) if any(key.startswith("count/") for key in line)), {})
  counts = {key.removeprefix("count/"): value for key, value in line.items() if key.startswith("count/")}
  if not counts:
    return ""
  records = sum(value for key, value in counts.items() if key.startswith("caption/")) or 1
  asked = run.config.get("data", {}).get("captions", {})
  drawn = [{"caption kind": key.removeprefix("caption/"), "records": value, "share": value / records,
            "share asked for": float(asked.get(key.removeprefix("caption/"), 0)), " ": Markup(interval(value / records, 0, 0))}
           for key, value in counts.items() if key.startswith("caption/") and (value or key.removeprefix("caption/") in asked)]
  other = [{"event": key, "records": value, "share": value / records} for key, value in counts.items()
           if not key.startswith("caption/") and value]
  faults = table(other) if other else '<p class="soft">No bad record, none replaced.</p>'
  skipped = f"<p class='soft'>Updates refused as not finite: {run.last('skipped', 0):,.0f}.</p>"
  return f'{heading(3, "Data", f"{records:,} records seen")}{table(drawn)}{faults}{skipped}'


def history(run: Run) -> str:
  """Every start: when, where, with which code, for how long."""
  rows = []
  for start in run.starts:
    code, machine = start.get("code") or {}, start.get("machine") or {}
    took = start.get("seconds")
    rows.append({
      "started": whole(str(start.get("at", "")).replace("T", " ").removesuffix("+00:00")),
      "from step": start.get("step", ""), "took": DASH if took is None else duration(took), "host": str(machine.get("host", "")),
      "code": whole(str(code.get("commit", ""))[:12] + (" and changes" if code.get("patch") else "")),
      "devices": f"{start.get('device_count', '')} × {start['devices'][0]}" if start.get("devices") else "",
      "jax": str((start.get("versions") or {}).get("jax", ""))})
  return heading(3, "Starts", "times in UTC") + table(rows) if rows else ""


def settings(run: Run) -> str:
  """The command, the versions, and every key of the config; those that differ from the code's default are marked."""
  if not run.config:
    return ""
  try:
    defaults = {path: field.default for path, field, _ in schema.walk(run.config)}
  except (KeyError, ModuleNotFoundError):        # a run of another version of the code
    defaults = {}
  rows: list[dict[str, Any]] = []
  for key, value in flat(run.config).items():
    default = defaults.get(key, schema.REQUIRED)
    known = default is not schema.REQUIRED and default is not schema.COMPUTED
    differs = known and json.dumps(default) != json.dumps(value)
    shown = f"<code{' class=changed' if differs else ''}>{text(json.dumps(value))}</code>"
    rows.append({"key": Markup(f"<code>{text(key)}</code>"), "value": Markup(shown), "default": json.dumps(default) if differs else ""})
  argv = shlex.join(map(str, run.about.get("argv", ())))
  lines = [f"<p><code>mmdiff {text(argv)}</code></p>"] if argv else []
  versions = ", ".join(f"{name} {version}" for name, version in run.about.get("versions", {}).items())
  lines.append(f'<p class="soft">{text(versions)}</p>' if versions else "")
  return heading(3, "Settings") + "".join(lines) + folded(f"config: {len(rows)} keys", table(rows))
