import pytest

from mmdiff.convert import clip_configs
from mmdiff.core.errors import DataError
from mmdiff.models.clip import PRESETS, clip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_goes_through_a_public_config(name):
  module = clip(variant=name)
  siglip = "siglip" in name.lower()
  if name == "siglip-tiny":                          # pools and masks as no published SigLIP does
    return
  if siglip or "RN" not in name.upper():
    config = clip_configs.to_hf(module, siglip=siglip, end=module.text.vocab - 1)
    given = clip_configs.hf_options(config, "x", siglip=siglip)
  else:
    given = clip_configs.open_clip_options(dict(model_cfg=clip_configs.to_open_clip(module, bias=False)), "x")
  assert clip_configs.shortest(given) == (module, dict(name="clip", variant=name))


def test_the_fewest_keys_are_kept():
  module, model = clip_configs.shortest(dict(variant="ViT-B/32", image_width=768, image_depth=12, image_heads=12, text_width=512,
                                             text_heads=4, text_mlp_dim=2048, act="gelu", text_act="gelu", pixels="clip"))
  assert model == dict(name="clip", variant="ViT-B/32", text_heads=4, act="gelu")
  assert clip(variant="ViT-B/32", text_heads=4, act="gelu") == module


def test_mlp_ratios_come_back_exactly():
  for width, mlp_dim in ((1408, 6144), (1664, 8192), (48, 100), (96, 385)):
    assert int(width * clip_configs._ratio(mlp_dim, width)) == mlp_dim


@pytest.mark.parametrize("value", [[224, 196], "224", 2.5, None])
def test_sizes_are_square(value):
  with pytest.raises(DataError, match="x: expected a square size"):
    clip_configs.square(value, "x")
  assert clip_configs.square([224, 224], "x") == 224


def test_norms_have_one_epsilon():
  with pytest.raises(DataError, match="layer_norm_eps is 1e-06 for texts and 1e-05 for images"):
    clip_configs.hf_options(dict(text_config=dict(layer_norm_eps=1e-6)), "x")
  older = dict(text_config=dict(hidden_size=768), text_config_dict=dict(hidden_size=512), vision_config_dict=dict(patch_size=16))
  assert clip_configs.shortest(clip_configs.hf_options(older, "x"))[1] == dict(name="clip", variant="ViT-B/16")
