"""Stable Diffusion's UNets and autoencoder beside diffusers: loaded here, the same outputs, written back equal, loaded there again."""
import json

import numpy as np
import pytest

from tests.peers.test_clip_formats import close, random_weights

pytestmark = pytest.mark.peers

CROSS, PLAIN, UP_CROSS, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
UNETS = {
  "SD1": dict(block_out_channels=(16, 32), down_block_types=(CROSS, PLAIN), up_block_types=(UP, UP_CROSS), attention_head_dim=4),
  "SD2": dict(block_out_channels=(16, 32, 32), down_block_types=(CROSS, CROSS, PLAIN), up_block_types=(UP, UP_CROSS, UP_CROSS),
              attention_head_dim=(2, 4, 4), use_linear_projection=True),
  "inpainting": dict(block_out_channels=(16, 32), down_block_types=(CROSS, PLAIN), up_block_types=(UP, UP_CROSS), attention_head_dim=4,
                     in_channels=9),
  "SDXL": dict(block_out_channels=(16, 32), down_block_types=(PLAIN, CROSS), up_block_types=(UP_CROSS, UP), attention_head_dim=(2, 4),
               use_linear_projection=True, transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
               projection_class_embeddings_input_dim=80),
  "x4": dict(block_out_channels=(16, 32), down_block_types=(PLAIN, CROSS), up_block_types=(UP_CROSS, UP), attention_head_dim=4,
             in_channels=7, only_cross_attention=(True, False), num_class_embeds=50, use_linear_projection=True),
}


def round_trip(peer, folder):
  from safetensors.numpy import load_file

  from mmdiff.convert import public
  peer.save_pretrained(folder / "theirs")
  loaded = public.load(folder / "theirs", quiet=True)
  public.save(folder / "ours", format=loaded.format, module=loaded.module, config=loaded.config, params=loaded.params, style=loaded.style)
  a, b = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("theirs", "ours"))
  assert set(a) == set(b) and all(a[name].shape == b[name].shape and (a[name] == b[name]).all() for name in a)
  assert json.loads((folder / "theirs" / "config.json").read_text())["_class_name"] == type(peer).__name__
  again = type(peer).from_pretrained(folder / "ours")
  assert all((value == again.state_dict()[name]).all() for name, value in peer.state_dict().items())
  return loaded


@pytest.mark.parametrize("name", UNETS)
def test_unet(tmp_path, name):
  import jax
  import torch
  from diffusers import UNet2DConditionModel
  config = dict(layers_per_block=2, cross_attention_dim=24, norm_num_groups=8, sample_size=8) | UNETS[name]
  peer = random_weights(UNet2DConditionModel(**config))
  loaded = round_trip(peer, tmp_path)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 8, 8, config.get("in_channels", 4))).astype(np.float32)
  time, states = np.asarray([3.0, 801.0], np.float32), rng.normal(size=(2, 7, 24)).astype(np.float32)
  text, more = dict(tokens=states, mask=np.ones((2, 7), bool)), {}
  if x.shape[-1] > 4:
    text["concat"] = x[..., 4:]
  if name == "SDXL":
    text |= dict(pooled=rng.normal(size=(2, 32)).astype(np.float32), size=rng.integers(0, 1024, (2, 6)).astype(np.int32))
    more = dict(added_cond_kwargs=dict(text_embeds=torch.from_numpy(text["pooled"]), time_ids=torch.from_numpy(text["size"])))
  if name == "x4":
    text["level"] = np.asarray([20, 3], np.int32)
    more = dict(class_labels=torch.from_numpy(text["level"]).long())
  ours = jax.jit(loaded.module.apply)({"params": loaded.params}, x[..., :4], time, text)
  with torch.no_grad():
    theirs = peer(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(time), torch.from_numpy(states), **more).sample
  close(np.asarray(ours).transpose(0, 3, 1, 2), theirs)


def test_autoencoder(tmp_path):
  import jax
  import torch
  from diffusers import AutoencoderKL
  peer = random_weights(AutoencoderKL(
    block_out_channels=(16, 32, 32), layers_per_block=2, latent_channels=4, norm_num_groups=8, sample_size=16, scaling_factor=0.3,
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3))
  loaded = round_trip(peer, tmp_path)
  image = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
  run = lambda method, x: jax.jit(lambda params: loaded.module.apply({"params": params}, x, method=method))(loaded.params)
  with torch.no_grad():
    posterior = peer.encode(torch.from_numpy(image.transpose(0, 3, 1, 2))).latent_dist
    decoded = peer.decode(posterior.mean).sample
  close(np.asarray(run("posterior", image)[0]).transpose(0, 3, 1, 2), posterior.mean)
  mean = posterior.mean.numpy().transpose(0, 2, 3, 1) * 0.3
  close(np.asarray(run("decode", mean)).transpose(0, 3, 1, 2), decoded.clip(-1, 1))
