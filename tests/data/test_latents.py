"""Precomputed features: what is written can be mapped, is found by key and text, and stands in for pictures in batches."""
import hashlib
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import digests, jobs, latents, sidecar
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
  job = jobs.Job(out, jobs.units_of(source, per_unit=4), given | identity, check=latents.columns_of)
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


def sealed(folder, change=lambda entry: None):
  """Makes the manifests those of the files as they are now, and of a change to the first unit's, as one who wrote them so would have."""
  entries = []
  for file in sorted(folder.glob("0*.json")):
    entry = json.loads(file.read_text())
    change(entry) if entry["unit"] == "00000" else None
    for suffix, facts in entry["files"].items():
      content = (folder / f"{entry['unit']}.{suffix}").read_bytes()
      facts.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    file.write_text(json.dumps(entry))
    entries.append(entry)
  manifest = json.loads((folder / "manifest.json").read_text())
  (folder / "manifest.json").write_text(json.dumps(manifest | latents.summary(entries)))


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
  sealed(tmp_path)
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
  job = jobs.Job(tmp_path, jobs.units_of(source, per_unit=4), dict(task="precompute", text=text, encoders={}))
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


def flipped(path, at):
  content = bytearray(path.read_bytes())
  content[at] ^= 0x40
  path.write_bytes(content)


def swapped(folder):
  first, second = (folder / f"0000{n}.2x2.latent_mean.npy" for n in range(2))
  first.rename(folder / "other")
  second.rename(first)
  (folder / "other").rename(second)


@pytest.mark.parametrize("damage", [
  lambda folder: flipped(folder / "00000.2x2.latent_mean.npy", 300), lambda folder: flipped(folder / "00000.2x2.keys.npy", 200), swapped])
def test_bytes_that_are_not_those_of_the_manifest_are_refused_and_computed_anew(tmp_path, damage):
  Features(make(tmp_path))
  before = (tmp_path / "00000.2x2.latent_mean.npy").read_bytes()
  damage(tmp_path)
  with pytest.raises(DataError, match="00000.2x2.*its bytes are not those of its manifest.*redoes this unit"):
    Features(tmp_path)
  make(tmp_path)
  Features(tmp_path)
  assert (tmp_path / "00000.2x2.latent_mean.npy").read_bytes() == before


def test_files_that_nobody_touched_are_read_once(tmp_path, monkeypatch):
  make(tmp_path)
  read, digest = [], digests.digest
  monkeypatch.setattr(digests, "digest", lambda path: read.append(path.name) or digest(path))
  Features(tmp_path)
  assert not read
  (tmp_path / "00001.2x2.keys.npy").write_bytes((tmp_path / "00001.2x2.keys.npy").read_bytes())
  Features(tmp_path)
  assert read == ["00001.2x2.keys.npy"]


COLUMN = ("tables", "2x2", "columns", "latent_mean")


@pytest.mark.parametrize("where, value, said", [
  (("tables", "2x2", "rows"), 3, r"keys.npy: its header is .*\(4, 2\)}., its manifest says uint64 \[3, 2\]"),
  (("tables", "2x2", "rows"), 16_000_000, "its manifest says"), ((*COLUMN, "shape"), [2, 2, 2], "its manifest says"),
  ((*COLUMN, "shape"), [4, 2, 2], "its manifest says"), ((*COLUMN, "dtype"), "<f2", "its manifest says float16"),
  ((*COLUMN, "dtype"), "O", "its manifest says object"), ((*COLUMN, "dtype"), "nonsense", "00000.json: not the manifest of precomputed"),
  (("tables",), None, "00000.json: not the manifest of precomputed"), ((*COLUMN[:3], "keys"), None, "00000.json: .*or no keys"),
  (COLUMN, None, "00000.json: its tables have other columns"), (("files",), None, "00000.json: `files` is None"),
  (("files",), {}, "00000.json: its tables have other columns"),
  (("files",), [], "00000.json: `files`"), (("bad",), None, "00000.json: not the manifest of precomputed"),
  (("unit",), "../../../etc/passwd", r"00000.json: `unit` is '../../../etc/passwd', expected '00000'"),
  (("files", "/../../x"), {"bytes": 1, "sha256": ""}, "00000.json: `files`")])
def test_what_a_unit_s_manifest_says_that_is_not_so(tmp_path, where, value, said):
  path = Path(make(tmp_path)) / "00000.json"
  before = path.read_bytes()
  entry = json.loads(before)
  held = entry
  for key in where[:-1]:
    held = held[key]
  held.pop(where[-1], None) if value is None else held.update({where[-1]: value})
  path.write_text(json.dumps(entry))
  with pytest.raises(DataError, match=said):
    Features(tmp_path)
  make(tmp_path)
  assert path.read_bytes() == before and len(Features(tmp_path)) == 30


@pytest.mark.parametrize("header", [
  lambda head: b"garbag" + head[6:], lambda head: b"\x80\x04K\x01." + head[5:], lambda head: head.replace(b"(4, 2)", b"(2, 4)"),
  lambda head: head.replace(b"(4, 2)}" + b" " * 20, b"(99999999999999999999, 2)} "), lambda head: head.replace(b"(4, 2)", b"(4, 2(")])
def test_a_file_s_header_is_taken_at_no_word(tmp_path, header):
  path = Path(make(tmp_path)) / "00000.2x2.keys.npy"
  content = path.read_bytes()
  path.write_bytes(header(content[:192]) + content[192:])
  assert len(path.read_bytes()) == len(content) and path.read_bytes() != content
  sealed(tmp_path)
  with pytest.raises(DataError, match=r"2x2.keys.npy: its header is .*, its manifest says uint64 \[4, 2\]"):
    Features(tmp_path)


@pytest.mark.parametrize("name, text, said", [
  ("00000.json", "{", "00000.json: not valid JSON"), ("00000.json", "[1]", "00000.json: expected an object"),
  ("manifest.json", "{", "manifest.json: not valid JSON"), ("manifest.json", "[1]", "manifest.json: expected an object"),
  ("manifest.json", "{}", "`identity` is not that of job.json"), ("job.json", "[]", "not the folder of a job"),
  ("job.json", '{"identity": []}', "not the folder of a job")])
def test_manifests_that_cannot_be_read(tmp_path, name, text, said):
  (Path(make(tmp_path)) / name).write_text(text)
  with pytest.raises(DataError, match=said):
    Features(tmp_path)


@pytest.mark.parametrize("change, said", [
  (lambda made: made.pop("content"), "`content` is None"), (lambda made: made.update(content="00"), "`content` is '00', expected '"),
  (lambda made: made.update(probe="x"), "`probe` is 'x'"), (lambda made: made.update(probe={"latent_mean": [[]]}), "`probe` is"),
  (lambda made: made["identity"].pop("encoders"), "`identity.encoders` is None"),
  (lambda made: made["identity"].update(picture=3), "`identity.picture` is 3")])
def test_what_the_manifest_lacks(tmp_path, change, said):
  path = Path(make(tmp_path)) / "manifest.json"
  manifest = json.loads(path.read_text())
  change(manifest)
  path.write_text(json.dumps(manifest))
  job = json.loads((tmp_path / "job.json").read_text())
  (tmp_path / "job.json").write_text(json.dumps(job | {"identity": manifest["identity"]}))
  with pytest.raises(DataError, match=f"manifest.json: {said}"):
    Features(tmp_path)
