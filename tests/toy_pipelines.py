"""Small Stable Diffusions with random parameters, written without PyTorch: folders of diffusers and single files."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.convert import formats, pipelines, public, rules
from mmdiff.models.autoencoder import Autoencoder
from mmdiff.models.text import ClipStates
from mmdiff.models.unet import UNet

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH, SIDE = 12, 8                     # of a prompt, and of the latents
WORDS = ["!", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def tokenizer(folder: Path) -> Path:
  """CLIP's tokenizer of single letters."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  return folder


def part(module, inputs, model: dict, seed: int) -> public.Loaded:
  rng = np.random.default_rng(seed)
  leaves = {path: rng.normal(scale=0.3, size=shape).astype(np.float32) for path, shape in formats.variables(module, inputs).items()}
  leaves = {path: leaf + ("norm" in path and path.endswith("scale")) for path, leaf in leaves.items()}
  config = dict(objective=None, model=model, data=dict(image_size=2 * SIDE, text_len=LENGTH))
  return public.Loaded("made", "", module, config, public.nest(leaves), (), rules.Report([], [], [], [], [], []), {}, None, {}, inputs)


def make(tokens: Path, *, inpaints: bool = False, xl: bool = False, enlarges: bool = False, refines: bool = False,
         scheduler: dict | None = None) -> pipelines.Pipeline:
  """Small parts; norms have the 32 groups that single files leave unsaid, of two channels: of one they would hide the time."""
  shape = jax.ShapeDtypeStruct
  pooled = 1280 if xl else 0
  wide = 8 if refines else 20 if xl else 12
  unet = UNet(image_size=SIDE, channels=4, width=64, mults=(1,), depths=(1,), middle=1, blocks=1, heads=2, groups=32,
              sizes=5 if refines else 6 if xl else 0, levels=400 if enlarges else 0)
  text = dict(tokens=shape((1, 4, wide), jnp.float32), mask=shape((1, 4), bool))
  text |= dict(pooled=shape((1, pooled), jnp.float32), size=shape((1, 5 if refines else 6), jnp.int32)) if xl else {}
  text |= dict(concat=shape((1, 2, 2, 5), jnp.float32)) if inpaints else {}
  text |= dict(concat=shape((1, 2, 2, 3), jnp.float32), level=shape((1,), jnp.int32)) if enlarges else {}
  vae = Autoencoder(widths=(32, 32), latent_channels=4, blocks=1, groups=32, scale=0.3, image_size=2 * SIDE)
  encoder = ClipStates(vocab=len(WORDS), length=LENGTH, width=12, depth=2, heads=2, mlp_dim=16, embed_dim=None, act="quick_gelu",
                       pad=len(WORDS) - 1)
  words = (shape((1, LENGTH), jnp.int32), shape((1, LENGTH), bool))
  about = dict(name="unet", linear=xl, text_width=wide, in_channels=9 if inpaints else 7 if enlarges else 4, pooled_width=pooled)
  parts = {"denoiser": part(unet, (shape((1, 2, 2, 4), jnp.float32), shape((1,), jnp.float32), text), about, 1),
           "autoencoder": part(vae, (shape((1, 4, 4, 3), jnp.float32),), dict(name="kl"), 2)}
  if xl:
    second = ClipStates(vocab=len(WORDS), length=LENGTH, width=8, depth=2, heads=2, mlp_dim=16, embed_dim=pooled, act="gelu", skip=1,
                        norm=False, whole=True)
    parts |= {"text/first": part(encoder.clone(skip=1, norm=False, whole=True), words, dict(name="clip_text"), 3),
              "text/second": part(second, words, dict(name="clip_text"), 4)}
    if refines:
      del parts["text/first"]
  else:
    parts["text"] = part(encoder, words, dict(name="clip_text"), 3)
  return pipelines.Pipeline(parts, scheduler or dict(pipelines.XL_SCHEDULER if xl else pipelines.SD_SCHEDULER), {},
                            tokenizer(tokens), xl, (), "diffusers", pipelines.X4_SMALL if enlarges else {})


def folder(path: Path, **options) -> Path:
  """A folder of diffusers."""
  pipelines.save(path, make(path / "tokenizer", **options), format="diffusers")
  return path


def file(path: Path, **options) -> Path:
  """A folder with a single file and the tokenizer beside it; the file."""
  pipelines.save(path, make(path, **options), format="ldm")
  return path / "model.safetensors"
