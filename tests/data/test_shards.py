"""Any source as tar shards: what comes back is what went in, a stop loses nothing, and foreign shards are left alone."""
import json
import tarfile
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.data import array_records, decode, records, shards, survey, tar_index, verdict
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.webdataset import webdataset
from tests.data.fixtures import Rows, picture

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(str.strip)
LETTERS = st.one_of(st.sampled_from("./%2E\\\n"), st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
KEYS = st.text(LETTERS, min_size=1, max_size=30)


def row(i, **more):
  return {"key": f"k{i}", "image": picture(i), "captions": {"original": f"text {i}", "long": [f"long {i}", "other"]}} | more


@settings(max_examples=25, deadline=None)
@given(captions=st.dictionaries(KEYS, st.dictionaries(st.sampled_from(["original", "long"]), TEXT, min_size=1), min_size=1, max_size=5))
def test_captions_come_back(tmp_path_factory, captions):
  out = tmp_path_factory.mktemp("shards")
  rows = [{"key": key, "image": picture(i), "captions": texts} for i, (key, texts) in enumerate(captions.items())]
  shards.write(Rows(rows), str(out), per_shard=2)
  source = webdataset(urls=str(out))
  back = [source[i] for i in range(len(source))]
  assert [unquote(record["key"]) for record in back] == [unquote(shards.member_key(key)) for key in captions] == list(captions)
  assert [record["image"] for record in back] == [record["image"] for record in rows]
  for record, texts in zip(back, captions.values()):
    trimmed = {kind: text.removeprefix("\ufeff").rstrip("\r\n") for kind, text in texts.items() if kind == "original"}     # a .txt file
    assert record["captions"] == texts | trimmed


def test_arrays_become_png_and_fields_pass_through(tmp_path):
  pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
  scene = {"v": np.int64(1), "cell": (0, 1)}
  shards.write(Rows([row(0, image=pixels, scene=scene, facts={"long": [["red", "disc"]]}, label=np.int64(3))]), str(tmp_path))
  record = webdataset(urls=str(tmp_path))[0]
  assert np.array_equal(decode.decode(record["image"]), pixels)
  assert (record["scene"], record["facts"], record["label"]) == ({"v": 1, "cell": [0, 1]}, {"long": [["red", "disc"]]}, 3)


def test_bad_records_are_left_out_and_counted(tmp_path):
  rows = [row(0), BadRecord("missing_key", "x"), row(2, image=b"<html>"), row(3)]
  done = shards.write(Rows(rows), str(tmp_path), per_shard=3)
  assert (done["count"], done["bad"], done["shards"]) == (2, {"missing_key": 1, "undecodable": 1}, 2)
  assert len(webdataset(urls=str(tmp_path))) == 2
  again = shards.write(Rows(rows), str(tmp_path), per_shard=3)
  assert again == done | {"kept_shards": 2} and done["offenders"] == [
    {"key": "#1", "kind": "missing_key", "detail": "x"}, {"key": "k2", "kind": "undecodable", "detail": "starts with b'<html>'"}]


def test_it_leaves_out_what_validate_finds_bad(tmp_path):
  rows = [row(0), row(1, image=picture(1)[:45]), row(2, captions={}), row(3, captions={"original": " "}),
          row(4, image=picture(1, width=99)), row(5, captions={"long": []}), row(6)]
  limits = verdict.Limits(max_pixels=400)
  done, found = shards.write(Rows(rows), str(tmp_path), limits=limits), survey.validate(Rows(rows), limits=limits)
  assert done["count"] == found["good"] == 2 and done["bad"] == found["bad"] and done["offenders"] == found["offenders"]
  assert [webdataset(urls=str(tmp_path)).key(i) for i in range(2)] == ["k0", "k6"]
  with pytest.raises(DataError, match="other limits"):
    shards.write(Rows(rows), str(tmp_path))


def test_records_that_are_meant_to_have_no_captions_are_kept(tmp_path):
  source = Rows([row(0, captions={})])
  source.captionless = True
  assert shards.write(source, str(tmp_path))["count"] == 1
  assert webdataset(urls=str(tmp_path))[0]["captions"] == {}


@pytest.mark.parametrize("key, name", [
  ("a", "a"), ("v1.0/cat", "v1.0/cat"), ("100%", "100%"), ("a b:c", "a b:c"), ("22.05", "22%2E05"), ("a.b/c.d", "a.b/c%2Ed"),
  ("/abs", "%2Fabs"), ("a//b", "a/%2Fb"), ("a/", "a%2F"), ("/", "%2F"), ("../up", "%2E%2E/up"), ("./a", "%2E/a"), ("a/../b", "a/%2E%2E/b"),
  ("..a/b", "..a/b"), (".", "%2E"), ("a%2Eb", "a%252Eb"), ("%%2e", "%%252e"), ("x\ny", "x%0Ay"), ("a\\b", "a%5Cb"), ("é.", "é%2E")])
def test_a_key_is_the_name_of_its_members_or_is_escaped(key, name):
  """As webdataset reads names: (?:.*/|)[^.]+ before the first dot (tariterators.base_plus_ext)."""
  assert shards.member_key(key) == name and unquote(name) == key
  assert tar_index.clean_name(f"{name}.png") == f"{name}.png" and tar_index.prefix_of(f"{name}.png") == name


def test_keys_that_a_tar_cannot_hold_stay_two_records_and_are_told(tmp_path):
  keys = ("a.b", "a_b", "a%2Eb", "/abs", "abs", "a/b", "a//b")
  done = shards.write(Rows([row(0) | {"key": key} for key in keys]), str(tmp_path), per_shard=3)
  assert (done["count"], done["escaped"]) == (7, 4)
  assert done["escaped_such_as"] == {"a.b": "a%2Eb", "a%2Eb": "a%252Eb", "/abs": "%2Fabs"}
  source = webdataset(urls=str(tmp_path))
  assert tuple(unquote(source.key(i)) for i in range(7)) == keys
  assert tuple(json.loads(source.members(i)["json"])["key"] for i in range(7)) == keys
  assert shards.write(Rows([row(0) | {"key": key} for key in keys]), str(tmp_path), per_shard=3) == done | {"kept_shards": 3}
  with pytest.raises(DataError, match="'a.b' comes twice"):
    shards.write(Rows([row(0) | {"key": key} for key in ("a.b", "a.b")]), str(tmp_path / "twice"))


def test_a_key_that_comes_again_in_a_later_shard_is_found_after_a_stop_too(tmp_path):
  rows = [row(0), row(1), row(2), row(0)]
  with pytest.raises(KeyboardInterrupt):
    shards.write(Stopped(rows), str(tmp_path), per_shard=2)
  with pytest.raises(DataError, match="key 'k0' comes twice"):
    shards.write(Rows(rows), str(tmp_path), per_shard=2)


class Stopped(Rows):
  """Breaks off before the last record."""

  def __getitem__(self, i):
    if i == len(self) - 1:
      raise KeyboardInterrupt
    return super().__getitem__(i)


def test_a_stop_leaves_whole_shards_and_the_same_call_goes_on(tmp_path):
  rows = [row(i) for i in range(7)]
  with pytest.raises(KeyboardInterrupt):
    shards.write(Stopped(rows), str(tmp_path), per_shard=2)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    *(f"0000{n}{end}" for n in range(3) for end in (".tar", "_stats.json")), "digests.mmdiff-index"]
  done = shards.write(Rows(rows), str(tmp_path), per_shard=2)
  assert (done["kept_shards"], done["shards"], done["count"]) == (3, 4, 7)
  shards.write(Rows(rows), str(tmp_path / "at_once"), per_shard=2)
  for path in tmp_path.glob("*.tar"):
    assert path.read_bytes() == (tmp_path / "at_once" / path.name).read_bytes()
  with tarfile.open(tmp_path / "00003.tar") as tar:
    assert tar.getnames() == ["k6.png", "k6.txt", "k6.json"]


def test_shards_of_something_else_are_left_alone(tmp_path):
  shards.write(Rows([row(i) for i in range(4)]), str(tmp_path), per_shard=2)
  for source, per_shard in ((Rows([row(i) for i in range(4)], identity="other"), 2), (Rows([row(i) for i in range(4)]), 3)):
    with pytest.raises(DataError, match="another source, another shard size or other limits"):
      shards.write(source, str(tmp_path), per_shard=per_shard)
  (tmp_path / "00007.tar").write_bytes(b"")
  with pytest.raises(DataError, match="also holds 00007.tar"):
    shards.write(Rows([row(i) for i in range(4)]), str(tmp_path), per_shard=2)


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / "taken").write_text("")
  with pytest.raises(CannotWrite):
    shards.write(Rows([row(0)]), str(tmp_path / "taken"))


def test_progress_is_told(tmp_path):
  told = []
  shards.write(Rows([row(i) for i in range(3)]), str(tmp_path), per_shard=2, tell=lambda done, total: told.append((done, total)))
  assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_shard_whose_bytes_changed_is_written_anew(tmp_path):
  rows = Rows([row(i) for i in range(4)])
  shards.write(rows, str(tmp_path), per_shard=2)
  path = tmp_path / "00001.tar"
  before = path.read_bytes()
  path.write_bytes(before[:1536] + bytes(400) + before[1936:])
  assert shards.write(rows, str(tmp_path), per_shard=2)["kept_shards"] == 1 and path.read_bytes() == before
  about = tmp_path / "00000_stats.json"
  stats = about.read_bytes()
  about.write_bytes(stats.replace(b'"successes"', b'"sucesses"'))
  assert shards.write(rows, str(tmp_path), per_shard=2)["kept_shards"] == 1 and about.read_bytes() == stats
  about.write_text("[")
  with pytest.raises(DataError, match="00000_stats.json: not valid JSON"):
    shards.write(rows, str(tmp_path), per_shard=2)


def test_where_no_record_is_good_nothing_is_written(tmp_path):
  for rows, said in (([row(0, image=b"<html>"), row(1, image=b"")], "none of 2 records is good: bad {'undecodable': 2}; the first: k0: "),
                     ([], "none of 0 records is good")):
    with pytest.raises(DataError, match=said):
      shards.write(Rows(rows), str(tmp_path / "out"), per_shard=1)
    assert not list((tmp_path / "out").glob("0*"))


WRONG = {
  "float picture": (dict(image=np.zeros((4, 4, 3))), "bad_type"), "no side": (dict(image=np.zeros((0, 0, 3), np.uint8)), "bad_type"),
  "list as picture": (dict(image=[1, 2]), "bad_type"), "no picture": (dict(image=None), "missing_key"),
  "number as key": (dict(key=5), "bad_type"), "half a letter": (dict(captions={"original": "x\ud800"}), "non_utf8_caption"),
  "no captions": (dict(captions=None), "missing_key"), "half a letter beside": (dict(scene="x\ud800"), "bad_type"),
  "number as kind": (dict(captions={1: "x"}), "bad_type"), "beyond JSON": (dict(facts={"a": {1, b"x"}}), "bad_type"),
  "beyond a reader": (dict(facts="w" * (records.MAX_TEXT_BYTES + 1)), "long_caption")}


@pytest.mark.parametrize("fields, kind", WRONG.values(), ids=WRONG)
def test_records_that_no_reader_would_take_are_counted(tmp_path, fields, kind):
  source = Rows([row(0) | fields, row(1)])
  assert shards.write(source, str(tmp_path / "tars"))["bad"] == {kind: 1}
  assert [webdataset(urls=str(tmp_path / "tars"))[0]["key"]] == ["k1"]
  assert array_records.write({"train": source}, str(tmp_path), name="toy")["bad"] == {kind: 1}


def test_pictures_of_one_channel_and_a_picture_of_too_many_bytes(tmp_path, monkeypatch):
  gray = Rows([row(0, image=np.full((4, 4, 1), 7, np.uint8)), row(1)])
  shards.write(gray, str(tmp_path / "gray"))
  assert (decode.decode(webdataset(urls=str(tmp_path / "gray"))[0]["image"]) == 7).all()
  monkeypatch.setattr(records, "MAX_PICTURE_BYTES", 500)
  noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  assert shards.write(Rows([row(0, image=noise), row(1)]), str(tmp_path / "noise"))["bad"] == {"oversized": 1}
