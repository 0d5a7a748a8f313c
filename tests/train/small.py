"""Every objective at a size that traces in a second: what a config's `objective` and `freeze` say of it, and batches of noise."""
from typing import NamedTuple

import numpy as np

SIZE, LENGTH, VOCAB = 8, 6, 32
CLIP = dict(name="clip", variant="tiny", image_size=SIZE, patch=4, image_width=16, image_depth=1, image_heads=2, text_len=LENGTH,
            text_width=16, text_depth=1, text_heads=2, embed_dim=16, vocab=VOCAB)
COCA = dict(name="coca", variant="tiny", image_size=SIZE, patch=4, image_width=16, image_depth=1, image_heads=2, text_width=16,
            text_heads=2, unimodal_depth=1, multimodal_depth=1, queries=3, embed_dim=8, vocab=VOCAB, text_len=LENGTH)
WORDS = dict(name="conv_text", vocab=VOCAB, text_len=LENGTH, width=16, layers=1)
DIT = dict(name="dit", variant="tiny", image_size=SIZE, patch=4, width=16, depth=1, heads=2)
UNET = dict(name="unet", variant="tiny", image_size=4, width=8, groups=4, text_width=16, heads=2, mults=(1, 2), depths=(0, 1), blocks=1)
KL = dict(name="kl", variant="tiny", image_size=SIZE, widths=(8,), groups=4)
CRITIC = dict(name="patch", width=16, layers=1, norm="group")


class Case(NamedTuple):
  objective: dict
  freeze: tuple[str, ...] = ()
  plain: dict = {}                    # keys of the objective that another way of computing the same has otherwise
  rows: int = 16
  rate: float = 3e-3


CASES = {
  "contrastive": Case(dict(name="contrastive", model=CLIP)),
  "ring": Case(dict(name="contrastive", model=CLIP, chunk=1), ("image/stack/.*",), plain=dict(chunk=0)),
  "sigmoid ring": Case(dict(name="contrastive", loss="sigmoid", model=CLIP, chunk=1), plain=dict(chunk=0)),
  "frozen images": Case(dict(name="contrastive", model=CLIP), ("image/.*",)),
  "coca": Case(dict(name="coca", model=COCA, chunk=1, logits_chunk=2), plain=dict(chunk=0, logits_chunk=0)),
  "captioner": Case(dict(name="coca", model=COCA, lambda_con=0.0), ("image/.*", "logit_scale")),
  "pixels": Case(dict(name="diffusion", denoiser=DIT, condition=WORDS)),
  "latents": Case(dict(name="diffusion", denoiser=UNET, condition=WORDS, encode=KL), ("autoencoder/.*", "text/.*")),
  "dit on latents": Case(dict(name="diffusion", schedule="scaled_linear", prediction="v", encode=KL, condition=WORDS,
                              denoiser=DIT | dict(image_size=4, channels=4, patch=2, position="sincos")), ("autoencoder/.*",)),
  "autoencoder": Case(dict(name="autoencoder", model=KL, discriminator=CRITIC, discriminator_start=1),
                      rate=3e-4),     # at a higher one, three steps magnify float rounding to 6e-4 of the loss
  "autoencoder alone": Case(dict(name="autoencoder", model=KL)),
}


def batch(step: int, *, rows: int) -> dict[str, np.ndarray]:
  """A pure function of the step, as the loader's."""
  drawn = np.random.default_rng(step)
  lengths = drawn.integers(2, LENGTH + 1, (rows, 1))
  return dict(image=drawn.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8), tokens=drawn.integers(0, VOCAB, (rows, LENGTH), np.int32),
              mask=np.arange(LENGTH)[None] < lengths, id=drawn.integers(0, 2**31, rows).astype(np.uint32),
              counts=np.ones((rows, 2), np.int32))


def config(case: Case, **changes) -> dict:
  """What the set-up reads of a config."""
  rule = dict(name="adamw", lr=case.rate, decay="constant", weight_decay=0.1, clip=1.0)
  return dict(seed=0, steps=50, batch_size=case.rows, accumulate=1, mesh=dict(data=1, fsdp=1, tensor=1), sharding="auto",
              freeze=case.freeze, ema={}, ema_warmup=True, optim=dict(default=rule)) | changes
