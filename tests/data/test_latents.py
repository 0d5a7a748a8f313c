"""Precomputed features: what is written can be mapped, is found by key and text, and stands in for pictures in batches."""
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import jobs, latents, sidecar
from mmdiff.data.latents import Features
from mmdiff.data.loader import dataset
from mmdiff.data.quarantine import BadRecord
from tests.data.worlds import World, tokenizer

TOKENIZER = tokenizer()
PICTURE = dict(image_size=8, resize="crop", interpolation="bicubic", buckets=[])


def value(i: int, shape: tuple[int, ...]) -> np.ndarray:
  return (i + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8).astype(np.float32)


def make(out, *, n=10, dtype="float32", without=(), texts=True, sizes=None, kinds=("long", "original"), text_len=16, **identity):
  """Features of `World(n)`: latents 2x2x4 (or of the sizes given, a record each), and states of all captions."""
  source = World(n)
  given = dict(task="precompute", picture=PICTURE, encoders={})
  given |= dict(text=dict(tokenizer=TOKENIZER.fingerprint(), text_len=text_len)) if texts else {}
  job = jobs.Job(out, jobs.units_of(source, per_unit=4), given | identity)
  for unit in job.todo():
    output = job.output(unit)
    with latents.Tables(output) as tables:
      for i in (i for i in unit.rows if i not in without):
        shape = sizes[i] if sizes else (2, 2, 4)
        columns = {name: value(i + extra, shape)[None].astype(dtype) for name, extra in (("latent_mean", 0), ("latent_std", 100))}
        columns |= {"size": np.array([[9, 9, 0, 0, *shape[:2]]], np.int32)} if sizes else {}
        tables.add(f"{shape[0]}x{shape[1]}", [latents.image_digest(f"k{i}")], columns)
        for kind in kinds if texts else ():
          text = source[i]["captions"][kind]
          states, pooled = value(i + len(kind), (text_len, 3))[None].astype(dtype), value(i, (3,))[None].astype(dtype)
          tables.add(latents.TEXT, [latents.text_digest(f"k{i}", kind, text)], {"text_states": states, "text_pooled": pooled})
    job.commit(unit, output, dict(tables=tables.facts(), **jobs.faults([])))
  job.complete(latents.summary)
  job.close()
  return str(out)


def data(features, source=None, **options):
  given = dict(captions={"long": 0.5, "original": 0.5}, image_size=8, text_len=16, seed=3, threads=1, features=features)
  return dataset(source or World(10), TOKENIZER, **given | options)


def test_files_can_be_mapped_and_read_by_numpy(tmp_path):
  make(tmp_path, dtype="float16")
  mapped = np.load(tmp_path / "00001.2x2.latent_mean.npy", mmap_mode="r", allow_pickle=False)
  assert mapped.dtype == np.float16 and np.array_equal(mapped[2], value(6, (2, 2, 4)))
  assert np.load(tmp_path / "00002.text.text_states.npy", allow_pickle=False).shape == (4, 16, 3)
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert (manifest["latents"], manifest["texts"]) == (10, 20) and manifest["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*.npy"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_is_found_by_key_and_text(tmp_path, dtype):
  features = Features(make(tmp_path, dtype=dtype))
  assert len(features) == 30 and features.has_latents and features.has_texts
  for i in range(10):
    found = features.of(f"k{i}", "long", f"long caption of picture {i}")
    assert sorted(found) == ["latent_mean", "latent_std", "text_pooled", "text_states"]
    assert all(part.dtype == np.float32 for part in found.values())
    assert np.array_equal(found["latent_std"], value(i + 100, (2, 2, 4))) and np.array_equal(found["text_states"], value(i + 4, (16, 3)))
  with pytest.raises(BadRecord, match="no latents of this record"):
    features.of("k10", "long", "")
  with pytest.raises(BadRecord, match="no states of its long caption 'a new caption'"):
    features.of("k1", "long", "a new caption")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_a_bad_record(tmp_path, wrong):
  path = Path(make(tmp_path)) / "00000.2x2.latent_mean.npy"
  stored = np.load(path, mmap_mode="r+", allow_pickle=False)
  stored[1, 0, 1, 2] = wrong
  stored.flush()
  features = Features(tmp_path)
  assert np.isfinite(features.of("k0", "long", "long caption of picture 0")["latent_mean"]).all()
  with pytest.raises(BadRecord, match="unreadable: latent_mean in .* is not finite.*'k1'"):
    features.of("k1", "long", "long caption of picture 1")


def test_latents_of_two_records_with_one_key_are_refused(tmp_path):
  units = jobs.units_of(World(2), per_unit=1)
  job = jobs.Job(tmp_path, units, dict(task="precompute", picture=PICTURE, encoders={}))
  for unit in job.todo():
    output = job.output(unit)
    with latents.Tables(output) as tables:
      row = value(0, (2, 2, 4))[None]
      tables.add("2x2", [latents.image_digest("twin")], {"latent_mean": row, "latent_std": row})
    job.commit(unit, output, dict(tables=tables.facts(), **jobs.faults([])))
  job.complete(latents.summary)
  job.close()
  with pytest.raises(DataError, match="has 1 latents whose record has the key of another one"):
    Features(tmp_path)


def test_a_copy_reads_alike_and_the_fingerprint_is_that_of_the_values(tmp_path):
  features = Features(make(tmp_path / "a"))
  copy = pickle.loads(pickle.dumps(features))       # noqa: S301 (our own object)
  assert np.array_equal(copy.of("k3", "long", "long caption of picture 3")["latent_mean"], value(3, (2, 2, 4)))
  assert features.fingerprint() == Features(make(tmp_path / "b")).fingerprint()
  assert features.fingerprint() != Features(make(tmp_path / "c", dtype="float16")).fingerprint()


def test_batches_carry_features_in_place_of_pictures(tmp_path):
  ds = data(make(tmp_path))
  plain = data("")
  batches, pictures = ds.train_batches(batch_size=6), plain.train_batches(batch_size=6)
  for batch, picture in itertools.islice(zip(batches, pictures), 4):
    assert sorted(batch) == ["counts", "id", "latent_mean", "latent_std", "mask", "text_pooled", "text_states", "tokens"]
    assert all(np.array_equal(batch[name], picture[name]) for name in ("tokens", "mask", "id", "counts"))
    rows = picture["image"][:, 0, 0, 0].tolist()
    assert np.array_equal(batch["latent_mean"], np.stack([value(i, (2, 2, 4)) for i in rows]))
    kinds = ["long" if mask.sum() == picture["mask"][row].sum() and text.startswith("long") else "original"
             for row, mask in enumerate(batch["mask"]) for text in (ds.tokenizer.decode(batch["tokens"][row]),)]
    assert np.array_equal(batch["text_states"], np.stack([value(i + len(kind), (16, 3)) for i, kind in zip(rows, kinds)]))
  batches.close()
  pictures.close()
  assert ds.fingerprint() != plain.fingerprint()


def test_pictures_are_not_read(tmp_path):
  class Words(World):
    def without_image(self, index):
      return World.__getitem__(self, index) | {"image": b""}

    def __getitem__(self, index):
      record = World.__getitem__(self, index)
      return record | {"image": b"not a picture"} if self.ready else record
  source = Words(10)
  source.ready = False
  ds = data(make(tmp_path), source)
  expected = ds.batch_at(0, batch_size=6)
  source.ready = True
  assert all(np.array_equal(part, expected[name]) for name, part in ds.batch_at(0, batch_size=6).items())
  joined = sidecar.Joined(source, sidecar.Sidecar(written(tmp_path / "more.jsonl", '{"key": "k3", "long": "words"}')))
  assert joined.without_image(3)["captions"]["long"] == "words" and joined.without_image(3)["image"] == b""
  assert sidecar.Joined(World(4), joined.sidecar).without_image(3)["captions"]["long"] == "words"


def written(path, text):
  path.write_text(text + "\n")
  return str(path)


def test_worker_processes_read_them_too(tmp_path):
  path = make(tmp_path)
  batches = data(path, workers=1).train_batches(batch_size=4)
  expected = data(path).batch_at(0, batch_size=4)
  assert all(np.array_equal(part, expected[name]) for name, part in next(batches).items())
  batches.close()


def test_texts_alone_leave_the_pictures(tmp_path):
  source = World(4)
  text = dict(tokenizer=TOKENIZER.fingerprint(), text_len=16)
  job = jobs.Job(tmp_path, jobs.units_of(source, per_unit=4), dict(task="precompute", text=text))
  for unit in job.todo():
    output = job.output(unit)
    with latents.Tables(output) as tables:
      tables.add(latents.TEXT, [latents.text_digest(f"k{i}", "long", f"long caption of picture {i}") for i in unit.rows],
                 {"text_states": np.zeros((4, 16, 3), np.float32)})
    job.commit(unit, output, dict(tables=tables.facts(), **jobs.faults([])))
  job.complete(latents.summary)
  job.close()
  batch = data(str(tmp_path), source, captions={"long": 1.0}, augment={"flip": True}).batch_at(0, batch_size=4)
  assert batch["image"].shape == (4, 8, 8, 3) and batch["text_states"].shape == (4, 16, 3) and "text_pooled" not in batch


def test_what_was_not_computed_is_counted_and_replaced(tmp_path):
  ds = data(make(tmp_path, without=(2, 5)), max_bad_fraction=1.0)
  counts = dict(zip(ds.count_names, sum(ds.batch_at(step, batch_size=5)["counts"].sum(0) for step in range(2)).tolist()))
  assert counts["bad/missing_key"] == counts["replaced"] == 2


def test_buckets(tmp_path):
  class Tall(World):
    def __getitem__(self, i):
      return super().__getitem__(i) | {"image": np.zeros((16 if i % 2 else 8, 8, 3), np.uint8)}
  sizes = [(4, 2, 4) if i % 2 else (2, 2, 4) for i in range(10)]
  path = make(tmp_path, sizes=sizes, picture=PICTURE | dict(buckets=["8x8", "16x8"]))
  ds = data(path, Tall(10), buckets=("8x8", "16x8"))
  shapes = {tuple(batch["latent_mean"].shape[1:]) for batch in (ds.batch_at(step, batch_size=2) for step in range(10))}
  assert shapes == {(4, 2, 4), (2, 2, 4)} and ds.batch_at(0, batch_size=2)["size"].shape == (2, 6)
  assert [row["latent_mean"].shape for row in ds.variants()] == [(2, 2, 4), (4, 2, 4)]


def test_settings_that_differ_are_named(tmp_path):
  path = make(tmp_path)
  with pytest.raises(ConfigError, match="(?s)picture.image_size: there 8, in this run 16.*picture.resize.*text.text_len: there 16"):
    data(path, image_size=16, resize="pad", text_len=20)
  for augment in ({"flip": True}, {"crop": (0.5, 1.0)}):
    with pytest.raises(ConfigError, match="data.augment.*precomputed latents are those of one fixed crop"):
      data(path, augment=augment)


def test_what_is_no_such_folder(tmp_path):
  with pytest.raises(DataError, match="not the folder of a job"):
    Features(tmp_path)
  with pytest.raises(DataError, match="of `mmdiff caption`"):
    Features(make(tmp_path / "a", task="caption"))


def test_rows_of_another_shape_are_refused(tmp_path):
  output = jobs.Output(tmp_path, "00000")
  with pytest.raises(ValueError, match="rows of float32"), latents.Tables(output) as tables:
    tables.add("t", [(1, 2)], {"x": np.zeros((1, 3), np.float32)})
    tables.add("t", [(1, 3)], {"x": np.zeros((1, 4), np.float32)})
  assert not list(tmp_path.iterdir())
