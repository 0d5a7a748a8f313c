r"""Text-to-image diffusion on pixels: a DiT (https://arxiv.org/abs/2212.09748) that attends to caption tokens, as flow matching.

  mmdiff train --config=configs/t2i_pixels.py --workdir=runs/t2i_t32
      scenes T32 (32 px) with 95 % long captions: about ten minutes on two cores; expect the figures of configs/demo.py.
  mmdiff train --config=configs/t2i_pixels.py:tier=T64 --workdir=runs/t2i_t64
      scenes T64 (64 px), for a GPU.
  mmdiff train --config=configs/t2i_pixels.py:emoji --workdir=runs/t2i_emoji
      the real emoji set (first: mmdiff data build emoji --out=data/emoji): after its 5,000 steps the faces of the sample grid are
      recognisable by their expressions, tears, hearts and haloes, on a texture of speckles.
  mmdiff train --config=configs/t2i_pixels.py:tiny --workdir=runs/t2i_tiny
      scenes T16, to try things out; its pictures have not been scored.
"""
from configs import common

TIERS = {"T16": dict(size=16, text_len=64, steps=600), "T32": dict(size=32, text_len=66, steps=3_000),
         "T64": dict(size=64, text_len=160, steps=40_000)}


def get_config(arg=""):
  arg = common.parse(arg, tier="T32", tiny=False, emoji=False, apart=(("tier", "tiny", "emoji"),))
  tier = "T16" if arg.tiny else arg.tier
  common.one_of("tier", tier, TIERS)
  size, text_len = TIERS[tier]["size"], TIERS[tier]["text_len"]
  config = common.base(steps=5_000 if arg.emoji else TIERS[tier]["steps"], batch_size=64, save_every_steps=500)
  vocab = 1_024 if arg.emoji else 512
  if arg.emoji:
    size, text_len = 32, 64
    source = dict(name="webdataset", urls="data/emoji/train/*.tar")
    captions = dict(long=0.5, short=0.5)
  else:
    source, captions = common.scenes(tier), dict(long=0.95, original=0.05)
  config.data = common.data(source, image_size=size, text_len=text_len, captions=captions, tokenizer=common.bpe(vocab))
  if size < 64:
    config.objective = common.small_t2i(image_size=size, vocab=vocab, text_len=text_len)
  else:
    config.objective = dict(
      name="diffusion", schedule="flow", prediction="x0", caption_dropout=0.1,
      denoiser=dict(name="dit", variant="base64", image_size=size, text="cross", dtype="bfloat16", remat="none", attention="auto"),
      condition=dict(name="conv_text", vocab=vocab, text_len=text_len, width=256))
  config.optim = dict(default=common.adamw(lr=2e-3, warmup_steps=50, weight_decay=0.0, b2=0.98, clip=1.0))
  config.ema = dict(eval=0.995)
  prompts = dict(steps=40, guidance=2.0, sampler="euler_ancestral", params="eval")
  config.evals = dict(samples=dict(name="samples", source=source, caption="long", count=16, every_steps=config.steps // 4, **prompts))
  if not arg.emoji:
    config.evals.judge = dict(name="scenes_judge", tier=tier, prompts=64, every_steps=config.steps // 2, **prompts)
  return config
