r"""Text-to-image diffusion on the latents of a KL autoencoder (https://arxiv.org/abs/2112.10752): the published models, and one for a CPU.

  mmdiff train --config=configs/t2i_latent.py:model=sd15 --workdir=DIR --config.data.source.urls='tars/{00000..09999}.tar' \
      --config.evals.samples.source.urls='tars/{00000..00000}.tar' --config.data.tokenizer.path=sd15/tokenizer
      models sd15, sd21, sdxl, and dalle3: the model of DALL-E 3's caption ablation (256 px, T5-XXL, three levels). The frozen encoders come
      from public checkpoints, see PARTS; a run of kl_f8.py or of clip.py does as well. None of these has been trained here.
  mmdiff train --config=configs/t2i_latent.py:model=sdxl,size=512 --workdir=DIR2 --config.init.path=DIR …
      progressive training: every size goes on from the run before it, 256, 512, then 768 (sd21) or 1024; sdxl's last in aspect buckets.
  mmdiff train --config=configs/kl_f8.py:tiny --workdir=runs/kl_tiny
  mmdiff train --config=configs/t2i_latent.py:tiny --workdir=runs/t2i_latent --config.init.parts.autoencoder=runs/kl_tiny
      scenes T64: latents of 8×8×32, a UNet that attends to the captions, 37 minutes on two CPU cores with the latents precomputed
      (`mmdiff data precompute`, docs/data.md). Hearts, rings, squares, stripes and checks are recognisable, small things less so. Of 32
      long prompts the background is right in all and the number of objects in 91 %; 97 % of the objects stand where they should, 70 % have
      their colour, 54 % their texture, 30 % their shape (after 2,000 steps 12 %, after 4,000 26 %: longer runs draw more of them).
"""
from configs import common

# Steps by picture size, from model cards and papers; sdxl's last and dalle3's beyond 256 px are guesses, nothing is published.
STEPS = {
  "sd15": {256: 237_000, 512: 595_000},
  "sd21": {256: 550_000, 512: 850_000, 768: 150_000},
  "sdxl": {256: 600_000, 512: 200_000, 1024: 100_000},
  "dalle3": {256: 500_000, 512: 100_000, 1024: 100_000},
}
FACTOR = 8              # of the published autoencoders
# Where the frozen encoders are: folders of the published pipelines, and of T5.
PARTS = {
  "sd15": {"autoencoder": "sd15/vae", "text": "sd15/text_encoder"},
  "sd21": {"autoencoder": "sd21/vae", "text": "sd21/text_encoder"},
  "sdxl": {"autoencoder": "sdxl/vae", "text/first": "sdxl/text_encoder", "text/second": "sdxl/text_encoder_2"},
  "dalle3": {"autoencoder": "sd15/vae", "text": "t5-v1_1-xxl"},
}


def get_config(arg=""):
  arg = common.parse(arg, model="sd15", size=256, tiny=False, apart=(("model", "tiny"), ("size", "tiny")))
  if arg.tiny:
    return tiny()
  common.one_of("model", arg.model, STEPS)
  if arg.size not in STEPS[arg.model]:
    raise ValueError(f"config argument size: {arg.model} takes {', '.join(map(str, STEPS[arg.model]))}, found {arg.size}")
  config = common.base(steps=STEPS[arg.model][arg.size], batch_size=2_048, save_every_steps=5_000)
  config.mesh = dict(data=-1, fsdp=8, tensor=1)
  config.precision = "default"           # the autoencoder is float32, and TF32 when the authors trained on A100s
  first = arg.size == min(STEPS[arg.model])
  # The encoders, or all of the size before.
  # Stable Diffusion 2.1's last size goes on from eps with v, as its authors did.
  config.init = dict(path="" if first else "runs/smaller", params="", map={}, parts=PARTS[arg.model] if first else {},
                     differs=("denoiser/prediction",) if (arg.model, arg.size) == ("sd21", 768) else ())
  config.objective = objective(arg.model, arg.size)
  config.data = common.data(
    dict(name="webdataset", urls="data/{00000..09999}.tar"), image_size=arg.size, text_len=128 if arg.model == "dalle3" else 77,
    captions=dict(long=0.95, original=0.05) if arg.model == "dalle3" else dict(original=1.0),
    tokenizer=dict(name="file", path="data/t5_tokenizer.json") if arg.model == "dalle3" else dict(name="clip", path="data/clip_tokenizer"),
    threads=16, workers=8)
  if arg.model == "sdxl" and arg.size == 1024:
    config.data.buckets = ("step=64", "ratio=4")
  # PyTorch's AdamW as the authors call it: its default decay of 0.01, times the learning rate, of all parameters.
  config.optim = dict(default=common.adamw(lr=1e-4, warmup_steps=10_000, decay="constant", weight_decay=0.01, clip=1.0, decayed=(".*",)))
  config.freeze = ("autoencoder/.*", "text/.*")
  config.ema = dict(eval=0.9999)
  config.evals = dict(
    samples=dict(name="samples", source=config.data.source, count=16, every_steps=10_000, steps=50, guidance=7.5, params="eval"))
  return config


def objective(model: str, size: int) -> dict:
  """A published model at a picture size; the time, the text and the losses are as published, bfloat16 is ours."""
  kind = {"sd15": "sd1", "sd21": "sd2"}.get(model, model)
  # From 512 px on a step keeps the inputs of its blocks only.
  denoiser = dict(name="unet", variant=kind, image_size=size // FACTOR, dtype="bfloat16", remat="full" if size > 256 else "none",
                  attention="auto")
  clip = lambda variant: dict(name="clip_states", variant=variant, dtype="bfloat16", attention="auto")
  condition = {"sd15": clip("sd1"), "sd21": clip("sd2"), "dalle3": dict(name="t5", variant="xxl", dtype="bfloat16"),
               "sdxl": dict(name="two_texts", first=clip("sdxl-1"), second=clip("sdxl-2"))}[model]
  encode = dict(name="kl", variant="sdxl" if model == "sdxl" else "sd", image_size=size, dtype="float32", attention="auto")
  prediction = "v" if (model, size) == ("sd21", 768) else "eps"
  made = dict(name="diffusion", schedule="scaled_linear", prediction=prediction, weighting="uniform", caption_dropout=0.1,
              denoiser=denoiser, condition=condition, encode=encode)
  if model == "sdxl":
    made |= dict(uncond="zeros", offset_noise=0.05 if size == 1024 else 0.0)
  return made


def tiny():
  vocab, text_len = 512, 100                # the longest long caption has 91 tokens
  config = common.base(steps=5_000, batch_size=64, save_every_steps=500)
  # The scale is measured on the autoencoder that was trained without one.
  config.init = dict(path="", params="", map={}, parts=dict(autoencoder="runs/kl_tiny"), differs=("autoencoder/scale",))
  config.objective = dict(
    # Of its 32 channels the tiny autoencoder uses 14 (its report's latent_used); without the noise of the others the loss is of pictures.
    name="diffusion", schedule="flow", prediction="x0", caption_dropout=0.1, latents="mean",
    denoiser=dict(name="unet", variant="tiny", image_size=8, channels=32, depths=(1, 1), position_std=0.4, open_start=True,
                  dtype="float32", remat="none", attention="auto"),
    condition=dict(name="conv_text", vocab=vocab, text_len=text_len, width=128),
    # The tiny autoencoder's latents have a deviation of 0.96 (its report's latent_std).
    encode=dict(name="kl", variant="tiny", widths=(128,), patch=8, latent_channels=32, image_size=64, scale=1.04, dtype="float32",
                attention="auto"))
  config.data = common.data(common.scenes("T64", size=40_000), image_size=64, text_len=text_len, captions=dict(long=0.95, original=0.05),
                            tokenizer=common.bpe(vocab))
  config.optim = dict(default=common.adamw(lr=1e-3, warmup_steps=50, decay="wsd", weight_decay=0.0, b2=0.98, clip=1.0))
  config.freeze = ("autoencoder/.*",)
  config.ema = dict(eval=0.995)
  drawing = dict(steps=40, guidance=2.0, sampler="euler_ancestral", params="eval")
  config.evals = dict(
    samples=dict(name="samples", source=common.scenes("T64", "val_iid"), caption="long", count=16, every_steps=config.steps // 4,
                 **drawing),
    judge=dict(name="scenes_judge", tier="T64", prompts=64, every_steps=config.steps // 2, **drawing))
  return config
