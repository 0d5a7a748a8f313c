"""Check a machine, a config, its data and a run directory before a long run; every problem comes with what to do about it.

  mmdiff doctor                                                      the machine alone
  mmdiff doctor --config=configs/clip.py:tiny --workdir=runs/clip    and all that this run needs, down to one train step
  mmdiff doctor --config=configs/clip.py:tiny --keys                 every key that can be set: value, type, default, meaning
  mmdiff doctor --config=configs/clip.py:tiny --keys --match=optim   those with a word in their name

Nothing is written but the file of --json. Exit codes: 0 all well, 64 the config, 65 the data, 70 the machine, 73 the run directory.
"""
import os
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmdiff.core import faults, schema
from mmdiff.core.errors import EXIT_CODES, CannotWrite, ConfigError, DataError
from mmdiff.core.files import versions, write_json
from mmdiff.core.memory import host_memory, nbytes, size
from mmdiff.core.provenance import made_by
from mmdiff.core.terminal import printable

FLAGS = {
  "config": dict(help="config file, configs/NAME.py[:args]"),
  "data": dict(type="source", sets="data.source", help="one's own pictures, as for train"),
  "workdir": dict(type="dir", apart=("keys",), help="run directory that the run would use"),
  "keys": dict(type="bool", default=False, needs=dict(config=True), help="list every key of the config instead"),
  "match": dict(type="str", default="", needs=dict(keys=True), help="only the keys with this in their name"),
  "step": dict(type="bool", default=True, needs=dict(config=True), apart=("keys",), help="compile and run one small train step"),
  "json": dict(type="file", apart=("keys",), help="also write the findings to this file"),
}
BATCHES = 4          # timed of the data


class Found(NamedTuple):
  """One check: what was found, and where it is a problem the exit code and, in `text`, what to do."""
  check: str
  text: str
  code: int = 0
  details: Any = None
  done: bool = True          # False: it needs what an earlier check could not make


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS)
  if given["keys"]:
    print(reference(given["config"], given["match"], shutil.get_terminal_size((140, 24)).columns))
    return 0
  found, code = tell_all(examine(given["config"], Path(given["workdir"]) if given["workdir"] else None, step=given["step"]))
  if given["json"]:
    write_json(Path(given["json"]), dict(argv=["doctor", *argv], **made_by(), config=given["config"],
                                         checks=[one._asdict() | dict(ok=one.done and not one.code) for one in found]))
  return code


def tell_all(checks: Iterable[Found]) -> tuple[list[Found], int]:
  """Prints findings as they come; (all of them, the exit code of the first problem)."""
  found = []
  for one in checks:
    found.append(one)
    print(f"{'PROBLEM' if one.code else 'ok' if one.done else '-':<8}{one.check:<16} {printable(one.text)}", flush=True)
    if one.details:
      print("\n".join("        " + printable(line) for line in columns(one.details)), flush=True)
  problems = [one for one in found if one.code]
  print(f"{len(problems)} of {len(found)} checks found a problem" if problems else f"all {len(found)} checks passed")
  return found, problems[0].code if problems else 0


def reference(config: Mapping, match: str = "", width: int = 140) -> str:
  """Of every key that can be set, or those with a word in them: its name and value; below, its type, default where it differs, and the
  comment beside it in the source, within a width."""
  lines = []
  for path, field, value in schema.walk(config):
    if schema.block_of(field) is None and match.lower() in path.lower():
      default = {id(schema.REQUIRED): "required", id(schema.COMPUTED): "computed"}.get(id(field.default), f"default {field.default!r}")
      shown = "" if value is schema.REQUIRED or value is schema.COMPUTED else f"={value!r}"
      about = "; ".join(filter(None, (schema.describe(field.annotation, field.module), "" if default == f"default {value!r}" else default,
                                      field.comment)))
      lines += [f"--config.{path}{shown}", textwrap.fill(about, width, initial_indent="    ", subsequent_indent="    ")]
  if not lines:
    raise ConfigError(f"--match={match}: no key of this config has it in its name")
  return "\n".join(lines)


def columns(rows: Sequence[Mapping[str, Any]], widest: int = 60) -> list[str]:
  """Rows as aligned lines; the last column is as long as it is."""
  cells = [[str(value) for value in row.values()] for row in rows]
  widths = [min(max(map(len, column)), widest) for column in zip(*cells)]
  return ["  ".join([*(value.ljust(width) for value, width in zip(row[:-1], widths)), row[-1]]).rstrip() for row in cells]


def examine(config: Mapping | None, workdir: Path | None, *, step: bool = True) -> Iterator[Found]:
  """Every check in turn."""
  made: dict[str, Any] = {}
  checks: list[tuple[str, tuple[str, ...], Callable]] = [("versions", (), check_versions), ("devices", (), check_devices),
                                                         ("memory", (), check_memory), ("compile", ("devices",), check_compile)]
  if workdir is not None:
    checks.append(("workdir", (), lambda made: check_workdir(config, workdir)))
  if config is not None:
    checks += [
      ("mesh", ("devices",), lambda made: check_mesh(config)),
      ("data", (), lambda made: check_data(config, workdir)),
      ("throughput", ("data",), lambda made: check_throughput(config, made["data"])),
      ("model", ("mesh", "data"), lambda made: check_model(config, made["mesh"], made["data"])),
      ("parameters", ("model",), lambda made: check_parameters(made["model"])),
      ("sharding", ("model",), lambda made: check_sharding(made["model"])),
      ("disk", ("model",), lambda made: check_disk(config, made["model"], workdir or Path.cwd())),
    ]
    checks += [(f"eval {name}", ("model",), lambda made, name=name: check_eval(config, name, made, workdir)) for name in config["evals"]]
    checks += [("one step", ("model", "throughput"), lambda made: check_step(config, made))] if step else []
  for name, needs, check in checks:
    lacking = [need for need in needs if need not in made]
    if lacking:
      yield Found(name, f"not checked: needs {' and '.join(lacking)}", done=False)
      continue
    try:
      text, made[name], details = check(made)
      yield Found(name, text, 0, details)
    except Exception as met:         # whatever a check meets is its finding
      error = faults.told(met) or met
      code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 70)
      yield Found(name, str(error) if isinstance(error, tuple(EXIT_CODES)) else f"{type(error).__name__}: {error}", code)


# The machine

def check_versions(made):
  found = versions()
  newest = tuple(map(int, found["jax"].split(".")[:2]))
  if not (0, 10) <= newest < (0, 13):
    raise RuntimeError(f"jax {found['jax']} is not among the versions tested, 0.10 to 0.12; pip install 'jax>=0.10,<0.13'")
  return ", ".join(f"{name} {version}" for name, version in found.items()), found, None


def check_devices(made):
  import jax
  devices = jax.devices()
  kind = f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)"
  if devices[0].platform == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu" and Path("/dev/nvidia0").exists():
    raise RuntimeError(f"{kind}, but this machine has an NVIDIA GPU; pip install 'mmdiff[cuda]', or set JAX_PLATFORMS=cpu to mean the CPU")
  return kind, devices, None


def check_memory(made):
  free, total = host_memory()
  parts = [f"host {size(free)} of {size(total)} free, {os.cpu_count()} CPU cores"]
  stats = made["devices"][0].memory_stats() if "devices" in made else None
  if stats and "bytes_limit" in stats:
    parts.append(f"device {size(stats['bytes_limit'] - stats.get('bytes_in_use', 0))} of {size(stats['bytes_limit'])} free")
  return ", ".join(parts), stats or {}, None


def check_compile(made):
  import jax
  import jax.numpy as jnp
  start = time.perf_counter()
  a = jnp.ones((256, 256), jnp.bfloat16)
  value = float(jax.jit(lambda a: (a @ a).astype(jnp.float32).sum())(a))
  if value != 256.0 ** 3:
    raise RuntimeError(f"a product of ones sums to {value}, not {256.0 ** 3}; the device or its driver is broken")
  return f"a bfloat16 product compiled and ran in {time.perf_counter() - start:.2f} s", True, None


# The run directory

def check_workdir(config: Mapping | None, workdir: Path):
  from mmdiff.commands.train import check_drift
  where = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  try:
    if not where.is_dir():
      raise NotADirectoryError(20, "not a folder")
    with tempfile.TemporaryFile(dir=where) as file:
      file.write(b"x" * 4_096)
  except OSError as error:
    raise CannotWrite(f"cannot write in {where}: {error.strerror}; choose another --workdir or mend its permissions") from None
  if config is not None:
    check_drift(config, workdir)
  if (workdir / "config.json").exists():
    from mmdiff.train.inspection import inspect
    newest, damaged, _ = inspect(workdir)
    if damaged:
      raise DataError(f"{workdir}: the newest whole checkpoint is {newest['step'] if newest else 'none'}; " + "; ".join(damaged))
  state = "holds a run to go on with" if (workdir / "config.json").exists() else "exists" if workdir.exists() else "will be made"
  return f"{workdir} {state}; writable", where, None


# The config, its data and its model

def check_mesh(config: Mapping):
  from mmdiff import parallel
  mesh = parallel.make_mesh(**config["mesh"])
  parallel.process_rows(parallel.batch_sharding(mesh), config["batch_size"])
  return f"{dict(mesh.shape)}, {config['batch_size'] // (mesh.shape['data'] * mesh.shape['fsdp'])} rows of the batch a device", mesh, None


def check_data(config: Mapping, workdir: Path | None):
  from mmdiff.commands.train import make_dataset
  try:
    dataset = make_dataset(config, workdir or Path("no run directory"))
  except FileNotFoundError as error:
    raise DataError(f"{error}; set --config.data.source or fetch the data") from None
  name = config["data"]["source"]["name"]
  return f"{len(dataset):,} records of {name}, {dataset.tokenizer.vocab_size} tokens in the vocabulary", dataset, None


def check_throughput(config: Mapping, dataset):
  rows = min(config["batch_size"], 256)
  batches = dataset.train_batches(batch_size=rows, start_step=0)
  first = next(batches)
  start, counts = time.perf_counter(), first["counts"].sum(0)
  for _ in range(BATCHES):
    counts = counts + next(batches)["counts"].sum(0)
  rate = BATCHES * rows / (time.perf_counter() - start)
  batches.close()
  totals = {name: int(value) for name, value in zip(dataset.count_names, counts) if value}
  dataset.check_counts(dict(zip(dataset.count_names, map(int, counts))))
  return f"{rate:,.0f} images/s read and prepared; " + ", ".join(f"{name} {value}" for name, value in totals.items()), first, None


class Plan(NamedTuple):
  """A run without its arrays."""
  objective: Any
  state: Any             # abstract TrainState
  shardings: Any


def check_model(config: Mapping, mesh, dataset):
  from mmdiff.commands.train import check_vocabulary
  from mmdiff.core import tree
  from mmdiff.core.precision import objective_of
  from mmdiff.objectives import OBJECTIVES
  from mmdiff.train import setup
  objective = objective_of(OBJECTIVES, config)
  side, length = config["data"]["image_size"], config["data"]["text_len"]
  example = dict(image=np.zeros((side, side, 3), np.uint8), tokens=np.zeros(length, np.int32), mask=np.ones(length, bool),
                 id=np.zeros((), np.uint32), counts=np.zeros(len(dataset.count_names), np.int32))
  made = setup.plan(config, objective, example, mesh=mesh)
  check_vocabulary(tree.merge(made.state.params, made.state.frozen), dataset.tokenizer, config)
  flops = objective.predict.get("flops")
  cost = f", {flops(1, length) / 1e9:.2f} GFLOP an example to train" if flops else ""
  text = f"{tree.count(made.state.params):,} parameters trained, {tree.count(made.state.frozen):,} frozen{cost}"
  return text, Plan(objective, made.state, made.shardings), None


def check_parameters(plan: Plan):
  """Parameters by their first two path parts."""
  import jax

  from mmdiff.core import tree
  rows: dict[str, dict] = {}
  for held, part in (("trained", plan.state.params), ("frozen", plan.state.frozen)):
    for path, leaf in zip(tree.paths(part), jax.tree.leaves(part)):
      row = rows.setdefault("/".join(path.split("/")[:2]), dict(group="", parameters=0, dtype=str(leaf.dtype), held=held))
      row["parameters"] += int(np.prod(leaf.shape, dtype=np.int64))
  table = [row | dict(group=name, parameters=f"{row['parameters']:,}") for name, row in rows.items()]
  return f"{len({name.split('/')[0] for name in rows})} top-level groups", table, table


def check_sharding(plan: Plan):
  """Where the largest parameters live and what the whole state takes on one device."""
  import jax

  from mmdiff.core import tree
  leaves, shardings = jax.tree.leaves(plan.state), jax.tree.leaves(plan.shardings)
  here = sum(nbytes(leaf, sharding) for leaf, sharding in zip(leaves, shardings))
  whole = sum(map(nbytes, leaves))
  full, spread = tree.merge(plan.state.params, plan.state.frozen), tree.merge(plan.shardings.params, plan.shardings.frozen)
  rows = sorted(zip(tree.paths(full), jax.tree.leaves(full), jax.tree.leaves(spread)), key=lambda row: -nbytes(row[1]))
  split = sum(not sharding.is_fully_replicated for _, _, sharding in rows)
  table = [dict(path=path, shape=str(list(leaf.shape)), layout=str(sharding.spec), bytes=size(nbytes(leaf, sharding)) + " a device")
           for path, leaf, sharding in rows[:12]]
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit") or host_memory()[0] / max(jax.local_device_count(), 1)
  if here > limit:
    raise ConfigError(f"the state takes {size(here)} a device and there are {size(limit)}; raise --config.mesh.fsdp or shrink the model")
  return f"state {size(whole)}, {size(here)} a device; {split} of {len(rows)} parameters split", here, table


def check_disk(config: Mapping, plan: Plan, workdir: Path):
  import jax
  where = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  frozen = sum(map(nbytes, jax.tree.leaves(plan.state.frozen)))
  each = sum(map(nbytes, jax.tree.leaves(plan.state))) - frozen
  need, free = each * (config["checkpoint"]["keep"] + 1) + frozen, shutil.disk_usage(where).free
  text = f"{size(need)} for {config['checkpoint']['keep']} checkpoints and one in the making, {size(free)} free"
  if need > free:
    raise CannotWrite(f"{text}; free space, choose another --workdir, or lower --config.checkpoint.keep")
  return text, need, None


def check_eval(config: Mapping, name: str, made: Mapping, workdir: Path | None):
  """Builds the evaluator, which finds its data and what it needs of the objective."""
  from mmdiff.commands.train import make_evaluators
  from mmdiff.evaluators.base import serve
  services = serve(made["model"].objective.predict, config, mesh=made["mesh"], tokenizer=made["data"].tokenizer,
                   workdir=workdir or Path.cwd())
  evaluator = make_evaluators(dict(config, evals={name: config["evals"][name]}), services)[name]
  return f"every {evaluator.every_steps} steps, on {evaluator.params or 'the raw parameters'}", evaluator, None


def check_step(config: Mapping, made: Mapping):
  """One optimiser step on a few real records."""
  import jax

  from mmdiff.train.setup import set_up
  ways = made["mesh"].shape["data"] * made["mesh"].shape["fsdp"]
  unit = ways * config["accumulate"]
  rows = max(8 // unit, 1) * unit
  batch = {key: np.resize(value, (rows, *value.shape[1:])) for key, value in made["throughput"].items()}
  start = time.perf_counter()
  setup = set_up(dict(config, batch_size=rows), made["model"].objective, {key: value[0] for key, value in batch.items()})
  with jax.set_mesh(setup.mesh):
    compiled = time.perf_counter() - start
    _, metrics = setup.step(setup.state, setup.put({key: value[setup.rows] for key, value in batch.items()}))
    loss, skipped = float(metrics["loss"]), int(metrics["skipped"])
  if skipped or not np.isfinite(loss):
    raise ConfigError(f"the first step on {rows} records gave the loss {loss} and was skipped; look at the data and the model's dtype")
  return f"loss {loss:.4f} on {rows} records, compiled in {compiled:.1f} s", loss, None
