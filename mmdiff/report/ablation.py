"""The page of an ablation: curves of the arms, paired differences, pictures side by side, and what everything depends on."""
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdiff.core.ablation import AREA, END, HALF
from mmdiff.core.progress import duration
from mmdiff.report.charts import forest, line_chart
from mmdiff.report.html import Markup, folded, heading, link, table, text, tiles, whole, write_page
from mmdiff.report.numbers import percent, said, written
from mmdiff.report.pictures import SHEET, cut, enlarged, image, opened
from mmdiff.train.headlines import is_share

# What the report shows of each arm, in this order, where there is such a metric.
SHOWN = {"all_facts": "all facts right", "clipscore_long": "CLIP score, long captions",
         "clipscore_original": "CLIP score, original captions", "unparseable": "pictures that the judge cannot read"}


def write(found: Mapping[str, Any], config: Mapping, runs: Sequence, workdir: Path, argv: Sequence[str]) -> Path:
  """Writes report.html; its path. Raises CannotWrite."""
  title = f"Ablation {workdir.name}"
  body = [f"<h1>{text(title)}</h1>", summary(found, config), curves(found), arms(found), differences(found), sheets(found, config, runs),
          captioner(found), protocol(found), settings(found, config, runs, workdir, argv)]
  return write_page(workdir / "report.html", title, "".join(body))


def metrics_of(found: Mapping) -> list[str]:
  """The metrics that some run has: those of `SHOWN` first, then other CLIP scores."""
  has = dict.fromkeys(key for about in found["arms"].values() for seed in about["seeds"].values() for key in seed)
  return [key for key in SHOWN if key in has] + [key for key in has if key.startswith("clipscore_") and key not in SHOWN]


def named(metric: str) -> str:
  return SHOWN.get(metric, said(metric))


def summary(found: Mapping, config: Mapping) -> str:
  spent = sum(seed.get("seconds", 0) for about in found["arms"].values() for seed in about["seeds"].values())
  before = sum(about["seconds"] or 0 for about in found["prepare"].values())
  shown: dict[str, Any] = {"runs finished": found["finished"], "steps": config["base"]["steps"],
                           "pictures a step": config["base"]["batch_size"], "time of the runs": duration(spent)}
  shown |= {"time of the preparation": duration(before)} if before else {}
  shown |= {f"{kind} captions with a false fact": percent(about["hallucination"]) for kind, about in found["captions"].items()}
  return tiles(shown) + "".join(f'<p class="soft">{text(line)}</p>' for line in left(found, config))


def left(found: Mapping, config: Mapping) -> list[str]:
  """What the config has and the page does not show."""
  begun = {arm: set(about["seeds"]) for arm, about in found["arms"].items()}
  without = [f"{arm}, seed {seed}" for arm in config["arms"] for seed in config["seeds"] if str(seed) not in begun.get(arm, set())]
  going = [f"{arm}, seed {seed}" for arm, about in found["arms"].items() for seed, one in about["seeds"].items()
           if not one.get("finished", True)]
  said_of = {"Not finished": going, "Not trained here, so not compared": without}
  return [f"{what}: {'; '.join(names)}." for what, names in said_of.items() if names]


def curves(found: Mapping) -> str:
  """A chart of each metric with a line for each arm, its mean over seeds; folded away, the same for each seed."""
  every = [mean_chart(named(metric), metric, found["arms"]) for metric in metrics_of(found)]
  seeds = list(dict.fromkeys(seed for about in found["arms"].values() for seed in about["seeds"]))
  single = []
  for metric in metrics_of(found)[:3] if len(seeds) > 1 else ():
    for seed in seeds:
      of = {arm: about["seeds"][seed] for arm, about in found["arms"].items() if metric in about["seeds"].get(seed, {})}
      lines = {arm: list(zip(run["steps"], run[metric])) for arm, run in of.items()}
      single.append(line_chart(f"{named(metric)}, seed {seed}", lines, log=False, share=is_share(metric)))
  seeds_apart = folded("each seed", f'<div class="charts">{"".join(single)}</div>' if any(single) else "")
  return f'<h3>By step, mean over seeds</h3><div class="charts">{"".join(every)}</div>{seeds_apart}' if any(every) else ""


def mean_chart(title: str, metric: str, found: Mapping) -> str:
  """Steps that all seeds of an arm have."""
  lines = {}
  for arm, about in found.items():
    having = [seed for seed in about["seeds"].values() if metric in seed]
    steps = sorted(set.intersection(*(set(seed["steps"]) for seed in having))) if having else []
    lines[arm] = [(step, float(np.mean([seed[metric][seed["steps"].index(step)] for seed in having]))) for step in steps]
  return line_chart(title, lines, log=False, share=is_share(metric))


def arms(found: Mapping) -> str:
  """Each arm's values at its last step and its area under the curve: mean over seeds, and each seed."""
  rows = []
  for arm, about in found["arms"].items():
    seeds = list(about["seeds"].values())
    row: dict[str, Any] = {"arm": whole(arm), "seeds": len(seeds), "step": min(seed["steps"][-1] for seed in seeds)}
    for metric in metrics_of(found):
      if all(metric in seed for seed in seeds):
        row[named(metric)] = spread(metric, [seed[metric][-1] for seed in seeds])
    if all("all_facts" in seed["area"] for seed in seeds):
      row["all facts, area under the curve"] = spread("all_facts", [seed["area"]["all_facts"] for seed in seeds])
    for key in seeds[0]["last"]:                 # of other evaluators: whole scores, not their intervals or parts
      if not key.endswith(("_low", "_high")) and key.count("/") == 1 and all(key in seed["last"] for seed in seeds):
        row[said(key)] = spread(key, [seed["last"][key] for seed in seeds])
    rows.append(row)
  return f"<h3>Arms at their last step</h3>{table(rows)}<p class='soft'>Mean over seeds [each seed].</p>"


def spread(metric: str, values: Sequence[float]) -> Markup:
  """The mean, and each seed where there are several; on one line."""
  each = f" [{' '.join(written(metric, float(value)) for value in values)}]" if len(values) > 1 else ""
  return whole(written(metric, float(np.mean(values))) + each)


def differences(found: Mapping) -> str:
  """Each arm minus the reference, with 95 % intervals, as a forest plot."""
  parts = []
  for at, title in ((HALF, "half-way"), (END, "at the last step"), (AREA, "area under the curve (mean over training)")):
    of = [row for row in found["comparisons"] if row["at"] == at]
    reach = {metric: max(abs(row[end]) for row in of if row["metric"] == metric for end in ("low", "high")) or 1.0
             for metric in dict.fromkeys(row["metric"] for row in of)}
    rows = [difference(row, reach[row["metric"]]) for row in of]
    parts += [heading(4, title) + table(rows)] if rows else []
  note = ('<p class="soft">Same prompts, noise, initial parameters and order of records in every arm of a seed. Intervals resample prompts '
          "and seeds together (pigeonhole bootstrap). The line in the middle is no difference; each kind of score has its own scale.</p>")
  return f"<h3>Paired differences</h3>{note}{''.join(parts)}" if parts else ""


def difference(row: Mapping[str, Any], reach: float) -> dict[str, Any]:
  """A line of the table of differences, whose plot goes from -reach to reach."""
  unit = (100, " points") if is_share(row["metric"]) else (1, "")
  signed = lambda value: f"{unit[0] * value:+.1f}" if unit[1] else f"{value:+.2f}"
  reading = "higher" if row["low"] > 0 else "lower" if row["high"] < 0 else "not told apart"
  plot = Markup(forest(row["difference"], row["low"], row["high"], reach=reach))
  return {"arm": whole(f"{row['arm']} − {row['reference']}"), "of": named(row["metric"]), "step": row["step"] or "", " ": plot,
          "difference": whole(signed(row["difference"]) + unit[1]),
          "95 % interval": whole(f"{signed(row['low'])} … {signed(row['high'])}"), "reading": whole(reading),
          "each seed": whole("  ".join(signed(value) for value in row["by_seed"].values()))}


def sheets(found: Mapping, config: Mapping, runs: Sequence) -> str:
  """Pictures of the same prompts from the same noise, arm beside arm, half-way and at the end, of the first seed."""
  parts = []
  read, total = config["read"], config["base"]["steps"]
  for step in dict.fromkeys(row["step"] for row in found["comparisons"] if row["step"]) or (total,):
    for place, (kind, prompts) in enumerate(found["protocol"].get("shown", {}).items()):
      name = f"{read}_{step:08}.png" if place == 0 else f"{read}_{kind}_{step:08}.png"
      drawn = {run.arm: sheet for run in runs if run.seed == config["seeds"][0] and (sheet := opened(run.workdir / "samples" / name))}
      parts += [heading(4, f"step {step:,}, prompts of kind {kind}") + side_by_side(drawn, prompts)] if drawn else []
  return f"<h3>Pictures side by side <small>seed {config['seeds'][0]}</small></h3>{''.join(parts)}" if parts else ""


def side_by_side(drawn: Mapping[str, Image.Image], prompts: Sequence[str]) -> str:
  """A card for each prompt, with the pictures of the arms; of sheets that don't come apart, the sheets over the list of prompts."""
  apart = {arm: cut(np.asarray(sheet)) for arm, sheet in drawn.items()}
  under = lambda picture, words: f'<figure class="card">{picture}<figcaption>{text(words)}</figcaption></figure>'
  if all(len(cells) >= len(prompts) for cells in apart.values()):
    strips = [("".join(f"<figure>{image(Image.fromarray(cells[i]))}<figcaption>{text(arm)}</figcaption></figure>"
                       for arm, cells in apart.items()), prompt) for i, prompt in enumerate(prompts)]
    cards = "".join(under(f'<div class="strip">{strip}</div>', prompt) for strip, prompt in strips)
    return f'<div class="charts">{cards}</div>'
  listed = "".join(f"<li>{text(prompt)}</li>" for prompt in prompts)
  cards = "".join(under(image(enlarged(sheet), SHEET, pixels=SHEET // 2), arm) for arm, sheet in drawn.items())
  return f'<div class="charts">{cards}</div><ol class="soft">{listed}</ol>'


def captioner(found: Mapping) -> str:
  """How true the captions are that the arms trained on, and what the steps of the preparation found."""
  parts = []
  if found["captions"]:
    rows = [{"kind": kind} | dict(about) for kind, about in found["captions"].items()]
    note = ("<p class='soft'>The side-car's captions against the scenes: fact precision and recall, and the share of captions with any "
            "false fact (hallucination) and with every fact and no false one (perfect).</p>")
    parts.append(f"<h3>The captions that the arms trained on</h3>{note}{table(rows)}")
  if found["prepare"]:
    rows = [{"name": name, "command": Markup(f"<code>mmdiff {text(shlex.join(about['argv']))}</code>"),
             "time": "" if about["seconds"] is None else duration(about["seconds"])} for name, about in found["prepare"].items()]
    parts.append(f"<h3>Preparation</h3>{table(rows)}")
    for name, about in found["prepare"].items():
      scalars = [{"score": said(key), "value": Markup(text(written(key, value)))} for key, value in about["scalars"].items()
                 if not key.endswith(("_low", "_high"))]
      parts.append(folded(f"{name}: {len(scalars)} scores", table(scalars)))
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
    links = " ".join(link(str(run.workdir.relative_to(workdir) / "report.html"), f"seed {run.seed}") for run in own)
    rows.append({"arm": arm, "changes in the base config": Markup("<br>".join(f"<code>{text(line)}</code>" for line in overrides)),
                 "runs": Markup(links)})
  return f"<h3>Settings</h3><p><code>mmdiff {text(shlex.join(argv))}</code></p>{table(rows)}"
