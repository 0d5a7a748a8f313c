"""Several runs on one page: their scores side by side, their curves over each other, and where their configs differ."""
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core.files import write_text
from mmdiff.core.progress import duration
from mmdiff.evaluators import likeness
from mmdiff.report.charts import line_chart
from mmdiff.report.html import Markup, folded, heading, link, table, text, write_page
from mmdiff.report.numbers import flat, said, written
from mmdiff.report.reading import Run, read_run, score
from mmdiff.report.run import opening, run_section
from mmdiff.train.headlines import is_share

COLUMNS = "run,step,"         # a table of metrics begins so
ABSENT = Markup('<span class="soft">not there</span>')


def named(folders: Sequence[Path]) -> dict[str, Path]:
  """Names that tell the runs apart: the shortest ends of their paths that differ."""
  whole = [folder.resolve().parts for folder in folders]
  for length in range(1, max(map(len, whole)) + 1):
    names = ["/".join(parts[-length:]) for parts in whole]
    if len(set(names)) == len(names):
      break
  return dict(zip(names, folders))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
  """Writes the page of several run directories at `out`; its path. Raises CannotWrite."""
  runs = [read_run(folder, name) for name, folder in named(folders).items()]
  title = " · ".join(run.name for run in runs)
  parts = [heading(1, title), overview(runs, out.parent), unlike(runs), curves(runs), differences(runs)]
  parts += [heading(2, run.name) + opening(run) for run in runs]
  return write_page(out, title, "".join(parts))


def write_story(workdir: Path, title: str, chapters: Sequence[tuple[str, str, str]], runs: Mapping[str, Path]) -> Path:
  """Writes `report.html` in `workdir`: what was found, chapter by chapter, and then the runs in whole. Raises CannotWrite.

  chapters: (heading, sentence, page that says more, relative to `workdir`, or the name of one of `runs`).
  """
  found = [read_run(path, name) for name, path in runs.items()]
  place = {run.name: f"#run{i}" for i, run in enumerate(found)}
  parts = [heading(1, title)]
  for about, sentence, where in chapters:
    more = link(place.get(where, where), "the run" if where in place else "the comparison") if where else ""
    parts.append(f'{heading(3, about)}<p class="goal">{text(sentence)}</p><p>{more}</p>')
  parts += [f'<h2 id="run{i}">{text(run.name)}</h2>{run_section(run)}' for i, run in enumerate(found)]
  return write_page(workdir / "report.html", title, "".join(parts))


def overview(runs: Sequence[Run], beside: Path) -> str:
  """A row for each run: state, newest loss, newest and best score of each evaluator, time."""
  rows = []
  for run in runs:
    page = run.folder / "report.html"
    try:
      title: Any = link(str(page.resolve().relative_to(beside.resolve())), run.name) if page.exists() else run.name
    except ValueError:                         # elsewhere: the link would only hold on this machine
      title = run.name
    row: dict[str, Any] = {"run": title, "state": run.state(), "loss": run.last("loss", "")}
    for name in run.evals:
      found = score(run, name)
      if found:
        best = f"; best {written(found.best.name, float(found.best.value))}" if found.best_step != found.newest_step else ""
        chance = f" (chance {written(found.newest.name, float(found.newest.chance))})" if found.newest.chance is not None else ""
        row[f"{name}: {said(found.newest.name)}"] = f"{written(found.newest.name, float(found.newest.value))}{chance}{best}"
    seconds, whole = run.seconds()
    rows.append(row | {"wall time": f"{'' if whole else 'at least '}{duration(seconds)}"})
  return table(rows)


def unlike(runs: Sequence[Run]) -> str:
  """A line for every evaluator whose numbers should not be set side by side."""
  lines = []
  for name in dict.fromkeys(name for run in runs for name in run.evals):
    first, *others = [run for run in runs if name in run.evals]
    for run in others:
      found = likeness.unlike(likeness.facts(first.evals[name][-1]), likeness.facts(run.evals[name][-1]))
      if found:
        lines.append(f"{name}: the scores of {first.name} and {run.name} are not of the same question; they differ in {', '.join(found)}.")
  return "".join(f'<p class="changed">{text(line)}</p>' for line in lines)


def curves(runs: Sequence[Run]) -> str:
  """The loss, large, of runs of one objective; then every other number that at least two of them have."""
  parts = []
  for kind in dict.fromkeys(run.config.get("objective", {}).get("name") for run in runs):
    same = [run for run in runs if run.config.get("objective", {}).get("name") == kind]
    if len(same) < 2:
      continue
    parts.append(line_chart("loss", {run.name: run.series("loss") for run in same}, smooth=True, big=True))
    keys = dict.fromkeys(key for run in same for line in run.metrics for key in line)
    scored = tuple(f"{name}/" for run in same for name in run.evals)
    skip = ("step", "seconds", "loss", "skipped_in_a_row")
    charts = []
    for key in sorted(keys, key=lambda key: not key.startswith(scored)):
      having = {run.name: series for run in same if (series := run.series(key))}
      if key not in skip and not key.startswith("count/") and not key.endswith(("_low", "_high")) and len(having) > 1:
        fixed = key.startswith((*scored, "learning_rate/"))
        charts.append(line_chart(said(key), having, smooth=not fixed, log=False if fixed else None, share=is_share(key)))
    parts.append(f'<div class="charts">{"".join(charts)}</div>')
  return heading(3, "Curves over each other") + "".join(parts) if any(parts) else ""


def differences(runs: Sequence[Run]) -> str:
  """The keys of the configs that are not the same in all runs."""
  configs = [flat(run.config) for run in runs]
  rows: list[dict[str, Any]] = []
  for key in dict.fromkeys(key for config in configs for key in config):
    values = [json.dumps(config[key]) if key in config else None for config in configs]
    if len(set(values)) > 1:
      rows.append({"key": Markup(f"<code>{text(key)}</code>")} | {
        run.name: ABSENT if value is None else Markup(f"<code>{text(value)}</code>") for run, value in zip(runs, values)})
  if not rows:
    return heading(3, "Configs") + '<p class="soft">The configs are the same.</p>'
  made = table(rows)
  return heading(3, "Where the configs differ", f"{len(rows)} keys") + (made if len(rows) <= 40 else folded("all of them", made))


def write_csv(folders: Sequence[Path], out: Path) -> Path:
  """Every logged number of the runs: `run`, `step`, then one column a metric; "" where there is none. Raises CannotWrite."""
  runs = [read_run(folder, name) for name, folder in named(folders).items()]
  keys = [key for key in dict.fromkeys(key for run in runs for line in run.metrics for key in line) if key != "step"]
  written_to = io.StringIO()
  table_of = csv.writer(written_to, lineterminator="\n")
  table_of.writerow([*COLUMNS.rstrip(",").split(","), *keys])
  for run in runs:
    table_of.writerows([run.name, line["step"], *(_plain(line.get(key, "")) for key in keys)] for line in run.metrics)
  write_text(out, written_to.getvalue())
  return out


def _plain(value: Any) -> Any:
  """As pandas and spreadsheets read it."""
  return repr(value) if isinstance(value, float) and math.isfinite(value) else value
