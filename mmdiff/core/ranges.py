"""What numbers and texts may be, by the key that holds them, before anything is built from them.

A model of 10^9 layers has the right types and burns a processor until it is killed, and a picture 10^9 pixels wide has no memory: a
config that comes from elsewhere, or with a slip of the finger, is refused here. `RANGES` goes by the dotted key; a number that no line
names has the last two. Bounds are far beyond anything published, and no promise that what is within them fits a machine.
"""
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmdiff.core.spelling import shown

BILLION, WIDE, DEEP, SIDE = 10 ** 9, 2 ** 16, 2 ** 8, 2 ** 14
ABOVE, BELOW = 1e-12, 1 - 1e-12         # "above 0" and "below 1"
# Dotted key -> (least, most); the first pattern that matches the whole key counts. Items of a tuple have its key.
RANGES = (
  (r"(.*\.)?seed", 0, 2 ** 32 - 1),
  (r"steps|log_every_steps|max_bad_steps|checkpoint\.every_steps|evals\.[^.]*\.every_steps", 1, BILLION),
  (r"batch_size|accumulate|checkpoint\.keep", 1, 2 ** 24),
  (r"mesh\.\w+", -1, 2 ** 20),
  (r"ema\.[^.]*|data\.captions\..*|data\.max_bad_fraction|.*\.alt_(?!cut_chars)\w+|.*\.(top_p|\w*dropout|stop_at)", 0, 1),
  (r"data\.held_out|.*source\.share", 0, BELOW),
  (r"data\.image_size", 1, SIDE),
  (r"data\.text_len", 2, WIDE),
  (r"data\.max_pixels|data\.max_decode_bytes", 1, 2 ** 44),
  (r"data\.threads", 1, 1_024),
  (r"data\.workers", 0, 1_024),
  (r"data\.augment\.crop", 0, 1),
  (r"data\.tokenizer\.vocab", 1, 2 ** 24),
  (r".*source\.(of\.)*(size|\w+_size)", 0, BILLION),
  (r".*source\.(of\.)*\w+", 1, WIDE),
  (r"evals\.[^.]*\.(steps|columns|noises|beams|captions_per_image)", 1, 10_000),
  (r"evals\.[^.]*\.(count|prompts|shown|per_category)", 1, 10 ** 6),
  (r"evals\.[^.]*\.limit|data\.tokenizer\.sample", 1, BILLION),
  (r"evals\.[^.]*\.(max_len|min_len|top_k|no_repeat_ngram|candidates)", 0, WIDE),
  (r"evals\.[^.]*\.temperature", 0, 1e3),
  (r"evals\.[^.]*\.repetition_penalty", ABOVE, 1e3),
  (r"evals\.[^.]*\.(guidance|guidances|length_penalty)", -1e3, 1e3),
  (r"optim\.[^.]*\.(b1|b2|b2_cap)", 0, BELOW),
  (r"optim\.[^.]*\.eps", 0, 1),
  (r"optim\.[^.]*\.layer_decay", ABOVE, 1),
  (r"optim\.[^.]*\.min_factored", 1, BILLION),
  (r"optim\.[^.]*\.warmup_steps", 0, BILLION),
  (r"optim\.[^.]*\.\w+", 0, 1e8),
  (r"objective\.(chunk|logits_chunk|discriminator_start)", 0, BILLION),
  (r"objective\.(.*\.)?image_size", 1, SIDE),
  (r"objective\.(.*\.)?vocab", 1, 2 ** 24),
  (r"objective\.(.*\.)?text_len", 1, WIDE),
  (r"objective\.(.*\.)?(queries|skip|text_layers|depths|attention_levels)", 0, WIDE),
  # Made one by one, where a depth is of a scan.
  (r"objective\.condition\.(\w+\.)?layers", 0, 64),
  (r"objective\.(.*\.)?(blocks|layers|scales|unroll)", 1, 64),
  (r"objective\.(.*\.)?(\w*width|widths|\w*mlp_dim|embed_dim|groups|latent_channels|channels|mults)", 1, WIDE),
  (r"objective\.(.*\.)?(\w*depth)", 1, DEEP),
  (r"objective\.(.*\.)?(\w*heads|kernel|patch)", 1, 1_024),
  (r"objective\.(.*\.)?(std|scale|scale_init|time_shift|sigma_data)", ABOVE, 1e6),
  (r"objective\.(.*\.)?(eps|\w+_std)", 0, 1e6),
  (r"objective\.bias_init|objective\.denoiser\.gate_init", -1e4, 1e4),
  (r"objective\.(lambda_\w+|\w+_weight|min_snr_gamma|offset_noise)", 0, 1e8),
)
# The same of flags; what is too small is told by the command that reads it.
OF_FLAGS = (
  (r"height|width|tile|size|image_size|patch|feather", -SIDE, SIDE),
  (r"text_len|max_len|min_len|head_width|top_k|no_repeat_ngram|beams", -WIDE, WIDE),
  (r"threads|warmup", -1_024, 1_024),
  (r"batch_size|vocab|fsdp", -2 ** 24, 2 ** 24),
  (r"steps|sampling_steps|per_prompt|noise_level", -10 ** 6, 10 ** 6),
  (r"seed", -2 ** 32, 2 ** 32 - 1),
  (r"max_pixels", -2 ** 40, 2 ** 40),
)
WHOLE, REAL = (0, 2 ** 31 - 1), (-1e8, 1e8)       # of whole numbers and of others that no line names
# Dotted key -> (fewest, most) items of a tuple.
LENGTHS = (
  (r"objective\.(.*\.)?(mean|std)", 3, 3),
  (r"objective\.(.*\.)?blocks", 4, 4),
  (r"objective\.(.*\.)?(widths|mults|depths)", 1, 16),
)
LETTERS = 65_536                        # at most, of any text
# Keys of paths: no file system has a longer name, and asking for one is an error of the system's own.
PATHS, NAME = r"init\.(path|parts)(\..*)?|(.*\.)?(path|urls|sidecar|features|files|scorer|table|font|dataset|\w+_dir)", 255
NAMES = r"\w[\w.-]*"                    # of what is a file or a column too: entries of `ema`, `evals` and `optim`


@functools.cache
def numbers_of(path: str, *, whole: bool) -> tuple[float, float]:
  """(least, most) of the number at a dotted key."""
  return next(((low, high) for pattern, low, high in RANGES if re.fullmatch(pattern, path)), WHOLE if whole else REAL)


def wrong_flag(name: str, value: Any) -> str | None:
  """Why a number of a flag, or one among several, is refused, or None."""
  for item in value if isinstance(value, tuple) else (value,):
    if isinstance(item, (int, float)) and not isinstance(item, bool):
      low, high = next(((low, high) for pattern, low, high in OF_FLAGS if re.fullmatch(pattern, name)), (-2 ** 31, 2 ** 31 - 1))
      if wrong := wrong_number(item, low, high):
        return wrong
    elif isinstance(item, str) and (wrong := wrong_text(item)):
      return wrong
  return None


def wrong_number(value: int | float, low: float, high: float) -> str | None:
  """Why a number is refused, or None."""
  if low <= value <= high and math.isfinite(value):
    return None
  bare = lambda bound: f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
  least = "a number above 0" if low == ABOVE else f"at least {bare(low)}"
  most = "below 1" if high == BELOW else f"at most {bare(high)}"
  within = f"a value from {bare(low)} to {bare(high)}" if low != ABOVE and high != BELOW else f"{least}, {most}"
  return f"expected {within if value > high or (low, high) == (0, 1) or value != value else least}, found {shown(value)}"


def wrong_text(text: str) -> str | None:
  """Why a text is refused, or None: longer than anything meant, or with what no file name or report can hold."""
  if len(text) > LETTERS:
    return f"expected at most {LETTERS:,} letters, found {len(text):,}"
  if "\0" in text or not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
    return f"expected letters, found a null or half a letter in {shown(text)}"
  return None


def wrong_path(text: str) -> str | None:
  """Why a text at a key of `PATHS` names no file, or None."""
  longest = max(re.split(r"[/,]", text), key=len)
  return f"expected names of at most {NAME} letters, found {shown(longest)}" if len(longest.encode("utf-8", "replace")) > NAME else None


def problems(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
  """(dotted key, what is wrong) of every number, text, name and tuple of a config."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      dotted = f"{path}.{key}" if path else str(key)
      if wrong := wrong_text(str(key)):
        yield f"{path}.{shown(str(key))}".lstrip("."), wrong
      elif path in ("ema", "evals", "optim") and not re.fullmatch(NAMES, str(key)):
        yield path, f"expected names of letters, digits, dots, dashes and underscores, found {shown(key)}"
      elif path == "ema" and ("." in str(key) or key == "raw"):       # it is the first part of the paths of its parameters
        yield path, f"expected a name without dots other than 'raw', which means the parameters themselves; found {shown(key)}"
      else:
        yield from problems(inner, dotted)
  elif isinstance(value, (tuple, list)):
    low, high = next(((low, high) for pattern, low, high in LENGTHS if re.fullmatch(pattern, path)), (0, len(value)))
    if not low <= len(value) <= high:
      yield path, f"expected {low if low == high else f'{low} to {high:,}'} values, found {len(value):,}"
      return
    yield from ((path, wrong) for item in value for _, wrong in problems(item, path))
  elif isinstance(value, str):
    wrong = wrong_text(value) or (wrong_path(value) if re.fullmatch(PATHS, path) else None)
    yield from [(path, wrong)] if wrong else []
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield from ((path, wrong) for wrong in [wrong_number(value, *numbers_of(path, whole=isinstance(value, int)))] if wrong)
