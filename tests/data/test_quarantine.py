import collections

import numpy as np
import pytest
from PIL import Image

from mmdiff.core.errors import DataError
from mmdiff.data.loader import dataset
from mmdiff.data.quarantine import KINDS, BadRecord
from tests.data.worlds import Holed, Listed, World, encode, noise, png_header, tokenizer

TOKENIZER = tokenizer()
JPEG = encode(Image.fromarray(noise(48, 64)), "JPEG")


def make(source, **options):
  return dataset(source, TOKENIZER, **dict(captions={"original": 1.0}, image_size=8, text_len=12, seed=1, max_bad_fraction=0.5) | options)


def bad_records():
  """(kind, record without its key) for everything that the field has met."""
  good = {"image": JPEG, "captions": {"original": "a picture"}}
  text = lambda value: good | {"captions": {"original": value}}
  image = lambda value: good | {"image": value}
  yield from (("undecodable", image(data)) for data in (JPEG[:len(JPEG) // 2], b"", bytes(500), b"<!DOCTYPE html><html>Not found</html>"))
  yield from (("oversized", image(png_header(*size))) for size in ((12_000, 10_000), (60_000, 60_000)))
  yield from (("bad_type", image(value)) for value in (np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8), "a.jpg"))
  yield from (("missing_key", {name: value for name, value in good.items() if name != gone}) for gone in ("image", "captions"))
  yield "missing_key", image(None)
  yield "bad_type", good | {"captions": "not by kind"}
  yield "bad_type", text(5)
  yield "empty_caption", text("")
  yield "empty_caption", text(" \t\n")
  yield "non_utf8_caption", text(b"caf\xe9")
  yield "non_utf8_caption", text("half a pair \ud800")
  yield "control_caption", text("a\0b")
  yield "long_caption", text("word " * 250_000)
  yield "missing_caption", good | {"captions": {}}
  yield "unreadable", BadRecord("unreadable", "the tar ends early")


def good_records():
  """What looks odd and is fine."""
  picture = Image.fromarray(noise(20, 30))
  exif = Image.Exif()
  exif[0x0112] = 6
  for mode, format in (("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG")):
    yield encode(picture.convert(mode), format)
  yield encode(Image.fromarray(noise(9, 9, 1)[..., 0].astype(np.uint16) * 257), "PNG")
  yield encode(picture, "GIF", save_all=True, append_images=[picture.rotate(90)])
  yield encode(Image.new("RGB", (1, 1)), "PNG")
  yield encode(Image.new("RGB", (1, 2000)), "PNG")
  yield encode(picture, "JPEG", exif=exif)
  yield from (noise(8, 8), noise(8, 8, 1), JPEG)


@pytest.fixture(scope="module")
def soup():
  """A third of the records is bad; the expected number of each kind."""
  bad, good = list(bad_records()), list(good_records())
  records, expected = [], collections.Counter()
  for n in range(3 * 2 * len(bad)):
    if n % 3 == 0:
      kind, record = bad[n // 3 % len(bad)]
      records.append(record if isinstance(record, Exception) else {"key": f"bad{n}"} | record)
      expected[kind] += 1
    else:
      captions = {"original": ("a picture", "ein Bild – für dich", "\u202ebidi\u202c", "b" * 5000)[n % 4]}
      records.append({"key": f"good{n}", "image": good[n % len(good)], "captions": captions})
  return Listed(records), expected


def test_counts_are_exact_and_no_batch_is_short(soup):
  source, expected = soup
  ds = make(source)
  seen, counts = [], 0
  for epoch in range(2):
    for step in range(6):
      batch = ds.batch_at(6 * epoch + step, batch_size=len(source) // 6)
      assert len(batch["id"]) == len(source) // 6
      counts = counts + batch["counts"].sum(0)
      seen += ds.keys_at(6 * epoch + step, len(source) // 6)
  assert len(source) % 6 == 0 and all(key.startswith("good") for key in seen)
  count = dict(zip(ds.count_names, counts.tolist()))
  assert {kind: count[f"bad/{kind}"] for kind in KINDS} == {kind: 2 * expected[kind] for kind in KINDS}
  assert count["replaced"] == 2 * sum(expected.values()) and count["caption/original"] == 2 * len(source)
  assert set(expected) == set(KINDS)


def test_offenders_are_named(soup):
  ds = make(soup[0], threads=1)
  batches = ds.train_batches(batch_size=len(soup[0]))
  next(batches)
  batches.close()
  by_kind = collections.Counter(kind for _, kind in ds.offenders)
  by_kind.update({"unreadable": soup[1]["unreadable"] - by_kind["unreadable"]})      # these have no key, so they go by their index
  assert by_kind == soup[1]
  assert any("60000x60000" in o.detail or "3600000000" in o.detail for o in ds.offenders.values() if o.kind == "oversized")


def test_the_replacement_is_the_same_everywhere_and_another_one_in_the_next_epoch():
  a, b = make(Holed(300)), make(Holed(300))
  first, second = ([ds.example_at(g)[0].key for g in range(600)] for ds in (a, b))
  assert first == second
  stand_in = [{a.index_at(g)[1]: first[g] for g in range(e * 300, e * 300 + 300) if a.index_at(g)[1] % 3 == 0} for e in (0, 1)]
  assert stand_in[0].keys() == stand_in[1].keys() and len(stand_in[0]) == 100
  assert sum(stand_in[0][i] != stand_in[1][i] for i in stand_in[0]) > 90
  assert len(set(stand_in[0].values())) > 60                            # no single record stands in for all


def test_a_source_that_is_all_bad_is_given_up():
  good_at_first = [{"key": "a", "image": noise(8, 8), "captions": {}}] + [BadRecord("unreadable", "gone")] * 200
  with pytest.raises(DataError, match="33 records in a row were bad.*is data.source the right place"):
    make(Listed(good_at_first)).batch_at(0, batch_size=8)


def test_empty_captions_where_the_source_means_them():
  records = [{"key": f"k{i}", "image": noise(8, 8), "captions": {"original": ""}} for i in range(8)]
  batch = make(Listed(records, allow_empty_captions=True)).batch_at(0, batch_size=8)
  assert batch["mask"].sum(1).tolist() == [2] * 8                       # a start and an end
  with pytest.raises(DataError, match="empty_caption"):
    make(Listed(records))


def test_too_many_bad_records_stop_the_run():
  ds = make(World(10), max_bad_fraction=0.1)
  count = lambda rows, **bad: {"caption/original": rows, "caption/other": 0, "replaced": 0} | {f"bad/{k}": v for k, v in bad.items()}
  ds.check_counts(count(10_000, undecodable=600, empty_caption=400))
  with pytest.raises(DataError, match=r"1001 of 10000 records were bad \(undecodable 601, empty_caption 400\), more than "
                                      r"data.max_bad_fraction=0.1 allows"):
    ds.check_counts(count(10_000, undecodable=601, empty_caption=400))
  ds.check_counts(count(16, undecodable=5))                             # too early to tell
  with pytest.raises(DataError, match="1 of 16"):
    make(World(10), max_bad_fraction=0.0).check_counts(count(16, undecodable=1))
  columns = np.zeros(len(ds.count_names))
  ds.check_counts(columns)


def test_a_kind_outside_the_closed_set_is_a_bug():
  with pytest.raises(ValueError, match="unknown kind of bad record 'odd'"):
    BadRecord("odd")
