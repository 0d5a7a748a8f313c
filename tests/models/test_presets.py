"""Every field of every published model, as a table that was checked against papers and released configs.

Counts of parameters do not see a number of heads, an activation, an epsilon or where a text is pooled; `presets.json` does. A change that
is meant is written by `python -m tests.models.test_presets` and read in review.
"""
import dataclasses
import json
from pathlib import Path

import numpy as np
from flax import linen as nn

FILE = Path(__file__).with_name("presets.json")


def dumped(value):
  """A module as {"kind": class, field: value}, functions and types by name."""
  if isinstance(value, nn.Module):
    named = {field.name: dumped(getattr(value, field.name)) for field in dataclasses.fields(value) if field.name not in ("parent", "name")}
    return {"kind": type(value).__name__} | named
  if isinstance(value, (tuple, list)):
    return [dumped(item) for item in value]
  if isinstance(value, dict):
    return {key: dumped(item) for key, item in value.items()}
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return float(f"{value:.9g}")
  return np.dtype(value).name if isinstance(value, (type, np.dtype)) or hasattr(value, "dtype") else getattr(value, "__name__", str(value))


def every():
  """{family/preset: module}, with the picture sizes that the families publish."""
  from mmdiff.models import autoencoder, clip, coca, discriminator, dit, t5, text, unet
  made = {f"clip/{name}": clip.clip(variant=name) for name in clip.PRESETS}
  made |= {f"coca/{name}": coca.coca(variant=name) for name in coca.PRESETS}
  made |= {f"unet/{name}": unet.unet(variant=name, image_size=64) for name in unet.PRESETS}
  made |= {f"kl/{name}": autoencoder.kl(variant=name) for name in autoencoder.VARIANTS}
  made |= {f"dit/{name}": dit.dit(variant=name, image_size=32) for name in dit.PRESETS}
  made |= {f"t5/{name}": t5.t5(variant=name) for name in t5.PRESETS}
  made |= {f"clip_states/{name}": text.clip_states(variant=name) for name in text.CLIP_STATES}
  return made | {"patch": discriminator.patch()}


def test_every_field_of_every_preset_is_as_published():
  expected, found = json.loads(FILE.read_text()), {name: dumped(module) for name, module in every().items()}
  assert list(found) == list(expected)
  for name, fields in found.items():
    assert fields == expected[name], name


def test_what_no_count_of_parameters_sees():
  """The facts that are lost most easily, by hand: heads, activations, poolings, epsilons."""
  made = {name: dumped(module) for name, module in every().items()}
  heads = {name: (row["image"]["heads"], row["text"]["heads"]) for name, row in made.items() if name.startswith("clip/ViT")}
  assert heads == {"clip/ViT-B/32": (12, 8), "clip/ViT-B/16": (12, 8), "clip/ViT-L/14": (16, 12), "clip/ViT-L/14@336": (16, 12),
                   "clip/ViT-H/14": (16, 16), "clip/ViT-g/14": (16, 16), "clip/ViT-bigG/14": (16, 20)}
  for name, row in made.items():
    if name.startswith(("clip/ViT", "clip/RN")):
      act = "gelu" if name.endswith(("H/14", "g/14", "G/14")) else "quick_gelu"        # OpenAI's are QuickGELU, OpenCLIP's larger ones not
      assert row["text"]["act"] == act and row["image"].get("act", act) == act and row["text"]["pool"] == "eot" and row["text"]["causal"]
    if name.startswith("clip/SigLIP"):
      assert (row["text"]["act"], row["image"]["act"], row["text"]["pool"], row["image"]["pool"], row["text"]["causal"], row["text"]["eps"],
              row["bias_init"]) == ("gelu_tanh", "gelu_tanh", "last", "map", False, 1e-6, -10.0)
  assert [made[f"unet/{name}"]["heads"] for name in ("sd1", "x4")] == [8, 8]
  assert [made[f"unet/{name}"]["head_dim"] for name in ("sd2", "sdxl", "refiner")] == [64, 64, 64]


if __name__ == "__main__":
  lines = [f"{json.dumps(name)}: {json.dumps(dumped(module))}" for name, module in every().items()]
  FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
