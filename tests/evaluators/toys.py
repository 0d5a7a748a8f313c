"""A captioned set of flat colours and predict functions that numpy can check."""
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff import parallel
from mmdiff.data import loader, tokenizers
from mmdiff.evaluators.base import Services

SIZE, LENGTH = 4, 12
NAMES = ("red", "green", "blue", "white", "grey")


class Colors:
  """Record i: a flat picture of a random colour, two long captions, one original, and a label."""
  labels = NAMES

  def __init__(self, size: int = 21):
    self.size = size

  def __len__(self):
    return self.size

  def __getitem__(self, i):
    color = np.random.default_rng(i).integers(0, 256, 3, dtype=np.uint8)
    name = NAMES[i % len(NAMES)]
    return {"key": f"r{i}", "image": np.broadcast_to(color, (SIZE, SIZE, 3)).copy(), "label": i % len(NAMES),
            "captions": {"long": [f"a {name} square {i}", f"{i} {name}"], "original": f"{name} {i}"}}

  def fingerprint(self):
    return f"colors-{self.size}"


class Sparse(Colors):
  """Every third record has no long captions, every fifth one has none at all."""

  def __getitem__(self, i):
    record = super().__getitem__(i)
    captions = {kind: text for kind, text in record["captions"].items() if i % 5 and (kind != "long" or i % 3)}
    return record | {"captions": captions}


def dataset(size: int = 21, *, source: type[Colors] = Colors, on_missing: str = "any") -> loader.Dataset:
  tokenizer = tokenizers.train((text for i in range(60) for text in Colors(60)[i]["captions"]["long"]), vocab=300)
  return loader.dataset(source(size), tokenizer, captions={"long": 1.0}, image_size=SIZE, text_len=LENGTH, on_missing=on_missing)


def unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def embed_image(params, image, *, extra=()):
  return unit((image.astype(jnp.float32).mean((1, 2)) / 127.5 - 1) @ params["image"])


def embed_text(params, tokens, mask, *, extra=()):
  return unit(jnp.where(mask[..., None], params["text"][tokens], 0).sum(1))


def plan(sampler=None, *, steps=20, guidance=1.0):
  return Plan(np.float32(steps), np.float32(guidance))


class Plan(NamedTuple):
  steps: Any
  guidance: Any


def sample(params, tokens, mask, seeds, plan, *, negative=None, latents=None, extra=()):
  """Red: the seed; green: the sum of the tokens less those of the negative prompt; blue: the guidance; plus the latents."""
  words = jnp.where(mask, tokens, 0).sum(1)
  if negative is not None:
    words = words - jnp.where(negative[1], negative[0], 0).sum(1)
  value = jnp.stack([seeds.astype(jnp.float32) / 100, words / 5000, jnp.broadcast_to(plan.guidance / 10, seeds.shape)], -1)
  start = jnp.zeros((len(seeds), SIZE, SIZE, 3)) if latents is None else latents
  return jnp.clip(value[:, None, None] + start, -1, 1)


def loss(params, batch, key, *, extra=()):
  noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(batch["id"])
  valid = batch["valid"].astype(jnp.float32)
  return {"loss": jnp.sum(valid * (batch["image"].astype(jnp.float32).mean((1, 2, 3)) + noise)) / jnp.maximum(valid.sum(), 1)}


PARAMS = {"image": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32),
          "text": np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)}


def services(predict, *, data=None, batch_size: int = 8, mesh=None) -> Services:
  sharding = parallel.batch_sharding(mesh or parallel.make_mesh(data=1, devices=jax.devices()[:1]))
  put = lambda batch: jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)
  data = dataset() if data is None else data
  return Services(predict=predict, dataset=lambda source: data, put=put, fetch=parallel.fetch, batch_size=batch_size, workdir=Path("toys"))


CLIP = dict(embed_image=embed_image, embed_text=embed_text)
DRAWS = dict(plan=plan, sample=sample)
