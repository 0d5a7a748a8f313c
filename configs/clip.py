r"""CLIP (https://arxiv.org/abs/2103.00020) at every published size, on image-text pairs in webdataset tars.

The paper's recipe: 32,768 pairs a step, 400 M pairs, 32 epochs, cosine decay, AdamW with weight decay 0.2 (times the learning rate) on all
that is neither gain nor bias: as OpenCLIP reads it, whatever has two dimensions, so token and position embeddings too.

  mmdiff train --config=configs/clip.py:variant=ViT-B/32 --workdir=DIR --config.data.source.urls='tars/{00000..41455}.tar' \
      --config.data.tokenizer.path=clip_tokenizer/
      ViT-B/32: 63.2 % zero-shot on ImageNet in the paper after 12.8 B pairs; 62.96 % on LAION-400M (open_clip).
  mmdiff train --config=configs/clip.py:tiny --workdir=runs/clip_tiny
      scenes at 32 px on one CPU core: 300 steps; configs/demo.py reaches R@1 0.71 of 1,000 in 500.
  mmdiff train --config=configs/clip.py:emoji --workdir=runs/clip_emoji
      the real emoji set (first: mmdiff data build emoji --out=data/emoji): R@1 0.25 and R@10 0.43 on its 260 held-out emoji (chance: 0.04).
"""
from configs import common

# Peak learning rates of Tables 19-20; the others follow OpenCLIP.
RATES = {"RN50": 5e-4, "RN101": 5e-4, "RN50x4": 5e-4, "RN50x16": 4e-4, "RN50x64": 3.6e-4, "ViT-B/32": 5e-4, "ViT-B/16": 5e-4,
         "ViT-L/14": 4e-4, "ViT-L/14@336": 2e-5}
VARIANTS = (*RATES, "ViT-H/14", "ViT-g/14", "ViT-bigG/14")
SIZES = {"RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "ViT-L/14@336": 336}


def get_config(arg=""):
  arg = common.parse(arg, variant="ViT-B/32", tiny=False, emoji=False, apart=(("variant", "tiny", "emoji"),))
  if arg.tiny or arg.emoji:
    return small(arg)
  common.one_of("variant", arg.variant, VARIANTS)
  config = common.base(steps=390_625, batch_size=32_768, save_every_steps=2_000)      # 12.8 B pairs
  config.objective = dict(
    name="contrastive", loss="softmax", chunk=2_048,
    model=dict(name="clip", variant=arg.variant, dtype="bfloat16", remat="dots", attention="auto"),
  )
  config.data = common.data(
    dict(name="webdataset", urls="data/{00000..41455}.tar"), image_size=SIZES.get(arg.variant, 224), text_len=77,
    captions=dict(original=1.0), tokenizer=dict(name="clip", path="data/clip_tokenizer"), augment=dict(crop=(0.9, 1.0), flip=False),
    threads=16, workers=8)
  b2, eps = (0.999, 1e-8) if arg.variant.startswith("RN") else (0.98, 1e-6)
  config.optim = dict(default=common.adamw(lr=RATES.get(arg.variant, 5e-4), warmup_steps=2_000, weight_decay=0.2, b2=b2, eps=eps,
                                           decayed=(".*kernel", ".*embedding", ".*position")))
  config.evals = dict(
    coco=dict(name="retrieval", every_steps=10_000, params="",
              source=dict(name="tfds", dataset="coco_captions", split="val", captions=dict(original="captions/text"))),
  )
  return config


def small(arg):
  config = common.base(steps=1_200 if arg.emoji else 300, batch_size=128, save_every_steps=500)
  config.objective = dict(
    name="contrastive", loss="softmax", chunk=0,
    model=dict(name="clip", variant="tiny", image_size=32, vocab=1_024 if arg.emoji else 512, text_len=64, dtype="float32", remat="none",
               attention="auto"),
  )
  if arg.emoji:
    config.data = common.data(dict(name="webdataset", urls="data/emoji/train/*.tar"), image_size=32, text_len=64,
                              captions=dict(long=0.5, short=0.5), tokenizer=common.bpe(1_024))
    held_out = dict(name="webdataset", urls="data/emoji/val/*.tar")
  else:
    config.data = common.data(common.scenes("T32"), image_size=32, text_len=64, captions=dict(long=0.95, original=0.05),
                              tokenizer=common.bpe(512))
    held_out = common.scenes("T32", "val_iid")
  config.optim = dict(default=common.adamw(lr=1e-3, warmup_steps=50, weight_decay=0.1, b2=0.98, eps=1e-6, clip=1.0))
  config.evals = dict(
    retrieval=dict(name="retrieval", source=held_out, caption="long", limit=500, every_steps=config.steps // 2, params=""),
  )
  return config
