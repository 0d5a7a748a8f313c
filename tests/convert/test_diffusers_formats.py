"""Stable Diffusion's UNets and autoencoder at the published sizes, from the published configs; small ones there and back."""
import json

import numpy as np
import pytest

from mmdiff.convert import formats, public, rules, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.convert.containers import Container
from mmdiff.convert.diffusers_formats import read_unet, read_vae, unet_config
from mmdiff.core.errors import ConfigError, DataError

CROSS, PLAIN, UP_CROSS, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
SD1 = dict(_class_name="UNet2DConditionModel", block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, cross_attention_dim=768,
           attention_head_dim=8, in_channels=4, out_channels=4, sample_size=64, norm_num_groups=32, norm_eps=1e-5,
           down_block_types=[CROSS, CROSS, CROSS, PLAIN], up_block_types=[UP, UP_CROSS, UP_CROSS, UP_CROSS])
SD2 = SD1 | dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
SDXL = dict(SD1, block_out_channels=[320, 640, 1280], cross_attention_dim=2048, attention_head_dim=[5, 10, 20], use_linear_projection=True,
            transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time", addition_time_embed_dim=256, sample_size=128,
            projection_class_embeddings_input_dim=2816, down_block_types=[PLAIN, CROSS, CROSS], up_block_types=[UP_CROSS, UP_CROSS, UP])
REFINER = SDXL | dict(block_out_channels=[384, 768, 1536, 1536], cross_attention_dim=1280, attention_head_dim=[6, 12, 24, 24],
                      transformer_layers_per_block=4, projection_class_embeddings_input_dim=2560,
                      down_block_types=[PLAIN, CROSS, CROSS, PLAIN], up_block_types=[UP, UP_CROSS, UP_CROSS, UP])
X4 = SD1 | dict(block_out_channels=[256, 512, 512, 1024], cross_attention_dim=1024, in_channels=7, num_class_embeds=1000, sample_size=128,
                only_cross_attention=[True, True, True, False], use_linear_projection=True, down_block_types=[PLAIN, CROSS, CROSS, CROSS],
                up_block_types=[UP_CROSS, UP_CROSS, UP_CROSS, UP])
VAE = dict(_class_name="AutoencoderKL", block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, norm_num_groups=32,
           sample_size=512, scaling_factor=0.18215)
SMALL = dict(block_out_channels=[8, 16], norm_num_groups=4, attention_head_dim=2, cross_attention_dim=6, layers_per_block=1, sample_size=8,
             down_block_types=[CROSS, PLAIN], up_block_types=[UP, UP_CROSS])


def source(path, config):
  return formats.Source(path, None, config, {}, {}, Container({}, {}, "safetensors"))


def bound(reading):
  shapes = formats.variables(reading.module, reading.inputs)
  return rules.bind(reading.rules, shapes), shapes


@pytest.mark.parametrize("config, expected", [
  (SD1 | dict(in_channels=9), (686, 859_535_364)), (SDXL, (1680, 2_567_463_684)),
  *(pytest.param(*case, marks=pytest.mark.long) for case in ((SD1, (686, 859_520_964)), (SD2, (686, 865_910_724)),
                                                             (REFINER, (1220, 2_259_526_660)), (X4, (None, 473_398_020))))],
  ids=["SD1.5 inpainting", "SDXL", "SD1.5", "SD2", "refiner", "x4"])
def test_published_unets(tmp_path, config, expected):
  bindings, _ = bound(read_unet(source(tmp_path, config)))
  assert expected[0] in (None, len(bindings))
  assert sum(tensors.size(binding.shape) for binding in bindings) == expected[1]


def test_the_published_autoencoder(tmp_path):
  bindings, _ = bound(read_vae(source(tmp_path, VAE)))
  assert (len(bindings), sum(tensors.size(binding.shape) for binding in bindings)) == (248, 83_653_863)


def folder(path, config, read, renames=()):
  bindings, _ = bound(read(source(path, config)))
  rng = np.random.default_rng(0)
  values = {binding.theirs: rng.normal(size=binding.shape).astype(np.float32) for binding in bindings}
  for new, old in renames:
    values = {name.replace(new, old): value for name, value in values.items()}
  st.write(path / "diffusion_pytorch_model.safetensors", {name: tensors.of(value) for name, value in values.items()})
  (path / "config.json").write_text(json.dumps(config))
  return path, values


@pytest.mark.parametrize("config, read", [
  (SD1 | SMALL, read_unet), (SD1 | SMALL | dict(use_linear_projection=True, in_channels=9, attention_head_dim=[2, 4]), read_unet),
  (SDXL | SMALL | dict(addition_time_embed_dim=8, projection_class_embeddings_input_dim=58), read_unet),
  (VAE | dict(block_out_channels=[8, 16], norm_num_groups=4, sample_size=16, scaling_factor=0.5), read_vae)],
  ids=["SD1", "inpainting", "SDXL", "VAE"])
def test_there_and_back(tmp_path, config, read):
  path, values = folder(tmp_path / "a", config | (dict(transformer_layers_per_block=2) if "addition_embed_type" in config else {}), read)
  loaded = public.load(path, quiet=True)
  assert not (loaded.report.missing or loaded.report.unexpected)
  public.save(tmp_path / "b", format=loaded.format, module=loaded.module, config=loaded.config, params=loaded.params, style=loaded.style)
  found, _ = st.read(tmp_path / "b" / "diffusion_pytorch_model.safetensors")
  assert set(found) == set(values)
  for name, value in values.items():
    np.testing.assert_array_equal(found[name].read(), value, err_msg=name)
  again = public.load(tmp_path / "b", quiet=True)
  assert again.module == loaded.module


@pytest.mark.parametrize("config", [SD1, SD1 | dict(in_channels=9), SD2, SDXL, REFINER, X4],
                         ids=["SD1.5", "inpainting", "SD2", "SDXL", "refiner", "x4"])
def test_the_config_of_a_unet_is_written_from_its_module(tmp_path, config):
  reading = read_unet(source(tmp_path, config))
  made = unet_config(reading.module, reading.config)
  again = read_unet(source(tmp_path, made))
  assert again.module == reading.module and again.config == reading.config and made.items() >= {
    key: config[key] for key in ("block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim", "sample_size")}.items()


def test_old_names_of_the_autoencoders_attention(tmp_path):
  config = VAE | dict(block_out_channels=[8, 16], norm_num_groups=4, sample_size=16)
  old = (("0.to_q.", "0.query."), ("0.to_k.", "0.key."), ("0.to_v.", "0.value."), ("0.to_out.0.", "0.proj_attn."))
  loaded = public.load(folder(tmp_path / "a", config, read_vae, old)[0], quiet=True)
  assert not loaded.report.missing and "encoder.mid_block.attentions.0.to_q.weight" in loaded.report.loaded


@pytest.mark.parametrize("change, message", [
  (dict(resnet_time_scale_shift="scale_shift"), "resnet_time_scale_shift: 'scale_shift' is a part that mmdiff does not have"),
  (dict(time_cond_proj_dim=256), "time_cond_proj_dim"), (dict(mid_block_type="UNetMidBlock2D"), "mid_block_type"),
  (dict(down_block_types=[CROSS, "AttnDownBlock2D"]), "not those of Stable Diffusion"),
  (dict(block_out_channels=[8, 12]), "multiples of the first"),
  (dict(cross_attention_dim=None), "cross_attention_dim: expected int")])
def test_other_unets_are_refused(tmp_path, change, message):
  with pytest.raises(DataError, match=message):
    read_unet(source(tmp_path, SD1 | SMALL | change))


def test_what_cannot_be_written(tmp_path):
  from mmdiff.models.autoencoder import kl
  with pytest.raises(ConfigError, match="attention in the middle alone"):
    public.save(tmp_path, format="diffusers-vae", module=kl(variant="f16"), config={}, params={})
