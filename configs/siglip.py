r"""SigLIP (https://arxiv.org/abs/2303.15343): CLIP with a sigmoid loss, pooled image tokens and no causal mask.

The paper's recipe: Adafactor at 1e-3 and weight decay 1e-4 in big_vision's convention: of kernels alone, times the schedule and not times
the learning rate, so that a step takes 1e-4 off at the peak (PyTorch's AdamW would write 0.1: `tiny` does). big_vision's Adafactor clips no
updates and keeps second moments by rows and columns from 32 on.

  mmdiff train --config=configs/siglip.py:variant=SigLIP-B/16 --workdir=DIR --config.data.source.urls='tars/{00000..41455}.tar' \
      --config.data.tokenizer.path=siglip_tokenizer/
      B/16 at 224 px on WebLI: 76.0 % zero-shot on ImageNet (open_clip's evaluation of the released weights).
  mmdiff train --config=configs/siglip.py:tiny --workdir=runs/siglip_tiny
      scenes at 32 px on one CPU core, to try things out.
"""
from configs import common

# Preset, pixels a side, tokens of a text and of the vocabulary (big_vision, SigLIP_demo.ipynb: c4_en, and mc4 for -i18n).
VARIANTS = {
  "SigLIP-B/16": ("SigLIP-B/16", 224, 64, 32_000), "SigLIP-B/16@256": ("SigLIP-B/16", 256, 64, 32_000),
  "SigLIP-B/16@384": ("SigLIP-B/16", 384, 64, 32_000), "SigLIP-B/16@512": ("SigLIP-B/16", 512, 64, 32_000),
  "SigLIP-B/16-i18n": ("SigLIP-B/16", 256, 64, 250_000), "SigLIP-L/16": ("SigLIP-L/16", 256, 64, 32_000),
  "SigLIP-L/16@384": ("SigLIP-L/16", 384, 64, 32_000), "SigLIP-So400m/14": ("SigLIP-So400m/14", 224, 16, 32_000),
  "SigLIP-So400m/14@384": ("SigLIP-So400m/14", 384, 64, 32_000),
}


def get_config(arg=""):
  arg = common.parse(arg, variant="SigLIP-B/16", tiny=False, apart=(("variant", "tiny"),))
  if arg.tiny:
    config = common.base(steps=300, batch_size=128, save_every_steps=500)
    model = dict(name="clip", variant="siglip-tiny", image_size=32, vocab=512, text_len=64, dtype="float32", remat="none", attention="auto")
    config.data = common.data(common.scenes("T32"), image_size=32, text_len=64, captions=dict(long=0.95, original=0.05),
                              tokenizer=common.bpe(512))
    config.optim = dict(default=common.adamw(lr=1e-3, warmup_steps=50, weight_decay=0.1, b2=0.95, clip=1.0))
    config.evals = dict(retrieval=dict(name="retrieval", source=common.scenes("T32", "val_iid"), caption="long", limit=500, every_steps=150,
                                       params=""))
  else:
    config = common.base(steps=122_070, batch_size=32_768, save_every_steps=2_000)
    common.one_of("variant", arg.variant, VARIANTS)
    preset, size, length, vocab = VARIANTS[arg.variant]
    model = dict(name="clip", variant=preset, image_size=size, text_len=length, vocab=vocab, dtype="bfloat16", remat="dots",
                 attention="auto")
    config.data = common.data(
      dict(name="webdataset", urls="data/{00000..41455}.tar"), image_size=size, text_len=length, captions=dict(original=1.0),
      tokenizer=dict(name="siglip", path="data/siglip_tokenizer"), resize="squash", threads=16, workers=8)
    config.optim = dict(default=dict(name="adafactor", lr=1e-3, warmup_steps=20_000, decay="rsqrt", b1=0.9, b2_cap=0.95, weight_decay=1e-4,
                                     decay_times="schedule", decayed=(".*kernel",), clip=1.0, update_clip=0.0, min_factored=32))
    config.evals = dict(coco=dict(name="retrieval", every_steps=10_000, params="",
                                  source=dict(name="tfds", dataset="coco_captions", split="val", captions=dict(original="captions/text"))))
  config.objective = dict(name="contrastive", loss="sigmoid", chunk=0 if arg.tiny else 2_048, model=model)
  return config
