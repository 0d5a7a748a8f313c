r"""The KL autoencoders of latent diffusion (https://arxiv.org/abs/2112.10752, appendix G): L1, LPIPS, a KL of 1e-6 and a PatchGAN.

  mmdiff train --config=configs/kl_f8.py --workdir=DIR --config.data.source.urls='tars/{00000..41455}.tar' \
      --config.objective.perceptual.files=vgg16.safetensors,lpips.safetensors
      kl-f8 on OpenImages at 256 px: PSNR 24.19, rFID 0.90 in the authors' table; variant=f4: 27.53, 0.27; f16: 24.08, 0.87; f32: 22.27,
      2.04. variant=sd is f8 with the latent scale of Stable Diffusion, sdxl with SDXL's. None has been trained here.
  mmdiff train --config=configs/kl_f8.py:tiny --workdir=runs/kl_tiny
      scenes T64 to latents of 8×8×32: PSNR 27.4, SSIM 0.88 on 256 held-out scenes after a quarter of an hour on a CPU core.
"""
from configs import common

# Optimiser steps of the authors' table (f4, f8); the others' are not given there.
STEPS = {"f4": 176_991, "f8": 246_803}
VARIANTS = ("f4", "f8", "f16", "f32", "sd", "sdxl")


def get_config(arg=""):
  arg = common.parse(arg, variant="f8", tiny=False, apart=(("variant", "tiny"),))
  if arg.tiny:
    return tiny()
  common.one_of("variant", arg.variant, VARIANTS)
  config = common.base(steps=STEPS.get(arg.variant, 250_000), batch_size=24, save_every_steps=5_000)
  config.objective = dict(
    name="autoencoder", kl_weight=1e-6, discriminator_weight=0.5, discriminator_start=50_001,
    model=dict(name="kl", variant=arg.variant, image_size=256, dtype="bfloat16", remat="none", attention="auto"),
    perceptual=dict(name="lpips", files=(), dtype="bfloat16"),
    discriminator=dict(name="patch", width=64, layers=3, norm="batch", dtype="bfloat16"))
  config.data = common.data(
    dict(name="webdataset", urls="data/{00000..41455}.tar"), image_size=256, text_len=8, captions=dict(original=1.0),
    tokenizer=common.bpe(512), augment=dict(crop=(0.4, 1.0), flip=True), threads=16, workers=8)
  # The authors' 4.5e-6 times the batch size.
  adam = common.adamw(lr=4.5e-6 * config.batch_size, warmup_steps=0, decay="constant", weight_decay=0.0, b1=0.5, b2=0.9)
  config.optim = dict(autoencoder=adam, discriminator=adam)
  config.freeze = ("perceptual/.*",)
  config.ema = dict(eval=0.9999)
  config.evals = dict(
    reconstruction=dict(name="reconstruction", every_steps=10_000, limit=5_000, params="eval",
                        source=dict(name="tfds", dataset="coco_captions", split="val", captions=dict(original="captions/text"))))
  return config


def tiny():
  # Small batches: it is the number of steps that teaches it edges.
  config = common.base(steps=12_000, batch_size=8, save_every_steps=2_000)
  # Flat colours and sharp edges: squared errors alone, and convolutions on patches of eight, so that a denoiser has 64 places to think of.
  config.objective = dict(
    name="autoencoder", kl_weight=1e-3, pixel="l2",
    model=dict(name="kl", variant="tiny", widths=(128,), patch=8, latent_channels=32, image_size=64, dtype="float32", remat="none",
               attention="auto"))
  config.data = common.data(common.scenes("T64"), image_size=64, text_len=8, captions=dict(long=1.0), tokenizer=common.bpe(512))
  config.optim = dict(default=common.adamw(lr=2e-3, warmup_steps=50, weight_decay=0.0, b2=0.99, clip=1.0))
  config.ema = dict(eval=0.995)
  config.evals = dict(
    reconstruction=dict(name="reconstruction", source=common.scenes("T64", "val_iid"), every_steps=config.steps, limit=256, params="eval"))
  return config
