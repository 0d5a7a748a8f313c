"""Memory and time of a Stable Diffusion 1.5 at its full size on this machine, from a diffusers folder of random weights.

  python -m tests.full_size --folder=/tmp/sd15 --steps=2

Writes the folder (4.1 GB in float32) if it is not there, then runs `mmdiff sample` on it in a process of its own.
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.toy_pipelines import WORDS


def write(folder: Path) -> None:
  import jax
  import jax.numpy as jnp

  from mmdiff.convert import pipelines
  from mmdiff.models.autoencoder import kl
  from mmdiff.models.text import clip_states
  from mmdiff.models.unet import unet
  from tests.toy_pipelines import part, tokenizer
  shape = jax.ShapeDtypeStruct
  text = dict(tokens=shape((1, 77, 768), jnp.float32), mask=shape((1, 77), bool))
  words = (shape((1, 77), jnp.int32), shape((1, 77), bool))
  about = dict(name="unet", linear=False, text_width=768, in_channels=4, pooled_width=0)
  latents = (shape((1, 8, 8, 4), jnp.float32), shape((1,), jnp.float32), text)
  parts = {"denoiser": part(unet(variant="sd1", image_size=64), latents, about, 1),
           "autoencoder": part(kl(variant="sd", image_size=512), (shape((1, 8, 8, 3), jnp.float32),), dict(name="kl"), 2),
           "text": part(clip_states(variant="sd1", vocab=len(WORDS), dtype="float32"), words, dict(name="clip_text"), 3)}
  small = lambda part: part._replace(params=jax.tree.map(lambda leaf: 0.05 * leaf, part.params))
  pipelines.save(folder, pipelines.Pipeline({group: small(part) for group, part in parts.items()}, dict(pipelines.SD_SCHEDULER), {},
                                            tokenizer(folder / "tokenizer"), False, (), "diffusers"))


def arguments(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--folder", required=True, type=Path)
  parser.add_argument("--steps", type=int, default=2)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--write", action="store_true", help="only writes the folder")
  return parser.parse_args(argv)


def main() -> int:
  options = arguments()
  if options.write:
    write(options.folder)
    return 0
  if not (options.folder / "model_index.json").is_file():
    subprocess.run([sys.executable, "-m", "tests.full_size", f"--folder={options.folder}", "--write"], check=True)
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  started = time.time()
  subprocess.run([sys.executable, "-m", "mmdiff", "sample", f"--model={options.folder}", "--prompts=a cat", f"--out={options.folder}/out",
                  f"--steps={options.steps}", "--batch_size=1", f"--dtype={options.dtype}"], check=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(json.dumps(dict(steps=options.steps, dtype=options.dtype, wall_s=round(time.time() - started, 1),
                        cpu_s=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
                        peak_gib=round(after.ru_maxrss / 2**20, 2))))
  return 0


if __name__ == "__main__":
  sys.exit(main())
