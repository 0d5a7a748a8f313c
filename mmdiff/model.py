"""Trained models in Python: numpy in, numpy out, everything else inside.

  model = mmdiff.load("runs/clip")              # the newest good step; "runs/clip@2000" for another
  model.embed_image(images) @ model.embed_text(texts).T

A model has the methods that it can serve: CLIP models embed, captioners also write, text-to-image models generate; asking for another
says which it has. Calls of any size run a few compiled programs: rows are padded to powers of two.
"""
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mmdiff import parallel
from mmdiff.convert import public, serving
from mmdiff.core import tree
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.types import Tree
from mmdiff.data import TOKENIZERS, decode, transforms
from mmdiff.data.quarantine import BadRecord
from mmdiff.evaluators import base
from mmdiff.objectives import OBJECTIVES
from mmdiff.train import checkpoint, run_directory

ROWS = 64             # most rows of one call of the network


class Model:
  """What `load` returns, with the methods of every ability in `ABILITIES` that its objective serves.

  config: the run's, as nested dicts. params: the full tree, on the mesh. report: what was loaded, from where. tokenizer: the run's.
  services: what evaluators may use.
  """

  def __init__(self, config: Mapping, params: Tree, extra: Tree, report: Mapping[str, Any], *, tokenizer, services: base.Services,
               mesh: jax.sharding.Mesh):
    self.config, self.params, self.extra, self.report = config, params, extra, report
    self.tokenizer, self.services, self.mesh = tokenizer, services, mesh
    self.origin: public.Loaded | None = None          # where a public checkpoint's spellings are kept, for saving

  def __getattr__(self, name: str):
    known = [method for ability in ABILITIES for method in vars(ability) if method.islower() and method[0] != "_"]
    if name in known:
      has = [method for method in known if method in dir(type(self))]
      raise AttributeError(f"{self.report['path']} is a {self.report['objective']} model: it has {', '.join(has) or 'no methods'}, "
                           f"not {name}")
    raise AttributeError(name)

  def tokenize(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (tokens int32 [B L], mask bool [B L]), cut to the model's length. Raises DataError without a tokenizer."""
    if self.tokenizer is None:
      raise DataError(f"{self.report['path']}: there is no tokenizer beside the weights: put tokenizer.json, or vocab.json and merges.txt, "
                      "there, or load with tokenizer=FOLDER")
    return self.tokenizer.batch(_texts(texts), self.config["data"]["text_len"])

  def _over_texts(self, name: str, texts: str | Sequence[str]) -> Any:
    tokens, mask = self.tokenize(texts)
    if not len(tokens):
      return jax.tree.map(lambda x: x[:0], self._over_texts(name, [""]))
    with jax.set_mesh(self.mesh):
      function = jax.jit(self.services.predict[name])
      return base.over_rows(self.services, lambda batch: function(self.params, batch["tokens"], batch["mask"], extra=self.extra),
                            dict(tokens=tokens, mask=mask), size=self._size(len(tokens)))

  def _preprocess(self, images) -> np.ndarray:
    data = self.config["data"]
    if isinstance(images, np.ndarray) and images.ndim != 4:
      raise DataError(f"images: expected uint8 [B H W 3] or a list of pictures, found an array {list(images.shape)}")
    fitted = np.empty((len(images), data["image_size"], data["image_size"], 3), np.uint8)
    for i, image in enumerate(images):
      try:
        pixels = decode.pixels(image if isinstance(image, np.ndarray) else np.asarray(decode.to_rgb(image)))
      except (BadRecord, AttributeError) as error:
        raise DataError(f"image {i}: expected uint8 [H W 3] or a PIL image, found {type(image).__name__}: {error}") from None
      fitted[i] = transforms.fit(pixels, size=data["image_size"], resize=data["resize"], interpolation=data["interpolation"])
    return fitted

  def _size(self, count: int) -> int:
    """Rows of a call for `count`: the next power of two that divides over the mesh, at most `ROWS`."""
    ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
    each = -(-min(count, ROWS) // ways)
    return ways * 2 ** (each - 1).bit_length()


class EmbedsImages(Model):
  """An image tower."""
  NEEDS = ("embed_image",)

  def embed_image(self, images) -> np.ndarray:
    """uint8 [B H W 3], or a list of uint8 [H W 3] of any sizes or of PIL images -> float32 [B D], unit norm. Preprocessing inside."""
    pixels = self._preprocess(images)
    if not len(pixels):
      return self.embed_image(np.zeros((1, 8, 8, 3), np.uint8))[:0]
    with jax.set_mesh(self.mesh):
      embed = jax.jit(self.services.predict["embed_image"])
      return base.over_rows(self.services, lambda batch: embed(self.params, batch["image"], extra=self.extra), dict(image=pixels),
                            size=self._size(len(pixels)))


class EmbedsTexts(Model):
  """A text tower."""
  NEEDS = ("embed_text",)

  def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
    """Texts -> float32 [B D], unit norm."""
    return self._over_texts("embed_text", texts)


class Compares(Model):
  """Two towers into one space."""
  NEEDS = ("logit_scale",)

  @property
  def logit_scale(self) -> float:
    """What cosines are multiplied by to become logits, after exp."""
    return float(self.services.fetch(self.services.predict["logit_scale"](self.params)))


class EncodesTexts(Model):
  """A text encoder, as text-to-image models have."""
  NEEDS = ("text_states",)

  def encode_text(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (states float32 [B L D], mask bool [B L], true at the texts' own tokens)."""
    return self._over_texts("text_states", texts)


class Draws(Model):
  """Pictures from prompts."""
  NEEDS = ("sample", "plan")

  def generate(self, prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None = None, *, steps: int = 20,
               guidance: float = 2.0, sampler: str | None = None, seeds: int | Sequence[int] = 0, height: int | None = None,
               width: int | None = None, latents: np.ndarray | None = None,
               output: Literal["uint8", "float", "latents"] = "uint8") -> np.ndarray:
    """Prompts -> pictures [B H W 3], uint8 or float32 in [-1, 1], or the latents float32 [B h w C] that they are decoded from.

    Picture i depends on prompt i, seed i and the other options, not on the batch that it is drawn in.

    Args:
      negative_prompts: what guidance points away from, one for all or one each; None and "" are no caption, as in training.
      steps, guidance, sampler: of the sampler; None is the model's own, `mmdiff.diffusion.plans.SAMPLERS` has the others.
      seeds: one each, or the first of consecutive ones.
      height, width: of the pictures; None is the model's own. Models on pixels draw their own size only.
      latents: float32 [B h w C] of unit normal noise to start from, instead of the seeds'; its size is the picture's.
    """
    prompts = _texts(prompts)
    size = self.config["data"]["image_size"]
    decodes = "decode" in self.services.predict
    if (height or size, width or size) != (size, size) and not decodes:
      raise ConfigError(f"height and width: this model draws {size}×{size}, found {height or size}×{width or size}")
    if output not in ("uint8", "float", "latents") or (output == "latents" and not decodes):
      raise ConfigError(f"output: expected 'uint8' or 'float'{' or latents' * decodes}, found {output!r}"
                        + ("" if decodes else "; this model has no latents but its pixels"))
    static = dict(decode=output != "latents", height=height or size, width=width or size) if decodes else {}
    if latents is not None and "latents" not in inspect.signature(self.services.predict["sample"]).parameters:
      raise ConfigError("latents: this model starts from the noise of seeds only; give seeds")
    seeds = _seeds(seeds, len(prompts), "prompts")
    if isinstance(negative_prompts, str):
      negative_prompts = [negative_prompts] * len(prompts)
    for name, given in (("negative_prompts", negative_prompts), ("latents", latents)):
      if given is not None and len(given) != len(prompts):
        raise ConfigError(f"{name}: expected one for each of the {len(prompts)} prompts, found {len(given)}")
    if not prompts:
      return np.zeros((0, size, size, 3), np.uint8 if output == "uint8" else np.float32)
    with jax.set_mesh(self.mesh):
      made = base.draw(self.services, self.params, *self.tokenize(prompts), seeds, sampler=sampler, steps=steps, guidance=guidance,
                       negative=None if negative_prompts is None else self._negative(negative_prompts), latents=latents,
                       extra=self.extra, size=self._size(len(prompts)), static=static)
    return base.to_uint8(made) if output == "uint8" else made

  def _negative(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask; "" has no tokens at all, as the captions that training drops."""
    tokens, mask = self.tokenize(texts)
    said = np.asarray([bool(text.strip()) for text in texts])[:, None]
    return np.where(said, tokens, 0), mask & said


class Captions(Model):
  """Words for pictures."""
  NEEDS = ("caption",)

  def caption(self, images, *, seeds: int | Sequence[int] = 0, **decoding) -> list[str]:
    """Pictures, as for `embed_image`, -> a caption each.

    Caption i depends on picture i, seed i and the other options, not on the batch that it is written in.

    Args:
      seeds: one each, or the first of consecutive ones; read by method="sample" only.
      **decoding: of `mmdiff.decode.settings`: method ("greedy", "sample", "beam"), max_len, min_len, beams, temperature, top_k, top_p,
        repetition_penalty, no_repeat_ngram, length_penalty. `max_len` is by default the length of the training captions.
    """
    tokens, lengths = self.caption_tokens(images, seeds=seeds, **decoding)
    return [self.tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths)]

  def caption_tokens(self, images, *, seeds: int | Sequence[int] = 0, **decoding) -> tuple[np.ndarray, np.ndarray]:
    """The same as (tokens int32 [B L], lengths int32 [B]); a row that lacks the end token was cut off."""
    settings = base.caption_settings(self.tokenizer, self.config["data"]["text_len"], **decoding)
    pixels = self._preprocess(images)
    seeds = _seeds(seeds, len(pixels), "images")
    if not len(pixels):
      return np.zeros((0, settings.max_len), np.int32), np.zeros((0,), np.int32)
    with jax.set_mesh(self.mesh):
      return base.write_captions(self.services, self.params, pixels, seeds, settings, extra=self.extra, size=self._size(len(pixels)))


ABILITIES = (EmbedsImages, EmbedsTexts, Compares, EncodesTexts, Draws, Captions)


def _seeds(seeds: int | Sequence[int], count: int, what: str) -> list[int]:
  """One seed for each of `count`. Raises ConfigError."""
  each = [int(seed) for seed in (range(seeds, seeds + count) if isinstance(seeds, (int, np.integer)) else seeds)]
  if len(each) != count:
    raise ConfigError(f"seeds: expected one for each of the {count} {what}, found {len(each)}")
  beyond = [seed for seed in each if not 0 <= seed < 2 ** 32]
  if beyond:
    raise ConfigError(f"seeds: expected whole numbers from 0 to 2**32 - 1, found {beyond[0]}")
  return each


def _texts(texts: str | Sequence[str]) -> list[str]:
  return [texts] if isinstance(texts, str) else list(texts)


def load(path: str | Path, *, step: int | None = None, params: str | None = None, mesh: Mapping[str, int] | None = None,
         tokenizer: str | Path | None = None, **options) -> Model:
  """The model of a run directory, or of a folder or file in a public format, ready to use.

  Args:
    path: `DIR` for a run's newest good step, `DIR@STEP` for another; or a public checkpoint, see `mmdiff.convert.public.load`.
    step: the same as `@STEP`.
    params: "raw", or the name of an average of `config.ema`; None is "eval" where there is one, else raw.
    mesh: sizes of the axes data, fsdp and tensor; None splits batches over all devices and keeps the parameters whole on each.
    tokenizer: for a public checkpoint without one: a tokenizer.json, or a folder with it or with vocab.json and merges.txt.
    **options: of a public checkpoint: allow_missing, image_size, text_len, …, as `mmdiff.convert.public.load` takes them.

  Raises:
    DataError: no run directory, checkpoint or average of that name; or what `mmdiff.convert.public.load` raises.
  """
  if public.is_public(path):
    if step is not None or params is not None:
      raise ConfigError(f"{path} is a public checkpoint: it has no step and no params to choose from")
    return _load_public(path, mesh=mesh, tokenizer=tokenizer, **options)
  if options or tokenizer:
    raise ConfigError(f"{path} is no public checkpoint, which alone take {', '.join([*options, *['tokenizer'] * bool(tokenizer)])}")
  workdir, at = run_directory.locate(path)
  config = run_directory.read_config(workdir)
  average = run_directory.average(config, params)
  values, extra, meta = checkpoint.restore_params(workdir, step=at if step is None else step, ema=average)
  report = dict(path=str(workdir), step=int(meta["step"]), params=average or run_directory.RAW, objective=config["objective"]["name"])
  tokens = build(TOKENIZERS, dict(name="file", path=str(workdir / "tokenizer.json")))
  predict = build(OBJECTIVES, config["objective"]).predict
  return _assemble(config, values, extra, report, predict, tokenizer=tokens, workdir=workdir, mesh=mesh)


def _load_public(path: str | Path, *, mesh: Mapping[str, int] | None, tokenizer: str | Path | None, **options) -> Model:
  loaded = public.load(path, **options)
  data = dict(captions=dict(original=1.0), on_missing="any") | loaded.config["data"]
  config = dict(seed=0, steps=0, batch_size=ROWS, ema={}, evals={}) | loaded.config | dict(data=data)
  folder = tokenizer or loaded.tokenizer
  kind = "clip" if folder and (Path(folder) / "vocab.json").is_file() else "file"
  tokens = build(TOKENIZERS, dict(name=kind, path=str(folder))) if folder else None
  objective = config["objective"]
  predict = build(OBJECTIVES, objective).predict if objective else serving.predict(loaded.family, loaded.module, config)
  report = dict(path=str(path), step=0, params=run_directory.RAW, objective=objective["name"] if objective else loaded.family,
                format=loaded.format, dtypes=loaded.dtypes) | loaded.report._asdict()
  model = _assemble(config, loaded.params, loaded.statistics, report, predict, tokenizer=tokens, workdir=Path(path), mesh=mesh)
  model.origin = loaded._replace(params=None, statistics=None)          # their arrays are on the mesh now
  return model


def _assemble(config: Mapping, values: Tree, extra: Tree, report: dict[str, Any], predict: Mapping, *, tokenizer, workdir: Path,
              mesh: Mapping[str, int] | None) -> Model:
  devices = parallel.make_mesh(**(mesh or {}))
  place = lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
  placed = jax.tree.map(place, values, parallel.shardings(values, devices))
  extra = jax.tree.map(lambda leaf: place(leaf, parallel.replicated(devices)), extra) or ()
  services = base.serve(predict, config, mesh=devices, tokenizer=tokenizer, workdir=workdir)._replace(load=load)
  report |= dict(parameters={group: tree.count(values[group]) for group in sorted(values)}, mesh=dict(devices.shape))
  served = tuple(ability for ability in ABILITIES if all(name in predict for name in ability.NEEDS))
  return type("Model", served or (Model,), {})(config, placed, extra, report, tokenizer=tokenizer, services=services, mesh=devices)


def save(model: Model, path: str | Path, *, format: str | None = None, dtype: str = "float32") -> list[str]:
  """Writes a model as a folder in a public format; the names of the files.

  Args:
    format: a name of `mmdiff.convert.FORMATS`; None is the one that the model was loaded from.
    dtype: of the tensors written: float32, bfloat16 or float16.

  Raises:
    ConfigError: no such format, or it can't express the model.
    CannotWrite: the folder can't be written.
  """
  origin = model.origin
  if format is None and origin is None:
    raise ConfigError(f"format: {model.report['path']} was trained here and has no format of its own; known: {', '.join(public.FORMATS)}")
  format = format or origin.format
  fetch = lambda values: jax.tree.map(model.services.fetch, values)
  return public.save(path, format=format, module=origin.module if origin else public.module_of(model.config), config=model.config,
                     params=fetch(model.params), statistics=fetch(model.extra), dtype=dtype, tokenizer=model.tokenizer,
                     style=origin.style if origin and origin.format == format else None,
                     files=origin.tokenizer if origin else None)
