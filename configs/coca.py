r"""CoCa (https://arxiv.org/abs/2205.01917): a captioner and a CLIP in one, at the paper's three sizes and open_clip's two.

The paper's recipe: 65,536 pairs a step, 500,000 steps, Adafactor at 8e-4 after 2 % of warm-up, decayed to zero, weight decay 0.01: in
the convention of Lingvo and Praxis, whose Adafactor it is, times the learning rate; it clips updates to a root mean square of 1.

  mmdiff train --config=configs/coca.py:variant=Base --workdir=DIR --config.data.source.urls='tars/{00000..41455}.tar' \
      --config.data.tokenizer.path=tokenizer.json
      Base: 82.6 % zero-shot on ImageNet in the paper (JFT-3B and ALIGN); not run here.
  mmdiff train --config=configs/coca.py:variant=ViT-B/32 --workdir=DIR --config.data.source.urls='tars/{00000..41455}.tar' \
      --config.data.tokenizer.path=clip_tokenizer/
      open_clip's coca_ViT-B-32: 63.3 % after 13 B pairs of LAION-2B.
  mmdiff train --config=configs/coca.py:tiny --workdir=runs/coca
      scenes T32 with their noisy alt texts; the base that coca_short.py and coca_long.py go on from. tier=T16 for the smallest world.
"""
from configs import common

VARIANTS = ("Base", "Large", "2.1B", "ViT-B/32", "ViT-L/14")

# Which thing a long caption names first is not in the picture; with few captions it is learnt by heart before rarer words are read off the
# picture, unless their sentences change places. The two textures of T16 are learnt before.
TIERS = {"T16": dict(size=16, text_len=64, steps=400, lr=1e-3, tuning=dict(steps=1_000, lr=2e-3, decay="cosine", weight_decay=0.1),
                     sentences=False),
         "T32": dict(size=32, text_len=66, steps=800, lr=2e-3, tuning=dict(steps=4_800, lr=3e-3, decay="wsd", weight_decay=0.3),
                     sentences=True)}


def get_config(arg=""):
  arg = common.parse(arg, variant="Base", tiny=False, tier="T32", apart=(("variant", "tiny"),), within=dict(tier="tiny"))
  return small(arg.tier) if arg.tiny else published(arg.variant)


def published(variant: str):
  common.one_of("variant", variant, VARIANTS)
  open_clip = variant.startswith("ViT")
  config = common.base(steps=500_000, batch_size=65_536, save_every_steps=2_000)
  config.objective = dict(
    name="coca", lambda_con=1.0, lambda_cap=2.0, chunk=2_048, logits_chunk=16,
    model=dict(name="coca", variant=variant, dtype="bfloat16", remat="dots", attention="auto"))
  config.data = common.data(
    dict(name="webdataset", urls="data/{00000..41455}.tar"), image_size=224 if open_clip else 288, text_len=76, captions=dict(original=1.0),
    tokenizer=dict(name="clip", path="data/clip_tokenizer", pad="zero") if open_clip else dict(name="file", path="data/tokenizer.json"),
    threads=16, workers=8)
  config.optim = dict(default=dict(name="adafactor", lr=8e-4, warmup_steps=10_000, decay="linear", b1=0.9, b2_cap=0.999, weight_decay=0.01,
                                   decay_times="lr", clip=1.0, update_clip=1.0))
  config.evals = dict(
    coco=dict(name="retrieval", every_steps=10_000, params="",
              source=dict(name="tfds", dataset="coco_captions", split="val", captions=dict(original="captions/text"))))
  return config


def model(tier: str) -> dict:
  """The captioner of minutes of CPU. Of its four patches it makes no tokens: the decoder attends to them."""
  size = TIERS[tier]["size"]
  return dict(name="coca", variant="tiny", image_size=size, patch=size // 2, queries=0, text_len=TIERS[tier]["text_len"], dtype="float32",
              remat="none", attention="auto")


def small(tier: str):
  common.one_of("tier", tier, TIERS)
  config = common.base(steps=TIERS[tier]["steps"], batch_size=128, save_every_steps=1_000)
  config.objective = dict(name="coca", lambda_con=1.0, lambda_cap=2.0, chunk=0, logits_chunk=0, model=model(tier))
  # Alt texts are short; the tokenizer is trained on every kind of caption of the source.
  config.data = common.data(common.scenes(tier), image_size=TIERS[tier]["size"], text_len=24, captions=dict(original=1.0),
                            tokenizer=common.bpe(512))
  config.optim = dict(default=common.adamw(lr=TIERS[tier]["lr"], warmup_steps=50, weight_decay=0.1, b2=0.98, clip=1.0))
  config.evals = dict(
    retrieval=dict(name="retrieval", source=common.scenes(tier, "val_iid"), caption="original", limit=500, every_steps=config.steps,
                   params=""))
  return config


def fine_tuned(arg: str, kind: str):
  """The captioner alone (no contrast), from a base, on captions of one kind."""
  arg = common.parse(arg, variant="Base", init="runs/coca", tiny=False, tier="T32", limit=2_000, apart=(("variant", "tiny"),),
                     within=dict(tier="tiny", limit="tiny"))
  config = small(arg.tier) if arg.tiny else published(arg.variant)
  config.init.path = arg.init
  config.objective.lambda_con, config.objective.lambda_cap = 0.0, 1.0
  config.data.captions = {kind: 1.0}
  return small_tuning(config, kind, arg.tier, arg.limit) if arg.tiny else tuning(config, kind)


def tuning(config, kind: str):
  """At a published size. Neither paper gives figures for it: these are the customary ones for captions of COCO."""
  config.steps, config.batch_size = 50_000, 128
  config.checkpoint.every_steps = 1_000
  config.data.on_missing = "error"                  # a caption of another kind would teach what is not wanted
  config.data.source.urls = f"data/{kind}/*.tar"
  config.optim = dict(default=dict(config.optim.default, lr=1e-5, warmup_steps=1_000, decay="cosine"))
  config.ema = dict(eval=0.9999)
  config.evals = dict(loss=dict(name="loss", source=dict(name="webdataset", urls=f"data/{kind}_val/*.tar"), caption=kind, limit=5_000,
                                every_steps=5_000, params="eval"))
  return config


def small_tuning(config, kind: str, tier: str, limit: int):
  """The captioner of minutes of CPU, on the first `limit` records."""
  options = dict(TIERS[tier]["tuning"])
  config.steps, config.batch_size = options.pop("steps"), 32
  config.data.source.size = limit
  config.data.text_len = TIERS[tier]["text_len"] if kind == "long" else 24
  config.data.augment.sentences = TIERS[tier]["sentences"]
  config.optim = dict(default=common.adamw(**options, warmup_steps=50, b2=0.98, clip=1.0))
  config.ema = dict(eval=0.99)
  config.evals = dict(captions=dict(name="captions", tier=tier, kind=kind, limit=500, every_steps=config.steps, params="eval"))
  return config
