"""Every published variant of every config starts: its config is whole, its state has shapes and a layout, and its step traces."""
import jax
import numpy as np
import pytest

from configs import clip, coca, coca_clip, kl_f8, siglip, t2i_latent, t2i_pixels
from mmdiff import parallel
from mmdiff.commands import flags
from mmdiff.convert import formats
from mmdiff.convert.clip_formats import clip_inputs
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.models import CAPTIONERS, autoencoder
from mmdiff.models import clip as clips
from mmdiff.models import coca as cocas
from mmdiff.objectives import OBJECTIVES
from mmdiff.train import init, setup

PUBLISHED = [
  *(f"clip.py:variant={name}" for name in clip.VARIANTS),
  *(f"siglip.py:variant={name}" for name in siglip.VARIANTS),
  *(f"coca.py:variant={name}" for name in coca.VARIANTS),
  *(f"coca_{kind}.py:variant={name}" for kind in ("short", "long") for name in coca.VARIANTS),
  *(f"coca_clip.py:variant={name}" for name in coca_clip.VARIANTS),
  *(f"kl_f8.py:variant={name}" for name in kl_f8.VARIANTS),
  *(f"t2i_latent.py:model={name},size={size}" for name, steps in t2i_latent.STEPS.items() for size in steps),
]
SMALL = [
  "clip.py:tiny", "clip.py:emoji", "siglip.py:tiny", "coca.py:tiny", "coca.py:tiny,tier=T16", "coca_short.py:tiny", "coca_long.py:tiny",
  "coca_long.py:tiny,tier=T16", "coca_clip.py:tiny", "kl_f8.py:tiny", "demo.py:part=clip", "demo.py:part=t2i", "t2i_pixels.py:emoji",
  "t2i_latent.py:tiny", *(f"t2i_pixels.py:tier={tier}" for tier in t2i_pixels.TIERS),
]
FSDP = dict(data=1, fsdp=8, tensor=1)


def load(name: str, **changes) -> dict:
  config, problems = flags.read_config(f"configs/{name}", [])
  assert not problems, problems
  return config | changes


def planned(config: dict, devices) -> setup.Plan:
  side, length = config["data"]["image_size"], config["data"]["text_len"]
  example = dict(image=np.zeros((side, side, 3), np.uint8), tokens=np.zeros(length, np.int32), mask=np.ones(length, bool),
                 id=np.zeros((), np.uint32), counts=np.zeros(2, np.int32))
  sized = config["objective"].get("denoiser", {}).get("variant") == "sdxl"
  example |= dict(size=np.zeros(6, np.int32)) if sized or config["data"]["buckets"] else {}
  return setup.plan(config, build(OBJECTIVES, config["objective"]), example,
                    mesh=parallel.make_mesh(**config["mesh"], devices=devices))


def test_every_preset_has_a_config():
  own = {"tiny", "tiny-rn", "siglip-tiny"}
  assert {*clip.VARIANTS, *(preset for preset, *_ in siglip.VARIANTS.values())} == set(clips.PRESETS) - own
  assert set(coca.VARIANTS) == set(cocas.PRESETS) - own
  assert set(kl_f8.VARIANTS) == set(autoencoder.VARIANTS) - own


@pytest.mark.parametrize("name", [*PUBLISHED, *SMALL])
def test_every_variant_is_a_whole_config(name):
  config = load(name)
  published = name.partition("variant=")[2]
  model = config["objective"].get("model", {})
  preset, *_ = siglip.VARIANTS.get(published, (published,))
  assert not published or model["variant"] == preset          # the argument is honoured
  assert config["batch_size"] % 8 == 0


@pytest.mark.parametrize("name", ["siglip.py:variant=SigLIP-L/16", "siglip.py:variant=SigLIP-So400m/14", "coca_long.py:variant=2.1B",
                                  "coca_clip.py:variant=ViT-L/14", "coca_clip.py:tiny"])
def test_a_state_has_shapes_and_a_layout(name):
  made = planned(load(name, mesh=FSDP), jax.devices())
  kernels = [leaf for leaf in jax.tree.leaves(made.state.params) if np.prod(leaf.shape, dtype=np.int64) >= parallel.LARGE]
  assert name.endswith("tiny") or sum(not leaf.sharding.is_fully_replicated for leaf in kernels) >= len(kernels) - 2     # tables aside


@pytest.mark.parametrize("variant", [coca_clip.VARIANTS[0], pytest.param(coca_clip.VARIANTS[1], marks=pytest.mark.long)])
def test_a_clip_has_what_the_captioner_takes(variant):
  """Every parameter that `coca_clip` does not start fresh is one of the CLIP of that name, of its shape, and is used as there."""
  config = load(f"coca_clip.py:variant={variant}")
  model = build(CAPTIONERS, config["objective"]["model"])
  inputs = clip_inputs(model.image_size, model.text.length)
  theirs = formats.variables(clips.clip(variant=variant), clip_inputs(model.image_size, clips.clip(variant=variant).text.length))
  ours = formats.variables(model, inputs)
  taken = {path: init.source_path(path, config["init"]["map"]) for path in ours}
  assert {where: ours[path] for path, where in taken.items() if where} == {where: theirs[where] for where in taken.values() if where}
  assert {path.split("/")[0] for path, where in taken.items() if where} == {"image", "text", "logit_scale"}
  source = clips.clip(variant=variant)
  assert (model.image.act, model.text.act, model.mean, model.image.patch, model.image.heads, model.text.heads) == \
    (source.image.act, source.text.act, source.mean, source.image.patch, source.image.heads, source.text.heads)


def test_a_state_without_room_is_refused():
  """Sizes that are within all bounds, of a state that no machine holds: nothing is made of it."""
  whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  made = setup.Plan({"params": jax.ShapeDtypeStruct((2 ** 44,), np.float32, sharding=whole)}, None, None, (), None, (), {})
  with pytest.raises(ConfigError, match="the state takes 64.0 TiB of each device .* raise config.mesh.fsdp"):
    setup.check_memory(made)


@pytest.mark.long
@pytest.mark.parametrize("name", [*PUBLISHED, *SMALL])
def test_every_variant_traces_on_one_device_and_on_a_mesh(name):
  for mesh, devices in ((dict(data=1, fsdp=1, tensor=1), jax.devices()[:1]), (FSDP, jax.devices())):
    made = planned(load(name, mesh=mesh), devices)
    with jax.set_mesh(parallel.make_mesh(**mesh, devices=devices)):
      made.step.lower(made.state, made.batches[0])
