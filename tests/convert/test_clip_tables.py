"""The tables at the sizes that are published: numbers of tensors and parameters, without weights."""
import pytest

from mmdiff.convert import clip_configs, clip_tables, rules
from mmdiff.convert.clip_formats import _counters, clip_inputs, text_table
from mmdiff.convert.formats import STATISTICS, variables
from mmdiff.convert.tensors import size
from mmdiff.models.clip import clip
from mmdiff.models.text import ClipStates


def tensors_and_parameters(table, shapes):
  bindings = rules.bind(table, shapes)
  return len(bindings), sum(size(binding.shape) for binding in bindings if not binding.parts[0][0].startswith(STATISTICS))


# As built from the published configs by transformers and open_clip: tensors, parameters.
HF = {"ViT-B/32": (398, 151_277_313), "ViT-L/14": (590, 427_616_513), "SigLIP-B/16": (408, 203_155_970)}
OPEN_CLIP = {"ViT-B/32": (302, 151_277_313), "ViT-L/14": (446, 427_616_513), "ViT-H/14": (686, 986_109_441),
             "ViT-g/14": (782, 1_366_678_273), "ViT-bigG/14": (974, 2_539_567_105), "RN50": (489, 102_007_137)}


def shapes_of(name):
  module = clip(variant=name)
  return module, variables(module, clip_inputs(module.image_size, module.text.length))


@pytest.mark.parametrize("name", HF)
def test_transformers(name):
  module, shapes = shapes_of(name)
  assert tensors_and_parameters(clip_tables.HF_SIGLIP if "SigLIP" in name else clip_tables.HF_CLIP, shapes) == HF[name]


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name):
  module, shapes = shapes_of(name)
  table = clip_tables.open_clip(resnet=name == "RN50", custom_text=False)
  count, parameters = tensors_and_parameters(table, shapes)
  assert (count + (len(_counters(module, table, {})) if name == "RN50" else 0), parameters) == OPEN_CLIP[name]
  given = clip_configs.open_clip_options(dict(model_cfg=clip_configs.to_open_clip(module, bias=False)), "x")
  assert clip_configs.shortest(given)[1] == dict(name="clip", variant=name)


@pytest.mark.parametrize("fields, expected", [
  (dict(width=768, depth=12, heads=12, mlp_dim=3072, embed_dim=None), (196, 123_060_480)),
  (dict(width=1024, depth=23, heads=16, mlp_dim=4096, embed_dim=None), (372, 340_387_840)),
  (dict(width=1280, depth=32, heads=20, mlp_dim=5120, embed_dim=1280), (517, 694_659_840))], ids=["SD1", "SD2", "SDXL second"])
def test_text_encoders_of_stable_diffusion(fields, expected):
  module = ClipStates(vocab=49_408, length=77, **fields)
  assert tensors_and_parameters(text_table(), variables(module, clip_inputs(8, 77)[1:])) == expected


def test_public_configs_are_presets():
  hf = dict(projection_dim=768, text_config=dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
            vision_config=dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, patch_size=14,
                               image_size=336))
  assert clip_configs.shortest(clip_configs.hf_options(hf, "x"))[1] == dict(name="clip", variant="ViT-L/14@336")
  assert clip_configs.shortest(clip_configs.hf_options({}, "x"))[1] == dict(name="clip", variant="ViT-B/32")
  assert clip_configs.shortest(clip_configs.hf_options({}, "x", siglip=True))[1] == dict(name="clip", variant="SigLIP-B/16")
