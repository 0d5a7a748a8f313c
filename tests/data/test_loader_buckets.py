"""Batches of several picture sizes: one bucket a step, the same on every host, resumed exactly, with SDXL's conditions."""
import collections
import itertools

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.data import captions, draws
from mmdiff.data.loader import dataset
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import World, tokenizer

TOKENIZER = tokenizer()
SHAPES = ((16, 16), (24, 12), (12, 20))


class Shapes(World):
  """Pictures of three shapes, in turn; with holes, some can't be read when their turn comes."""

  def __init__(self, n=40, holes=()):
    super().__init__(n)
    self.holes = holes

  def __getitem__(self, i):
    if i in self.holes:
      raise BadRecord("unreadable", "a hole", f"k{i}")
    height, width = SHAPES[i % 7 % 3]
    return super().__getitem__(i) | {"image": np.full((height, width, 3), i, np.uint8)}

  def fingerprint(self):
    return f"shapes {self.n} {self.holes}"


def make(source=None, **options):
  given = dict(captions={"long": 1.0}, image_size=8, text_len=16, seed=3, threads=1, buckets=("8x8", "12x6", "6x10"))
  return dataset(source or Shapes(), TOKENIZER, **given | options)


def take(ds, count, **options):
  batches = ds.train_batches(**options)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_a_batch_has_the_shape_of_its_bucket_and_the_conditions():
  ds, seen = make(), set()
  for step, batch in enumerate(take(ds, 12, batch_size=4)):
    seen.add(batch["image"].shape[1:3])
    assert batch["size"].dtype == np.int32 and (batch["size"][:, 4:] == batch["image"].shape[1:3]).all()
    for key, image, size in zip(ds.keys_at(step, 4), batch["image"], batch["size"]):
      i = int(key[1:])
      assert (image == i).all() and size[:2].tolist() == list(SHAPES[i % 7 % 3])
  assert seen == {(8, 8), (12, 6), (6, 10)}


def test_every_record_comes_once_a_round():
  ids = [int(i) for batch in take(make(), 40, batch_size=1) for i in batch["id"]]
  assert sorted(ids) == sorted(draws.record_id(f"k{i}") for i in range(40))


@pytest.mark.parametrize("holes", [(), (1, 5, 9)])
def test_a_sparse_bucket_repeats_records_never_examples(holes):
  ds = make(Shapes(holes=holes))
  for batch in take(ds, 6, batch_size=30):                 # the buckets have 18, 11 and 11 records
    assert len(set(batch["id"].tolist())) == 30


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("holes", [(), (1, 5, 9)])
def test_hosts_make_their_rows_of_the_same_batch(hosts, holes):
  source = Shapes(holes=holes)
  whole = take(make(source), 6, batch_size=8)
  parts = [take(make(source), 6, batch_size=8, rows=range(host * 8 // hosts, (host + 1) * 8 // hosts)) for host in range(hosts)]
  for step, batch in enumerate(whole):
    assert same(batch, {name: np.concatenate([part[step][name] for part in parts]) for name in batch})


def test_resume_threads_and_processes():
  options = dict(augment={"flip": True, "position": "random"})
  straight = take(make(**options), 6, batch_size=5)
  assert all(same(a, b) for a, b in zip(straight[3:], take(make(threads=4, **options), 3, batch_size=5, start_step=3), strict=True))
  assert all(same(a, b) for a, b in zip(straight[4:], take(make(workers=1, **options), 2, batch_size=5, start_step=4), strict=True))
  assert same(make(**options).batch_at(5, batch_size=5), straight[5])


def test_a_bad_record_is_replaced_by_one_of_its_bucket():
  ds = make(Shapes(holes=(1, 5, 9)))
  counted = 0
  for batch in take(ds, 20, batch_size=4):
    assert batch["image"].shape[1:3] == tuple(batch["size"][0, 4:])
    ratio = batch["size"][:, 0] / batch["size"][:, 1]
    assert len(set(ratio.tolist())) == 1
    counted += int(batch["counts"][:, ds.count_names.index("replaced")].sum())
  order = ds.order(4)
  assert counted == sum(order.place(step, row).index in (1, 5, 9) for step in range(20) for row in range(4)) and 4 <= counted <= 8


def test_the_counts_of_buckets_are_those_of_the_draws():
  mix = {"long": 0.75, "original": 0.25}
  ds = make(captions=mix)
  for batch_size in (4, 30):
    order, expected = ds.order(batch_size), collections.Counter()
    for step, row in itertools.product(range(7), range(batch_size)):
      place = order.place(step, row)
      expected.update([f"caption/{captions.draw(ds.recipe.mix, seed=3, epoch=place.epoch, key=f'k{place.index}')}"])
    totals = sum(batch["counts"].sum(0) for batch in take(ds, 7, batch_size=batch_size))
    assert {name: int(count) for name, count in zip(ds.count_names, totals) if count} == expected


def test_one_row_of_every_shape():
  made = make().variants()
  assert [row["image"].shape for row in made] == [(8, 8, 3), (12, 6, 3), (6, 10, 3)]
  assert [row["image"].shape for row in make(buckets=("8x8", "2x80")).variants()] == [(8, 8, 3)]
  assert [sorted(row) for row in make(buckets=()).variants()] == [["counts", "id", "image", "mask", "tokens"]]


@pytest.mark.parametrize("options", [dict(), dict(resize="squash"), dict(augment=dict(flip=True)), dict(augment=dict(crop=(0.3, 0.9)))])
def test_rows_without_buckets_say_their_own_sizes_where_asked(options):
  """Every record its own: the sides before it was scaled, and where it was cropped."""
  ds = make(buckets=(), sizes=True, **options)
  batches = take(ds, 3, batch_size=8)
  sizes = np.concatenate([batch["size"] for batch in batches])
  keys = [key for step in range(3) for key in ds.keys_at(step, 8)]
  assert sizes.dtype == np.int32 and [tuple(row) for row in sizes[:, :2]] == [SHAPES[int(key[1:]) % 7 % 3] for key in keys]
  assert (sizes[:, 4:] == 8).all() and len(np.unique(sizes[:, :4], axis=0)) > 2
  if not options:
    assert {tuple(row) for row in sizes[:, :4]} == {(16, 16, 0, 0), (24, 12, 4, 0), (12, 20, 0, 2)}
  for evaluated in (make(buckets=(), sizes=True), make()):              # and in evaluation, which is square
    assert next(iter(evaluated.eval_batches(batch_size=4)))["size"][:, 4:].tolist() == [[8, 8]] * 4
  assert "size" not in take(make(buckets=()), 1, batch_size=2)[0]


def test_evaluation_stays_square():
  assert next(iter(make().eval_batches(batch_size=4)))["image"].shape == (4, 8, 8, 3)


@pytest.mark.parametrize("options, said", [
  (dict(buckets=("8y8",)), "HEIGHTxWIDTH"), (dict(augment={"crop": (0.5, 1.0)}), "data.augment.crop: in data.buckets"),
  (dict(buckets=(), augment={"position": "random"}), "data.augment.position: only")])
def test_what_does_not_go_together(options, said):
  with pytest.raises(ConfigError, match=said):
    make(**options)
