"""Fetch a model from the Hugging Face hub: the one command that goes to the network, beside names that begin with hf://.

  mmdiff get openai/clip-vit-base-patch32                       into the cache; `mmdiff info openai/clip-vit-base-patch32` finds it there
  mmdiff get stable-diffusion-v1-5/stable-diffusion-v1-5 --variant=fp16 --out=sd15
  mmdiff get stabilityai/sdxl-vae@main --out=vae                a branch, tag or commit
  mmdiff get ORG/NAME/vae                                       a folder of it, or a file: ORG/NAME/v1-5-pruned-emaonly.safetensors

Only what is read here comes: configs, tokenizers, and of each folder one set of weights, safetensors before all others; nothing is run. The
hub's own variables hold: HF_HOME or HF_HUB_CACHE (where the cache is), HF_TOKEN, HF_ENDPOINT (a mirror). Stopped half-way, the same command
goes on.
"""
from pathlib import Path

from mmdiff.core.errors import ConfigError

POSITIONAL = ("name",)
FLAGS = {
  "out": dict(type="dir", help="a folder for the files; by default the cache of the hub's tools"),
  "variant": dict(type="str", default="", help="of weights that come in several: fp16 for NAME.fp16.safetensors, …"),
}


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS, positional=POSITIONAL)
  if not given["name"]:
    raise ConfigError("which model? `mmdiff get ORG/NAME`")
  from mmdiff.convert import hub
  out = Path(given["out"]) if given["out"] else None
  if out:
    hub.refuse_others(out)
  where = hub.fetch(given["name"], out=out, variant=given["variant"])
  print(where)
  return 0
