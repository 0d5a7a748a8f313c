"""Batches: which record goes where is index arithmetic; Grain only runs it ahead, in threads and processes.

Row r of step s is position g = s * batch_size + r of an endless sequence: epoch g // N, and within it the (g mod N)-th of a permutation
that (seed, epoch) name. So any step can be made alone, by any host, with any number of workers.
"""
import atexit
import collections
import dataclasses
import functools
import hashlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import buckets as aspects
from mmdiff.data import captions as caption_mixing
from mmdiff.data import decode, draws, latents, pipelines, quarantine, records, sidecar, tokenizers, transforms
from mmdiff.data import held_out as held
from mmdiff.data import sizes as header_sizes
from mmdiff.data.quarantine import BadRecord, Offence

LOG = logging.getLogger(__name__)
CHUNK = 64            # rows that one thread makes at a time
LACKING = 1000        # records tried in a row for `on_missing="replace"`
PROBES = 8


def dataset(source, tokenizer, *, captions: Mapping[str, float], image_size: int, text_len: int, on_missing: str = "any",
            resize: str = "crop", interpolation: str = "bicubic", augment: Mapping | None = None, sidecar: str = "",
            buckets: Sequence[str] = (), features: str = "", max_pixels: int = decode.MAX_PIXELS,
            max_decode_bytes: int = decode.MAX_BYTES, max_bad_fraction: float = 0.1, threads: int = 2, workers: int = 0, seed: int = 0,
            held_out: float = 0.0, sizes: bool = False) -> "Dataset":
  """The data of a run; the keys are those of `config.data`. sizes: rows say how their pictures were scaled and cropped, see
  `transforms.cover`; in buckets they always do.

  `source` is what `build(SOURCES, …)` makes, `tokenizer` what `build(TOKENIZERS, …)` makes: an untrained one is trained here, on the
  source's captions. Raises ConfigError for values that can't be, DataError for an empty source, an unreadable side-car or a source
  whose first records are all unusable.
  """
  augment = augment or {}
  crop, flip, position = tuple(augment.get("crop") or ()), bool(augment.get("flip")), augment.get("position") or "centre"
  problems = [f"data.{name}: expected at least {least}, found {value}" for name, value, least in (
    ("text_len", text_len, 2), ("max_pixels", max_pixels, 1), ("max_decode_bytes", max_decode_bytes, 1),
    ("threads", threads, 0), ("workers", workers, 0)) if value < least]
  if not 0 <= max_bad_fraction <= 1:
    problems.append(f"data.max_bad_fraction: expected a number from 0 to 1, found {max_bad_fraction}")
  if problems:
    raise ConfigError("\n".join(problems))
  shapes = aspects.parse(buckets, image_size=image_size)
  transforms.check_augment(augment, bucketed=bool(shapes), has_latents=False)
  transforms.check(image_size=image_size, resize=resize, interpolation=interpolation, crop=crop)
  mix = caption_mixing.mix(captions, on_missing=on_missing)
  if len(source) == 0:
    raise DataError(f"data.source: {type(source).__name__} holds no records")
  source = join(held.training(source, held_out), sidecar)
  stored = latents.Features(features) if features else None
  if stored and augment.get("sentences"):
    raise ConfigError("data.augment.sentences: precomputed features are of the captions as they stand; leave one of the two out")
  transforms.check_augment(augment, bucketed=bool(shapes), has_latents=bool(stored and stored.has_latents))
  recipe = pipelines.Recipe(mix, image_size, resize, interpolation, crop, flip, position, max_pixels, max_decode_bytes,
                            bool(getattr(source, "allow_empty_captions", False)), sizes or bool(shapes), bool(augment.get("sentences")))
  made = Dataset(source, None, recipe, text_len, seed, threads, workers, max_bad_fraction, shapes, features=stored)
  made.probe()
  of_record = aspects.assign(header_sizes.sizes(source, threads=max(threads, 1)), shapes) if shapes else None
  tokenizer = tokenizers.ensure_trained(tokenizer, source) if tokenizer else None
  if stored:
    picture = dict(image_size=image_size, resize=resize, interpolation=interpolation, buckets=[aspects.label(size) for size in shapes])
    stored.check(picture=picture, tokenizer=tokenizer, text_len=text_len)
    if sizes and stored.has_latents and not stored.has_sizes:
      raise ConfigError(f"data.features: {stored.path} does not say how its pictures were scaled and cropped, which this denoiser is told; "
                        "compute it again with this config")
  return dataclasses.replace(made, tokenizer=tokenizer, of_record=of_record)


join = sidecar.join


@dataclasses.dataclass(frozen=True)
class Dataset:
  """See `dataset`. Frozen but for `offenders`, the bad records seen so far by this process and its workers: (key, kind) -> Offence."""
  source: object
  tokenizer: tokenizers.Tokenizer | None
  recipe: pipelines.Recipe
  text_len: int
  seed: int = 0
  threads: int = 2
  workers: int = 0
  max_bad_fraction: float = 0.1
  buckets: tuple[tuple[int, int], ...] = ()            # (height, width)
  of_record: np.ndarray | None = None                  # the bucket of every record of the source
  features: latents.Features | None = None
  orders: dict[int, aspects.Order] = dataclasses.field(default_factory=dict)       # by batch size
  offenders: dict[tuple[str, str], Offence] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.source)

  @functools.cached_property
  def count_names(self) -> tuple[str, ...]:
    """The columns of `counts`: caption kind used, kind that was drawn and missing, kind of fault, whether another record stands in.

    Every row has a one in one "caption/…" column, so those columns sum to the rows.
    """
    mix = self.recipe.mix
    used = sorted({*mix.kinds, *(["original"] if mix.on_missing == "original" else [])})
    return (*(f"caption/{kind}" for kind in used), "caption/other", *(f"missing/{kind}" for kind in mix.kinds),
            *(f"bad/{kind}" for kind in quarantine.KINDS), "replaced")

  @functools.cached_property
  def _column(self) -> dict[str, int]:
    return {name: at for at, name in enumerate(self.count_names)}

  def fingerprint(self) -> str:
    """Changes when the records, the side-car, the tokenizer or their number change."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    parts = (self.source.fingerprint(), len(self.source), self.tokenizer.fingerprint() if self.tokenizer else "")
    parts += (self.features.fingerprint(),) if self.features else ()
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (tokens int32 [n L], mask bool [n L])."""
    if self.tokenizer is None:
      if any(texts):
        raise DataError("there is no tokenizer to read texts with; put its files beside the weights")
      return np.zeros((len(texts), self.text_len), np.int32), np.zeros((len(texts), self.text_len), bool)
    return self.tokenizer.batch(texts, self.text_len)

  def index_at(self, position: int) -> tuple[int, int]:
    """(epoch, index in the source) of a global position, before any replacement."""
    epoch, place = divmod(position, len(self.source))
    return epoch, draws.shuffled(place, length=len(self.source), keys=_round_keys(self.seed, epoch))

  def example_at(self, position: int) -> tuple[pipelines.Example, list[str], Offence | None]:
    """The example at a global position, the columns of `counts` that it adds to, and the bad record that it stands in for, if any.
    Without buckets, where positions alone decide."""
    epoch, index = self.index_at(position)
    instead = lambda n: quarantine.replacement(index, n, seed=self.seed, epoch=epoch, length=len(self.source))
    return self._example(epoch, index, instead, None)

  def example_of(self, step: int, row: int, batch_size: int) -> tuple[pipelines.Example, list[str], Offence | None]:
    """The same of a row of the global batch of a step."""
    if not self.buckets:
      return self.example_at(step * batch_size + row)
    order = self.order(batch_size)
    place = order.place(step, row)
    return self._example(place.epoch, place.index, lambda n: order.replacement(place, n), self.buckets[place.bucket])

  def order(self, batch_size: int) -> aspects.Order:
    """Which bucket and records each step takes."""
    if batch_size not in self.orders:
      self.orders[batch_size] = aspects.Order(self.of_record, len(self.buckets), batch_size=batch_size, seed=self.seed)
    return self.orders[batch_size]

  def variants(self) -> list[dict[str, np.ndarray]]:
    """One row of a batch, without the batch axis, for every shape that batches have."""
    order = self.order(1) if self.buckets else None
    if order is None:
      return [{name: value[0] for name, value in self.batch_at(0, batch_size=1).items()}]
    firsts = [aspects.Place(bucket, 0, int(rows[0])) for bucket, rows in enumerate(order.members) if len(rows)]
    made = [self._example(0, place.index, functools.partial(order.replacement, place), self.buckets[place.bucket]) for place in firsts]
    return [{name: value[0] for name, value in self.arrays([example], [columns]).items()} for example, columns, _ in made]

  def _example(self, epoch: int, index: int, instead: Callable[[int], int],
               bucket: tuple[int, int] | None) -> tuple[pipelines.Example, list[str], Offence | None]:
    kind, columns, offence, faults, lacking = "", [], None, 0, 0
    at = index
    while True:
      try:
        example = pipelines.image_text(self._record(at), self.recipe, seed=self.seed, epoch=epoch, kind=kind, bucket=bucket,
                                       features=self.features, instead=index if faults + lacking else None)
        break
      except BadRecord as fault:
        if faults + lacking == 0:
          offence = Offence(fault.key or f"#{at}", fault.kind, fault.detail)
          columns.append(f"bad/{fault.kind}")
        faults += 1
        if faults > quarantine.TRIES:
          raise DataError(f"{faults} records in a row were bad, the last one with {fault}; is data.source the right place?") from None
      except caption_mixing.LacksKind as lack:
        if faults + lacking == 0:
          columns.append(f"missing/{lack.kind}")
        kind, lacking = lack.kind, lacking + 1         # the one that stands in has the kind that was drawn, so the shares stay exact
        if lacking > LACKING:
          raise DataError(f"{lacking} records in a row have no caption of kind {lack.kind!r}; set data.on_missing to any or original, "
                          "or take the kind out of data.captions") from None
      at = instead(faults + lacking)
    if faults + lacking:
      columns.append("replaced")
    return example, columns + self._kind_columns(example), offence

  def _record(self, index: int) -> Mapping:
    """The record as training reads it: precomputed latents stand in for its picture, which then stays where it is."""
    return records.without_image(self.source, index) if self.features and self.features.has_latents else self.source[index]

  def _kind_columns(self, example: pipelines.Example) -> list[str]:
    used = f"caption/{example.kind}"
    columns = [used if used in self._column else "caption/other"]
    return columns + [f"missing/{example.missing}"] if f"missing/{example.missing}" in self._column else columns

  def arrays(self, examples: Sequence[pipelines.Example], columns: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Examples of one shape and their columns of `counts`, stacked."""
    counts = np.zeros((len(examples), len(self.count_names)), np.int32)
    for row, names in enumerate(columns):
      for name in names:
        counts[row, self._column[name]] = 1
    tokens, mask = self.tokenize([example.text for example in examples])
    ids = np.array([example.id for example in examples], np.uint32)
    made = {} if examples[0].image is None else {"image": np.stack([example.image for example in examples])}
    made |= {"tokens": tokens, "mask": mask, "id": ids, "counts": counts}
    return made | {name: np.stack([example.more[name] for example in examples]) for name in examples[0].more}

  def train_batches(self, *, batch_size: int, start_step: int = 0, rows: Sequence[int] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from `start_step` on: image uint8 [R S S 3], tokens int32 [R L], mask bool [R L], id uint32 [R], counts int32 [R K].

    With buckets a step has the picture size of its bucket, and `size` int32 [R 6], see `transforms.cover`; precomputed features come in
    place of `image`, see `latents`.
    `rows` are the rows of the global batch that this process makes, by default all of them.
    """
    rows = _rows(rows, batch_size)
    parts = -(-len(rows) // CHUNK)
    batches = self._joined(_Chunks(self, batch_size, start_step, np.array_split(rows, parts)), parts)
    _OPEN.add(batches)
    return batches

  def batch_at(self, step: int, *, batch_size: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """One batch of `train_batches`, made here and now, without threads or processes."""
    return _Chunks(self, batch_size, step, [_rows(rows, batch_size)])[0][0]

  def _joined(self, chunks, parts: int) -> Iterator[dict[str, np.ndarray]]:
    with _ahead(chunks, threads=self.threads, workers=self.workers, buffer=self.threads + parts) as stream:
      while True:
        batch = []
        for _ in range(parts):
          arrays, offences = next(stream)
          self._remember(offences)
          batch.append(arrays)
        # Always a copy: what worker processes send lies in shared memory.
        yield {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}

  def _remember(self, offences: Sequence[Offence]) -> None:
    for offence in offences:
      if len(self.offenders) < quarantine.OFFENDERS:
        self.offenders.setdefault((offence.key, offence.kind), offence)

  def keys_at(self, step: int, batch_size: int) -> list[str]:
    """The keys of a global batch in row order, after replacement. Reads and decodes the records: for ledgers and debugging."""
    return [self.example_of(step, row, batch_size)[0].key for row in range(batch_size)]

  def eval_batches(self, *, batch_size: int, limit: int | None = None, caption_kind: str | None = None) -> Iterator[dict]:
    """The records in source order, once, without augmentation; the first `limit` of them if given.

    Beside the arrays of `train_batches`: `valid` bool [B], false for the rows that fill up the last batch (zeros there); and for the
    valid rows, as lists, `keys` (str) and `records` (the record without its image). `caption_kind`: see `pipelines.plain`. Bad records, and
    those that lack the kind asked for, are left out, remembered in `offenders`, and their number is said at the end.
    """
    count = len(self) if limit is None else min(limit, len(self))
    held: list[tuple] = []
    left: collections.Counter[str] = collections.Counter()
    with _ahead(_Plain(self, count, caption_kind), threads=self.threads, workers=0, buffer=2 * self.threads) as stream:
      for examples, offences in stream:
        self._remember(offences)
        left.update(offence.kind for offence in offences)
        held += examples
        while len(held) >= batch_size:
          yield self._padded(held[:batch_size], batch_size)
          held = held[batch_size:]
    if held:
      yield self._padded(held, batch_size)
    if left:
      LOG.warning("evaluation: %d of %d records were left out: %s", left.total(), count,
                  ", ".join(f"{kind} {number}" for kind, number in sorted(left.items())))

  def _padded(self, rows: list[tuple], batch_size: int) -> dict:
    arrays = self.arrays([example for example, _ in rows], [self._kind_columns(example) for example, _ in rows])
    fill = batch_size - len(rows)
    batch = {name: np.concatenate([value, np.zeros((fill, *value.shape[1:]), value.dtype)]) for name, value in arrays.items()}
    batch["valid"] = np.arange(batch_size) < len(rows)
    return batch | {"keys": [example.key for example, _ in rows], "records": [record for _, record in rows]}

  def plain_at(self, index: int, kind: str | None = None) -> tuple[pipelines.Example, dict]:
    """The example for evaluation at an index of the source, and its record without the image. Raises BadRecord."""
    record = self.source[index]
    try:
      example = pipelines.plain(record, self.recipe, seed=self.seed, kind=kind)
    except caption_mixing.LacksKind as lack:
      raise BadRecord("missing_caption", f"no caption of kind {lack.kind!r}", str(record["key"])) from None
    return example, {name: value for name, value in record.items() if name != "image"}

  def probe(self) -> None:
    """Raises DataError when none of a few records can be used, whatever the caption kinds: a wrong layout shows before the first step."""
    faults, count = [], min(PROBES, len(self))
    for n in range(count):
      try:
        record = self.source[n * len(self) // count]
        texts = record.get("captions") if isinstance(record, Mapping) else None
        pipelines.plain(record, self.recipe, seed=self.seed, kind=next(iter(texts), "") if isinstance(texts, Mapping) else "")
        return
      except BadRecord as fault:
        faults.append(str(fault))
    raise DataError(f"data.source: none of {count} records could be used; the first one: {faults[0]}")

  def check_counts(self, totals: Mapping[str, float] | Sequence[float]) -> None:
    """Raises DataError when the counts so far, by name or as the columns' sums, say that too many records were bad."""
    if not isinstance(totals, Mapping):
      totals = dict(zip(self.count_names, np.asarray(totals).tolist()))
    kinds = {kind: int(totals.get(f"bad/{kind}", 0)) for kind in quarantine.KINDS}
    records = int(sum(value for name, value in totals.items() if name.startswith("caption/")))
    quarantine.check_fraction(sum(kinds.values()), records, limit=self.max_bad_fraction, kinds=kinds,
                              offenders=list(self.offenders.values())[:3])


_OPEN: weakref.WeakSet = weakref.WeakSet()     # iterators that nobody closed yet


@atexit.register
def _close_all() -> None:
  """Grain's processes and shared memory must go before the modules that clean them up."""
  for batches in list(_OPEN):
    try:
      batches.close()
    except ValueError:                         # another thread is inside it
      continue


def _rows(rows: Sequence[int] | None, batch_size: int) -> np.ndarray:
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  if not len(rows) or rows.min() < 0 or rows.max() >= batch_size:
    raise ValueError(f"rows must be some of range({batch_size}), found {rows!r}")
  return rows


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
  return draws.round_keys(seed, epoch)


@dataclasses.dataclass(frozen=True)
class _Chunks:
  """Pieces of batches as a random-access source for Grain: element i is part i % P of step start + i // P."""
  dataset: Dataset
  batch_size: int
  start: int
  parts: list[np.ndarray]

  def __len__(self) -> int:
    return 2 ** 62

  def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], tuple[Offence, ...]]:
    step, part = divmod(int(index), len(self.parts))
    made = (self.dataset.example_of(self.start + step, int(row), self.batch_size) for row in self.parts[part])
    examples, columns, offences = zip(*made)
    return self.dataset.arrays(examples, columns), tuple(offence for offence in offences if offence)


@dataclasses.dataclass(frozen=True)
class _Plain:
  """Runs of examples for evaluation, as a random-access source for Grain."""
  dataset: Dataset
  count: int
  kind: str | None

  def __len__(self) -> int:
    return -(-self.count // CHUNK)

  def __getitem__(self, index: int) -> tuple[list[tuple], list[Offence]]:
    examples, offences = [], []
    for at in range(int(index) * CHUNK, min(self.count, (int(index) + 1) * CHUNK)):
      try:
        examples.append(self.dataset.plain_at(at, self.kind))
      except BadRecord as fault:
        offences.append(Offence(fault.key or f"#{at}", fault.kind, fault.detail))
    return examples, offences


class _ahead:
  """A context with the elements of a random-access source in order, made ahead of need; leaving it stops the threads and processes."""

  def __init__(self, elements, *, threads: int, workers: int, buffer: int):
    import grain  # it imports JAX, which commands that only inspect data do without
    stream = grain.MapDataset.source(elements).to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads)))
    if workers:
      from absl import flags
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()                   # Grain hands the flags to its processes, also in a notebook that has none
      stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, buffer // workers)))
    self._stream = iter(stream)

  def __enter__(self):
    return self._stream

  def __exit__(self, *_):
    self._stream.close()
