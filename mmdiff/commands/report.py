"""Put runs on a page: what each was for and how it went, curves, tables. At any time, also while they train.

  mmdiff report runs/clip          runs/clip/report.html, as training writes it at every evaluation
  mmdiff report runs/coca runs/coca_long --out=runs/both.html --csv
      curves over each other, where their configs differ; and all the numbers in runs/both.csv

The page needs nothing but itself: it can be mailed, and asks for nothing. Without --out the page of one run is its report.html, and that of
several is comparison.html in the folder that holds them all.
"""
import os
from pathlib import Path

from mmdiff.core.errors import ConfigError, DataError

FLAGS = {
  "out": dict(type="str", default="", help="the page; by default RUN/report.html, or comparison.html beside several runs"),
  "csv": dict(type="bool", default=False, help="the logged numbers too, as a table of commas beside the page"),
}
POSITIONAL = ("runs,",)


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS, positional=POSITIONAL)
  from mmdiff.report import comparison, html, run
  from mmdiff.train import run_directory
  if not given["runs"]:
    raise ConfigError("which run? Give one run directory or several: mmdiff report runs/clip")
  folders = []
  for path in given["runs"]:
    if "@" not in path and not Path(path).is_dir():
      raise DataError(f"{path}: no such folder; expected a run directory, the --workdir of `mmdiff train`")
    folder, step = run_directory.locate(path)
    if step is not None:
      raise ConfigError(f"{path}: a report is of a whole run; leave @{step} out")
    if folder.resolve() not in [other.resolve() for other in folders]:
      folders.append(folder)
  several = len(folders) > 1
  together = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
  out = Path(given["out"] or (together / "comparison.html" if several else folders[0] / "report.html"))
  sheet = out.with_suffix(".csv")
  if given["out"]:
    html.check_free(out)
  if given["csv"] and sheet.exists() and not sheet.read_bytes().startswith(comparison.COLUMNS.encode()):
    raise ConfigError(f"--csv: {sheet} is there, and no table that this command wrote; choose another --out")
  made = [comparison.write_comparison(folders, out) if several else run.write_report(folders[0], out=out)]
  made += [comparison.write_csv(folders, sheet)] if given["csv"] else []
  print("\n".join(map(str, made)))
  return 0
