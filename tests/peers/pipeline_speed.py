"""Text to image beside diffusers: one Stable Diffusion of small widths and random weights, DDIM with guidance, the same noise.

  .venv-peers/bin/python -m tests.peers.pipeline_speed --cores=1

No time counts before both draw the same pictures. The sides take turns in one process on the same cores; the JSON has wall and CPU seconds
of every call, from prompt to pixels. On a machine that others use too, read the ratio of CPU seconds.
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.peers import measured


def arguments(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--widths", default="64,128,256", help="of the UNet's levels; the autoencoder's are half of them")
  parser.add_argument("--side", type=int, default=32, help="of the latents")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--batch_size", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
  parser.add_argument("--cores", type=int, default=1, help="CPU cores that this process may use")
  parser.add_argument("--json", help="write the result to this file")
  return parser.parse_args(argv)


def peer_pipeline(options, folder: Path):
  """diffusers' pipeline with UNet, autoencoder and text encoder of random weights."""
  import diffusers
  from transformers import CLIPTextConfig, CLIPTextModel

  from tests.peers.test_clip_formats import random_weights
  from tests.peers.test_pipelines import LENGTH, SD, quiet, tokenizer
  words, vocab = tokenizer(folder / "words")
  widths = [int(width) for width in options.widths.split(",")]
  attends, last = ["CrossAttn" * (i < len(widths) - 1) for i in range(len(widths))], len(widths)
  unet = random_weights(diffusers.UNet2DConditionModel(
    sample_size=options.side, block_out_channels=widths, layers_per_block=2, cross_attention_dim=128, attention_head_dim=8,
    down_block_types=[f"{name}DownBlock2D" for name in attends], up_block_types=[f"{name}UpBlock2D" for name in reversed(attends)]))
  vae = random_weights(diffusers.AutoencoderKL(
    block_out_channels=[width // 2 for width in widths], layers_per_block=2, latent_channels=4, norm_num_groups=16,
    sample_size=4 * options.side, down_block_types=["DownEncoderBlock2D"] * last, up_block_types=["UpDecoderBlock2D"] * last))
  text = random_weights(CLIPTextModel(CLIPTextConfig(
    vocab_size=vocab, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=LENGTH,
    bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1)))
  return quiet(diffusers.StableDiffusionPipeline(
    vae=vae, text_encoder=text, tokenizer=words, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    scheduler=diffusers.DDIMScheduler.from_config(SD)))


def compare(options) -> dict:
  """Runs the comparison; raises AssertionError when the sides do not draw the same."""
  import diffusers
  import jax
  import numpy as np
  import torch

  import mmdiff
  from mmdiff.commands import bench
  torch.set_num_threads(options.cores)
  prompts = ["a red cat and a dog"] * options.batch_size
  noise = np.random.default_rng(0).normal(size=(options.batch_size, options.side, options.side, 4)).astype(np.float32)
  latents = torch.from_numpy(np.ascontiguousarray(noise.transpose(0, 3, 1, 2)))
  with tempfile.TemporaryDirectory() as folder:
    peer = peer_pipeline(options, Path(folder))
    peer.save_pretrained(f"{folder}/sd")
    model = mmdiff.load(f"{folder}/sd")
  how = dict(num_inference_steps=options.steps, guidance_scale=7.5, output_type="np")
  sides = dict(
    mmdiff=lambda: model.generate(prompts, latents=noise, steps=options.steps, guidance=7.5, output="float", batch_size=options.batch_size),
    diffusers=lambda: peer(prompts, latents=latents, **how).images * 2 - 1)
  made = {name: side() for name, side in sides.items()}
  assert np.abs(made["mmdiff"] - made["diffusers"]).max() < 1e-3, "the sides draw different pictures; no time counts"
  times = {name: bench.Times([], []) for name in sides}
  for _ in range(options.rounds):
    for name, side in sides.items():
      more = bench.measure(side, warmup=0, repeats=1)
      times[name].wall.extend(more.wall)
      times[name].cpu.extend(more.cpu)
  ratio = {kind: min(getattr(times["diffusers"], kind)) / min(getattr(times["mmdiff"], kind)) for kind in ("wall", "cpu")}
  parameters = sum(value.numel() for part in (peer.unet, peer.vae, peer.text_encoder) for value in part.parameters())
  return dict(vars(options), parameters=parameters, speed_up=ratio, difference=float(np.abs(made["mmdiff"] - made["diffusers"]).max()),
              times={name: spent._asdict() for name, spent in times.items()}, load=os.getloadavg(),
              versions=dict(jax=jax.__version__, torch=torch.__version__, diffusers=diffusers.__version__, python=sys.version.split()[0]))


def main(argv=None) -> int:
  return measured.run(arguments(argv), compare, lambda result: [
    f"mmdiff is {result['speed_up']['cpu']:.2f} times as fast as diffusers per CPU second, {result['speed_up']['wall']:.2f} by the clock"])


if __name__ == "__main__":
  sys.exit(main())
