"""What every evaluator is and may use.

A factory `retrieval(services, *, source, every_steps, …)` returns an `Evaluator`; its keyword-only parameters are its config keys.
Evaluators know a model only by the objective's `predict` functions, each of which takes the full parameter tree first. Every process
of a run calls `run` with the same arguments and gets the same `Result`.
"""
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmdiff import decode, parallel
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.sharding import BATCH
from mmdiff.core.types import Tree
from mmdiff.data import SOURCES, loader
from mmdiff.models.sizes import reads_sizes


class Services(NamedTuple):
  """What an evaluator may use."""
  predict: Mapping[str, Callable[..., Tree]]
  dataset: Callable[[Mapping], Any]          # config of a source -> `data.loader.Dataset`, prepared as for training, never augmented
  put: Callable[[Mapping], Mapping]          # numpy batch, whole on every process -> arrays on the mesh, rows split over it
  fetch: Callable[[Any], np.ndarray]         # array on the mesh -> numpy, whole on every process
  batch_size: int                            # rows of a batch; divides over the mesh
  workdir: Path
  progress: Callable[[int, int | None], None] = lambda rows, total: None      # told of every batch: its rows, and all there are if known
  load: Callable[[str], Any] | None = None   # path of another trained model -> what `mmdiff.load` returns


class Result(NamedTuple):
  """What an evaluator found. The images under "" are named like the evaluator itself."""
  scalars: Mapping[str, float]
  tables: Mapping[str, list[dict]] = {}
  images: Mapping[str, np.ndarray] = {}      # uint8 [H W 3]


class Evaluator(NamedTuple):
  """`run(params, step, extra=())` gets the full parameters, of the average named `params` ("" = raw), and the objective's `extra`."""
  every_steps: int
  params: str
  run: Callable[..., Result]


def serve(predict: Mapping[str, Callable], config: Mapping, *, mesh: jax.sharding.Mesh, tokenizer, workdir: Path,
          most: int = 256) -> Services:
  """The services of a run: its data settings without augmentation, and batches of at most `most` rows on `mesh`.

  config: the run's, of which `data`, `seed` and `batch_size` are read. tokenizer: the run's own, trained.
  """
  sharding = parallel.batch_sharding(mesh)
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  options = {key: value for key, value in config["data"].items() if key not in ("source", "tokenizer")}
  options |= dict(augment=None, sidecar="", held_out=0.0, buckets=(), features="", max_bad_fraction=1.0, seed=config["seed"],
                  sizes=reads_sizes(config))

  def put(batch):
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)

  return Services(predict=predict, put=put, fetch=parallel.fetch, workdir=Path(workdir),
                  batch_size=max(min(config["batch_size"], most) // devices, 1) * devices,
                  dataset=lambda source: loader.dataset(build(SOURCES, source), tokenizer, **options))


def require(services: Services, evaluator: str, *names: str) -> None:
  """Raises ConfigError if the objective lacks a predict function that the evaluator calls."""
  lacking = [name for name in names if name not in services.predict]
  if lacking:
    raise ConfigError(f"{evaluator} needs the predict functions {', '.join(names)}; "
                      f"this objective has {', '.join(services.predict) or 'none'}")


def ways() -> int:
  """Devices that a batch is split over under the mesh in use."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in BATCH if axis in mesh.shape)


def fitting(services: Services, count: int) -> int:
  """The smallest batch that holds `count` rows and divides over the mesh, at most `services.batch_size`."""
  return min(services.batch_size, -(-count // ways()) * ways())


def chunks(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
  """Rows in batches of exactly `size`, so that one compiled program serves all; the last is filled up with copies of its last row."""
  count = len(next(iter(arrays.values())))
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    yield {name: value[rows] for name, value in arrays.items()}


def streamed(services: Services, function: Callable[[Mapping], Tree], batches: Iterable[Mapping],
             names: Sequence[str], *, optional: Sequence[str] = (), total: int | None = None) -> Iterator[tuple[Mapping, Tree]]:
  """(batch, `function` of its arrays `names` on the mesh, as numpy) for every batch. The next batch is on its way before one is awaited.

  optional: further arrays, of batches that have them. total: rows of all batches, for the progress line.
  """
  def fetched(batch, made):
    result = jax.tree.map(services.fetch, made)
    services.progress(len(batch[names[0]]), total)
    return batch, result

  waiting = None
  for batch in batches:
    made = function(services.put({name: batch[name] for name in (*names, *(extra for extra in optional if extra in batch))}))
    if waiting:
      yield fetched(*waiting)
    waiting = (batch, made)
  if waiting:
    yield fetched(*waiting)


def over_rows(services: Services, function: Callable[[Mapping], Tree], arrays: Mapping[str, np.ndarray], *, size: int | None = None) -> Any:
  """`function` of every row: {name: [N …]} -> numpy [N …], in batches of `size` rows (by default `services.batch_size`)."""
  count = len(next(iter(arrays.values())))
  if not count:
    raise ValueError("no rows")
  made = [out for _, out in streamed(services, function, chunks(arrays, size or services.batch_size), list(arrays), total=count)]
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *made)


def embed_texts(services: Services, params: Tree, tokens: np.ndarray, mask: np.ndarray, *, extra: Tree = ()) -> np.ndarray:
  """Tokens int32 [N L], mask bool [N L] -> float32 [N D], unit norm."""
  embed = jax.jit(services.predict["embed_text"])
  return over_rows(services, lambda batch: embed(params, batch["tokens"], batch["mask"], extra=extra), dict(tokens=tokens, mask=mask))


def embed_images(services: Services, params: Tree, batches: Iterable[Mapping], *, extra: Tree = (),
                 total: int | None = None) -> Iterator[tuple[Mapping, np.ndarray]]:
  """(batch, embeddings float32 [n D] of its n valid rows, unit norm) for every batch of `Dataset.eval_batches`."""
  embed = jax.jit(services.predict["embed_image"])
  for batch, made in streamed(services, lambda arrays: embed(params, arrays["image"], extra=extra), batches, ["image"],
                              total=total):
    yield batch, made[batch["valid"]]


def draw(services: Services, params: Tree, tokens: np.ndarray, mask: np.ndarray, seeds: Sequence[int], *, sampler: str | None = None,
         steps: int = 20, guidance: float = 1.0, negative: tuple[np.ndarray, np.ndarray] | None = None,
         rows: Mapping[str, np.ndarray] = {}, extra: Tree = (), size: int | None = None,      # noqa: B006
         static: Mapping[str, Any] = {}, **options) -> np.ndarray:      # noqa: B006
  """Pictures float32 [N H W 3] in [-1, 1] for tokens int32 [N L], mask bool [N L]; the one place that runs a sampler.

  Picture i depends on its tokens and `seeds[i]` (a uint32) alone, not on the batch. `sampler` None is the model's own. `negative`:
  (tokens, mask) [N L] that guidance points away from. `rows`: further arrays [N …] of `predict["sample"]`, of `predict["edit"]` if there
  is an `image` among them, or of `predict["enlarge"]` if there is a `small` one. `static`: options of it that shape the program: height,
  width, decode. Other options go to `predict["plan"]`. Sampler, steps and guidance are arrays of the plan: none of them compiles the
  program again.
  """
  name = drawing_function(rows)
  require(services, "drawing", name, "plan")
  plan = services.predict["plan"](sampler, steps=steps, guidance=guidance, **options)
  function = jax.jit(services.predict[name], static_argnames=tuple(static))
  arrays = dict(tokens=tokens, mask=mask, seeds=np.asarray(seeds, np.uint32)) | dict(rows)
  if negative is not None:
    arrays |= dict(negative_tokens=negative[0], negative_mask=negative[1])

  def run(batch):
    given = {"negative": (batch["negative_tokens"], batch["negative_mask"])} if negative is not None else {}
    return function(params, batch["tokens"], batch["mask"], batch["seeds"], plan, extra=extra, **given, **static,
                    **{name: batch[name] for name in rows})
  return over_rows(services, run, arrays, size=size or fitting(services, len(tokens)))


def drawing_function(rows: Mapping[str, Any]) -> str:
  """The predict function that draws from these rows, see `draw`."""
  return "edit" if "image" in rows else "enlarge" if "small" in rows else "sample"


def caption_settings(tokenizer, text_len: int, **decoding) -> decode.Settings:
  """`decode.settings` for a tokenizer; `max_len` is by default `text_len` less the start token. Raises ConfigError."""
  lacking = [name for name in ("start", "end") if getattr(tokenizer, name) is None]
  if lacking:
    raise ConfigError(f"captions are written from a start token to an end token, and the tokenizer has no {' and no '.join(lacking)} "
                      "token; train with one that has (data.tokenizer)")
  unknown = [name for name in decoding if name not in inspect.signature(decode.settings).parameters or name in ("start", "end", "pad")]
  if unknown:
    known = [name for name in inspect.signature(decode.settings).parameters if name not in ("start", "end", "pad")]
    raise ConfigError(f"unknown decoding option {unknown[0]!r} (known: {', '.join(known)})")
  return decode.settings(start=tokenizer.start, end=tokenizer.end, pad=tokenizer.pad, **(dict(max_len=text_len - 1) | decoding))


def write_captions(services: Services, params: Tree, images: np.ndarray, seeds: Sequence[int], settings: decode.Settings, *,
                   extra: Tree = (), size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Pictures uint8 [N H W 3] -> (tokens int32 [N L], lengths int32 [N]), see `mmdiff.decode.Decoded`; the one place that runs a captioner.

  Caption i depends on its picture and `seeds[i]` (a uint32) alone, not on the batch.
  """
  require(services, "captioning", "caption")
  caption = jax.jit(services.predict["caption"])
  write = lambda batch: caption(params, batch["image"], batch["seeds"], settings, extra=extra)
  made = over_rows(services, write, dict(image=images, seeds=np.asarray(seeds, np.uint32)), size=size or fitting(services, len(images)))
  return made.tokens, made.lengths


def records(dataset, limit: int | None) -> int:
  """How many records an evaluation of the first `limit` reads."""
  return min(len(dataset), limit or len(dataset))


def left_out(dataset, limit: int | None, used: int) -> dict[str, float]:
  """The scalar `left_out`, the records that an evaluation of the first `limit` could not use: bad ones, and those without the caption that
  it needs. {} where there are none."""
  count = records(dataset, limit) - used
  return {"left_out": float(count)} if count else {}


def to_uint8(images: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8, rounded to nearest."""
  return np.clip(np.rint((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int, *, gap: int = 2) -> np.ndarray:
  """uint8 [N H W 3] -> one picture, `columns` a row, with white gaps of `gap` pixels."""
  count, height, width, _ = images.shape
  lines = -(-count // columns)
  sheet = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
  for i, image in enumerate(images):
    top, left = i // columns * (height + gap), i % columns * (width + gap)
    sheet[top:top + height, left:left + width] = image
  return sheet


def captions_of(record: Mapping, kind: str = "") -> list[str]:
  """All captions of one kind of a record; "" is `original` where the record has it, else its first kind. Raises DataError without any."""
  captions = record.get("captions") or {}
  used = kind or ("original" if "original" in captions else next(iter(captions), ""))
  if used not in captions:
    raise DataError(f"record {record.get('key')!r} has no caption of kind {used!r} (it has {', '.join(captions) or 'none'}); "
                    "set `caption` to one of those")
  found = captions[used]
  return [found] if isinstance(found, str) else list(found)
