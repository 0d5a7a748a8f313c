"""`mmdiff data precompute`: what the frozen encoders of a text-to-image config make of its data, kept for training.

A job in units, as `mmdiff caption` is: any number of processes, and a killed one loses nothing. The encoders are those that training would
start with: the same config, the same `init`. Training with --config.data.features=OUT checks their digests before its first step.
"""
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmdiff import parallel
from mmdiff.core import compilation, tree
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import versions
from mmdiff.core.precision import objective_of
from mmdiff.core.progress import Progress
from mmdiff.core.types import Tree
from mmdiff.data import buckets as aspects
from mmdiff.data import captions, jobs, latents, pipelines
from mmdiff.data.quarantine import BadRecord, Offence
from mmdiff.objectives import OBJECTIVES
from mmdiff.train import integrity

# Part -> (parameter group, predict function).
PARTS = {"latents": ("autoencoder", "encode_image"), "texts": ("text", "encode_text")}
AHEAD = 2                            # batches of pictures read ahead
NON_FINITE = "non_finite"            # how a manifest counts records whose features are no numbers
PROBE = "a photo of a small red house, 12 cats & the sea"
PROBE_SIDE, PROBE_VALUES = 64, 64    # of a picture in pixels; numbers kept of what it becomes
ALIKE = 0.05                         # of their size: between bfloat16 and float32 lie about 0.01, between two activations or scales more
LOG = logging.getLogger(__name__)


class Encoders(NamedTuple):
  """What a unit is made with; None where a part is not computed."""
  image: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None      # uint8 [B H W 3] -> mean, std float32 [B h w C]
  text: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]] | None        # tokens, mask [B L] -> text_states, text_pooled


class Item(NamedTuple):
  """A record that is ready for the encoders."""
  key: str
  image: np.ndarray | None
  size: tuple[int, ...]              # see `transforms.cover`; () where the dataset has none
  texts: Sequence[tuple[str, str]]   # (kind, text)


def run(config: Mapping, given: Mapping, about: Mapping[str, Any]) -> dict[str, Any]:
  """Works on the job until it is finished; its manifest. Raises ConfigError."""
  from mmdiff.commands import train
  compilation.prepare()
  config = dict(config, data=dict(config["data"], features=""))
  objective = objective_of(OBJECTIVES, config)
  mesh = parallel.make_mesh(**config["mesh"])
  dataset = train.make_dataset(config, Path(given["out"]) / "no run")
  parts = chosen(given["parts"], objective, config)
  params = parameters(config, objective, dataset, mesh, [PARTS[part][0] for part in parts])
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  size = -(-given["batch_size"] // ways) * ways
  encoders = serve(objective.predict, params, mesh, parts, size=size)
  kinds = wanted_kinds(dataset.recipe.mix)
  recipe = dataset.recipe
  identity: dict[str, Any] = dict(task="precompute", dtype=given["dtype"], source=dataset.source.fingerprint(),
                                  encoders=digests(params, [PARTS[part][0] for part in parts]))
  if "latents" in parts:
    identity["picture"] = dict(image_size=recipe.image_size, resize=recipe.resize, interpolation=recipe.interpolation,
                               buckets=[aspects.label(shape) for shape in dataset.buckets])
  if "texts" in parts:
    identity["text"] = dict(tokenizer=dataset.tokenizer.fingerprint(), text_len=dataset.text_len, kinds=kinds,
                            on_missing=recipe.mix.on_missing)
  job = jobs.Job(given["out"], jobs.units_of(dataset.source, per_unit=given["per_unit"]), identity,
                 about=dict(about, config=config, versions=versions()), check=latents.columns_of)
  try:
    work(job, dataset, encoders, kinds=kinds, size=size, dtype=given["dtype"], threads=given["threads"],
         progress=Progress("precompute", "records"))
    told = probe(encoders, dataset)
    made = job.complete(lambda entries: latents.summary(entries) | {"probe": told})
  finally:
    job.close()
  latents.Features(given["out"])                         # leaves the index of a large one beside it
  if count := made["bad"].get(NON_FINITE):
    named = [bad["key"] for entry in jobs.finished_units(given["out"]) for bad in entry["offenders"] if bad["kind"] == NON_FINITE]
    raise DataError(f"{given['out']}: what the encoders made of {count} records is not finite, first {', '.join(named[:3])}; those were "
                    "not stored, and training counts them as bad. Take --dtype=float32 if this is float16, else look at the encoder")
  return made


def probe(encoders: Encoders, dataset) -> dict[str, list[float]]:
  """What the encoders make of one fixed picture and one fixed text: a few numbers of each feature. Two encoders with the same parameters
  may still differ in what they do with them: activation, latent scale, the picture's mean."""
  made: dict[str, np.ndarray] = {}
  if encoders.image:
    side = min(dataset.recipe.image_size, PROBE_SIDE)
    made["latent_mean"], made["latent_std"] = encoders.image(np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8))
  if encoders.text:
    made |= encoders.text(*dataset.tokenize([PROBE]))
  some = lambda values: values.ravel()[:: max(1, values.size // PROBE_VALUES)][:PROBE_VALUES]
  return {name: [float(value) for value in some(values)] for name, values in sorted(made.items())}


def chosen(asked: Sequence[str], objective, config: Mapping) -> list[str]:
  """The parts to compute: those asked for, by default those whose encoder the config freezes. Raises ConfigError."""
  able = [part for part, (_, function) in PARTS.items() if function in objective.predict]
  frozen = [part for part in able if is_frozen(PARTS[part][0], config)]
  unknown = [part for part in asked if part not in PARTS]
  if unknown:
    raise ConfigError(f"--parts: unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
  refused = [part for part in asked if part not in frozen]
  if not able:
    raise ConfigError("precompute: this command keeps what the frozen encoders of a text-to-image config make of its data, and the "
                      f"objective {config['objective']['name']!r} has none; take a config such as configs/t2i_latent.py, or train on this "
                      "one's data as it is")
  if refused or not frozen:
    groups = [PARTS[part][0] for part in refused or able]
    raise ConfigError(f"precompute: {', '.join(refused or able)} can't be computed ahead: the config must have the encoder and freeze "
                      f"it, e.g. freeze=(\"{groups[0]}/.*\",); this objective has {', '.join(groups)}, freeze is {config['freeze']}")
  return [part for part in PARTS if part in (asked or frozen)]


def is_frozen(group: str, config: Mapping) -> bool:
  """Whether one pattern of `config.freeze` holds all of a parameter group."""
  return any(re.fullmatch(pattern, f"{group}/any/leaf") for pattern in config["freeze"])


def parameters(config: Mapping, objective, dataset, mesh: jax.sharding.Mesh, groups: Sequence[str]) -> Tree:
  """The parameter groups as training would start with them, in place on the mesh; the others are never made."""
  from mmdiff.commands import train
  from mmdiff.train import init, sources, state
  example, *_ = dataset.variants()
  blank = {name: np.zeros((2, *value.shape), value.dtype) for name, value in example.items() if name != "counts"}

  def start(key):
    _, k_init = jax.random.split(key)                    # as `state.init_state` draws
    made = objective.init(k_init, blank).params
    return {group: made[group] for group in groups}

  key = jax.random.key(config["seed"])
  with jax.set_mesh(mesh):
    params = jax.jit(start, out_shardings=parallel.shardings(jax.eval_shape(start, key), mesh, config["sharding"]))(key)
  source = config.get("init") or {}
  init.say_what_stays_random(tree.paths(params), given=objective.given, **source)
  if train.starts_from(config):
    here = lambda key: {entry: there for entry, there in (source.get(key) or {}).items() if entry.split("/")[0] in groups}
    nothing: Any = None
    holder = state.TrainState(step=nothing, params=params, frozen=jax.tree.map(lambda x: None, params), opt_state=(), ema={}, extra=(),
                              key=nothing, counts=nothing, skipped=nothing, skipped_in_a_row=nothing)
    own = dict(source, map=here("map"), parts=here("parts"))
    params = init.initialised(holder, init.found(params, facts=sources.facts_of(config), **own)).full()
  return params


def digests(params: Tree, groups: Sequence[str]) -> dict[str, str]:
  """A digest of each group's values, the same on every mesh."""
  made = {}
  for group in sorted(groups):
    names = tree.paths(params[group])
    leaves = [leaf for leaf in jax.tree.leaves(params[group])]
    prints = jax.device_get(integrity.fingerprints(dict(zip(names, leaves))))
    told = json.dumps([[name, list(leaf.shape), int(prints[name])] for name, leaf in zip(names, leaves)])
    made[group] = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
  return made


def check_encoders(features: latents.Features | None, params: Tree, config: Mapping, *, objective, dataset,
                   mesh: jax.sharding.Mesh) -> None:
  """Raises ConfigError when a run's precomputed features are not those of its own frozen encoders: the same parameters, which make the same
  of a picture and a text."""
  if features is None:
    return
  recorded = features.identity["encoders"]
  thawed = [group for group in recorded if group not in params or not is_frozen(group, config)]
  if thawed:
    raise ConfigError(f"data.features: {features.path} holds what a frozen {thawed[0]!r} made, and this run "
                      + (f"trains it; add \"{thawed[0]}/.*\" to freeze, or leave data.features out" if thawed[0] in params else "has none"))
  found = digests(params, list(recorded))
  wrong = [group for group in recorded if found[group] != recorded[group]]
  if wrong:
    raise ConfigError(f"data.features: {features.path} was computed by another {wrong[0]!r} (digest {recorded[wrong[0]]}, here "
                      f"{found[wrong[0]]}); start from the same weights (init), or run `mmdiff data precompute` with this config")
  parts = [part for part, (group, _) in PARTS.items() if group in recorded]
  if not features.probe:
    LOG.warning("data.features: %s does not say what its encoders make of a fixed picture and text, so that only their parameters were "
                "compared; `mmdiff data precompute` writes it now", features.path)
    return
  here = probe(serve(objective.predict, params, mesh, parts, size=mesh.shape["data"] * mesh.shape["fsdp"]), dataset)
  for name, there in sorted(features.probe.items()):
    found = np.array(here.get(name, ()))
    if len(found) != len(there) or not np.abs(found - there).max() <= ALIKE * np.sqrt(np.mean(np.square(there))):
      raise ConfigError(f"data.features: {features.path} was computed by encoders of the same parameters that do something else with them: "
                        f"{name} of one picture or text is {np.round(there[:3], 4).tolist()} there and {np.round(found[:3], 4).tolist()} "
                        "here; a latent scale, an activation or the pictures' mean differs. Undo the change to config.objective, or run "
                        "`mmdiff data precompute` with this config")


def serve(predict: Mapping[str, Callable], params: Tree, mesh: jax.sharding.Mesh, parts: Sequence[str], *, size: int) -> Encoders:
  """The encoders as functions of numpy arrays of at most `size` rows, which are filled up to it, so that a shape compiles once."""
  sharding = parallel.batch_sharding(mesh)

  def on_mesh(function: Callable) -> Callable:
    compiled = jax.jit(function)

    def call(*arrays: np.ndarray):
      rows = np.minimum(np.arange(size), len(arrays[0]) - 1)
      with jax.set_mesh(mesh):
        put = [jax.make_array_from_callback((size, *x.shape[1:]), sharding, lambda index, x=x[rows]: x[index]) for x in arrays]
        made = compiled(params, *put)
      return jax.tree.map(lambda leaf: parallel.fetch(leaf)[:len(arrays[0])], made)
    return call

  def text(params, tokens, mask):
    made = predict["encode_text"](params, tokens, mask)
    return {"text_states": made["tokens"].astype(np.float32), "text_pooled": made["pooled"].astype(np.float32)}

  image = lambda params, pictures: tuple(part.astype(np.float32) for part in predict["encode_image"](params, pictures))
  return Encoders(on_mesh(image) if "latents" in parts else None, on_mesh(text) if "texts" in parts else None)


def wanted_kinds(mix: captions.Mix) -> list[str]:
  """The caption kinds that training with this mix may draw first, or by its rule for missing ones."""
  return sorted({*mix.kinds, *(["original"] if mix.on_missing == "original" else [])})


def texts_of(record: Mapping, kinds: Sequence[str], mix: captions.Mix, *, key: str, allow_empty: bool) -> list[tuple[str, str]]:
  """(kind, text) of every caption that training may use; of one that is no usable text none, as training would count it as bad."""
  told = record.get("captions") or {}
  used = list(told) if mix.on_missing == "any" and any(kind not in told for kind in mix.kinds) else [kind for kind in kinds if kind in told]
  found = []
  for kind in used:
    value = told[kind]
    for item in dict.fromkeys(value) if isinstance(value, (list, tuple)) else [value]:
      try:
        found.append((kind, captions.text_of(item, key=key, allow_empty=allow_empty)))
      except BadRecord:
        continue
  return found


def work(job: jobs.Job, dataset, encoders: Encoders, *, kinds: Sequence[str], size: int, dtype: str, threads: int,
         progress: Callable[..., None] = lambda count, total=None: None) -> None:
  """Encodes units until all are finished, by this process or by others."""
  told = job.done()
  progress(told, job.total)
  for unit in job.todo():
    encode_unit(job, unit, dataset, encoders, kinds=kinds, size=size, dtype=dtype, threads=threads,
                progress=lambda count: progress(count, job.total))
    told += len(unit.rows)
    if (done := job.done()) > told:                      # others have finished units meanwhile
      progress(done - told, job.total)
      told = done


def encode_unit(job: jobs.Job, unit: jobs.Unit, dataset, encoders: Encoders, *, kinds: Sequence[str], size: int, dtype: str, threads: int,
                progress: Callable[[int], None]) -> None:
  """Makes and commits one unit: pictures in batches of one size each, texts in batches of their own."""
  recipe, stored = dataset.recipe._replace(crop=(), flip=False, position="centre"), latents.DTYPES[dtype]

  def prepare(record: Mapping) -> Item:
    key = pipelines.key_of({"captions": {}} | dict(record))
    texts = texts_of(record, kinds, recipe.mix, key=key, allow_empty=recipe.allow_empty) if encoders.text else []
    if not encoders.image:
      return Item(key, None, (), texts)
    image, told = pipelines.bucketed(record, recipe, dataset.buckets, key=key)
    return Item(key, image, told, texts)

  bad: list = []
  output, pictures, texts = job.output(unit), dict[str, list[Item]](), list[tuple[str, str, str]]()
  with latents.Tables(output) as tables:
    def add(name: str, keys: Sequence[str], rows: Sequence[tuple[int, int]], made: Mapping[str, np.ndarray]) -> None:
      with np.errstate(over="ignore"):                   # beyond float16's range is infinite, and seen below
        columns = {column: value.astype(stored) if value.dtype.kind == "f" else value for column, value in made.items()}
      sound = np.logical_and.reduce([np.isfinite(value).reshape(len(keys), -1).all(1) for value in columns.values()])
      for at in np.flatnonzero(~sound):
        wrong = [column for column, value in columns.items() if not np.isfinite(value[at]).all()]
        if not any(offence[:2] == (keys[at], NON_FINITE) for offence in bad):
          bad.append(Offence(keys[at], NON_FINITE, f"{', '.join(wrong)} as {dtype}"))
      if sound.any():
        tables.add(name, [row for row, good in zip(rows, sound) if good], {column: value[sound] for column, value in columns.items()})

    def encode_pictures(name: str) -> None:
      batch = pictures.pop(name)
      mean, std = encoders.image(np.stack([item.image for item in batch]))         # type: ignore[misc]
      made = {"latent_mean": mean, "latent_std": std}
      made |= {"size": np.array([item.size for item in batch], np.int32)} if recipe.sizes else {}
      add(name, [item.key for item in batch], [latents.image_digest(item.key) for item in batch], made)

    def encode_texts() -> None:
      batch = [texts.pop(0) for _ in range(min(size, len(texts)))]
      made = encoders.text(*dataset.tokenize([text for *_, text in batch]))        # type: ignore[misc]
      add(latents.TEXT, [key for key, *_ in batch], [latents.text_digest(*item) for item in batch], made)

    seen = 0
    for seen, item in enumerate(jobs.prepared(dataset.source, unit.rows, prepare, threads=threads, ahead=AHEAD * size, bad=bad), 1):
      if item.image is not None:
        name = aspects.label(item.image.shape[:2])
        pictures.setdefault(name, []).append(item)
        if len(pictures[name]) == size:
          encode_pictures(name)
      texts += [(item.key, kind, text) for kind, text in item.texts]
      while len(texts) >= size:
        encode_texts()
      if seen % size == 0:
        progress(size)
    for name in sorted(pictures):
      encode_pictures(name)
    while texts:
      encode_texts()
  job.commit(unit, output, dict(tables=tables.facts(), **jobs.faults(bad)))
  progress(len(unit.rows) - seen // size * size)
