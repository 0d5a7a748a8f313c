"""Any weight file as `{name: Tensor}`, whatever container it is in. What the bytes are decides, not the suffix."""
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mmdiff.convert import archives, pickles, safetensors_file, tensors
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import DataError, OptionError

# What a folder may keep its weights in, best first; split files come by their index. The stems of transformers, open_clip and diffusers.
STEMS = ("model", "open_clip_model", "diffusion_pytorch_model", "pytorch_model", "open_clip_pytorch_model", "flax_model",
         "diffusion_flax_model")
SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".msgpack", ".npz", ".pt", ".pth", ".ckpt")
# A variant's name stands before the suffix, or within that of an index in one of two places: transformers and diffusers, before 0.30 and
# after it. Shards are named by their index.
VARIANT = r"(?![\w-]*-of-\d)[\w-]+"
NAME = re.compile(rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<before>{VARIANT}))?(?P<suffix>\.(safetensors|bin|msgpack|npz|pt|pth|ckpt))"
                  rf"(?P<index>(\.(?P<middle>{VARIANT}))??\.index(\.(?P<after>{VARIANT}))?\.json)?")
WEIGHTS = (".safetensors", ".bin", ".msgpack", ".npz", ".pt", ".pth", ".ckpt", ".json")
TRAINING_PREFIXES = ("module.", "_orig_mod.")


class Container(NamedTuple):
  """Tensors by name, what the file says about itself, and how it was packed: safetensors, pytorch, torchscript, npz or msgpack."""
  tensors: dict[str, Tensor]
  metadata: dict[str, str]
  kind: str


def read(path: str | os.PathLike, *, prefer: str | None = None) -> Container:
  """The tensors of one file, or of all files of an index, without reading their values.

  prefer: of a checkpoint with several sets of weights, the one to take, such as "state_dict_ema".

  Raises DataError that names the file: unreadable, damaged, or asking for more than tensors.
  """
  path = Path(path)
  if path.suffix == ".json":
    return _sharded(path, prefer)
  if not path.is_file():
    raise DataError(f"{path}: no such file")
  buffer = tensors.mapped(path)
  if prefer and (path.suffix in (".npz", ".msgpack") or not archives.is_pytorch(buffer)):
    raise OptionError(f"prefer: {path} holds one set of weights; leave it out")
  if path.suffix == ".npz":
    return Container(archives.read_npz(path), {}, "npz")
  if path.suffix == ".msgpack":
    return Container(as_pytorch(archives.read_msgpack(path)), {}, "msgpack")
  if archives.is_pytorch(buffer):
    value = archives.read_pytorch(path)
    script = isinstance(value, pickles.Record)
    return Container(_clean(archives.flatten(archives.unwrap(value, prefer=prefer))), {}, "torchscript" if script else "pytorch")
  if path.suffix in (".bin", ".pt", ".pth", ".ckpt") and buffer[8:9].tobytes() != b"{":
    raise DataError(f"{path}: neither a PyTorch file nor safetensors; expected a zip or a pickle, found {buffer[:8].tobytes()!r}")
  found, metadata = safetensors_file.read(path)
  return Container(_clean(found), metadata, "safetensors")


def _sharded(index: Path, prefer: str | None) -> Container:
  if ".bin." not in index.name:
    if prefer:
      raise OptionError(f"prefer: {index} lists one set of weights; leave it out")
    found, metadata = safetensors_file.read_sharded(index)
    return Container(_clean(found), metadata, "safetensors")
  files = safetensors_file.listed(index)
  merged: dict[str, Tensor] = {}
  for file in sorted(set(files.values())):
    merged |= read(index.parent / file, prefer=prefer).tensors
  safetensors_file.check_listed(index, files, merged)
  return Container(merged, {}, "pytorch")


def _clean(found: dict[str, Tensor]) -> dict[str, Tensor]:
  """Names without the prefixes that data-parallel and compiled training leave on every one of them."""
  for _ in TRAINING_PREFIXES:
    for prefix in TRAINING_PREFIXES:
      if found and all(name.startswith(prefix) for name in found):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
  return found


# Lists of modules, whose number Flax's diffusers writes with an underscore.
_LISTS = re.compile(r"\b(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|net|to_out)_(\d+)(?=/)")
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def as_pytorch(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Flax's tensors under the names and in the layouts that the same models have in PyTorch: transformers' and diffusers' Flax classes
  differ from those in nothing else."""
  made = {}
  for name, tensor in found.items():
    *parents, leaf = _LISTS.sub(r"\1/\2", name.removeprefix("params/")).split("/")
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(tensor.shape)) if leaf == "kernel" else None
    shape = tuple(tensor.shape[axis] for axis in axes) if axes else tensor.shape
    turned = lambda tensor=tensor, axes=axes: tensor.read().transpose(axes)
    made[".".join([*parents, _LEAVES.get(leaf, leaf)])] = Tensor(shape, tensor.dtype, turned) if axes else tensor
  return made


def ranked(names: Iterable[str]) -> dict[str, str]:
  """{variant: the best weight file, an index where it is split} of the names in a folder; "" is the variant that no name says."""
  found: dict[str, tuple[int, str]] = {}
  for name in sorted(names):
    named = NAME.fullmatch(name)
    suffix = named["suffix"] + (".index.json" if named["index"] else "") if named else ""
    if named and suffix in SUFFIXES:
      variant = named["before"] or named["middle"] or named["after"] or ""
      rank = SUFFIXES.index(suffix) * len(STEMS) + STEMS.index(named["stem"])
      found[variant] = min(found.get(variant, (rank, name)), (rank, name))
  return {variant: name for variant, (_, name) in found.items()}


def weights(folder: str | os.PathLike) -> dict[str, Path]:
  """{variant: weight file} of a folder, as `ranked`. A folder with one weight file under any other name has that one."""
  files = sorted(file for file in Path(folder).iterdir() if file.is_file())
  others = [file for file in files if file.suffix in WEIGHTS and file.suffix != ".json"]
  return {variant: Path(folder) / name for variant, name in ranked(file.name for file in files).items()} or \
    ({"": others[0]} if len(others) == 1 else {})


def find(folder: str | os.PathLike, *, variant: str = "") -> Path | None:
  """The weight file of a folder (an index where it is split), or None where there is none.

  Without a `variant` it is the one that no name says, or the only one there. Raises DataError for a variant that is not there, and where
  it takes one to choose.
  """
  there = weights(folder)
  if variant in there or not there:
    return there.get(variant)
  if not variant and len(there) == 1:
    return next(iter(there.values()))
  listed = ", ".join(f"{name or 'none'} ({file.name})" for name, file in sorted(there.items()))
  if variant:
    raise DataError(f"{folder}: no weights of variant {variant!r}; the variants there are {listed}")
  raise DataError(f"{folder}: several variants of the weights are there: {listed}; choose one: variant={min(there)!r} "
                  f"(--variant={min(there)})")
