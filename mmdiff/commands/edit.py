"""Make pictures from pictures and prompts: as a whole (img2img), within a mask (inpaint), or large from small (upscale).

  mmdiff edit img2img --model=stable-diffusion-v1-5 --images=sketch.png --prompts="an oil painting of a harbour" --strength=0.7 --out=out
  mmdiff edit inpaint --model=sd-inpainting --images=room.png --masks=sofa.png --prompts="a green sofa" --feather=8 --out=out
  mmdiff edit upscale --model=stable-diffusion-x4-upscaler --images=cat.png --prompts="a white cat" --noise_level=20 --out=out

--images and --masks are one picture or a folder of them, by name in the same order; a mask is white where the picture is drawn anew, and
every pixel that is not comes back bit for bit. Pictures, masks and prompts (a text or a file, as of `mmdiff sample`) are as many, or one
for all. A mask has its picture's size; what is transparent in it is not mask. Pictures keep their size, but for upscale, which needs a
model made for it. A model trained for inpainting (9 channels) fills masks, and so does any other. --out gets what `mmdiff sample` writes;
stopped half-way, the same command draws what is missing.
"""
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmdiff.commands.sample import Job, check_numbers, jobs_of, read_prompts, run
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data.records import PICTURES

FLAGS = {
  "model": dict(type="model", required=True, help="run directory, DIR@STEP for one of its steps; or a public text-to-image model"),
  "images": dict(type="path", required=True, help="a picture, or a folder of pictures"),
  "masks": dict(type="path", help="of inpaint: a picture, or a folder of them; white is drawn anew"),
  "prompts": dict(type="str", required=True, help="a prompt, or a file of them: .txt, .jsonl, .csv, .tsv"),
  "out": dict(type="dir", required=True, help="folder for the pictures"),
  "strength": dict(type="float", help="share of the steps taken, up to 1: by default 0.8 of img2img, 1 of inpaint"),
  "feather": dict(type="int", default=0, help="of inpaint: pixels within the mask over which the new part fades in"),
  "noise_level": dict(type="int", default=20, help="of upscale: noise added to the small picture, a level of the model's own schedule"),
  "steps": dict(type="int", help="sampling steps; by default 20, of public models 50"),
  "guidance": dict(type="float", help="guidance scale, 1 is none; by default 2, of public models 7.5 or 5"),
  "sampler": dict(type="str", help="by default the model's own"),
  "rescale": dict(type="float", default=0.0, help="guidance rescale, 0 to 1"),
  "height": dict(type="int", help="scales and crops the pictures to this height"),
  "width": dict(type="int", help="scales and crops the pictures to this width"),
  "seed": dict(type="int", default=0, help="of the first picture"),
  "per_prompt": dict(type="int", default=1, help="pictures of each pair of picture and prompt"),
  "negative": dict(type="str", help="prompt that guidance points away from; a prompt's own comes first"),
  "long_prompts": dict(choices=("cut", "chunks"), default="cut", help="prompts beyond the encoder's length: cut, or encoded in chunks"),
  "batch_size": dict(type="int", help="pictures drawn at a time; by default 16, of public models 4"),
  "params": dict(type="str", help="raw, or an average of config.ema; by default eval where there is one"),
  "fsdp": dict(type="int", default=1, help="devices that the parameters are spread over"),
  "dtype": dict(choices=("float32", "bfloat16"), help="of a public model's activations"),
  "tile": dict(type="int", help="of a public model: side in pixels of the tiles that its autoencoder works on; default: whole pictures"),
  "rank_with": dict(type="model", help="run directory of a CLIP model that scores the pictures; the best of each prompt comes first"),
}
SHARED = tuple(name for name in FLAGS if name not in ("masks", "feather", "strength", "height", "width", "noise_level"))
SIZED = (*SHARED, "strength", "height", "width")
TAKES = {"img2img": SIZED, "inpaint": (*SIZED, "masks", "feather"), "upscale": (*SHARED, "noise_level")}


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  method = flags.chosen(argv, TAKES)
  given = flags.parse(argv[1:], {name: FLAGS[name] | (dict(required=True) if name == "masks" else {}) for name in TAKES[method]})
  check_numbers(given)
  given = flags.located(given, FLAGS)
  images = pictures(given["images"], "images")
  masks = pictures(given["masks"], "masks") if method == "inpaint" else [""]
  jobs = paired(read_prompts(given["prompts"]), images, masks, given)
  options = {name: given[name] for name in ("height", "width", "rescale", "long_prompts") if given.get(name)}
  options |= {name: given[name] for name in ("strength", "feather", "noise_level") if given.get(name) is not None}

  def inputs(rows: Sequence[Job]) -> tuple:
    shown = ([job.image for job in rows],)
    return (*shown, [job.mask for job in rows]) if method == "inpaint" else shown
  if not (given.get("height") and given.get("width")):
    check_sizes(images)
  if method == "inpaint":
    check_masks({(job.image, job.mask): None for job in jobs})
  run(given, jobs, options, argv=["edit", *argv], method=method, inputs=inputs, flags=FLAGS)
  return 0


def pictures(path: str, flag: str) -> list[str]:
  """A picture, or those of a folder in the order of their names. Raises DataError."""
  found = Path(path)
  names = sorted(file for file in found.iterdir() if file.suffix.lower().lstrip(".") in PICTURES) if found.is_dir() else [found]
  if not names or not all(file.is_file() for file in names):
    raise DataError(f"--{flag}={path}: " + ("no such file or folder" if not found.exists() else "no pictures in this folder"))
  return [str(name) for name in names]


def paired(rows: Sequence[Mapping], images: Sequence[str], masks: Sequence[str], given: Mapping) -> list[Job]:
  """Every picture of every pair, in order. Raises ConfigError for numbers that don't pair."""
  count = max(len(rows), len(images), len(masks))
  counts = {"prompts": len(rows), "images": len(images), "masks": len(masks)}
  if set(counts.values()) - {1, count}:
    raise ConfigError("expected as many of each, or one for all, found " + ", ".join(f"{number} {name}" for name, number in counts.items()))
  whole = lambda items: list(items) * count if len(items) == 1 else items
  jobs = jobs_of(whole(rows), seed=given["seed"], per_prompt=given["per_prompt"], negative=given["negative"] or "")
  shown = [pair for pair in zip(whole(images), whole(masks)) for _ in range(given["per_prompt"])]
  return [job._replace(image=image, mask=mask) for job, (image, mask) in zip(jobs, shown)]


def check_sizes(images: Sequence[str]) -> None:
  """Raises ConfigError for pictures of several sizes, which one batch can't hold."""
  from mmdiff.data import sizes
  found = {tuple(sizes.size_of(Path(name).read_bytes())) for name in images}
  if len(found) > 1:
    raise ConfigError(f"--images: {len(found)} sizes; give --height and --width, to which all are scaled and cropped")


def check_masks(pairs: Iterable[tuple[str, str]]) -> None:
  """Raises DataError for a mask that does not fit its picture or says nothing, before a model is opened for it."""
  from mmdiff.data import masking, sizes
  for image, name in pairs:
    height, width = sizes.size_of(Path(image).read_bytes())
    if height:                                           # else the picture is refused when it is read
      masking.read(name, height=height, width=width, where=name)
