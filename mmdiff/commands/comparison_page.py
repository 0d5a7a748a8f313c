"""The page of an ablation: curves of the arms, paired differences, pictures side by side, and what everything depends on."""
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdiff.commands.comparison import AREA, END, HALF
from mmdiff.core.files import write_text
from mmdiff.core.progress import duration
from mmdiff.train.charts import line_chart, number
from mmdiff.train.page import Markup, data_url, page, table, text, tiles

# What the report shows of each arm, in this order, where there is such a metric.
SHOWN = {"all_facts": "all facts right", "clipscore_long": "CLIP score, long captions",
         "clipscore_original": "CLIP score, original captions", "unparseable": "pictures that the judge cannot read"}
LARGEST = 1_024                # pixels of a sheet's longer side


def write(found: Mapping[str, Any], config: Mapping, runs: Sequence, workdir: Path, argv: Sequence[str]) -> Path:
  """Writes report.html; its path. Raises CannotWrite."""
  title = f"Ablation {workdir.name}"
  body = [f"<h1>{text(title)}</h1>", summary(found, config), curves(found), arms(found), differences(found), sheets(found, config, runs),
          captioner(found), protocol(found), settings(found, config, runs, workdir, argv)]
  out = workdir / "report.html"
  write_text(out, page(title, "".join(body)))
  return out


def metrics_of(found: Mapping) -> list[str]:
  """The metrics that some run has: those of `SHOWN` first, then other CLIP scores."""
  has = dict.fromkeys(key for about in found["arms"].values() for seed in about["seeds"].values() for key in seed)
  return [key for key in SHOWN if key in has] + [key for key in has if key.startswith("clipscore_") and key not in SHOWN]


def named(metric: str) -> str:
  return SHOWN.get(metric, metric.replace("_", " "))


def summary(found: Mapping, config: Mapping) -> str:
  spent = sum(seed.get("seconds", 0) for about in found["arms"].values() for seed in about["seeds"].values())
  before = sum(about["seconds"] or 0 for about in found["prepare"].values())
  shown: dict[str, Any] = {"runs finished": f"{found['finished']} of {found['runs']}", "steps": f"{config['base']['steps']:,}",
                           "pictures a step": config["base"]["batch_size"], "time of the runs": duration(spent)}
  shown |= {"time of the preparation": duration(before)} if before else {}
  shown |= {f"{kind} captions with a false fact": f"{100 * about['hallucination']:.2f} %" for kind, about in found["captions"].items()}
  return tiles(shown)


def curves(found: Mapping) -> str:
  """A chart of each metric with a line for each arm, its mean over seeds; folded away, the same for each seed."""
  every = [mean_chart(named(metric), metric, found["arms"]) for metric in metrics_of(found)]
  seeds = list(dict.fromkeys(seed for about in found["arms"].values() for seed in about["seeds"]))
  single = []
  for metric in metrics_of(found)[:3] if len(seeds) > 1 else ():
    for seed in seeds:
      of = {arm: about["seeds"][seed] for arm, about in found["arms"].items() if metric in about["seeds"].get(seed, {})}
      single.append(line_chart(f"{named(metric)}, seed {seed}", {arm: list(zip(run["steps"], run[metric])) for arm, run in of.items()}))
  folded = f'<details><summary>each seed</summary><div class="charts">{"".join(single)}</div></details>' if single else ""
  return f'<h3>By step, mean over seeds</h3><div class="charts">{"".join(every)}</div>{folded}'


def mean_chart(title: str, metric: str, found: Mapping) -> str:
  """Steps that all seeds of an arm have."""
  lines = {}
  for arm, about in found.items():
    having = [seed for seed in about["seeds"].values() if metric in seed]
    steps = sorted(set.intersection(*(set(seed["steps"]) for seed in having))) if having else []
    lines[arm] = [(step, float(np.mean([seed[metric][seed["steps"].index(step)] for seed in having]))) for step in steps]
  return line_chart(title, lines)


def arms(found: Mapping) -> str:
  """Each arm's values at its last step and its area under the curve: mean over seeds, and each seed."""
  rows = []
  for arm, about in found["arms"].items():
    seeds = list(about["seeds"].values())
    whole = Markup(f'<span style="white-space:nowrap">{text(arm)}</span>')
    row: dict[str, Any] = {"arm": whole, "seeds": len(seeds), "step": min(seed["steps"][-1] for seed in seeds)}
    for metric in metrics_of(found):
      if all(metric in seed for seed in seeds):
        row[named(metric)] = spread([seed[metric][-1] for seed in seeds])
    if all("all_facts" in seed["area"] for seed in seeds):
      row["all facts, area under the curve"] = spread([seed["area"]["all_facts"] for seed in seeds])
    for key in seeds[0]["last"]:                 # of other evaluators: whole scores, not their intervals or parts
      if not key.endswith(("_low", "_high")) and key.count("/") == 1 and all(key in seed["last"] for seed in seeds):
        row[key.replace("_", " ")] = spread([seed["last"][key] for seed in seeds])
    rows.append(row)
  return f"<h3>Arms at their last step</h3>{table(rows)}<p class='soft'>Mean over seeds [each seed].</p>"


def spread(values: Sequence[float]) -> str:
  return f"{number(float(np.mean(values)))} [{' '.join(number(value) for value in values)}]" if len(values) > 1 else number(values[0])


def differences(found: Mapping) -> str:
  """Each arm minus the reference, with 95 % intervals."""
  parts = []
  for at, title in ((HALF, "half-way"), (END, "at the last step"), (AREA, "area under the curve (mean over training)")):
    rows = [{"arm": f"{row['arm']} − {row['reference']}", "of": named(row["metric"]), "step": "" if row["step"] is None else row["step"],
             "difference": row["difference"], "95 % interval": f"{row['low']:+.3f} … {row['high']:+.3f}",
             "outside": not row["low"] <= 0 <= row["high"], "each seed": "  ".join(f"{value:+.3f}" for value in row["by_seed"].values())}
            for row in found["comparisons"] if row["at"] == at]
    parts += [f"<h4>{title}</h4>{table(rows)}"] if rows else []
  note = ("<p class='soft'>Same prompts, noise, initial parameters and order of records in every arm of a seed. Intervals resample prompts "
          "and seeds together (pigeonhole bootstrap); ✓ where zero lies outside.</p>")
  return f"<h3>Paired differences</h3>{note}{''.join(parts)}" if parts else ""


def sheets(found: Mapping, config: Mapping, runs: Sequence) -> str:
  """Pictures of the same prompts from the same noise, arm beside arm, half-way and at the end, of the first seed."""
  parts = []
  read, total = config["read"], config["base"]["steps"]
  kinds = list(found["protocol"].get("shown", {}))
  for step in dict.fromkeys(row["step"] for row in found["comparisons"] if row["step"]) or (total,):
    for place, kind in enumerate(kinds):
      name = f"{read}_{step:08}.png" if place == 0 else f"{read}_{kind}_{step:08}.png"
      cards = []
      for run in runs:
        file = run.workdir / "samples" / name
        if run.seed == config["seeds"][0] and file.exists():
          with Image.open(file) as opened:
            cards.append(f'<figure class="card"><img src="{data_url(enlarged(opened.convert("RGB")), LARGEST)}" alt="">'
                         f"<figcaption>{text(run.arm)}</figcaption></figure>")
      if cards:
        parts.append(f'<h4>step {step:,}, prompts of kind {text(kind)}</h4><div class="charts">{"".join(cards)}</div>')
  prompts = "".join(f"<details><summary>the {text(kind)} prompts</summary>{table([{'prompt': line} for line in shown])}</details>"
                    for kind, shown in found["protocol"].get("shown", {}).items())
  return f"<h3>Pictures side by side <small>seed {config['seeds'][0]}</small></h3>{''.join(parts)}{prompts}" if parts else ""


def enlarged(sheet: Image.Image, least: int = 256) -> Image.Image:
  """A small sheet at a whole multiple of its size, so that its pixels stay sharp wherever the page is shown."""
  times = -(-least // max(sheet.size))
  return sheet.resize((sheet.width * times, sheet.height * times), Image.Resampling.NEAREST) if times > 1 else sheet


def captioner(found: Mapping) -> str:
  """How true the captions are that the arms trained on, and what the steps of the preparation found."""
  parts = []
  if found["captions"]:
    rows = [{"kind": kind} | {name.replace("_", " "): value for name, value in about.items()} for kind, about in found["captions"].items()]
    note = ("<p class='soft'>The side-car's captions against the scenes: fact precision and recall, and the share of captions with any "
            "false fact (hallucination) and with every fact and no false one (perfect).</p>")
    parts.append(f"<h3>The captions that the arms trained on</h3>{note}{table(rows)}")
  if found["prepare"]:
    rows = [{"name": name, "command": Markup(f"<code>mmdiff {text(shlex.join(about['argv']))}</code>"),
             "time": "" if about["seconds"] is None else duration(about["seconds"])} for name, about in found["prepare"].items()]
    parts.append(f"<h3>Preparation</h3>{table(rows)}")
    for name, about in found["prepare"].items():
      scalars = [{"score": key, "value": value} for key, value in about["scalars"].items() if not key.endswith(("_low", "_high"))]
      parts.append(f"<details><summary>{text(name)}: {len(scalars)} scores</summary>{table(scalars)}</details>" if scalars else "")
  return "".join(parts)


def protocol(found: Mapping) -> str:
  rows = [{"": key.replace("_", " "), "value": value if isinstance(value, (int, float, str)) else str(value)}
          for key, value in found["protocol"].items() if key != "shown"]
  return f"<h3>How pictures were drawn and scored</h3>{table(rows)}" if rows else ""


def settings(found: Mapping, config: Mapping, runs: Sequence, workdir: Path, argv: Sequence[str]) -> str:
  """What each arm changes, and where the runs' own reports are."""
  rows = []
  for arm, overrides in config["arms"].items():
    own = [run for run in runs if run.arm == arm and (run.workdir / "report.html").exists()]
    links = " ".join(f'<a href="{text(str(run.workdir.relative_to(workdir) / "report.html"))}">seed {run.seed}</a>' for run in own)
    rows.append({"arm": arm, "changes in the base config": Markup("<br>".join(f"<code>{text(line)}</code>" for line in overrides)),
                 "runs": Markup(links)})
  return f"<h3>Settings</h3><p><code>mmdiff {text(shlex.join(argv))}</code></p>{table(rows)}"
