"""Names of single files as diffusers converts them: both ways to our parameters end at the same values."""
import json

import numpy as np
import pytest

from mmdiff.convert import ldm_formats, public, tensors
from mmdiff.convert import safetensors_file as st
from tests.convert import test_ldm_formats as ldm

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


def same(folder, config, named, wanted):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  st.write(folder / "diffusion_pytorch_model.safetensors", {name: tensors.of(np.asarray(value)) for name, value in named.items()})
  found = public.flatten(public.load(folder, quiet=True).params)
  assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind, options, more", [
  ("sd1", {}, dict(attention_head_dim=8)),
  ("sd2", dict(text_width=1024, linear=True), dict(attention_head_dim=[2, 4, 8, 8], use_linear_projection=True)),
  ("sdxl", dict(text_width=2048, linear=True, pooled=1280), dict(
    attention_head_dim=[2, 4, 8], use_linear_projection=True, transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816))])
def test_unet(tmp_path, kind, options, more):
  import torch
  from diffusers.loaders import single_file_utils
  module, inputs, table = part = ldm.unet(kind, **options)
  wanted, named = ldm.values_of(part, 0)
  down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in module.depths]
  config = dict(_class_name="UNet2DConditionModel", block_out_channels=[module.width * mult for mult in module.mults], layers_per_block=2,
                cross_attention_dim=inputs[2]["tokens"].shape[-1], in_channels=4, out_channels=4, down_block_types=down,
                up_block_types=[name.replace("Down", "Up") for name in reversed(down)], sample_size=64) | more
  theirs = single_file_utils.convert_ldm_unet_checkpoint(
    {name: torch.from_numpy(value) for name, value in named.items()},
    config | dict(class_embed_type=None, addition_embed_type=more.get("addition_embed_type"), num_class_embeds=None))
  same(tmp_path / "unet", config, theirs, wanted)


def test_autoencoder(tmp_path):
  import torch
  from diffusers.loaders import single_file_utils
  module, _, _ = part = ldm.vae()
  wanted, named = ldm.values_of(part, 0)
  config = dict(_class_name="AutoencoderKL", block_out_channels=list(module.widths), layers_per_block=module.blocks, latent_channels=4,
                norm_num_groups=32, sample_size=256, scaling_factor=module.scale, down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2)
  theirs = single_file_utils.convert_ldm_vae_checkpoint({name: torch.from_numpy(value) for name, value in named.items()}, config)
  same(tmp_path / "vae", config, theirs, wanted)


def test_text_encoder_of_stable_diffusion_1(tmp_path):
  from diffusers.loaders import single_file_utils
  wanted, named = ldm.values_of(ldm.text(ldm_formats.HF_TEXT), 0)
  theirs = single_file_utils.convert_ldm_clip_checkpoint(dict(named))
  folder = tmp_path / "text_encoder"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(dict(
    model_type="clip_text_model", hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=1, vocab_size=60,
    max_position_embeddings=12, hidden_act="quick_gelu")))
  st.write(folder / "model.safetensors", {name: tensors.of(value) for name, value in theirs.items()})
  found = public.flatten(public.load(folder, quiet=True).params)
  assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
