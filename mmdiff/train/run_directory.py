"""Finding a run directory and reading its config, without importing JAX."""
from collections.abc import Mapping
from pathlib import Path

from mmdiff.convert import names
from mmdiff.core import ranges, schema
from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object
from mmdiff.train import sums

RAW = "raw"


def locate(path: str | Path) -> tuple[Path, int | None]:
  """`DIR` or `DIR@STEP` as (run directory, step). Raises DataError with the run directories nearby."""
  found = names.find(path)
  folder, _, number = found.rpartition("@")
  where, step = (Path(folder), int(number)) if folder and number.isdecimal() and not Path(found).exists() else (Path(found), None)
  if not (where / "config.json").is_file():
    near = sorted(str(file.parent) for file in where.glob("*/config.json"))[:5] if where.is_dir() else []
    raise DataError(f"{where}: no model, but {names.what(where)}; " + (f"did you mean {', '.join(near)}?" if near else
                                                                       f"expected {names.EXPECTED}"))
  return where, step


def read_config(workdir: Path) -> dict:
  """The run's config, checked and complete. Raises DataError."""
  file = workdir / "config.json"
  sums.check(workdir, "config.json", "tokenizer.json")
  config = read_object(file)
  problems = schema.check(config)
  if not problems:
    config = schema.complete(config)
    problems = [schema.Problem(*one) for one in ranges.problems(config)]
  if problems:
    raise DataError(f"{file} is not a config of this version: " + "; ".join(map(str, problems[:5])))
  return config


def average(config: Mapping, params: str | None) -> str:
  """The average that `--params` names: "" for "raw"; by default `eval` where the run keeps one, else the raw parameters."""
  if params is None:
    return "eval" if "eval" in config["ema"] else ""
  return "" if params == RAW else params
