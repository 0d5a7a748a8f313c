"""What every format module offers, and what a path is before anyone knows its format."""
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from mmdiff.convert import bounds, containers, names
from mmdiff.convert.containers import Container
from mmdiff.convert.rules import Rule, Shape
from mmdiff.convert.tensors import Tensor
from mmdiff.core import tree
from mmdiff.core.errors import DataError, OptionError
from mmdiff.core.files import read_object
from mmdiff.core.spelling import shown
from mmdiff.data.token_facts import NOBODY, Like

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model", "vocab.txt")
STATISTICS = "batch_stats/"           # how the paths of batch statistics begin; parameters have their own


class Source(NamedTuple):
  """Weights and the configs beside them, not yet understood. `folder` is None for a file that stands alone."""
  path: Path
  folder: Path | None
  config: Mapping[str, Any]           # config.json, {} without one
  open_clip: Mapping[str, Any]        # open_clip_config.json
  preprocessor: Mapping[str, Any]     # preprocessor_config.json, or its part of processor_config.json
  container: Container

  def has(self, *names: str) -> bool:
    return all(name in self.container.tensors for name in names)

  @property
  def model_type(self) -> str:
    return str(self.config.get("model_type", ""))


class Reading(NamedTuple):
  """A source as one format understands it.

  module: the model. config: what a run's config says of it: `objective` (None for an encoder alone), `data`, `model`. rules: bind `found`
  to the leaves of `variables(module, inputs)`. style: what a save in the same format keeps: spellings, counters, the config as it was.
  """
  module: nn.Module
  config: dict[str, Any]
  rules: Sequence[Rule]
  found: Mapping[str, Tensor]
  inputs: tuple
  ignorable: Sequence[str] = ()
  style: Mapping[str, Any] = {}
  notices: Sequence[str] = ()
  facts: Mapping[str, Any] = {}         # what else there is to say of it: prediction type, scaling factor, …
  like: Like = NOBODY                   # whose tokenizer it was trained with, where the tokenizer's files don't say


class Writing(NamedTuple):
  """What a save writes: rules for the tensors, JSON files, the stem of the weight file, and tensors that our model has no leaf for."""
  rules: Sequence[Rule]
  files: Mapping[str, Any]
  stem: str
  more: Mapping[str, Tensor] = {}


class Format(NamedTuple):
  """A public layout. `write(module, config, style)` is None for layouts that are read only; it raises ConfigError for a model that the
  layout can't express. `options` are the names of what `read(source, **options)` may be told."""
  name: str
  family: str
  about: str
  fits: Callable[[Source], bool]
  read: Callable[..., Reading]
  write: Callable[..., Writing] | None
  options: tuple[str, ...] = ()


def open_source(path: str | Path, *, prefer: str | None = None, variant: str = "") -> Source:
  """What a folder or a weight file holds. Raises DataError: nothing there, no weights in it, unreadable."""
  path = Path(names.find(path))
  if variant and path.is_file():
    raise OptionError(f"{path} is one file, which has no variants; leave out variant")
  folder = path if path.is_dir() else path.parent
  file = containers.find(path, variant=variant) if path.is_dir() else path
  if file is None and (folder / "model_index.json").is_file():
    parts = sorted(part.name for part in folder.iterdir() if part.is_dir() and (part / "config.json").is_file())
    raise DataError(f"{path}: a pipeline of several models; give the folder of one: {', '.join(parts) or 'none is here'}")
  if file is None:
    raise DataError(f"{path}: no weights in this folder; expected one of model.safetensors, pytorch_model.bin, "
                    "open_clip_model.safetensors, …")
  configs = [*(read_json(folder / name) for name in ("config.json", "open_clip_config.json")), image_processor(folder)]
  alone = not path.is_dir() and not configs[0] and not configs[1]
  return Source(path, None if alone else folder, *configs, containers.read(file, prefer=prefer))


def image_processor(folder: Path) -> dict[str, Any]:
  """The image processor's config of a folder, {} without one. transformers 5 keeps it within processor_config.json, which goes first;
  diffusers keeps an image encoder's in the folder beside it."""
  for place in ("", "../feature_extractor", "../image_processor"):
    for name in ("processor_config.json", "preprocessor_config.json"):
      found = read_json(folder / place / name)
      if isinstance(found.get("image_processor"), dict):
        return dict(found["image_processor"])
      if found and name == "preprocessor_config.json":
        return found
  return {}


def read_json(file: Path) -> dict[str, Any]:
  """The object of a file, {} without the file. Raises DataError for what is none."""
  if not file.is_file():
    return {}
  found = read_object(file, infinities=True)
  if "objective" not in found:          # a run's own config has ranges of its own
    bounds.check(found, str(file))
  return found


def variables(module: nn.Module, inputs: tuple) -> dict[str, Shape]:
  """{path: shape} of the parameters, and of batch statistics under `STATISTICS`, without making them.

  inputs: arguments of the module as ShapeDtypeStructs.
  """
  leaves, structure = jax.tree.flatten(inputs)
  return dict(_variables(module, structure, *leaves))


@functools.lru_cache(maxsize=64)         # tracing a published UNet takes seconds, and reading and saving both ask
def _variables(module: nn.Module, structure: jax.tree_util.PyTreeDef, *leaves: jax.ShapeDtypeStruct) -> dict[str, Shape]:
  made = jax.eval_shape(module.init, jax.random.key(0), *jax.tree.unflatten(structure, leaves))
  shapes: dict[str, Shape] = {}
  for collection, values in made.items():
    prefix = "" if collection == "params" else f"{collection}/"
    shapes |= {prefix + path: leaf.shape for path, leaf in zip(tree.paths(values), jax.tree.leaves(values))}
  return shapes


def need(found: Mapping[str, Tensor], name: str, where: str, prefix: str = "") -> Shape:
  """The shape of a tensor that the architecture is read from; `prefix` was taken off the names. Raises DataError."""
  if name not in found:
    raise DataError(f"{where}: {prefix}{name} is missing, from which the architecture is read")
  return found[name].shape


def take(config: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str, default: Any = None) -> Any:
  """A value of a public config. Raises DataError that names the key if it is absent without a default, or of another type."""
  value = config.get(key, default)
  if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
    raise DataError(f"{where}: {key}: expected {getattr(kind, '__name__', kind)}, found {shown(value)}")
  return value
