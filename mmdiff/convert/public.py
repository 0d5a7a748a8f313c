"""Loading and saving public checkpoints: the format is found out from configs and key names, the report says what was loaded."""
import json
import os
import re
import shutil
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from mmdiff.convert import FORMATS, bounds, choices, containers, formats, names, rules, safetensors_file
from mmdiff.convert.formats import STATISTICS, TOKENIZER_FILES, Format, Reading, Source
from mmdiff.convert.rules import Report
from mmdiff.core.build import lookup, resolve
from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.core.terminal import tell
from mmdiff.data import token_facts, tokenizers
from mmdiff.data.token_facts import NOBODY, Like

# What names of tensors belong to, whose architecture they do not tell.
BARE = {r"(text|vision)_model\.": "transformers' CLIP or SigLIP", r"encoder\.block\.0\.layer\.0\.SelfAttention\.": "transformers' T5",
        r"(down|mid|up)_block": "diffusers' UNet"}
DTYPES = ("float32", "bfloat16", "float16")


class Loaded(NamedTuple):
  """A public checkpoint as our model.

  params, statistics: nested dicts of float32 numpy arrays; batch statistics are () where there are none. config: `objective`, `data` and,
  for an encoder alone, `model`. style: what a save in the same format repeats. tokenizer: the folder with its files, or None.
  """
  format: str
  family: str
  module: nn.Module
  config: dict[str, Any]
  params: dict[str, Any]
  statistics: Any
  report: Report
  style: Mapping[str, Any]
  tokenizer: Path | None
  dtypes: dict[str, int]
  inputs: tuple
  like: Like = NOBODY                   # how its tokenizer's files are read where they are silent: `data.tokenizers.of_folder`


def is_public(path: str | os.PathLike) -> bool:
  """Whether a path is meant as a public checkpoint: a weight file, or a folder with weights whose config.json is not a run's. Raises
  DataError for a name that means nothing (`convert.names`)."""
  path = Path(names.find(path))
  if path.is_file():
    return path.suffix in containers.WEIGHTS
  if not path.is_dir() or "objective" in formats.read_json(path / "config.json"):
    return False
  return (path / "model_index.json").is_file() or bool(containers.weights(path))


def detect(source: Source) -> Format:
  """The format of a source. Raises DataError that says what was found."""
  for spec in FORMATS.values():
    found = resolve(spec)
    if found.fits(source):
      return found
  names = list(source.container.tensors)
  about = f"config.json of model_type {source.model_type!r}, " if source.model_type else ""
  kind = next((kind for pattern, kind in BARE.items() if any(re.match(pattern, name) for name in names)), "")
  hint = f". The names are those of {kind}, which goes by its config.json: put it beside the weights, in a folder of their own"
  raise DataError(f"{source.path}: no known format: {about}{len(names)} tensors such as {rules.shown(names, 4)} "
                  f"(known: {', '.join(FORMATS)})" + hint * bool(kind and not source.config))


def read(path: str | os.PathLike, *, prefer: str | None = None, variant: str = "", **options) -> tuple[Format, Source, Reading]:
  """A path understood, without reading values. Raises ConfigError for options that its format does not take, or for values of them."""
  choices.check(dict(options, prefer=prefer, variant=variant))
  source = formats.open_source(Path(path), prefer=prefer, variant=variant)
  with bounds.understood(str(source.path)):
    found = detect(source)
  options = {key: value for key, value in options.items() if value is not None}
  wrong = sorted(set(options) - set(found.options))
  if wrong:
    raise ConfigError(f"{source.path} is {found.about} ({found.name}), which takes no {', '.join(wrong)}; "
                      f"it takes {', '.join(found.options) or 'none'}")
  with bounds.understood(f"{source.path} ({found.name})", told=bool(options)):
    return found, source, found.read(source, **options)


def load(path: str | os.PathLike, *, allow_missing: str | None = None, quiet: bool = False, prefer: str | None = None, variant: str = "",
         **options) -> Loaded:
  """The model of a folder or file in a public format. The report goes to stderr unless `quiet`.

  Args:
    path: a folder with weights and their config, or a weight file (its folder's config is read, where there is one).
    allow_missing: regular expression of tensor names that may be missing or unexpected; missing ones get initial values.
    prefer: of a training checkpoint with several sets of weights, which: "state_dict_ema", …
    variant: of a folder with several, such as "fp16" for NAME.fp16.safetensors or the files of NAME.safetensors.index.fp16.json.
    **options: what the weights don't say, or what shall differ from them: image_size, text_len, patch, act, head_width.

  Raises:
    DataError: not a known format, damaged, or tensors are missing, unexpected or of another shape: all are named.
    ConfigError: an option that the format does not take.
  """
  choices.check(dict(allow_missing=allow_missing))
  found, source, reading = read(path, prefer=prefer, variant=variant, **options)
  with bounds.understood(f"{source.path} ({found.name})", told=any(value is not None for value in options.values())):
    shapes = formats.variables(reading.module, reading.inputs)
  bindings = rules.bind(reading.rules, shapes)
  leaves, report = rules.load(reading.found, bindings, shapes, where=str(source.path), ignorable=reading.ignorable,
                              allow_missing=allow_missing, resize=any(options.get(name) for name in ("image_size", "text_len", "patch")),
                              initial=lambda: initial(reading))
  report = report._replace(notices=[*reading.notices, *report.notices])
  if not quiet:
    tell(f"{source.path} ({found.name}): {report.text()}")
  kinds: dict[str, int] = {}
  for tensor in reading.found.values():
    kinds[str(tensor.dtype)] = kinds.get(str(tensor.dtype), 0) + 1
  params = {name: value for name, value in leaves.items() if not name.startswith(STATISTICS)}
  statistics = {name.removeprefix(STATISTICS): value for name, value in leaves.items() if name.startswith(STATISTICS)}
  return Loaded(found.name, found.family, reading.module, reading.config, nest(params), nest(statistics) or (), report, reading.style,
                tokenizer_folder(source.folder), kinds, reading.inputs, reading.like)


def initial(reading: Reading) -> dict[str, np.ndarray]:
  """Fresh values of every leaf, for those that the weights lack."""
  import jax
  made = jax.jit(lambda key: reading.module.init(key, *(jax.numpy.zeros(x.shape, x.dtype) for x in reading.inputs)))(jax.random.key(0))
  flat = flatten(made)
  return {path.removeprefix("params/"): np.asarray(value) for path, value in flat.items()}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  made: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = made
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return made


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(nested, Mapping):
    return {prefix[:-1]: nested} if prefix and not (isinstance(nested, tuple) and not nested) else {}
  return {path: leaf for name, inner in nested.items() for path, leaf in flatten(inner, f"{prefix}{name}/").items()}


def tokenizer_folder(folder: Path | None) -> Path | None:
  """The folder, if there is a tokenizer in it that we read."""
  return folder if folder and tokenizers.vocabulary(folder) else None


def save(path: str | os.PathLike, *, format: str, module: nn.Module, config: Mapping[str, Any], params: Any, statistics: Any = (),
         style: Mapping[str, Any] | None = None, tokenizer: Any = None, files: Path | None = None, dtype: str = "float32",
         shard_bytes: int = safetensors_file.SHARD_BYTES) -> list[str]:
  """Writes a folder in a public format: weights as safetensors, the format's configs, the tokenizer's files. The names of the files.

  Args:
    module, config, params, statistics, style: as in `Loaded`; the style of another format says nothing.
    tokenizer: written as tokenizer.json with the files that say its facts, unless
    files: is a folder, whose tokenizer files are copied as they are; in another format than theirs the facts are written beside them.
    dtype: of the floating tensors written.

  Where transformers' CLIP could not tell the end of a text (`renumbering`), two tokens change their ids, and their rows with them.

  Raises:
    ConfigError: an unknown format, one that is read only, or one that can't express the model.
    CannotWrite: the folder can't be written.
  """
  target = known(format)
  if dtype not in DTYPES:
    raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
  if not isinstance(module, kind_of(target)):
    raise ConfigError(f"format {format!r} is {target.about}, which holds no {type(module).__name__}; that is written as "
                      f"{' or '.join(holding(module)) or 'none of the formats here'}")
  if format == "hf-clip-text" and getattr(module, "skip", 0):
    tell(f"{path}: {format} does not say which layer is read: this encoder's states are those {module.skip} before the last"
         f"{'' if module.norm else ', without the final norm'}, and readers of this folder alone take the last; a whole pipeline "
         "(diffusers) keeps what is read")
  if pair := renumbering(format, tokenizer):
    params, tokenizer, files = exchanged(params, pair), tokenizer.renumbered(*pair), None
  told = {} if tokenizer is None else dict(start=tokenizer.start, end=tokenizer.end, pad=tokenizer.pad, facts=tokenizer.facts)
  writing = target.write(module, config, {**(style or {}), **{key: value for key, value in told.items() if value is not None}})
  leaves = flatten(params) | {STATISTICS + name: value for name, value in flatten(statistics).items()}
  bindings = rules.bind(writing.rules, {name: tuple(value.shape) for name, value in leaves.items()})
  folder = Path(path)
  named = {**rules.save(leaves, bindings, dtype), **writing.more}
  written = safetensors_file.write_sharded(folder, writing.stem, named, shard_bytes=shard_bytes)
  try:
    for name, content in writing.files.items():
      (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
      written.append(name)
    if files is not None:
      for name in TOKENIZER_FILES:
        if (files / name).is_file() and files.resolve() != folder.resolve():
          shutil.copyfile(files / name, folder / name)
          written.append(name)
      if tokenizer is not None and not style:
        about = formats.read_json(folder / token_facts.CONFIG) | {token_facts.KEY: tokenizer.facts.said()}
        (folder / token_facts.CONFIG).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written += [token_facts.CONFIG] * (token_facts.CONFIG not in written)
    elif tokenizer is not None:
      written += tokenizer.export(folder)
  except OSError as error:
    raise CannotWrite(f"cannot write {folder}: {error}") from error
  return written


LEGACY_END = 2             # of transformers' CLIP: with this eos_token_id it reads a text at its highest id, as old configs meant it


def renumbering(format: str, tokenizer: Any) -> tuple[int, int] | None:
  """The two token ids that have to change places before a format can say where a text ends, or None."""
  return (LEGACY_END, tokenizer.vocab_size - 1) if format == "hf-clip" and getattr(tokenizer, "end", None) == LEGACY_END else None


def exchanged(params: Mapping[str, Any], pair: tuple[int, int]) -> dict[str, Any]:
  """Parameters of two towers with two rows of the words' table exchanged."""
  table = np.array(params["text"]["embed"]["embedding"])
  table[list(pair)] = table[list(reversed(pair))]
  return {**params, "text": {**params["text"], "embed": {**params["text"]["embed"], "embedding": table}}}


def holding(module: nn.Module) -> list[str]:
  """The formats that such a module can be written in."""
  return [name for name, spec in FORMATS.items() if (target := resolve(spec)).write and type(module) is kind_of(target)]


def kind_of(target: Format) -> type[nn.Module]:
  """The class of the modules that a format's `write` takes, as its signature says."""
  return typing.get_type_hints(target.write)["module"]


def known(format: str) -> Format:
  """A format that can be written. Raises ConfigError."""
  try:
    found = lookup(FORMATS, format, "format")
  except KeyError as error:
    raise ConfigError(str(error.args[0])) from None
  if found.write is None:
    writable = [name for name, spec in FORMATS.items() if resolve(spec).write is not None]
    raise ConfigError(f"format {format!r} is only read; written are {', '.join(writable)}")
  return found

