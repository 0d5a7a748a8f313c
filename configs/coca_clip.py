r"""A captioner that starts from a trained CLIP, as DALL·E 3's does (Betker et al. 2023, https://cdn.openai.com/papers/dall-e-3.pdf, §2): a
language model conditioned on CLIP's picture embedding, trained with CLIP's loss and the language model's together. The structure is CoCa's
as open_clip keeps it, whose image tower and unimodal text are those of a CLIP of the same variant.

  mmdiff train --config=configs/coca_clip.py:variant=ViT-B/32 --workdir=DIR --config.init.path=clip-vit-base-patch32 \
      --config.data.tokenizer.path=clip-vit-base-patch32
      from OpenAI's weights; LAION's have another activation: --config.objective.model.act=gelu. What CLIP lacks, the pooler, the text's
      class token and the decoder, starts fresh. The paper gives no sizes and no recipe: these are CoCa's at a lower rate for what is
      loaded. Then configs/coca_long.py:variant=ViT-B/32 with --config.init.path=DIR. Not run here.
  mmdiff train --config=configs/coca_clip.py:tiny --workdir=runs/coca_clip --config.init.parts.image=runs/clip
      from the image tower of a run of configs/clip.py:tiny, to try things out.
"""
from configs import coca, common

FRESH = {"pool": "", "decoder": "", "text/class_token": ""}         # what a CLIP does not have
POOLED = ("image/pool",)            # by the pooler here, not by the class token alone
VARIANTS = ("ViT-B/32", "ViT-L/14")


def get_config(arg=""):
  arg = common.parse(arg, variant="ViT-B/32", tiny=False, apart=(("variant", "tiny"),))
  return tiny() if arg.tiny else published(arg.variant)


def published(variant: str):
  common.one_of("variant", variant, VARIANTS)
  config = coca.published(variant)
  config.init = dict(path="CLIP-" + variant.replace("/", "-"), params="", map=FRESH, parts={}, differs=POOLED)
  config.objective.model.act = "quick_gelu"
  config.steps, config.batch_size = 100_000, 8_192
  # CLIP's towers are trained already; what is fresh learns at the pretraining's rate.
  group = lambda lr: dict(config.optim.default, lr=lr, warmup_steps=2_000)
  config.optim = dict(default=group(8e-4), image=group(2e-5), text=group(2e-5))
  return config


def tiny():
  config = coca.small("T32")
  config.objective.model = dict(config.objective.model, open_clip=True, queries=16, patch=8, pixels="clip", act="quick_gelu",
                                position_std=None)
  config.init.parts, config.init.differs = dict(image="runs/clip"), POOLED
  return config
