"""Convert weights between public formats, or export a trained run.

  mmdiff convert --src=CLIP-ViT-B-32 --to=open_clip --out=out --verify
  mmdiff convert --src=runs/clip@2000 --to=hf-clip --out=exported --dtype=bfloat16
  mmdiff convert --src=v1-5.safetensors --part=unet --to=diffusers-unet --out=unet
  mmdiff convert --src=v1-5.safetensors --to=diffusers --out=sd15
  mmdiff convert --src=runs/sd --params=eval --to=ldm --out=file --dtype=float16

--src is a folder or weight file in a public format, or a run directory; `mmdiff info` says what it is. Every tensor is accounted for: a
missing, an unexpected or a mis-shaped one is an error that names it, unless --allow_missing matches its name. --out gets the weights as
safetensors, the format's configs, the tokenizer's files, and convert.json with the report, the digests of all weight files and what
--verify found. Nothing is overwritten but what the same command made.
"""
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core import compilation
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import read_object, write_json
from mmdiff.core.provenance import made_by

FLAGS = {
  "src": dict(type="model", required=True, help="folder or weight file in a public format, or run directory (DIR@STEP)"),
  "to": dict(type="str", required=True, help="format to write: hf-clip, hf-siglip, open_clip, …"),
  "out": dict(type="dir", required=True, help="folder to write"),
  "dtype": dict(choices=("float32", "bfloat16", "float16"), default="float32", help="of the tensors written"),
  "params": dict(type="str", help="of a run: raw, or an average of config.ema; by default eval where there is one"),
  "prefer": dict(type="str", help="of a training checkpoint with several sets of weights: the one to take, such as state_dict_ema"),
  "variant": dict(type="str", default="", help="of a folder with several: fp16 for NAME.fp16.safetensors, …"),
  "allow_missing": dict(type="str", help="regular expression of tensor names that may be missing or unexpected"),
  "image_size": dict(type="int", help="another picture size: position tables are interpolated"),
  "text_len": dict(type="int", help="another text length: position tables are interpolated"),
  "patch": dict(type="int", help="another patch size: the patch embedding is resized, the position table interpolated"),
  "act": dict(choices=("gelu", "gelu_tanh", "quick_gelu", "silu"), help="of a bare state dict: OpenAI's is quick_gelu, others have gelu"),
  "head_width": dict(type="int", help="of a bare state dict: width of an attention head"),
  "part": dict(choices=("unet", "vae", "text", "text_2"), help="of a whole Stable Diffusion, folder or file: the model to take"),
  "ema": dict(type="bool", default=False, help="of a single file of Stable Diffusion: the averages of the UNet's weights"),
  "prediction": dict(choices=("eps", "v"), help="of a whole single file: what its UNet predicts"),
  "shard_gb": dict(type="float", default=5.0, help="largest weight file, in 10⁹ bytes"),
  "verify": dict(type="bool", default=False, help="read the result back and compare outputs, of a pipeline those of every part"),
}
LOAD = ("prefer", "variant", "allow_missing", "image_size", "text_len", "patch", "act", "head_width", "part", "ema")
READ = ("prefer", "variant", "image_size", "text_len", "patch", "act", "head_width", "part")      # what a format is told when it is read
SHARED = ("prefer", "variant", "allow_missing")                            # of every part of a pipeline
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}          # of --verify, relative to the largest output


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS)
  if given["shard_gb"] <= 0:
    raise ConfigError(f"--shard_gb: expected a positive number, found {given['shard_gb']}")
  given = flags.located(given, FLAGS)
  source, out = Path(given["src"]).resolve(), Path(given["out"]).resolve()
  if out in (source, source.parent if source.is_file() else source) or (source / "model_index.json").is_file() and source in out.parents:
    raise ConfigError("--out: the result may not replace its source, or a part of it; give another folder")
  try:
    re.compile(given["allow_missing"] or "")
  except re.error as error:
    raise ConfigError(f"--allow_missing: expected a regular expression, found {given['allow_missing']!r}: {error}") from None
  refuse_others(out, argv=["convert", *argv])
  run(given, argv=["convert", *argv])
  return 0


def refuse_others(out: Path, *, argv: list[str]) -> None:
  """Raises ConfigError for a folder that holds anything but what the same command made there."""
  names = sorted(os.listdir(out)) if out.is_dir() else []
  if names and not ("convert.json" in names and read_object(out / "convert.json", nan=True).get("argv") == argv):
    raise ConfigError(f"--out={out} holds other files: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}; choose another folder, or "
                      "empty this one")


def run(given: Mapping, *, argv: list[str]) -> None:
  import jax

  from mmdiff.convert import pipelines, public, verify
  from mmdiff.data import tokenizers
  compilation.prepare()
  options = {name: given[name] for name in LOAD if given[name] != FLAGS[name].get("default")}
  if given["params"] and public.is_public(given["src"]):
    raise ConfigError("--params: a public checkpoint has one set of parameters; --prefer chooses among those of a training checkpoint")
  if whole(given):
    unread = [name for name in (*LOAD, "shard_gb") if name not in (*SHARED, "ema")]
    refuse_unread(given, unread if public.is_public(given["src"]) else [*LOAD, "prediction", "shard_gb"],
                  "nothing of a whole pipeline takes it")
    convert_pipeline(given, options, argv=argv)
    return
  public.known(given["to"])
  refuse_unread(given, ["prediction"], "the scheduler of a whole Stable Diffusion says it, and --to is of one model")
  if public.is_public(given["src"]):
    path, how = given["src"], options
    if given["part"] and pipelines.is_pipeline(path):
      place, own = pipelines.place_of(path, given["part"], variant=given["variant"])
      path, how = place, {name: value for name, value in options.items() if name not in ("part", "variant")} | own
    loaded = public.load(path, **how)
    tokenizer = tokenizers.of_folder(loaded.tokenizer, loaded.like) if loaded.tokenizer else None
  else:
    loaded, tokenizer = of_run(given, options)
  out = Path(given["out"])
  with recorded(out, argv) as facts:
    files = public.save(out, format=given["to"], module=loaded.module, config=loaded.config, params=loaded.params,
                        statistics=loaded.statistics, style=loaded.style if loaded.format == given["to"] else None, dtype=given["dtype"],
                        tokenizer=tokenizer, files=loaded.tokenizer, shard_bytes=int(given["shard_gb"] * 1e9))
    about = dict(path=given["src"], format=loaded.format, dtypes=loaded.dtypes, digests=digests(Path(given["src"])))
    facts |= dict(source=about, report=loaded.report._asdict(), format=given["to"], dtype=given["dtype"],
                  files={name: digest(out / name) for name in files}, **made_by())
    print(f"written to {out}: {', '.join(files)}", file=sys.stderr)
    if given["verify"]:
      again = public.load(out, quiet=True)
      if pair := public.renumbering(given["to"], tokenizer):
        again = again._replace(params=public.exchanged(again.params, pair))
      params, statistics = (jax.tree.map(jax.numpy.asarray, values) for values in (loaded.params, loaded.statistics))
      facts["difference"] = verify.difference((loaded.module, params, statistics), (again.module, again.params, again.statistics),
                                              again.inputs)
      refuse(facts["difference"], given["dtype"], out)
      facts["verified"] = True
      print(f"verified: outputs differ by at most {facts['difference']:.2g} of the largest")


@contextlib.contextmanager
def recorded(out: Path, argv: list[str]) -> Iterator[dict]:
  """Keeps convert.json of what is found out in between: not `complete` until all files are there, and not `verified`, with the `fault`,
  where they are read back and refused. Where nothing is written it is gone again."""
  file, facts, there = out / "convert.json", dict[str, Any](argv=argv), out.exists()
  write_json(file, facts | dict(complete=False))
  try:
    yield facts
  except (ConfigError, DataError) as error:
    if "files" in facts:
      write_json(file, facts | dict(complete=True, verified=False, fault=str(error)))
    elif os.listdir(out) == [file.name]:
      file.unlink()
      if not there:
        out.rmdir()
    raise
  write_json(file, facts | dict(complete=True))


def refuse_unread(given: Mapping, names: Sequence[str], why: str) -> None:
  """Raises ConfigError for flags that say nothing where they were given."""
  said = [f"--{name}: {why}; leave it out" for name in names if given[name] != FLAGS[name].get("default")]
  if said:
    raise ConfigError("\n".join(said))


def whole(given: Mapping) -> bool:
  """Whether all of a pipeline is meant. Raises ConfigError for a format that can't hold it."""
  from mmdiff.convert import pipelines, public
  if given["to"] == "diffusers" and given["part"]:
    raise ConfigError("--to=diffusers writes a whole folder; a part is diffusers-unet, diffusers-vae or hf-clip-text")
  if public.is_public(given["src"]):
    several = pipelines.is_pipeline(given["src"]) and not given["part"]
    if several and given["to"] not in pipelines.WHOLE:
      raise ConfigError(f"{given['src']} holds several models: --to is {' or '.join(pipelines.WHOLE)} for all of them, or give --part, "
                        "or the folder of one")
    if not several and given["to"] in pipelines.WHOLE:
      found, _, reading = public.read(given["src"], **{name: given[name] for name in READ if given[name]})
      raise ConfigError(f"--to={given['to']} is for a whole Stable Diffusion; {given['src']} is {found.about} ({found.name}), which goes "
                        f"to {', '.join(public.holding(reading.module)) or 'no format here'}")
    return several
  return given["to"] in pipelines.WHOLE


def convert_pipeline(given: Mapping, options: Mapping, *, argv: list[str]) -> None:
  import jax

  import mmdiff.model
  from mmdiff.convert import exports, pipelines, public, verify
  if public.is_public(given["src"]):
    more = {name: given[name] for name in ("ema", "prediction") if given[name]}
    found = pipelines.load(given["src"], **{name: options[name] for name in SHARED if name in options}, **more)
    about: dict = {}
  else:
    model = mmdiff.model.load(given["src"], params=given["params"])
    params, about = jax.tree.map(model.services.fetch, model.params), dict(model.report)
    found = exports.pipeline_of(model.config, params, tokenizer=Path(model.report["path"]))
  out = Path(given["out"])
  with recorded(out, argv) as facts:
    files = pipelines.save(out, found, format=given["to"], dtype=given["dtype"])
    facts |= dict(source=dict(about, path=given["src"], digests=digests(Path(given["src"]))), format=given["to"],
                  report={group: part.report._asdict() for group, part in found.parts.items()}, dtype=given["dtype"],
                  notices=found.notices, files={name: digest(out / name) for name in files}, **made_by())
    print(f"written to {out}: {', '.join(files)}", file=sys.stderr)
    if given["verify"]:
      again = pipelines.load(out if given["to"] == "diffusers" else out / "model.safetensors", quiet=True)
      facts["differences"], told = verify.pipelines(found, again, dtype=given["dtype"])
      facts["difference"] = max(facts["differences"].values(), default=0.0)
      if told:
        raise DataError(f"{out}: read back, it is not the same: " + "; ".join(
          f"{name}: {b!r:.120}, expected {a!r:.120}" for name, (a, b) in told.items()) + "; do not use it, and report this")
      refuse(facts["difference"], "float32", out)
      facts["verified"] = True
      listed = ", ".join(f"{group} {value:.2g}" for group, value in facts["differences"].items())
      rounded = "" if given["dtype"] == "float32" else f", from those of the source in {given['dtype']}"
      print(f"verified: outputs differ by at most {facts['difference']:.2g} of the largest ({listed}){rounded}")


def refuse(difference: float, dtype: str, out: Path) -> None:
  """Raises DataError for outputs that differ by more than rounding."""
  if not difference <= TOLERANCE[dtype]:
    raise DataError(f"{out}: read back, its outputs differ by {difference:.2g} of the largest, and rounding by at most {TOLERANCE[dtype]}: "
                    "do not use it, and report this")


def of_run(given: Mapping, options: Mapping):
  """A run directory as a `Loaded`, and its tokenizer. Raises ConfigError for options that only public checkpoints take."""
  import jax

  import mmdiff.model
  from mmdiff.convert import exports
  if options:
    raise ConfigError(f"{given['src']} is a run directory, which takes no {', '.join('--' + name for name in options)}")
  model = mmdiff.model.load(given["src"], params=given["params"])
  params, extra = (jax.tree.map(model.services.fetch, values) for values in (model.params, model.extra))
  notice = f"step {model.report['step']}, {model.report['params']} parameters"
  return exports.model_of(model.config, params, extra, (notice,)), model.tokenizer


def digest(file: Path) -> str:
  """sha256, in pieces: weight files are large."""
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def digests(path: Path) -> dict[str, str]:
  """Of a weight file, or of the weight files of a folder and of a pipeline's folders."""
  from mmdiff.convert import containers
  files = [path] if path.is_file() else [file for pattern in ("*", "*/*") for file in sorted(path.glob(pattern))
                                         if file.is_file() and file.suffix in containers.WEIGHTS]
  return {str(file.relative_to(path)) if file != path else file.name: digest(file) for file in files}
