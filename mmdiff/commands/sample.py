"""Make pictures from prompts with a text-to-image model: a run, or a Stable Diffusion (folder of diffusers, or single file).

  mmdiff sample --model=runs/t2i --prompts="a red circle on a blue background" --out=out --per_prompt=4
  mmdiff sample --model=stable-diffusion-v1-5 --prompts="a corgi on a beach" --out=out --sampler=dpm++2m_karras --steps=25
  mmdiff sample --model=runs/t2i@1600 --prompts=prompts.jsonl --out=out --steps=50 --guidance=4 --sampler=heun --rank_with=runs/clip

Prompts are one text, or a file: .txt with one on each line; .jsonl with {"prompt": …, "negative": …, "seed": …} on each; .csv or .tsv with
a column `prompt`, `caption` or `text`. Picture IIIII_JJ.png is copy J of prompt I, from seed --seed + I × per_prompt + J (or the prompt's
own seed + J); it depends on its prompt, its seed and the settings alone. --out gets the pictures, metadata.jsonl (which `mmdiff evaluate
--images` reads), grid.png, index.html and sample.json. Stopped half-way, the same command draws what is missing.
"""
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff import __version__
from mmdiff.core import compilation
from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.core.files import parse_json, read_object, write_json, write_text
from mmdiff.core.progress import Progress
from mmdiff.core.provenance import made_by
from mmdiff.data import picture_notes, tables
from mmdiff.data.quarantine import BadRecord

FLAGS = {
  "model": dict(type="model", required=True, help="run directory, DIR@STEP for one of its steps; or a public text-to-image model"),
  "prompts": dict(type="str", required=True, help="a prompt, or a file of them: .txt, .jsonl, .csv, .tsv"),
  "out": dict(type="dir", required=True, help="folder for the pictures"),
  "steps": dict(type="int", help="sampling steps; by default 20, of public models 50"),
  "guidance": dict(type="float", help="guidance scale, 1 is none; by default 2, of public models 7.5 or 5"),
  "sampler": dict(type="str", help="by default the model's own"),
  "rescale": dict(type="float", default=0.0, help="guidance rescale, 0 to 1; 0.7 is usual with a zero terminal SNR"),
  "height": dict(type="int", help="of the pictures; by default the model's own"),
  "width": dict(type="int", help="of the pictures; by default the model's own"),
  "seed": dict(type="int", default=0, help="of the first picture"),
  "per_prompt": dict(type="int", default=1, help="pictures of each prompt"),
  "negative": dict(type="str", help="prompt that guidance points away from; a prompt's own comes first"),
  "long_prompts": dict(choices=("cut", "chunks"), default="cut", help="prompts beyond the encoder's length: cut, or encoded in chunks"),
  "refiner": dict(type="model", help="another model of the same latents that goes on from --handover (SDXL's refiner)"),
  "handover": dict(type="float", default=0.8, needs=dict(refiner=True), help="share of the noise that is gone when the refiner takes over"),
  "batch_size": dict(type="int", help="pictures drawn at a time; by default 16, of public models 4"),
  "params": dict(type="str", help="raw, or an average of config.ema; by default eval where there is one"),
  "fsdp": dict(type="int", default=1, help="devices that the parameters are spread over"),
  "dtype": dict(choices=("float32", "bfloat16"), help="of a public model's activations"),
  "tile": dict(type="int", help="of a public model: side in pixels of the tiles that its autoencoder works on; default: whole pictures"),
  "rank_with": dict(type="model", help="run directory of a CLIP model that scores the pictures; the best of each prompt comes first"),
}
FILES = (".txt", ".jsonl", ".csv", ".tsv")
COLUMNS = ("prompt", "caption", "text")
SHOWN = 400            # most pictures in index.html and grid.png


class Job(NamedTuple):
  """One picture to draw."""
  file: str
  prompt: str
  seed: int
  negative: str
  image: str = ""                # of `mmdiff edit`: the picture that it is made from, and the mask
  mask: str = ""


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS)
  check_numbers(given)
  jobs = jobs_of(read_prompts(given["prompts"]), seed=given["seed"], per_prompt=given["per_prompt"], negative=given["negative"] or "")
  options = {name: given[name] for name in ("height", "width", "rescale", "long_prompts") if given[name]}
  run(flags.located(given, FLAGS), jobs, options, argv=["sample", *argv])
  return 0


def check_numbers(given: Mapping) -> None:
  """Raises ConfigError that names every count that is too small, and what guidance would not read."""
  wrong = [f"--{name}: expected at least {least}, found {given[name]}" for name, least in (
    ("steps", 1), ("per_prompt", 1), ("batch_size", 1), ("seed", 0), ("fsdp", 1), ("height", 1), ("width", 1), ("tile", 1))
    if given.get(name) is not None and given[name] < least]
  if given["guidance"] == 1:
    wrong += [f"--{name}: says nothing with --guidance=1, which guides nowhere; leave it out" for name in ("negative", "rescale")
              if given[name]]
  if wrong:
    raise ConfigError("\n".join(wrong))


def read_prompts(prompts: str) -> list[dict[str, Any]]:
  """Rows with `prompt` and perhaps `negative` and `seed`, of a text or a file. Raises DataError that names the line."""
  file = Path(prompts)
  if file.suffix.lower() not in FILES or "\n" in prompts:
    return [dict(prompt=prompts)]
  try:
    text = file.read_text(encoding="utf-8-sig")
  except (OSError, ValueError) as error:
    raise DataError(f"--prompts={prompts}: cannot be read: {error}") from None
  if file.suffix.lower() == ".txt":
    rows: list[Any] = [dict(prompt=line.strip()) for line in tables.LINE_END.split(text) if line.strip()]
  elif file.suffix.lower() == ".jsonl":
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
      try:
        rows += [parse_json(line, nan=True)] if line.strip() else []
      except ValueError as error:
        raise DataError(f"{file}:{number}: not valid JSON: {error}") from None
  else:
    rows, _ = tables.read(str(file))
    bad = [row for row in rows if isinstance(row, BadRecord)]
    if bad:
      raise DataError(f"--prompts={prompts}: {len(bad)} of {len(rows)} rows are no prompts, the first one: {bad[0].detail}")
  found = [_row(row, f"{file}, prompt {number}") for number, row in enumerate(rows, 1)]
  if not found:
    raise DataError(f"--prompts={prompts}: the file has no prompts")
  return found


def _row(row: Any, where: str) -> dict[str, Any]:
  if isinstance(row, str):
    return dict(prompt=row)
  named = {str(key).lower(): value for key, value in row.items()} if isinstance(row, Mapping) else {}
  prompt = next((named[column] for column in COLUMNS if isinstance(named.get(column), str)), None)
  seed = named.get("seed")
  if prompt is None or not isinstance(named.get("negative") or "", str):
    raise DataError(f"{where}: expected a text under {', '.join(COLUMNS)}, found {row!r:.80}")
  if seed not in (None, "") and not re.fullmatch(r"[0-9]{1,20}", str(seed)):
    raise DataError(f"{where}: seed: expected a whole number, found {seed!r}")
  return dict(prompt=prompt, negative=named.get("negative") or "") | ({} if seed in (None, "") else dict(seed=int(seed)))


def jobs_of(rows: Sequence[Mapping], *, seed: int, per_prompt: int, negative: str) -> list[Job]:
  """Every picture of every prompt, in order."""
  return [Job(f"{i:05}_{j:02}.png", row["prompt"], (row.get("seed", seed + i * per_prompt) + j) % 2 ** 32, row.get("negative") or negative)
          for i, row in enumerate(rows) for j in range(per_prompt)]


def open_model(given: Mapping, name: str = "model", **options):
  """The model that a flag names, ready to draw."""
  import mmdiff.model
  more = {name: given[name] for name in ("dtype", "tile") if given.get(name)}
  return mmdiff.model.load(given[name], mesh=dict(fsdp=given["fsdp"]), **options, **more)


def run(given: Mapping, jobs: Sequence[Job], options: Mapping[str, Any], *, argv: list[str], method: str = "generate",
        inputs: Callable[[Sequence[Job]], tuple] = lambda rows: (), flags: Mapping[str, Mapping] = FLAGS) -> None:
  """Draws what is missing of `jobs` and writes the pages.

  flags: of the command, which `given` was parsed by. method: of the model; its arguments are `inputs(rows)`, prompts, negative
  prompts, and seeds and `options` by name.
  """
  import jax
  from jax.experimental import multihost_utils
  from PIL import Image

  import mmdiff.model
  from mmdiff import prompted
  from mmdiff.commands import results
  from mmdiff.report import gallery
  from mmdiff.train import distributed
  distributed.initialize()
  compilation.prepare()
  chief, out = jax.process_index() == 0, Path(given["out"])
  model = open_model(given, params=given["params"])
  about = results.model_facts(model)
  draw = ability(model, method)
  refiner = open_model(given, "refiner") if given.get("refiner") else None
  own = model.sampling
  how = {name: own[name] if given[name] is None else given[name] for name in ("steps", "guidance")} | dict(sampler=given["sampler"])
  # Refuses what it does not know before anything is written.
  model.services.predict["plan"](**how, **{name: options[name] for name in ("rescale", "strength") if name in options})
  prompted.refuse(model, **{name: options.get(name) for name in ("height", "width")}, refiner=refiner,
                  handover=given["handover"] if refiner else None)
  if how["guidance"] == 1 and (said := [job.negative for job in jobs if job.negative]):
    raise ConfigError(f"--guidance=1 guides nowhere, and {len(said)} prompts have a negative one, such as {said[0]!r:.60}: leave these "
                      "out, or guide by more")
  how_drawn = {name: given[name] for name in ("dtype", "tile", *(("handover",) if refiner else ())) if given.get(name)}
  settings = how | dict(options) | how_drawn | dict(method=method, sampler=given["sampler"] or "", refiner=given.get("refiner") or "",
                                        **{key: about[key] for key in ("step", "params", "checkpoint", "tokenizer")})
  check_settings(out, settings)
  if refiner:
    options = {**options, "refiner": refiner, "handover": given["handover"]}
  done = finished(out, jobs)
  scorer = mmdiff.model.load(given["rank_with"]) if given["rank_with"] else None
  if scorer:
    ability(scorer, "embed_image"), ability(scorer, "embed_text")
  facts = dict(argv=argv, settings=settings, model=about, config=model.config, **made_by(), pictures=len(jobs),
               prompts=results.digest(Path(given["prompts"])) if Path(given["prompts"]).suffix in FILES else given["prompts"])
  if chief:
    write_json(out / "sample.json", facts | dict(complete=False))
  missing = [job for job in jobs if job not in done]
  thumbs, scores = gallery.Thumbs(out), dict[str, float]()
  growing = gallery.Growing(out / "index.html", out.name,
                            lambda: page_of(out, jobs, scores, thumbs, facts=facts))
  progress = Progress(argv[0], "pictures", active=chief)
  size = min(given["batch_size"] or min(own["rows"], 16), len(jobs))
  for start in range(0, len(missing), size):
    part = missing[start:start + size]
    rows = part + part[-1:] * (size - len(part))          # one shape: no second program, and the same pixels after a resume
    negative = [job.negative for job in rows] if any(job.negative for job in rows) else None
    made = draw(*inputs(rows), [job.prompt for job in rows], negative, seeds=[job.seed for job in rows], batch_size=size, output="uint8",
                progress=False, **how, **options)
    if chief:
      for job, image in zip(part, made):
        results.write_png(out / job.file, image, notes_of(job, argv, given, flags, settings, model.report["path"]))
        thumbs.of(job.file, Image.fromarray(image))
      append(out / "metadata.jsonl", part)
      growing()
    progress(len(part), len(missing))
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("pictures are written")
  scores |= rank(scorer, out, jobs) if scorer else {}
  if chief:
    write_manifest(out, jobs, scores, per_prompt=given["per_prompt"])
    growing.write()
    write_json(out / "sample.json", facts | dict(complete=True, scores=scores))
    print(f"{len(jobs)} pictures in {out}, {len(missing)} of them drawn now; look at {out / 'index.html'}")


# Of a command's flags: what says which pictures are drawn and where to, and what each picture's notes say otherwise.
WHERE = ("out", "prompts", "images", "masks", "negative", "seed", "per_prompt", "batch_size", "rank_with")


def notes_of(job: Job, argv: Sequence[str], given: Mapping, flags: Mapping[str, Mapping], settings: Mapping, model: str) -> dict[str, Any]:
  """What a picture says of itself: prompt, seed, settings, the model by path and digest, and the command that draws it again, alone."""
  words = argv[:2] if argv[0] == "edit" else argv[:1]
  own = dict(prompts=job.prompt, negative=job.negative, images=job.image, masks=job.mask)
  usual = {name: value for name, value in given.items() if name not in WHERE and value != flags[name].get("default")}
  usual |= {name: value for name, value in own.items() if value} | dict(seed=job.seed, out="again")
  drawn = {name: value for name, value in settings.items() if name not in ("checkpoint", "tokenizer") and value not in (None, "")}
  return dict(prompt=job.prompt, negative=job.negative, seed=job.seed, settings=drawn, model=model, checkpoint=settings["checkpoint"],
              tokenizer=settings["tokenizer"], **({"image": job.image} if job.image else {}), **({"mask": job.mask} if job.mask else {}),
              mmdiff=__version__, command=picture_notes.command(list(words), usual))


def ability(model, name: str):
  """A method of the model. Raises DataError that says what it has instead."""
  try:
    return getattr(model, name)
  except AttributeError as error:
    raise DataError(str(error)) from None


def check_settings(out: Path, settings: Mapping) -> None:
  """Raises ConfigError when `out` holds pictures of other settings or of another model."""
  if not any(_lines(out / "metadata.jsonl")):
    return
  try:
    before = dict(read_object(out / "sample.json", nan=True)["settings"])
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(f"{out / 'sample.json'}: cannot be read ({error}), so nobody knows how the pictures there were drawn; "
                    "choose another --out") from None
  changed = [f"{key} was {before.get(key)!r}, now {value!r}" for key, value in settings.items() if before.get(key) != value]
  if changed:
    raise ConfigError(f"--out={out} holds pictures of other settings: {'; '.join(changed)}; choose another folder")


def finished(out: Path, jobs: Sequence[Job]) -> set[Job]:
  """The jobs that the manifest lists and whose pictures are there. A line that a crash cut short does not count.

  Raises ConfigError if a picture of that name was drawn for another prompt or seed.
  """
  wanted, found = {job.file: job for job in jobs}, set()
  for line in _lines(out / "metadata.jsonl"):
    before = Job(line.get("file_name", ""), line.get("caption", ""), line.get("seed", -1), line.get("negative", ""), line.get("image", ""),
                 line.get("mask", ""))
    job = wanted.get(before.file)
    if job is None or not (out / job.file).is_file():
      continue
    if job != before:
      said = lambda job: f"{job.prompt!r} from seed {job.seed}" + (f" and {job.image}" if job.image else "")
      raise ConfigError(f"--out={out} holds other pictures: {job.file} is of {said(before)}, asked for is {said(job)}; "
                        "choose another folder")
    found.add(job)
  return found


def _lines(file: Path) -> Iterator[dict]:
  """The objects of a manifest; what a killed process left of a line is none. Prompts may hold other line breaks than "\\n"."""
  for line in file.read_bytes().split(b"\n") if file.is_file() else ():
    try:
      found = parse_json(line)
    except ValueError:
      continue
    if isinstance(found, dict):
      yield found


def append(file: Path, jobs: Sequence[Job]) -> None:
  """Adds finished pictures to the manifest; it is written last, so what it lists is whole."""
  try:
    with open(file, "a+b") as manifest:
      if manifest.tell() and (manifest.seek(-1, os.SEEK_END), manifest.read())[1] != b"\n":
        manifest.write(b"\n")
      manifest.write("".join(_line(job) for job in jobs).encode())
  except OSError as error:
    raise CannotWrite(f"cannot write {file}: {error}") from error


def _line(job: Job, **more) -> str:
  edited = {name: value for name, value in dict(image=job.image, mask=job.mask).items() if value}
  return json.dumps(dict(file_name=job.file, key=Path(job.file).stem, caption=job.prompt, seed=job.seed, negative=job.negative) | edited
                    | more, ensure_ascii=False) + "\n"


def rank(scorer, out: Path, jobs: Sequence[Job], *, rows: int = 64) -> dict[str, float]:
  """{file: 100 · cosine of picture and prompt under a CLIP model}, `rows` pictures at a time."""
  import numpy as np
  from PIL import Image

  from mmdiff.evaluators.clipscore import cosines
  scores: dict[str, float] = {}
  for start in range(0, len(jobs), rows):
    part = jobs[start:start + rows]
    images = scorer.embed_image([np.asarray(Image.open(out / job.file).convert("RGB")) for job in part])
    scores |= {job.file: 100 * float(value) for job, value in zip(part, cosines(images, scorer.embed_text([job.prompt for job in part])))}
  return scores


def page_of(out: Path, jobs: Sequence[Job], scores: Mapping[str, float], thumbs: Any, *, facts: Mapping[str, Any]) -> str:
  """The page of the pictures that are there by now: a section a prompt, the best first where there are scores."""
  from mmdiff.report import gallery
  sections, there = [], [job for job in jobs if (out / job.file).is_file()]
  for group in groups_of(there[:SHOWN], scores):
    shots = []
    for job in group:
      given = [(what, Path(file).absolute()) for what, file in (("picture", job.image), ("mask", job.mask)) if file]
      before = [(what, thumbs.of(str(file), link=False)) for what, file in given]
      note = f"{job.file} · seed {job.seed}" + (f" · CLIP {scores[job.file]:.2f}" if job.file in scores else "")
      shots.append(gallery.Shot([*before, ("drawn", thumbs.of(job.file))], job.prompt if len(group) == 1 else "", note))
    sections.append((group[0].prompt, shots))
  left_out = ("checkpoint", "tokenizer", "params", "step", "method")
  settings = {name: value for name, value in facts["settings"].items() if name not in left_out}
  drawing = f", {len(jobs) - len(there):,} still to come" if len(there) < len(jobs) else ""
  return gallery.body(out.name, sections, lead=f"{len(there):,} pictures{drawing}", settings=settings | dict(model=facts["model"]["path"]),
                      command=picture_notes.command(list(facts["argv"]), {}),
                      more=f"{len(there) - SHOWN:,} more are listed in metadata.jsonl." if len(there) > SHOWN else "")


def groups_of(jobs: Sequence[Job], scores: Mapping[str, float]) -> list[list[Job]]:
  """Those of one prompt together, by its number in their names; the best first where there are scores."""
  found: dict[str, list[Job]] = {}
  for job in jobs:
    found.setdefault(job.file.split("_")[0], []).append(job)
  return [sorted(group, key=lambda job: -scores.get(job.file, 0.0)) for group in found.values()]


def write_manifest(out: Path, jobs: Sequence[Job], scores: Mapping[str, float], *, per_prompt: int) -> None:
  """Rewrites metadata.jsonl in order, and writes grid.png, where the pictures have one size; the best of each prompt first."""
  import numpy as np
  from PIL import Image

  from mmdiff.commands import results
  from mmdiff.evaluators.base import grid
  groups = groups_of(jobs, scores)
  pictures = [Image.open(out / job.file).convert("RGB") for job in [job for group in groups for job in group][:SHOWN]]
  columns = per_prompt if per_prompt > 1 else max(1, int(len(pictures) ** 0.5 + 0.999))
  if len({picture.size for picture in pictures}) == 1:
    results.write_png(out / "grid.png", grid(np.stack([np.asarray(picture) for picture in pictures]), columns))
  ranked = {job.file: place for group in groups for place, job in enumerate(group, 1)} if scores else {}
  lines = [_line(job, **(dict(clip_similarity=scores[job.file], rank=ranked[job.file]) if job.file in scores else {})) for job in jobs]
  write_text(out / "metadata.jsonl", "".join(lines))
