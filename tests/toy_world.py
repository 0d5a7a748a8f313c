"""A folder with everything that the documents name: runs, public weights, tokenizers, data and pictures, all of them tiny.

The presets of published sizes are made small (`SMALL`), so that a documented line keeps every flag that it has; and what costs time and
is not named by the line gets a small value behind it (`smaller`).
"""
import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from mmdiff.__main__ import main
from mmdiff.commands import flags
from mmdiff.convert import pipelines, public
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.core.build import build
from mmdiff.data import SOURCES, shards
from mmdiff.models import autoencoder, clip, coca, text, unet
from tests import toy_pipelines, toy_runs
from tests.data import fixtures
from tests.data.test_sentencepiece import model as sentencepiece_model
from tests.models.test_perceptual import torch_tensors

# Published presets -> the same kind of model at a toy size. Patches, factors, vocabularies, activations and the like stay as published.
SMALL = [
  (clip.PRESETS, {"ViT-B/32": dict(clip.PRESETS["ViT-B/32"], image=(64, 1, 1, 32), embed_dim=64, text=(64, 1, 1)),
                  "SigLIP-B/16": dict(clip.PRESETS["SigLIP-B/16"], image=(32, 1, 2, 16), embed_dim=32, text=(32, 1, 2))}),
  (coca.PRESETS, {"Base": dict(image=(32, 1, 2, 64, 18), text=(32, 1, 1, 2, 64), embed_dim=32),
                  **{f"ViT-{kind}": dict(image=(64, 1, 1, 256, patch), text=(64, 1, 1, 1, 256), embed_dim=64, open_clip=True)
                     for kind, patch in (("B/32", 32), ("L/14", 14))}}),
  (unet.PRESETS, {"sd1": dict(unet.PRESETS["sd1"], width=64, mults=(1,), depths=(1,)),
                  "sdxl": dict(unet.PRESETS["sdxl"], width=64, mults=(1,), depths=(1,))}),
  (autoencoder.VARIANTS, {name: dict(autoencoder.VARIANTS[name], widths=(32, 32, 32, 32)) for name in ("f8", "sd", "sdxl")}),
  (text.CLIP_STATES, {name: (64, layers, 1, *text.CLIP_STATES[name][3:]) for name, layers in (("sd1", 1), ("sdxl-1", 2), ("sdxl-2", 2))}),
]
# Keys of a config -> what a line that does not name them gets. The last part of a name stands for every key that ends with it.
FEW = {"steps": 2, "batch_size": 8, "log_every_steps": 1, "checkpoint.every_steps": 2, "limit": 8, "prompts": 8, "count": 8, "threads": 2,
       "workers": 0,
       "mesh.fsdp": 1}
RANGE = re.compile(r"\{(0+)\.\.\d+\}")          # of shards
COMMANDS = {
  "caption": ["--data.size=8"], "data build": ["--count=3"], "data tokenizer": ["--sample=50"],
  "data precompute": ["--config.data.source.size=8", "--config.data.tokenizer.sample=50"],
  "evaluate": ["--task.steps=2"], "bench": ["--steps=1", "--warmup=1", "--batch_size=8"]}


@contextlib.contextmanager
def small_presets():
  """Within it the published presets are toys."""
  before = [(table, dict(table)) for table, _ in SMALL]
  try:
    for table, toys in SMALL:
      table.update(toys)
    yield
  finally:
    for table, values in before:
      table.update(values)


def smaller(words: Sequence[str], config: Mapping | None) -> list[str]:
  """What is put behind a documented line: few steps, few records, small pictures of latent diffusion. config: the one that it makes."""
  more = COMMANDS.get(" ".join(words[1:3]), COMMANDS.get(words[1], []))
  if words[1] == "evaluate" and "--task=judge" not in words or words[1] == "caption" and "scenes" not in " ".join(words):
    more = []
  if config is None or words[1] not in ("train", "doctor", "ablate"):
    return [flag for flag in more if not any(word.startswith(flag.split("=")[0]) for word in words)]
  base, prefix = (config["base"], "--config.base.") if "base" in config else (config, "--config.")
  objective, made = base["objective"], dict[str, object]()
  for path, value in flat(base):
    name = path.rpartition(".")[2]
    few = FEW.get(path, FEW.get(name)) if isinstance(value, int) else None
    if few is not None and value > few:
      made[path] = few
    if name == "every_steps":
      made[path] = 2
    if isinstance(value, str) and RANGE.search(value):
      made[path] = RANGE.sub(r"{\1..00001}", value)
  if base["data"]["features"]:
    made["data.source.size"] = 8
  if base["data"]["tokenizer"]["name"] == "bpe":
    made["data.tokenizer.sample"] = 50
  if any(word.startswith("--data=") for word in words):                  # then the sources are others than the config's
    made = {path: value for path, value in made.items() if "source" not in path.split(".")}
  side = base["data"]["image_size"]
  if side >= 256 and objective["name"] in ("diffusion", "autoencoder"):
    made |= {"data.image_size": 64}
    made |= {"objective.model.image_size": 64} if objective["name"] == "autoencoder" else {
      "objective.denoiser.image_size": 8, "objective.encode.image_size": 64}
  if objective.get("discriminator"):
    made["objective.discriminator_start"] = 2
  named = [word.partition("=")[0] for word in words]
  return [f"{prefix}{path}={value}" for path, value in made.items() if f"{prefix}{path}" not in named]


def flat(config: Mapping, path: str = ""):
  """(path, value) of every key."""
  for key, value in config.items():
    yield from flat(value, f"{path}{key}.") if isinstance(value, Mapping) else [(f"{path}{key}", value)]


def said(config: Mapping) -> str:
  """What the values of a config name."""
  return " ".join(str(value) for _, value in flat(config))


# The toys. Each writes what a name stands for under a folder; `world.put` has put there what it needs.

def run(name: str, *line: str, step: int = 2):
  """The run directory of a line of `mmdiff train`, without training."""
  def write(world, folder: Path) -> None:
    words = ["mmdiff", "train", *line]
    config = flags.load_config(line)
    config = flags.load_config([*line, *smaller(words, config)])
    world.put(folder, said(config["data"]))
    with contextlib.chdir(folder):
      toy_runs.make(Path(name), config, steps=(step,))
  return write


def command(needs: str, *lines: str):
  """What command lines make of other toys."""
  def write(world, folder: Path) -> None:
    world.put(folder, needs)
    with contextlib.chdir(folder):
      for line in lines:
        assert main(line.split("|")) == 0, line
  return write


def saved(name: str, make: Callable, inputs: Callable, model: dict, data: dict, format: str):
  """One model with random parameters in a public format."""
  def write(world, folder: Path) -> None:
    module = make()
    part = toy_pipelines.part(module, inputs(module), model, 0)
    objective = dict(name="contrastive", model=model)
    public.save(folder / name, format=format, module=module, config=dict(part.config, objective=objective, data=data), params=part.params,
                files=toy_pipelines.tokenizer(folder / "made"))
    shutil.rmtree(folder / "made")
  return write


def public_clip(name: str, act: str):
  return saved(name, lambda: clip.clip(variant="ViT-B/32", act=act), lambda module: clip_inputs(224, 77),
               dict(name="clip", variant="ViT-B/32", act=act), dict(image_size=224, text_len=77, resize="crop", interpolation="bicubic"),
               "hf-clip")


def stable_diffusion(name: str, format: str):
  """Stable Diffusion 1's parts, each at the size that `SMALL` says: what a config's own model is like."""
  def write(world, folder: Path) -> None:
    shape = jax.ShapeDtypeStruct
    text_shapes = dict(tokens=shape((1, 77, 64), jnp.float32), mask=shape((1, 77), bool))
    words = (shape((1, 77), jnp.int32), shape((1, 77), bool))
    parts = {"denoiser": toy_pipelines.part(unet.unet(variant="sd1", image_size=64),
                                            (shape((1, 8, 8, 4), jnp.float32), shape((1,), jnp.float32), text_shapes),
                                            dict(name="unet", linear=False, text_width=64, in_channels=4, pooled_width=0), 1),
             "autoencoder": toy_pipelines.part(autoencoder.kl(variant="sd", image_size=512), (shape((1, 16, 16, 3), jnp.float32),),
                                               dict(name="kl"), 2),
             "text": toy_pipelines.part(text.clip_states(variant="sd1", dtype="float32"), words, dict(name="clip_text"), 3)}
    tokens = toy_pipelines.tokenizer(folder / "made")
    whole = pipelines.Pipeline(parts, dict(pipelines.SD_SCHEDULER), {}, tokens, False, (), format)
    pipelines.save(folder / (name if format == "diffusers" else "made"), whole, format=format)
    if format == "ldm":
      (folder / "made" / "model.safetensors").rename(folder / name)
      toy_pipelines.tokenizer(folder)
    shutil.rmtree(folder / "made")
  return write


def pipeline(name: str, **options):
  return lambda world, folder: toy_pipelines.folder(folder / name, **options)


def tars(pattern: str, *, count: int = 2):
  """Shards as img2dataset writes them."""
  def write(world, folder: Path) -> None:
    for i in range(count):
      path = folder / pattern.format(f"{i:05}")
      path.parent.mkdir(parents=True, exist_ok=True)
      fixtures.shard(path, 8 * i, 8)
  return write


def scenes(*names: str, tier: str = "T32"):
  """Shards of captioned scenes, with captions of three kinds."""
  def write(world, folder: Path) -> None:
    for i, name in enumerate(names):
      source = build(SOURCES, dict(name="scenes", tier=tier, split="train" if not i else "val_iid", size=16))
      shards.write(source, str(folder / name))
  return write


def pictures(*names: str, table: str = ""):
  """Photographs, so to say; with a table of captions, or masks where the name says so."""
  def write(world, folder: Path) -> None:
    for i, name in enumerate(names):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)
      if "sofa" in name:
        pixels = np.zeros_like(pixels)
        pixels[6:18, 8:24] = 255
      Image.fromarray(pixels).save(folder / name)
    if table:
      rows = [f"{Path(name).name},a picture of number {i}" for i, name in enumerate(names)]
      (folder / table).write_text("\n".join(["file_name,original", *rows]) + "\n")
  return write


def texts(**files: str):
  def write(world, folder: Path) -> None:
    for name, content in files.items():
      (folder / name.replace("_", ".")).write_text(content)
  return write


def siglip_tokenizer(world, folder: Path) -> None:
  (folder / "siglip_tokenizer").mkdir()
  (folder / "siglip_tokenizer" / "spiece.model").write_bytes(sentencepiece_model())
  (folder / "siglip_tokenizer" / "tokenizer_config.json").write_text(json.dumps(dict(
    tokenizer_class="SiglipTokenizer", pad_token="</s>", eos_token="</s>", model_max_length=64)))


def perceptual(world, folder: Path) -> None:
  tensors = torch_tensors()
  for file, first in (("vgg16", "features"), ("lpips", "lin")):
    save_file({name: value for name, value in tensors.items() if name.startswith(first)}, folder / f"{file}.safetensors")


def coco(world, folder: Path) -> None:
  """A prepared TFDS set with the fields of COCO's captions that configs read."""
  import tensorflow_datasets

  from tests.data.test_tfds import Toy
  tensorflow_datasets.disable_progress_bar()
  made = type("CocoCaptions", (Toy,), dict(name="coco_captions", __module__=__name__))
  made(data_dir=folder / "tensorflow_datasets").download_and_prepare(file_format="array_record")


TOYS: dict[str, Callable] = {
  "runs/clip": run("runs/clip", "--config=configs/clip.py:tiny", step=2000),
  "runs/t2i": run("runs/t2i", "--config=configs/t2i_pixels.py", step=1600),
  "runs/coca": run("runs/coca", "--config=configs/coca.py:tiny"),
  "runs/coca_long": run("runs/coca_long", "--config=configs/coca_long.py:tiny"),
  "runs/kl_tiny": run("runs/kl_tiny", "--config=configs/kl_f8.py:tiny"),
  "runs/sd": run("runs/sd", "--config=configs/t2i_latent.py:model=sd15"),
  "DIR": run("DIR", "--config=configs/t2i_latent.py:model=sdxl"),
  "runs/coca_large": run("runs/coca_large", "--config=configs/coca.py:variant=ViT-L/14"),
  "clip-vit-base-patch32": public_clip("clip-vit-base-patch32", "quick_gelu"),
  "CLIP-ViT-B-32": public_clip("CLIP-ViT-B-32", "gelu"),
  "stable-diffusion-v1-5": pipeline("stable-diffusion-v1-5"),
  "sd-inpainting": pipeline("sd-inpainting", inpaints=True),
  "stable-diffusion-x4-upscaler": pipeline("stable-diffusion-x4-upscaler", enlarges=True),
  "sdxl-base": pipeline("sdxl-base", xl=True),
  "sdxl-refiner": pipeline("sdxl-refiner", xl=True, refines=True),
  "sd15": stable_diffusion("sd15", "diffusers"),
  "v1-5.safetensors": stable_diffusion("v1-5.safetensors", "ldm"),
  "clip_tokenizer": lambda world, folder: toy_pipelines.tokenizer(folder / "clip_tokenizer"),
  "data/clip_tokenizer": lambda world, folder: toy_pipelines.tokenizer(folder / "data" / "clip_tokenizer"),
  "siglip_tokenizer": siglip_tokenizer,
  "tokenizer.json": command("", "data|tokenizer|scenes:T16|--out=tokenizer.json|--sample=50"),
  "vgg16.safetensors": perceptual,
  "tars": tars("tars/{}.tar"),
  "data/tars": tars("data/tars/{}.tar"),
  "data/{00000..00001}.tar": tars("data/{}.tar"),
  "data/emoji": scenes("data/emoji/train", "data/emoji/val", "data/emoji/val_comp"),
  "data/long": scenes("data/long", "data/long_val"),
  "data/short": scenes("data/short", "data/short_val"),
  "data/folder": pictures(*(f"data/folder/{i}.png" for i in range(9)), table="data/folder/captions.csv"),
  "pictures": pictures(*(f"pictures/{i}.png" for i in range(9)), table="pictures/captions.csv"),
  **{name: pictures(name) for name in ("room.png", "sofa.png", "sketch.png", "cat.png", "photo.jpg")},
  "prompts.txt": texts(prompts_txt="a red circle\na blue square\n"),
  "prompts.jsonl": texts(prompts_jsonl='{"prompt": "a red circle"}\n{"prompt": "a blue square"}\n'),
  **{name: command("runs/t2i", f"sample|--model=runs/t2i|--prompts=a red circle|--out={name}|--steps=2") for name in ("out", "drawn")},
  "a.json": command("runs/t2i", *(f"evaluate|--model=runs/t2i|--task=judge|--task.prompts=8|--task.steps=2|--out={name}.json"
                                  for name in "ab")),
  "index": command("CLIP-ViT-B-32 pictures", "search|build|--model=CLIP-ViT-B-32|--data=pictures|--out=index"),
  "features": command("runs/kl_tiny", "data|precompute|--config=configs/t2i_latent.py:tiny|--config.init.parts.autoencoder=runs/kl_tiny|"
                      "--out=features|--config.data.source.size=8|--config.data.tokenizer.sample=50"),
  "coco_captions": coco,
}


class World:
  """The toys, each made when a line first needs it."""

  def __init__(self, folder: Path):
    self.folder, self.made = folder, dict[str, Path]()

  def put(self, folder: Path, names: str) -> None:
    """Copies what a text names into a folder."""
    for name in TOYS:
      if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w-])", names):
        shutil.copytree(self.toy(name), folder, dirs_exist_ok=True)

  def toy(self, name: str) -> Path:
    if name not in self.made:
      folder = Path(tempfile.mkdtemp(dir=self.folder))
      with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        TOYS[name](self, folder)
      self.made[name] = folder
    return self.made[name]
