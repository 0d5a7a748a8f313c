"""`report.html`: a run on one page that needs nothing but itself. No script, no request, every text escaped.

Read from the run directory: config.json, run.json, metrics.jsonl, eval/*.json, samples/*.png. What is missing is left out.
"""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.core import schema
from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object, write_text
from mmdiff.core.progress import duration
from mmdiff.train.charts import interval, line_chart, number
from mmdiff.train.page import Markup, caption_of, page, pictures, table, text, tiles
from mmdiff.train.writer import read_metrics

ROWS = 60              # shown of a long table


class Run(NamedTuple):
  """What a run directory says."""
  name: str
  config: Mapping[str, Any]
  about: Mapping[str, Any]              # run.json
  metrics: Sequence[Mapping[str, Any]]
  evals: Mapping[str, Sequence[Mapping[str, Any]]]       # evaluator -> results by step
  samples: Path


def read_json(file: Path) -> dict[str, Any]:
  """The object of a file, or {} if there is none or a crash cut it short."""
  try:
    return read_object(file, nan=True)
  except DataError:
    return {}


def read_run(workdir: Path, name: str) -> Run:
  results: dict[str, list] = {}
  for file in sorted((workdir / "eval").glob("*.json")):
    result = read_json(file)
    if "step" in result and "name" in result:
      results.setdefault(str(result["name"]), []).append(result)
  for found in results.values():
    found.sort(key=lambda result: result["step"])
  config = read_json(workdir / "config.json")
  order = list(config.get("evals", {}))
  results = dict(sorted(results.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
  metrics = read_metrics(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
  return Run(name, config, read_json(workdir / "run.json"), metrics, results, workdir / "samples")


def write_report(workdir: Path | str, *, out: Path | str | None = None, runs: Mapping[str, Path] | None = None, title: str | None = None,
                 summary: Mapping[str, Any] | None = None) -> Path:
  """Writes `report.html` in `workdir` (or at `out`) and returns its path. Raises CannotWrite.

  runs: name -> run directory, for a page over several runs; by default `workdir` is the one run. summary: nested numbers shown first.
  """
  workdir = Path(workdir)
  out = Path(out or workdir / "report.html")
  found = [read_run(Path(path), name) for name, path in (runs or {workdir.name: workdir}).items()]
  body = [f"<h1>{text(title or workdir.name)}</h1>"]
  if len(found) > 1:
    body.append("<nav>" + "".join(f'<a href="#run{i}">{text(run.name)}</a>' for i, run in enumerate(found)) + "</nav>")
  if summary:
    body.append(tiles({key.replace(".", " · ").replace("_", " "): value for key, value in flat(summary).items()}))
  body.append(compared(found))
  for i, run in enumerate(found):
    body += [f'<h2 id="run{i}">{text(run.name)}</h2>' if len(found) > 1 else "", run_section(run)]
  made = page(title or workdir.name, "".join(body))
  write_text(out, made)
  return out


def run_section(run: Run) -> str:
  return "".join([head(run), *(eval_section(run, name, results) for name, results in run.evals.items()), curves(run), accounting(run),
                  settings(run)])


# Parts of a run

def last(run: Run, key: str, default: Any = None) -> Any:
  return next((line[key] for line in reversed(run.metrics) if key in line), default)


def series(run: Run, key: str) -> list[tuple[float, float]]:
  return [(line["step"], line[key]) for line in run.metrics if isinstance(line.get(key), (int, float))]


def head(run: Run) -> str:
  """What it is, how far it came, how fast it went."""
  objective = run.config.get("objective", {})
  inner = [f"{key} {block.get('variant') or block.get('name')}" for key, block in objective.items() if isinstance(block, Mapping)]
  devices = f"{run.about['device_count']} × {run.about['devices'][0]}" if run.about.get("devices") else ""
  lead = " · ".join(filter(None, [objective.get("name", ""), *inner, devices]))
  shown: dict[str, Any] = {"step": f"{last(run, 'step', 0):,} of {run.config.get('steps', 0):,}"} if run.metrics else {}
  shown |= {"last loss": last(run, "loss"), "images per second": last(run, "images_per_second")}
  for key, name in (("mfu", "MFU"), ("data_wait", "waiting for data")):
    if last(run, key) is not None:
      shown[name] = f"{100 * last(run, key):.1f} %"
  if last(run, "seconds") is not None:
    shown["wall time (last start)"] = duration(last(run, "seconds"))
  if last(run, "skipped"):
    shown["steps skipped (not finite)"] = last(run, "skipped")
  return f'<p class="soft">{text(lead)}</p>' + tiles(shown)


def curves(run: Run) -> str:
  """Every logged number that is not an evaluator's result or a count."""
  keys = dict.fromkeys(key for line in run.metrics for key in line)
  prefixes = tuple(f"{name}/" for name in run.evals)
  rates = {key.removeprefix("learning_rate/"): series(run, key) for key in keys if key.startswith("learning_rate/")}
  skip = ("step", "seconds", "skipped", "skipped_in_a_row") if not last(run, "skipped") else ("step", "seconds")
  plain = [key for key in keys if key not in skip and not key.startswith((*prefixes, "count/", "learning_rate/"))]
  charts = [line_chart(key, {key: series(run, key)}, smooth=True) for key in sorted(plain, key=lambda key: key != "loss")]
  charts.insert(1, line_chart("learning rate", rates) if rates else "")
  return f'<h3>Curves by step</h3><div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def compared(runs: Sequence[Run]) -> str:
  """Curves that runs of one objective share, on one pair of axes."""
  charts = []
  for kind in dict.fromkeys(run.config.get("objective", {}).get("name") for run in runs):
    same = [run for run in runs if run.config.get("objective", {}).get("name") == kind]
    keys = dict.fromkeys(key for run in same for line in run.metrics for key in line
                         if key == "loss" or key.startswith(tuple(f"{name}/" for name in run.evals) or "\0"))
    charts += [line_chart(key, {run.name: series(run, key) for run in same}) for key in keys] if len(same) > 1 else []
  return f'<h3>Side by side</h3><div class="charts">{"".join(charts)}</div>' if charts else ""


def eval_section(run: Run, name: str, results: Sequence[Mapping]) -> str:
  """An evaluator's newest scalars, tables and pictures, and its scalars over time."""
  newest = results[-1]
  scalars = {key: value for key, value in newest.get("scalars", {}).items()}
  about = newest.get("evaluator", {})
  said = ", ".join(f"{key} {value}" for key, value in about.items()
                   if isinstance(value, (int, float, str)) and key not in ("name", "every_steps") and value != "")
  parts = [f'<h3>{text(name)} <small>at step {newest["step"]:,}{" · " + text(said) if said else ""}</small></h3>']
  parts.append(scalar_table(scalars))
  captions: Sequence[Mapping] = next((rows for rows in newest.get("tables", {}).values() if rows and caption_of(rows[0])), [])
  for i, image in enumerate(newest.get("images", ())):
    parts.append(pictures(run.samples / Path(str(image)).name, captions if i == 0 else []))
  earlier = [(result["step"], run.samples / Path(str(image)).name)
             for result in results[:-1] for image in list(result.get("images", ()))[:1]]
  if earlier:
    sheets = "".join(f"<h4>step {step:,}</h4>{pictures(file, [])}" for step, file in earlier[-6:])
    parts.append(f"<details><summary>the same at earlier steps</summary>{sheets}</details>")
  steps = dict.fromkeys(key for result in results for key in result.get("scalars", {}) if not key.endswith(("_low", "_high")))
  if len(results) > 1:
    over = {key: [(r["step"], float(r["scalars"][key])) for r in results if key in r.get("scalars", {})] for key in list(steps)[:12]}
    parts.append('<div class="charts">' + "".join(line_chart(f"{name}/{key}", {key: points}) for key, points in over.items()) + "</div>")
  for title, rows in newest.get("tables", {}).items():
    long = len(rows) > 20 or rows is captions
    rest = f"<p class='soft'>{len(rows) - ROWS} further rows are in eval/.</p>" if len(rows) > ROWS else ""
    body = table(rows[:ROWS]) + rest
    folded = f"<details><summary>{text(title)}: {len(rows)} rows</summary>{body}</details>"
    parts.append(folded if long else f"<h4>{text(title)}</h4>{body}")
  return "".join(parts)


def scalar_table(scalars: Mapping[str, Any]) -> str:
  """Scalars, with the interval of those that have `_low` and `_high` beside them."""
  rows = []
  for key, value in scalars.items():
    if not key.endswith(("_low", "_high")):
      low, high = scalars.get(f"{key}_low"), scalars.get(f"{key}_high")
      rows.append({"": key, "value": value} | ({"low": low, "high": high} if low is not None and high is not None else {}))
  return table(rows)


# Data accounting and settings

def accounting(run: Run) -> str:
  """What happened to the records: captions drawn against the shares asked for, faults by kind, steps refused."""
  line: Mapping[str, Any] = next((line for line in reversed(run.metrics) if any(key.startswith("count/") for key in line)), {})
  counts = {key.removeprefix("count/"): value for key, value in line.items() if key.startswith("count/")}
  if not counts:
    return ""
  records = sum(value for key, value in counts.items() if key.startswith("caption/")) or 1
  asked = run.config.get("data", {}).get("captions", {})
  drawn = [{"caption kind": key.removeprefix("caption/"), "records": value, "share": f"{value / records:.4f}",
            "asked for": number(asked.get(key.removeprefix("caption/"), 0)), " ": Markup(interval(value / records, 0, 0))}
           for key, value in counts.items() if key.startswith("caption/") and (value or key.removeprefix("caption/") in asked)]
  other = [{"event": key, "records": value, "share": f"{value / records:.2e}"} for key, value in counts.items()
           if not key.startswith("caption/") and value]
  faults = table(other) if other else '<p class="soft">No bad record, none replaced.</p>'
  skipped = f"<p class='soft'>Steps skipped as not finite: {number(last(run, 'skipped', 0))}.</p>"
  return f"<h3>Data: {records:,} records seen</h3>{table(drawn)}{faults}{skipped}"


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in config.items():
    found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
  return found


def settings(run: Run) -> str:
  """The command, the versions, and every key of the config; those that differ from the code's default are marked."""
  if not run.config:
    return ""
  try:
    defaults = {path: field.default for path, field, _ in schema.walk(run.config)}
  except (KeyError, ModuleNotFoundError):        # a run of another version of the code
    defaults = {}
  rows = []
  for key, value in flat(run.config).items():
    default = defaults.get(key, schema.REQUIRED)
    known = default is not schema.REQUIRED and default is not schema.COMPUTED
    same = known and json.dumps(default) == json.dumps(value)
    kind, was = ("changed", json.dumps(default)) if known and not same else ("t", "")
    rows.append(f"<tr><td><code>{text(key)}</code></td><td class='{kind}'><code>{text(json.dumps(value))}</code></td>"
                f"<td class='soft'>{text(was)}</td></tr>")
  argv = " ".join(map(str, run.about.get("argv", ())))
  lines = [f"<p><code>mmdiff {text(argv)}</code></p>"] if argv else []
  lines.append(f"<p class='soft'>{text(', '.join(f'{k} {v}' for k, v in run.about.get('versions', {}).items()))}</p>")
  head = "<thead><tr><th>key</th><th>value</th><th>default</th></tr></thead>"
  return (f"<h3>Settings</h3>{''.join(lines)}<details><summary>config: {len(rows)} keys</summary>"
          f"<div class='wide'><table>{head}<tbody>{''.join(rows)}</tbody></table></div></details>")
