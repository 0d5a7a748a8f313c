r"""How many of the captions should be synthetic? The ablation of DALL·E 3 (Betker et al. 2023, https://cdn.openai.com/papers/dall-e-3.pdf,
section 3): text-to-image models that differ only in the share of original, of short and of long synthetic captions.

  mmdiff ablate --config=configs/ablations/caption_mix.py:demo --workdir=runs/caption_mix
      the whole loop on scenes of 16 px: a CLIP model to score with, a captioner trained on alt texts and then on 2,000 long captions, the
      training set captioned by it, 4 arms × 3 seeds, and the report; 14 minutes on two CPU cores. Every fact right at the end, of 128
      held-out prompts, means of 3 seeds: original 0, long65 0.51, long80 0.88, long95 0.99. Minus long95, area under the learning curve,
      each seed and [95 % interval]: long65 -0.34 -0.48 -0.23 [-0.47, -0.24], long80 -0.15 -0.13 -0.04 [-0.16, -0.05]; half-way long65
      -0.79 -0.51 -0.12 [-0.77, -0.14]. Of the captioner's facts 0.986 were true, and 3.6 % of its captions had a false one.
  mmdiff ablate --config=configs/ablations/caption_mix.py --workdir=DIR --plan
      the paper's: 7 arms of 500,000 steps × 2,048 at 256 px. It wants the captions of `mmdiff caption --kind=short` and `--kind=long`, for
      training in data/captions/ and for the prompts in data/prompts/, the frozen encoders of configs/t2i_latent.py, and
      CLIP ViT-B/32 in data/clip-vit-base-patch32.
      The paper's figure 5, scored on original captions: 95 % above 90 % above 80 %, by 0.1 to 0.3 at a CLIP score of about 29.5; 65 % far
      behind and stopped early.
"""
from configs import common, t2i_latent

SHARES = (65, 80, 95)


def get_config(arg=""):
  arg = common.parse(arg, demo=False, part="", seeds=3, tiny=False, apart=(("demo", "part"), ("seeds", "part")), within=dict(tiny="demo"))
  if arg.part:
    common.one_of("part", arg.part, ("scorer",))
  return scorer() if arg.part else demo(arg.seeds, arg.tiny) if arg.demo else paper(arg.seeds)


def mix(**shares: int) -> tuple[str]:
  """An arm: the captions' shares in per cent."""
  return (f"data.captions={ {kind: share / 100 for kind, share in shares.items() if share} }",)


def paper(seeds: int) -> dict:
  """The paper's arms and schedule, on the latent model of its appendix A; 50,000 prompts an evaluation."""
  config = t2i_latent.get_config("model=dalle3,size=256")        # 500,000 steps of 2,048
  config.data.sidecar = "data/captions/short,data/captions/long"
  config.data.on_missing = "error"
  config.evals = dict(alignment=dict(
    name="alignment", source=dict(name="webdataset", urls="data/prompts/*.tar"), sidecar="data/prompts/short,data/prompts/long",
    scorer="data/clip-vit-base-patch32", captions=("long", "short", "original"), limit=50_000, every_steps=50_000, params="eval", steps=50,
    guidance=3.0))
  arms = {"original": mix(original=100), "short95": mix(short=95, original=5)}
  return dict(base=config, seeds=tuple(range(seeds)), reference="long95", read="alignment", prepare={},
              arms=arms | {f"long{share}": mix(long=share, original=100 - share) for share in (65, 80, 90, 95, 100)})


# The demo: scenes of 16 px

TIER, SIZE, TEXT_LEN, VOCAB = "T16", 16, 46, 512         # the longest long caption has 44 tokens


def demo(seeds: int, tiny: bool = False) -> dict:
  """tiny: a few steps on a few records, to see that the path works; its numbers mean nothing."""
  size = 200 if tiny else None
  config = common.base(steps=8 if tiny else 512, batch_size=64, log_every_steps=4 if tiny else 64, save_every_steps=256)
  objective = common.small_t2i(image_size=SIZE, vocab=VOCAB, text_len=TEXT_LEN)
  # Four patches see each other and the words in one attention; that narrow, they learn to read within 300 steps.
  objective["denoiser"] |= dict(width=128, heads=4, text="joint")
  config.objective = objective
  config.data = common.data(common.scenes(TIER, size=size), image_size=SIZE, text_len=TEXT_LEN, captions=dict(long=0.95, original=0.05),
                            tokenizer=common.bpe(VOCAB), sidecar="{workdir}/prepare/captions")
  if tiny:                              # a captioner of four steps writes what no text may hold
    config.data.max_bad_fraction = 1.0
  # Without decay a model that reads late is not one that no longer learns.
  config.optim = dict(default=common.adamw(lr=2e-3, warmup_steps=50, weight_decay=0.0, decay="constant", b2=0.98, clip=1.0))
  config.ema = dict(eval=0.98)
  config.evals = dict(alignment=dict(
    name="alignment", source=common.scenes(TIER, "val_iid"), scorer="{workdir}/prepare/scorer", captions=("long", "original"),
    limit=8 if tiny else 128, every_steps=4 if tiny else 64, params="eval", steps=12, guidance=2.0))
  # Pairs of shape and colour that no picture of the training set shows.
  config.evals.held_out = dict(name="scenes_judge", tier=TIER, prompts=8 if tiny else 128, splits=("val_comp",), every_steps=config.steps,
                               params="eval", steps=12, guidance=2.0)
  short = ("--config.steps=4", "--config.evals={}") if tiny else ()
  return dict(
    base=config, seeds=tuple(range(seeds)), reference="long95", read="alignment",
    arms=dict(original=mix(original=100)) | {f"long{share}": mix(long=share, original=100 - share) for share in SHARES},
    prepare=dict(
      scorer=("train", "--config=configs/ablations/caption_mix.py:part=scorer", "--workdir={workdir}/prepare/scorer", *short),
      captioner=("train", f"--config=configs/coca.py:tiny,tier={TIER}", "--workdir={workdir}/prepare/captioner",
                 *(short or ("--config.steps=250", "--config.evals.retrieval.every_steps=250"))),
      captioner_long=("train", f"--config=configs/coca_long.py:tiny,tier={TIER}", "--workdir={workdir}/prepare/captioner_long",
                      "--config.init.path={workdir}/prepare/captioner", f"--config.data.text_len={TEXT_LEN}", *short),
      captions=("caption", "--model={workdir}/prepare/captioner_long", "--out={workdir}/prepare/captions", "--kind=long",
                "--batch_size=250", f"--data=name=scenes,tier={TIER},split=train" + (f",size={size}" if tiny else ""))))


def scorer():
  """A CLIP model of the pictures that the arms are scored on; it sees true captions, as the arms do not."""
  config = common.base(steps=300, batch_size=128, save_every_steps=1_000)
  config.objective = dict(
    name="contrastive", loss="softmax", chunk=0,
    model=dict(name="clip", variant="tiny", image_size=SIZE, patch=8, vocab=VOCAB, text_len=TEXT_LEN, dtype="float32", remat="none",
               attention="auto"))
  config.data = common.data(common.scenes(TIER), image_size=SIZE, text_len=TEXT_LEN, captions=dict(long=0.5, original=0.5),
                            tokenizer=common.bpe(VOCAB))
  config.optim = dict(default=common.adamw(lr=1e-3, warmup_steps=50, weight_decay=0.1, b2=0.98, eps=1e-6, clip=1.0))
  config.evals = dict(retrieval=dict(name="retrieval", source=common.scenes(TIER, "val_iid"), caption="long", limit=500,
                                     every_steps=config.steps, params=""))
  return config
