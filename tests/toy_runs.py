"""Run directories of tiny models with random parameters, written without training."""
from pathlib import Path

import numpy as np

from mmdiff.core import schema, tree
from mmdiff.core.build import build
from mmdiff.data import SOURCES, TOKENIZERS, loader
from mmdiff.objectives import OBJECTIVES
from mmdiff.report.run import write_report
from mmdiff.train import sums
from mmdiff.train.checkpoint import Checkpoints
from mmdiff.train.state import TrainState
from mmdiff.train.writer import Writer

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


def changed(config: dict, **keys) -> dict:
  """A config with keys of its objective, or else of `objective.model`, set."""
  objective = dict(config["objective"])
  for key, value in keys.items():
    objective = objective | ({key: value} if key in objective else {"model": objective["model"] | {key: value}})
  return config | dict(objective=objective)


def make(workdir: Path, config: dict, *, steps: tuple[int, ...] = (2,), results: bool = False) -> Path:
  """The directory of a run of `config` with checkpoints at `steps`: random parameters that grow by a tenth a checkpoint, those that
  `config.freeze` names stay, and an average that stays. Nothing is compiled but the checkpoint's fingerprints. results: with a log, a
  picture and an evaluator's results at every step."""
  import jax
  import jax.numpy as jnp
  workdir.mkdir(parents=True, exist_ok=True)
  dataset = loader.dataset(build(SOURCES, config["data"]["source"]), build(TOKENIZERS, config["data"]["tokenizer"]), seed=config["seed"],
                           **{key: value for key, value in config["data"].items() if key not in ("source", "tokenizer")})
  dataset.tokenizer.save(workdir / "tokenizer.json")
  sums.vouch(workdir, "tokenizer.json")
  sums.write_json(workdir, "config.json", config)
  example = next(iter(dataset.train_batches(batch_size=1)))
  shapes = jax.eval_shape(build(OBJECTIVES, config["objective"]).init, jax.random.key(0), example).params
  rng = np.random.default_rng(0)
  full = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.2, size=x.shape) if x.shape else SCALAR, jnp.float32), shapes)
  params, frozen = tree.partition(full, config["freeze"])
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(step=zero, params=params, frozen=frozen, opt_state=(), ema={"eval": params}, extra=(),
                     key=jax.random.key(0), counts=jnp.zeros((2, 1), jnp.uint32), skipped=zero, skipped_in_a_row=zero)
  checkpoints, writer = Checkpoints(workdir), Writer(workdir) if results else None
  for step in steps:
    state = state.replace(step=jnp.int32(step), params=jax.tree.map(lambda x: x * 1.1, state.params))
    if writer:
      writer.write_scalars(step, dict(loss=1.0 / step))
    checkpoints.save(state, dict(data={}, metrics=writer.vouch() if writer else {}), wait=True)
    if writer:
      writer.write_images(step, dict(samples=np.full((8, 8, 3), step, np.uint8)))
      sums.write_json(workdir, f"eval/probe_{step:08}.json", dict(name="probe", step=step, scalars=dict(x=0.5)))
  checkpoints.close()
  if writer:
    writer.close()
    sums.write_json(workdir, "run.json", dict(argv=["train"]))
    write_report(workdir)
  return workdir
