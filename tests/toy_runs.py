"""Run directories of tiny models with random parameters, written without training."""
import json
from pathlib import Path

import numpy as np

from mmdiff.core import schema
from mmdiff.core.build import build
from mmdiff.data import SOURCES, TOKENIZERS, loader
from mmdiff.objectives import OBJECTIVES
from mmdiff.train.checkpoint import Checkpoints
from mmdiff.train.state import TrainState

SCALAR = 2.0           # the value of every parameter without a shape
ADAMW = dict(name="adamw", lr=1e-3, warmup_steps=1, weight_decay=0.0)
SCENES = dict(name="scenes", tier="T16", split="train", size=40)


def config(objective: dict, **more) -> dict:
  return schema.complete(dict(
    seed=0, steps=4, batch_size=8, log_every_steps=1, checkpoint=dict(every_steps=2), mesh=dict(data=1), objective=objective,
    data=dict(source=SCENES, captions=dict(long=1.0), tokenizer=dict(name="bpe", vocab=320, sample=20), image_size=16, text_len=24),
    optim=dict(default=ADAMW), ema=dict(eval=0.9)) | more)


def clip() -> dict:
  return config(dict(name="contrastive", model=dict(name="clip", variant="tiny", image_size=16, patch=8, vocab=320, text_len=24,
                                                    image_width=16, image_depth=1, image_heads=2, text_width=16, text_depth=1, text_heads=2,
                                                    embed_dim=8)))


def t2i() -> dict:
  return config(dict(name="diffusion", denoiser=dict(name="dit", variant="tiny", image_size=16),
                     condition=dict(name="conv_text", vocab=320, text_len=24, width=16)))


def latent() -> dict:
  """On latents of 4×4×4."""
  return config(dict(name="diffusion", condition=dict(name="conv_text", vocab=320, text_len=24, width=16, layers=0),
                     denoiser=dict(name="dit", variant="tiny", image_size=4, channels=4, patch=2, width=16, depth=1, heads=2,
                                   position="sincos"),
                     encode=dict(name="kl", variant="tiny", image_size=16, widths=(8, 8))))


def coca() -> dict:
  return config(dict(name="coca", model=dict(name="coca", variant="tiny", image_size=16, patch=8, vocab=320, text_len=24, image_width=16,
                                             image_depth=1, image_heads=2, text_width=16, unimodal_depth=1, multimodal_depth=1,
                                             text_heads=2, queries=4, embed_dim=8)))


def make(workdir: Path, config: dict, *, steps: tuple[int, ...] = (2,)) -> Path:
  """The directory of a run of `config` with checkpoints at `steps`: random parameters that grow by a tenth a checkpoint, and an average
  that stays. Nothing is compiled but the checkpoint's fingerprints."""
  import jax
  import jax.numpy as jnp
  workdir.mkdir(parents=True, exist_ok=True)
  dataset = loader.dataset(build(SOURCES, config["data"]["source"]), build(TOKENIZERS, config["data"]["tokenizer"]), seed=config["seed"],
                           **{key: value for key, value in config["data"].items() if key not in ("source", "tokenizer")})
  dataset.tokenizer.save(workdir / "tokenizer.json")
  (workdir / "config.json").write_text(json.dumps(config))
  example = next(iter(dataset.train_batches(batch_size=1)))
  shapes = jax.eval_shape(build(OBJECTIVES, config["objective"]).init, jax.random.key(0), example).params
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.2, size=x.shape) if x.shape else SCALAR, jnp.float32), shapes)
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(step=zero, params=params, frozen=jax.tree.map(lambda x: None, params), opt_state=(), ema={"eval": params}, extra=(),
                     key=jax.random.key(0), counts=jnp.zeros((2, 1), jnp.uint32), skipped=zero, skipped_in_a_row=zero)
  checkpoints = Checkpoints(workdir)
  for step in steps:
    state = state.replace(step=jnp.int32(step), params=jax.tree.map(lambda x: x * 1.1, state.params))
    checkpoints.save(state, dict(data={}), wait=True)
  checkpoints.close()
  return workdir
