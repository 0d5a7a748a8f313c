"""What a config's values must satisfy beyond their types: ranges, and values that depend on each other."""
import re
from collections.abc import Callable, Iterator, Mapping

from mmdiff.core import ranges, sizes
from mmdiff.core.schema import Problem
from mmdiff.core.signatures import fields, table
from mmdiff.core.spelling import brief, nearest, shown

DISCRETE = ("linear", "scaled_linear", "cosine")          # schedules whose times are uniform where nothing else is said
# Keys of an objective that are read only where a condition holds, and the condition in words.
CONDITIONAL: tuple[tuple[tuple[str, ...], Callable[[Mapping], bool], str], ...] = (
  (("min_snr_gamma",), lambda objective: objective["weighting"] == "min_snr", "objective.weighting 'min_snr'"),
  (("time_mean", "time_std"), lambda objective: objective["time_sampling"] not in ("uniform", "auto") or
   objective["time_sampling"] == "auto" and objective["schedule"] not in DISCRETE, "times that are drawn from a normal distribution"),
  (("discriminator_weight", "discriminator_start", "adaptive"), lambda objective: bool(objective["discriminator"]),
   "objective.discriminator"),
  (("perceptual_weight",), lambda objective: bool(objective["perceptual"]), "objective.perceptual"),
)


def check(config: Mapping) -> list[Problem]:
  """Problems of a config that the schema has passed and completed; each is named by the key to change."""
  found = [*(Problem(*one) for one in ranges.problems(config)), *_related(config), *_unread(config["objective"])]
  return [Problem(problem.path, brief(problem.message)) for problem in dict.fromkeys(found)]


def _unread(objective: Mapping) -> Iterator[Problem]:
  """Keys that were set and would change nothing."""
  own = fields(table("mmdiff.objectives:OBJECTIVES")[objective["name"]])
  for keys, read, where in CONDITIONAL:
    changed = [key for key in keys if key in own and objective.get(key) != own[key].default]
    if changed and not read(objective):
      yield Problem(f"objective.{changed[0]}", f"says nothing without {where}, found {objective[changed[0]]}; leave it out")


def _related(config: Mapping) -> Iterator[Problem]:
  batch, accumulate, mesh, data = config["batch_size"], config["accumulate"], config["mesh"], config["data"]
  if accumulate >= 1 and batch % accumulate:
    yield Problem("accumulate", f"batch_size {batch} does not divide into {accumulate} equal microbatches")
  for axis, size in mesh.items():
    if size < 1 and size != -1:
      yield Problem(f"mesh.{axis}", f"expected a positive size or -1 for the devices left over, found {size}")
  if list(mesh.values()).count(-1) > 1:
    yield Problem("mesh.data", f"only one size may be -1, found {dict(mesh)}")
  ways = [size for axis, size in mesh.items() if axis in ("data", "fsdp") and size > 0]
  for axis, size in mesh.items():
    if axis in ("data", "fsdp") and size > 0 and batch % size:
      yield Problem("batch_size", f"{batch} does not divide over mesh.{axis} {size}")
  if len(ways) == 2 and not any(batch % size for size in ways) and batch % (ways[0] * ways[1]):
    yield Problem("batch_size", f"{batch} does not divide over mesh.data × mesh.fsdp = {ways[0] * ways[1]}")

  shares = data["captions"]
  if abs(sum(shares.values()) - 1) > 1e-6:
    listed = ", ".join(f"{kind} {share:g}" for kind, share in shares.items()) or "none"
    yield Problem("data.captions", f"shares must sum to 1, found {sum(shares.values()):g} ({listed})")
  augment = data.get("augment") or {}
  crop = augment.get("crop") or ()
  if crop and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
    yield Problem("data.augment.crop", f"expected (min area, max area) with 0 < min <= max <= 1, or () for none, found {tuple(crop)}")

  for name, options in config["evals"].items():
    rest = options.get("source") or {}
    if rest.get("name") == "held_out" and rest["of"] == data["source"] and rest["share"] > data["held_out"] + 1e-9:
      yield Problem(f"evals.{name}.source.share", f"training leaves out {data['held_out']:g} (data.held_out), found {rest['share']:g}: it "
                    "would be scored on records that it was trained on")
    average = options.get("params", "")
    if average and average not in config["ema"]:
      guess = nearest(average, config["ema"])
      yield Problem(f"evals.{name}.params", f"no average is called {average!r}" + (f"; did you mean {guess!r}?" if guess else "")
                    + f" (\"\" is the raw parameters, the averages of config.ema are {', '.join(config['ema']) or 'none'})")
  patterns = {"freeze": config["freeze"]} | {f"optim.{name}.decayed": group.get("decayed") or () for name, group in config["optim"].items()}
  for path, listed in patterns.items():
    for pattern in listed:
      try:
        re.compile(pattern)
      except (re.error, RecursionError, OverflowError) as error:
        yield Problem(path, f"{shown(pattern)} is no pattern: {error}")
  init = config.get("init") or {}
  if init.get("differs") and not (init.get("path") or init.get("parts")):
    yield Problem("init.differs", f"says nothing without init.path or init.parts, found {init['differs']!r}; leave it out")
  if not init.get("path"):
    renamed = {here: there for here, there in (init.get("map") or {}).items() if there}     # "" says what stays as it was initialised
    for key, said in dict(params="" if init.get("parts") else init.get("params"), map=renamed).items():
      if said:
        yield Problem(f"init.{key}", f"says nothing without init.path, found {said!r}; name the run or checkpoint to start from")
  yield from (Problem(*one) for one in sizes.problems(config))
