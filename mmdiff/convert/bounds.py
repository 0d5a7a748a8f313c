"""What the numbers of a public config may be, before a model is made of them, and errors that strangers' files cause as one kind.

Files from elsewhere are not trusted: no heads, a list where a name is expected, or 10^9 layers must end in one line that names the key.
"""
import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmdiff.core.errors import ConfigError, DataError, OptionError
from mmdiff.core.ranges import ABOVE, DEEP, SIDE, WIDE, wrong_number, wrong_text
from mmdiff.core.spelling import brief, shown

# Key of a config.json or an open_clip_config.json -> (least, most). Items of a list have its key.
RANGES = (
  (r"hidden_size|intermediate_size|projection_(dim|size)|width|embed_dim|d_model|d_ff|d_kv|cross_attention_dim|block_out_channels|head_width"
   r"|latent_channels|in_channels|out_channels|num_channels|addition_time_embed_dim|projection_class_embeddings_input_dim"
   r"|norm_num_groups|attn_pooler_queries|max_position_embeddings|context_length|n_positions", 1, WIDE),
  (r"num_hidden_layers|num_layers|layers|layers_per_block|transformer_layers_per_block", 1, DEEP),
  (r"num_attention_heads|num_heads|heads|attention_head_dim|attn_pooler_heads", 1, 4 * DEEP),
  (r"image_size|patch_size|sample_size", 1, SIDE),
  (r"vocab_size", 1, 2 ** 24),
  (r"num_train_timesteps", 1, 100_000),
  (r"num_class_embeds", 0, WIDE),
  (r"layer_norm_eps(ilon)?|norm_eps", 0, 1),
  (r"mlp_ratio", ABOVE, 1_000),
  (r"scaling_factor|rescale_factor|image_std|std", ABOVE, 1e6),
)
LEVELS = 16               # of a UNet or an autoencoder: its blocks are made one by one
INFINITE = ("lambda_min_clipped",)        # minus infinity is diffusers' own value of it, and stands in its files
NUMBERS = (-1e32, 1e32)   # of what no line names: ids, rates, lengths that stand for "none"
DEPTH = 32                # of nesting


def check(config: Mapping[str, Any], where: str) -> None:
  """Raises DataError for the first number, text, list or nesting that no published config comes near to."""
  for path, wrong in _problems(config, "", 0):
    raise DataError(f"{where}: {path}: {wrong}")


def _problems(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
  key = path.rpartition(".")[2]
  if depth > DEPTH:
    yield path, f"nested more than {DEPTH} deep"
  elif isinstance(value, Mapping):
    for name, inner in value.items():
      yield from _problems(inner, f"{path}.{name}" if path else shown(name)[1:-1], depth + 1)
  elif isinstance(value, (list, tuple)):
    if key in ("block_out_channels", "layers", "down_block_types", "up_block_types") and not 1 <= len(value) <= LEVELS:
      yield path, f"expected 1 to {LEVELS} values, found {len(value):,}"
    for inner in value:
      yield from _problems(inner, path, depth + 1)
  elif isinstance(value, str):
    yield from ((path, wrong) for wrong in [wrong_text(value)] if wrong)
  elif isinstance(value, (int, float)) and not isinstance(value, bool) and not (key in INFINITE and value == -math.inf):
    low, high = next(((low, high) for pattern, low, high in RANGES if re.fullmatch(pattern, key)), NUMBERS)
    yield from ((path, wrong) for wrong in [wrong_number(value, low, high)] if wrong)


@contextlib.contextmanager
def understood(where: str, *, told: bool = False) -> Iterator[None]:
  """Errors of reading a stranger's config, or of making the model that it describes, as a DataError of one line.

  told: whether the caller was given options, of which a ConfigError may speak; it passes then.
  """
  try:
    yield
  except (DataError, OptionError):
    raise
  except ConfigError as error:
    if told:
      raise
    raise DataError(f"{where}: {error}") from error
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, AssertionError) as error:
    about = " ".join(str(error).split())
    raise DataError(f"{where}: describes no model of its kind: {type(error).__name__}: {brief(about, 200)}") from error
