"""What a config's values must satisfy beyond their types: ranges, and values that depend on each other."""
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmdiff.core.schema import Problem
from mmdiff.core.spelling import nearest

INF = float("inf")
# Dotted path -> (least, most); the first pattern that matches the whole path counts.
RANGES = (
  (r"seed", 0, 2 ** 32 - 1),
  (r"steps|batch_size|accumulate|log_every_steps|max_bad_steps|checkpoint\.(every_steps|keep)", 1, INF),
  (r"evals\.\w+\.(every_steps|steps|count|prompts|limit|batch_size)", 1, INF),
  (r"data\.(image_size|text_len|max_pixels|max_decode_bytes|threads)", 1, INF),
  (r"data\.workers", 0, INF),
  (r"data\.max_bad_fraction", 0, 1),
  (r"data\.captions\.\w+", 0, 1),
  (r"optim\.\w+\.(lr|warmup_steps|weight_decay|clip|update_clip|final)", 0, INF),
  (r"optim\.\w+\.(b1|b2|b2_cap)", 0, 1 - 1e-12),
  (r"ema\.\w+", 0, 1),
  (r"objective\.(.*\.)?(width|depth|heads|layers|image_size|text_len|vocab|patch)", 1, INF),
  (r"objective\.(.*\.)?\w*dropout", 0, 1),
)


def check(config: Mapping) -> list[Problem]:
  """Problems of a config that the schema has passed and completed; each is named by the key to change."""
  return [*_ranges(config, ""), *_related(config)]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
  if isinstance(value, Mapping):
    for key, inner in value.items():
      yield from _leaves(inner, f"{path}.{key}" if path else key)
  else:
    yield path, value


def _ranges(config: Mapping, path: str) -> Iterator[Problem]:
  for path, value in _leaves(config, ""):
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      low, high = next(((low, high) for pattern, low, high in RANGES if re.fullmatch(pattern, path)), (-INF, INF))
      if not low <= value <= high:
        bound = f"at least {low}" if high == INF else f"a value from {low} to {high:g}" if high != 1 - 1e-12 else f"{low} or more, below 1"
        yield Problem(path, f"expected {bound}, found {value}")


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
    average = options.get("params", "")
    if average and average not in config["ema"]:
      guess = nearest(average, config["ema"])
      yield Problem(f"evals.{name}.params", f"no average is called {average!r}" + (f"; did you mean {guess!r}?" if guess else "")
                    + f" (\"\" is the raw parameters, the averages of config.ema are {', '.join(config['ema']) or 'none'})")
  yield from _sizes(config)


def _sizes(config: Mapping) -> Iterator[Problem]:
  """A model smaller than its data: JAX clamps an embedding lookup out of range without a word."""
  data = config["data"]
  vocab = data["tokenizer"].get("vocab")
  for path, value in _leaves(config["objective"], "objective"):
    last = path.rpartition(".")[2]
    if last == "vocab" and isinstance(value, int) and isinstance(vocab, int) and value < vocab:
      yield Problem(path, f"{value} entries for the {vocab} tokens of data.tokenizer.vocab")
    if last == "text_len" and isinstance(value, int) and value < data["text_len"]:
      yield Problem(path, f"{value} is shorter than the captions of data.text_len {data['text_len']}")
  objective = config["objective"]
  latents = any(isinstance(value, Mapping) and key not in ("model", "denoiser", "condition") for key, value in objective.items())
  for part in ("model", "denoiser"):
    size = objective[part].get("image_size") if isinstance(objective.get(part), Mapping) else None
    if isinstance(size, int) and size != data["image_size"] and not latents:
      yield Problem(f"objective.{part}.image_size", f"{size}, but the pictures of data.image_size are {data['image_size']}")
