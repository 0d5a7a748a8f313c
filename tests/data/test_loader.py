import collections
import itertools
import pickle

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import captions, draws, pipelines, tokenizers
from mmdiff.data.loader import dataset
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import Failing, Holed, Listed, World, tokenizer

TOKENIZER = tokenizer()


def make(source=None, tokenizer=TOKENIZER, **options):
  given = dict(captions={"long": 0.75, "original": 0.25}, image_size=8, text_len=16, seed=3, threads=1)
  return dataset(World() if source is None else source, tokenizer, **given | options)


def take(ds, count, **options):
  batches = ds.train_batches(**options)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_schema():
  ds = make()
  batch = take(ds, 1, batch_size=6)[0]
  assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
    "image": ("uint8", (6, 8, 8, 3)), "tokens": ("int32", (6, 16)), "mask": ("bool", (6, 16)), "id": ("uint32", (6,)),
    "counts": ("int32", (6, len(ds.count_names)))}
  captions = [i for i, name in enumerate(ds.count_names) if name.startswith("caption/")]
  assert (batch["counts"][:, captions].sum(1) == 1).all()


def test_every_record_once_an_epoch_and_another_order_in_the_next():
  ds = make()
  steps = [ds.keys_at(step, 8) for step in range(10)]
  first, second = sum(steps[:5], []), sum(steps[5:], [])
  assert sorted(first) == sorted(second) == sorted(f"k{i}" for i in range(40)) and first != second


def test_batches_hold_what_keys_at_says():
  ds = make()
  for step, batch in enumerate(take(ds, 4, batch_size=7)):
    keys = ds.keys_at(step, 7)
    assert batch["id"].tolist() == [draws.record_id(key) for key in keys]
    assert batch["image"][:, 0, 0, 0].tolist() == [int(key[1:]) for key in keys]
    for key, tokens in zip(keys, batch["tokens"]):
      assert ds.tokenizer.decode(tokens).endswith(f"caption of picture {key[1:]}")


@pytest.mark.parametrize("batch_size", [5, 150])          # 150 rows are made in three pieces
def test_resume_is_exact(batch_size):
  straight = take(make(), 6, batch_size=batch_size)
  resumed = take(make(), 3, batch_size=batch_size, start_step=3)
  assert all(same(a, b) for a, b in zip(straight[3:], resumed, strict=True))
  assert same(make().batch_at(4, batch_size=batch_size), straight[4])


def test_far_steps_cost_nothing():
  assert len(take(make(), 1, batch_size=4, start_step=10**12)[0]["id"]) == 4


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("source", [World(), Holed()])
def test_hosts_make_their_rows_of_the_same_batch(hosts, source):
  whole = take(make(source), 4, batch_size=8)
  parts = [take(make(source), 4, batch_size=8, rows=range(host * 8 // hosts, (host + 1) * 8 // hosts)) for host in range(hosts)]
  for step, batch in enumerate(whole):
    assert same(batch, {name: np.concatenate([part[step][name] for part in parts]) for name in batch})


def test_rows_come_in_the_order_asked_for():
  whole, some = take(make(), 1, batch_size=8)[0], take(make(), 1, batch_size=8, rows=[6, 1])[0]
  assert same(some, {name: value[[6, 1]] for name, value in whole.items()})
  with pytest.raises(ValueError, match="range"):
    make().train_batches(batch_size=8, rows=[8])


@pytest.mark.parametrize("threads", [0, 4])
def test_threads_do_not_matter(threads):
  augment = {"crop": (0.5, 1.0), "flip": True}
  expected = take(make(augment=augment), 5, batch_size=70)
  assert all(same(a, b) for a, b in zip(expected, take(make(threads=threads, augment=augment), 5, batch_size=70)))


def test_worker_processes_do_not_matter():
  options = dict(augment={"crop": (0.5, 1.0), "flip": True}, max_bad_fraction=1.0)
  expected = take(make(Holed(), **options), 3, batch_size=70, start_step=2)
  ds = make(Holed(), workers=2, **options)
  assert all(same(a, b) for a, b in zip(expected, take(ds, 3, batch_size=70, start_step=2), strict=True))
  assert {kind for _, kind in ds.offenders} == {"unreadable"}      # worker processes report offenders too


def test_errors_reach_the_consumer_as_they_are():
  with pytest.raises(ZeroDivisionError, match="a bug"):
    take(make(Failing(), threads=2), 10, batch_size=8)
  with pytest.raises(DataError, match="no caption of kind 'short'"):
    take(make(captions={"short": 1.0}, on_missing="error", source=Mixed(), workers=1), 5, batch_size=8)


class Mixed(World):
  """Every second record, the first one included, has a short caption too."""

  def __getitem__(self, i):
    record = super().__getitem__(i)
    return record | {"captions": record["captions"] | ({"short": f"short caption of picture {i}"} if i % 2 == 0 else {})}


@pytest.mark.parametrize("policy", ["any", "original", "replace"])
@pytest.mark.parametrize("batch_size", [3, 64])           # 64 rows of 10 records: six epochs in a batch
def test_the_counts_are_those_of_the_draws(policy, batch_size):
  """Record by record, from the published rules: which kind was drawn, which was there, what was used."""
  source = Listed([Mixed()[i] if i != 4 else BadRecord("unreadable", "a hole") for i in range(10)])
  ds = make(source, captions={"short": 0.5, "long": 0.3, "original": 0.2}, on_missing=policy, max_bad_fraction=1.0)
  steps = -(-192 // batch_size)
  totals = sum(batch["counts"].sum(0) for batch in take(ds, steps, batch_size=batch_size))
  found = {name: int(count) for name, count in zip(ds.count_names, totals) if count}
  expected = collections.Counter()
  for g in range(steps * batch_size):
    epoch, index = ds.index_at(g)
    if index == 4:
      expected.update({"bad/unreadable": 1, "replaced": 1})
      continue
    drawn = captions.draw(ds.recipe.mix, seed=3, epoch=epoch, key=f"k{index}")
    lacks = drawn == "short" and index % 2
    expected.update([f"caption/{drawn if not lacks or policy == 'replace' else 'long' if policy == 'any' else 'original'}"])
    expected.update([f"missing/{drawn}"] * bool(lacks) + ["replaced"] * bool(lacks and policy == "replace"))
  stood_in = expected["bad/unreadable"]
  assert sum(count for name, count in found.items() if name.startswith("caption/")) == steps * batch_size
  for name in found | expected:
    more = found.get(name, 0) - expected[name]            # a stand-in for a bad record draws a kind of its own, and may lack it too
    assert 0 <= more <= stood_in if name.startswith(("caption/", "missing/")) else more == 0


def test_randomness_belongs_to_the_record_not_to_its_position():
  """Two orders of the same epoch number, by sources of other lengths: a record keeps its caption kind."""
  kinds = []
  for n in (40, 80):
    ds = make(World(n))
    found = {example.key: example.kind for example, _, _ in (ds.example_at(g) for g in range(n))}
    kinds.append([found[f"k{i}"] for i in range(40)])
  assert kinds[0] == kinds[1] and set(kinds[0]) == {"long", "original"}


@pytest.mark.parametrize("holes", [(), (1, 4)])
def test_a_record_that_comes_again_in_a_batch_is_another_example(holes):
  """A batch larger than the source: each occurrence has an id of its own, whoever makes it; so have those that stand in for bad records."""
  records = [World()[i] if i not in holes else BadRecord("unreadable", "a hole", f"k{i}") for i in range(5)]
  ds = make(Listed(records), augment={"crop": (0.3, 0.9)}, max_bad_fraction=1.0)
  step = ds.batch_at(1, batch_size=32)
  assert len(set(step["id"].tolist())) == 32
  for g in range(32, 64):                                  # and no matter how the positions are cut into batches and hosts
    at, row = divmod(g, 16)
    assert ds.batch_at(at, batch_size=16, rows=[row])["id"] == step["id"][g - 32]
  assert set(ds.batch_at(0, batch_size=5)["id"].tolist()) >= {draws.record_id(f"k{i}") for i in range(5) if i not in holes}


def test_a_stand_in_is_cropped_otherwise_than_at_its_own_turn():
  picture = np.arange(3 * 64 * 64, dtype=np.uint8).reshape(64, 64, 3)
  records = [World()[0] | {"image": picture}, BadRecord("unreadable"), BadRecord("unreadable")]
  batch = make(Listed(records), augment={"crop": (0.05, 0.9)}, max_bad_fraction=1.0).batch_at(0, batch_size=3)
  assert len({image.tobytes() for image in batch["image"]}) == 3


def test_augmentation_differs_between_epochs_and_records():
  source = Listed([{"key": key, "image": np.arange(192, dtype=np.uint8).reshape(8, 8, 3), "captions": {"long": "x"}} for key in "ab"])
  ds = make(source, captions={"long": 1.0}, augment={"crop": (0.3, 0.6), "flip": True})
  images = [ds.example_at(g)[0].image.tobytes() for g in range(12)]
  assert len(set(images)) == 12


def test_pictures_at_the_right_size_pass_bit_exactly():
  source = World(4)
  batch = make(source).batch_at(0, batch_size=4)
  assert all((image == image[0, 0, 0]).all() for image in batch["image"])


def test_pickles():
  ds = make(Holed())
  copy = pickle.loads(pickle.dumps(ds))       # noqa: S301 (our own object)
  assert same(copy.batch_at(2, batch_size=9), ds.batch_at(2, batch_size=9))


def test_evaluation_reads_in_order_and_pads_the_last_batch():
  ds = make(augment={"crop": (0.1, 0.2), "flip": True})
  batches = list(ds.eval_batches(batch_size=12, limit=30, caption_kind="original"))
  assert [int(batch["valid"].sum()) for batch in batches] == [12, 12, 6]
  assert sum((batch["keys"] for batch in batches), []) == [f"k{i}" for i in range(30)]
  last = batches[-1]
  assert last["image"].shape == (12, 8, 8, 3) and not last["image"][6:].any() and not last["mask"][6:].any()
  assert [record["label"] for record in last["records"]] == list(range(24, 30))
  assert all("image" not in record and set(record["captions"]) == {"long", "original"} for record in last["records"])
  assert ds.tokenizer.decode(last["tokens"][0]) == "original caption of picture 24"
  assert (last["image"][:6, 0, 0, 0] == np.arange(24, 30)).all()


def test_evaluation_leaves_bad_records_out_and_reads_sets_without_captions():
  ds = make(Holed(), max_bad_fraction=1.0)
  batch = next(iter(ds.eval_batches(batch_size=64)))
  assert batch["keys"] == [f"k{i}" for i in range(40) if i % 3] and batch["valid"].sum() == len(batch["keys"])
  assert len(ds.offenders) == 14
  bare = make(Listed([{"key": "a", "image": np.zeros((8, 8, 3), np.uint8), "label": 2}]))
  batch = next(iter(bare.eval_batches(batch_size=2)))
  assert batch["records"][0]["label"] == 2 and bare.tokenizer.decode(batch["tokens"][0]) == ""


@pytest.mark.parametrize("policy", ["error", "replace", "original", "any"])
def test_evaluation_leaves_out_what_lacks_the_caption_it_needs_and_nothing_else(policy, caplog):
  """Of 6 records half lack training's kind, one has no caption."""
  records = [World(6, kinds=("long", "short") if i % 2 else ("short",) if i else ())[i] for i in range(6)]
  ds = make(Listed(records), captions={"long": 1.0}, on_missing=policy)
  keys = lambda kind: sum((batch["keys"] for batch in ds.eval_batches(batch_size=4, caption_kind=kind)), [])
  assert keys(pipelines.NO_CAPTION) == [f"k{i}" for i in range(6)] and not caplog.records
  assert keys(pipelines.OWN_CAPTION) == keys("short") == [f"k{i}" for i in range(1, 6)]
  assert keys("long") == ["k1", "k3", "k5"]
  assert [record.getMessage() for record in caplog.records] == [
    *["evaluation: 1 of 6 records were left out: missing_caption 1"] * 2, "evaluation: 3 of 6 records were left out: missing_caption 3"]


def test_evaluation_may_ask_for_a_kind_that_training_does_not_know():
  ds = make(World(4, kinds=("original",)), captions={"long": 1.0}, on_missing="error")
  assert next(iter(ds.eval_batches(batch_size=4, caption_kind="original")))["valid"].all()
  with pytest.raises(DataError, match="no caption of kind 'long' .it has: original"):
    ds.batch_at(0, batch_size=1)


def test_a_tokenizer_is_trained_on_the_captions_of_the_source():
  a = make(tokenizer=tokenizers.bpe(vocab=300, sample=20))
  b = make(tokenizer=tokenizers.bpe(vocab=300, sample=20))
  assert a.fingerprint() == b.fingerprint() != make().fingerprint()
  assert len(a.tokenizer.encode("long caption of picture 3")) < 12
  tokens, mask = a.tokenize(["long caption of picture 3", "x"])
  assert tokens.shape == mask.shape == (2, 16) and mask[0].sum() > mask[1].sum()


def test_what_can_not_be_is_said_before_the_first_step():
  with pytest.raises(DataError, match="holds no records"):
    make(Listed([]))
  with pytest.raises(DataError, match="none of 3 records could be used.*missing_key.*'image'"):
    make(Listed([{"key": "a", "captions": {}}] * 3))
  with pytest.raises(ConfigError, match="(?s)data.text_len.*data.threads.*data.max_bad_fraction"):
    make(text_len=1, threads=-1, max_bad_fraction=2.0)
  with pytest.raises(ConfigError, match="(?s)data.resize.*data.augment.crop"):
    make(resize="stretch", augment={"crop": (0.9,)})
  with pytest.raises(DataError, match="data.sidecar"):
    make(sidecar="nowhere.jsonl")


def test_importing_the_data_path_imports_no_jax():
  import subprocess
  import sys
  modules = "captions decode draws loader pipelines quarantine sidecar tokenizers transforms".split()
  code = f"import sys, {', '.join('mmdiff.data.' + m for m in modules)}; assert 'jax' not in sys.modules and 'grain' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
