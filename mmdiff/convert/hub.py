"""Fetching a model from the Hugging Face hub: only when asked, only files that are read here, and nothing of them is run.

Of a folder with weights in several containers the best one that is read is taken, safetensors before all others, so that no pickle comes
where there are safetensors; of a pipeline the folders of its parts. HF_ENDPOINT, HF_HOME, HF_TOKEN and the like are the hub's own.
"""
import errno
import os
import posixpath
from collections.abc import Collection, Sequence
from pathlib import Path

from mmdiff.convert import containers, names
from mmdiff.convert.formats import TOKENIZER_FILES
from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.core.files import read_object
from mmdiff.core.spelling import nearest
from mmdiff.core.terminal import tell

CONFIGS = ("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json", "scheduler_config.json",
           "model_index.json", *TOKENIZER_FILES)
INDEX = "model_index.json"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "low_res_scheduler", "feature_extractor",
         "image_processor")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


def fetch(name: str, *, out: Path | None = None, variant: str = "") -> str:
  """Fetches `[hf://]ORG/NAME[/FOLDER or FILE][@REVISION]` into the cache, or into the folder `out`; the path of what was asked for.

  What is there already and has not changed is not fetched again; without a network, what the cache holds is taken.
  Raises ConfigError: no such id. DataError: no such model or revision, no access, no connection, no weights. CannotWrite.
  """
  asked = names.parsed(name.removeprefix(names.HUB))
  if asked is None:
    raise ConfigError(f"{name}: expected ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FOLDER, a model of the Hugging Face hub")
  import huggingface_hub
  from huggingface_hub import errors

  def get(file: str) -> Path:
    return Path(huggingface_hub.hf_hub_download(asked.repo, file, revision=asked.revision, local_dir=out))

  try:
    there = [one.rfilename for one in huggingface_hub.HfApi().model_info(asked.repo, revision=asked.revision).siblings or ()]
    files = wanted(there, asked.within, variant=variant, where=name)
    tell(f"{asked.repo}: {len(files)} files, {', '.join(files[:4])}{', …' if len(files) > 4 else ''}")
    for file in files:
      path = get(file)
      if file.endswith(".index.json"):
        for shard in shards(path, file, there):
          get(shard)
  except errors.GatedRepoError:
    raise DataError(f"{name}: its owner gives access to those who ask: accept its terms on the hub, then `hf auth login`, or set HF_TOKEN"
                    ) from None
  except errors.RevisionNotFoundError:
    raise DataError(f"{name}: the hub has no revision {asked.revision} of it") from None
  except errors.RepositoryNotFoundError:
    raise DataError(f"{name}: the hub has no such model, or a private one: check the name, or `hf auth login`") from None
  except (DataError, ConfigError):
    raise
  except OSError as error:
    if error.errno in UNWRITABLE:
      raise CannotWrite(f"cannot write {error.filename or out or names.cache()}: {error.strerror}") from None
    return _stored(name, asked, out, error)
  except Exception as error:         # of whichever HTTP client the hub's library is built with
    return _stored(name, asked, out, error)
  root = Path(*path.parts[:len(path.parts) - len(Path(file).parts)])
  return str(root / asked.within)


def shards(index: Path, file: str, there: Collection[str]) -> list[str]:
  """The files that an index names, which lies as `index` here and as `file` among those that are `there`. Raises DataError."""
  named = read_object(index).get("weight_map")
  files = sorted({str(one) for one in named.values()}) if isinstance(named, dict) else []
  wanted = {one: posixpath.join(posixpath.dirname(file), one) for one in files}
  if lacking := [one for one, path in wanted.items() if posixpath.basename(one) != one or path not in there]:
    raise DataError(f"{file}: an index names files beside it, and {', '.join(lacking[:3])} is none")
  if not files:
    raise DataError(f"{file}: not an index of tensors: it has no weight_map")
  return list(wanted.values())


def _stored(name: str, asked: names.Id, out: Path | None, error: Exception) -> str:
  """What the cache holds of a model that cannot be reached. Raises DataError where that is nothing."""
  held = names.snapshot(names.cache() / f"models--{asked.repo.replace('/', '--')}", asked.revision)
  if held is None or out or not (held / asked.within).exists():
    said = (str(error).strip().splitlines() or [""])[0]
    raise DataError(f"{name}: cannot be fetched: {type(error).__name__}: {said}; there is none in the cache ({names.cache()})") from None
  tell(f"{name}: the hub cannot be reached ({type(error).__name__}); taken from the cache as it was fetched before")
  return str(held / asked.within)


def wanted(there: Sequence[str], within: str = "", *, variant: str = "", where: str = "") -> list[str]:
  """Which files of a model are fetched: configs, tokenizers, and of each folder one set of weights.

  there: paths of all its files. within: only this folder, or this file with the configs beside it.
  Raises DataError where there are no weights that are read, or several and nothing says which.
  """
  single = within in there
  top = posixpath.dirname(within) if single else within
  folders = [posixpath.join(top, part) for part in PARTS] if posixpath.join(top, INDEX) in there and not single else []
  found: list[str] = []
  held = False
  for folder in (top, *folders):
    inside = sorted(posixpath.basename(file) for file in there if posixpath.dirname(file) == folder)
    configs = [name for name in inside if name in CONFIGS]
    weights = [] if single or folders and folder == top else chosen(inside, variant, f"{where}/{folder}".rstrip("/"))
    held |= bool(weights)
    found += [posixpath.join(folder, name) for name in (*configs, *weights)]
  if single:
    found.append(within)
  elif not held:
    guess = nearest(within, sorted({posixpath.dirname(file) for file in there} | set(there))) if within else None
    raise DataError(f"{where}: no weights that are read here" + (f"; did you mean {guess}?" if guess else "") + "; its files are "
                    + (", ".join(there[:8]) or "none") + (f" and {len(there) - 8} more" if len(there) > 8 else ""))
  return found


def chosen(inside: Sequence[str], variant: str, where: str) -> list[str]:
  """The weight file, or the index of several, of one folder: the best container of the variant. [] where there is none. Raises
  DataError."""
  named = containers.ranked(inside)
  if variant in named or len(named) == 1:
    return [named[variant] if variant in named else next(iter(named.values()))]
  if named:
    raise DataError(f"{where}: its weights come in the variants {', '.join(sorted(one or 'none' for one in named))}; choose one with "
                    f"--variant={min(filter(None, named))}")
  others = [name for name in inside if posixpath.splitext(name)[1] in containers.WEIGHTS and not name.endswith(".json")]
  others = [name for name in others if name.endswith(".safetensors")] or others
  if len(others) > 1:
    raise DataError(f"{where}: several weight files, {', '.join(others[:6])}{', …' if len(others) > 6 else ''}; name one: "
                    f"{where}/{others[0]}")
  return others


def refuse_others(out: Path) -> None:
  """Raises ConfigError for a folder that holds anything but what was fetched into it before."""
  if out.exists() and not out.is_dir() or out.is_dir() and os.listdir(out) and not (out / ".cache" / "huggingface").is_dir():
    raise ConfigError(f"--out={out} holds other files; choose another folder")
