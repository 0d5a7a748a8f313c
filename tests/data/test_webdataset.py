"""Tar shards as a source: layout, keys, captions of several kinds, index files, faults, and that a copy reads the same."""
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import indexes
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.webdataset import expand, shard_paths, webdataset
from tests.data.fixtures import link, picture, shard, write_tar


@pytest.fixture
def two(tmp_path):
  shard(tmp_path / "00000.tar", 0, 3)
  shard(tmp_path / "00001.tar", 3, 2)
  (tmp_path / "00000.parquet").write_bytes(b"img2dataset's table of metadata")
  (tmp_path / "00000_stats.json").write_text("{}")
  return tmp_path


def test_img2datasets_layout(two):
  source = webdataset(urls=str(two / "{00000..00001}.tar"))
  records = [source[i] for i in range(len(source))]
  assert [record["key"] for record in records] == [f"{i:09d}" for i in range(5)] == [source.key(i) for i in range(5)]
  assert [record["image"] for record in records] == [picture(i, form="JPEG") for i in range(5)]
  assert [record["captions"] for record in records] == [{"original": f"alt {i}"} for i in range(5)]
  for i in (-1, 5):
    with pytest.raises(IndexError):
      source[i]


@pytest.mark.parametrize("form", ["{00000..00001}.tar", "{00000,00001}.tar", "*.tar", "0000?.tar", ""])
def test_ways_to_name_shards(two, form):
  assert shard_paths(str(two / form)) == [str(two / "00000.tar"), str(two / "00001.tar")]


def test_braces_keep_their_zeros_and_multiply():
  assert expand("{08..10}-{a,b}.tar") == [f"{n}-{c}.tar" for n in ("08", "09", "10") for c in "ab"]


@pytest.mark.parametrize("form, said", [
  ("{00000..00003}.tar", "2 of 4 shards"), ("*.tgz", "no shard matches"), ("{3..1}.tar", "is empty or too long"),
  ("{0..99999999999}.tar", "too long")])
def test_shards_that_are_not_there(two, form, said):
  with pytest.raises(DataError, match=said):
    webdataset(urls=str(two / form))


def test_remote_and_repeated_shards_are_refused(two):
  with pytest.raises(DataError, match="mount the bucket"):
    webdataset(urls="gs://bucket/{00000..00009}.tar")
  with pytest.raises(DataError, match="twice"):
    webdataset(urls=(str(two / "00000.tar"), str(two / "*.tar")))


def test_caption_kinds_and_extra_fields(tmp_path):
  row = '{"captions": {"short": "a dog", "tags": ["dog", "lawn"], "none": null}, "caption": "from json", "label": 4,' \
        ' "facts": {"long": [1]}}'
  write_tar(tmp_path / "a.tar", [("k.png", picture(1)), ("k.json", row.encode()), ("k.long.txt", "a dög on a lawn\n".encode()),
                                 ("l.png", picture(2)), ("l.txt", b"\xef\xbb\xbfbom"), ("l.json", b'{"caption": "loses to l.txt"}'),
                                 ("m.png", picture(3)), ("m.cls", b"7")])
  source = webdataset(urls=str(tmp_path / "a.tar"))
  assert source[0]["captions"] == {"short": "a dog", "tags": ["dog", "lawn"], "original": "from json", "long": "a dög on a lawn"}
  assert (source[0]["label"], source[0]["facts"]) == (4, {"long": [1]})
  assert source[1]["captions"] == {"original": "bom"}
  assert (source[2]["label"], source[2]["captions"]) == (7, {})


def test_which_picture(tmp_path):
  write_tar(tmp_path / "a.tar", [("k.seg.png", picture(1)), ("k.png", picture(2)), ("k.txt", b"x")])
  assert webdataset(urls=str(tmp_path / "a.tar"))[0]["image"] == picture(2)
  assert webdataset(urls=str(tmp_path / "a.tar"), image="seg.png")[0]["image"] == picture(1)
  with pytest.raises(DataError, match="no member ends in .edge.png"):
    webdataset(urls=str(tmp_path / "a.tar"), image="edge.png")


def test_dotted_names_are_records_of_their_own(tmp_path):
  write_tar(tmp_path / "a.tar", [("22.05.png", picture(5)), ("22.05.txt", b"fifth"), ("22.06.png", picture(6)), ("22.06.txt", b"sixth"),
                                 ("23.png", picture(7)), ("23.txt", b"x"), ("23.depth.png", picture(8))])
  source = webdataset(urls=str(tmp_path / "a.tar"))
  assert [source[i] for i in range(len(source))] == [
    {"key": "22.05", "image": picture(5), "captions": {"original": "fifth"}},
    {"key": "22.06", "image": picture(6), "captions": {"original": "sixth"}},
    {"key": "23", "image": picture(7), "captions": {"original": "x"}}]
  assert source.skipped == {"other_picture": 1}


def test_a_text_may_have_the_whole_name_of_its_picture(tmp_path):
  """As in a folder."""
  write_tar(tmp_path / "a.tar", [("a.jpg.long.txt", b"long"), ("a.jpg", picture(1)), ("a.jpg.txt", b"one"), ("a.txt", b"two"),
                                 ("a.jpg.cls", b"3"), ("b.05.png", picture(2)), ("b.05.png.txt", b"three"), ("c.photo.png", picture(3)),
                                 ("c.photo.png.json", b'{"label": 4}'), ("c.png.txt", b"four"), ("c.txt", b"five")])
  source = webdataset(urls=str(tmp_path / "a.tar"))
  assert [(record["key"], record["captions"], record.get("label")) for record in (source[i] for i in range(3))] == [
    ("a", {"original": "one", "long": "long"}, 3), ("b.05", {"original": "three"}, None), ("c", {"png": "four", "original": "five"}, 4)]
  assert source.skipped == {"second_text": 1}


def test_a_second_text_of_a_kind_is_counted_as_in_a_folder(tmp_path):
  write_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.original.txt", b"one"), ("a.txt", b"two"), ("a.long.txt", b"three")])
  source = webdataset(urls=str(tmp_path / "a.tar"))
  assert source[0]["captions"] == {"original": "one", "long": "three"} and source.skipped == {"second_text": 1}


@pytest.mark.parametrize("content, label", [(b"7\n", 7), (b"tabby cat\n", "tabby cat"), (b"9" * 5000, None), (b"", None), (b"\xff", None)])
def test_a_class_file(tmp_path, content, label):
  write_tar(tmp_path / "a.tar", [("k.png", picture(1)), ("k.cls", content)])
  source = webdataset(urls=str(tmp_path / "a.tar"))
  if label is not None:
    assert source[0]["label"] == label
    return
  with pytest.raises(BadRecord) as caught:
    source[0]
  assert caught.value.kind in ("bad_type", "non_utf8_caption")


@pytest.mark.parametrize("members, kind", [
  ([("k.txt", b"x")], "missing_key"),
  ([("k.png", b"p"), ("k.txt", b"caf\xe9")], "non_utf8_caption"),
  ([("k.png", b"p"), ("k.json", b'{"caption": "\\ud800"}')], "non_utf8_caption"),
  ([("k.png", b"p"), ("k.json", b'{"caption": ')], "unreadable"),
  ([("k.png", b"p"), ("k.json", b"[" * 100_000)], "unreadable"),
  ([("k.png", b"p"), ("k.json", b"[1]")], "bad_type"),
  ([("k.png", b"p"), ("k.json", b'{"caption": 3}')], "bad_type"),
  ([("k.png", b"p"), ("k.txt", b"x" * (4 * 2**20 + 1))], "long_caption"),
  ([link("k.png", tarfile.SYMTYPE, "/etc/passwd"), ("k.txt", b"x")], "missing_key"),
])
def test_faults_of_a_record_are_its_own(tmp_path, members, kind):
  write_tar(tmp_path / "a.tar", [("good.png", picture(1)), ("good.txt", b"fine"), *members])
  source = webdataset(urls=str(tmp_path / "a.tar"))
  assert source[0]["captions"] == {"original": "fine"}
  with pytest.raises(BadRecord) as caught:
    source[1]
  assert caught.value.kind == kind


def test_a_record_without_caption_has_none_for_a_sidecar_to_supply(tmp_path):
  write_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("b.png", picture(2)), ("b.txt", b"x")])
  assert webdataset(urls=str(tmp_path / "a.tar"))[0]["captions"] == {}


@pytest.mark.parametrize("members", [[], [("README", b"x")], [("a.png", b"x")], [("a.txt", b"x")], [("a.npy", b"x"), ("a.pth", b"x")]])
def test_wrong_layouts_say_what_was_found_and_expected(tmp_path, members):
  write_tar(tmp_path / "a.tar", members)
  with pytest.raises(DataError, match="a.tar.*expected KEY.jpg"):
    webdataset(urls=str(tmp_path / "a.tar"))


def test_pictures_alone_on_demand(tmp_path):
  write_tar(tmp_path / "a.tar", [("a.png", picture(1))])
  assert webdataset(urls=str(tmp_path / "a.tar"), captionless=True)[0] == {"key": "a", "image": picture(1), "captions": {}}


def test_keys_that_repeat_between_shards(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    shard(tmp_path / name / "0.tar", 0, 2)
  with pytest.raises(DataError, match="'000000000' is in .*shard_in_key"):
    webdataset(urls=str(tmp_path / "{a,b}" / "0.tar"))
  source = webdataset(urls=str(tmp_path / "{a,b}" / "0.tar"), shard_in_key=True)
  assert [source[i]["key"] for i in (0, 3)] == ["a/0/000000000", "b/0/000000001"]


def test_members_far_apart_are_read_one_by_one(tmp_path):
  write_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.npy", bytes(2 * 2**20)), ("a.txt", b"x")])
  assert webdataset(urls=str(tmp_path / "a.tar"))[0] == {"key": "a", "image": picture(1), "captions": {"original": "x"}}


def test_pictures_can_stay_unread(tmp_path, monkeypatch):
  shard(tmp_path / "0.tar", 0, 3)
  write_tar(tmp_path / "1.tar", [("k.json", b'{"label": 2}'), ("k.png", bytes(100_000)), ("k.txt", b"a"), ("l.png", picture(2)),
                                 ("m.txt", b"x")])
  source = webdataset(urls=str(tmp_path / "{0,1}.tar"), captionless=True)
  read, whole = [], type(source._files).read
  monkeypatch.setattr(type(source._files), "read", lambda self, file, start, size: read.append(size) or whole(self, file, start, size))
  told = [source.without_image(i) for i in range(5)]
  of_words = sum(read)
  assert told == [source[i] | {"image": b""} for i in range(5)] and of_words < 0.2 * (sum(read) - of_words)
  with pytest.raises(BadRecord, match="no picture among"):
    source.without_image(5)
  with pytest.raises(IndexError):
    source.without_image(6)


def test_the_index_is_stored_used_and_renewed(two, monkeypatch):
  urls = str(two / "00000.tar")
  first = webdataset(urls=urls)
  assert os.path.exists(urls + indexes.SUFFIX)
  monkeypatch.setattr("mmdiff.data.tar_index.build", lambda path, image: pytest.fail("indexed again"))
  assert webdataset(urls=urls).fingerprint() == first.fingerprint()
  monkeypatch.undo()
  shard(two / "00000.tar", 0, 1)
  assert len(webdataset(urls=urls)) == 1
  with pytest.raises(DataError, match="changed while it was in use"):
    first[2]


def test_the_fingerprint_knows_the_content_and_not_the_place(two, tmp_path):
  other = tmp_path / "elsewhere"
  other.mkdir()
  shard(other / "00000.tar", 0, 3)
  print_of = lambda path, **kw: webdataset(urls=str(path), **kw).fingerprint()
  assert print_of(two / "00000.tar") == print_of(other / "00000.tar")
  assert len({print_of(two / "00000.tar"), print_of(two / "00001.tar"), print_of(two), print_of(two, image="jpg")}) == 4


def test_copies_and_threads_read_the_same(two, monkeypatch):
  monkeypatch.setattr(indexes.Files, "OPEN_FILES", 1)                     # the second shard is opened for each read
  source = webdataset(urls=str(two))
  expected = [source[i] for i in range(5)]
  copy = pickle.loads(pickle.dumps(source))      # noqa: S301
  assert [copy[i] for i in range(5)] == expected
  with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda n: copy[n % 5], range(200))) == expected * 40


def test_nothing_is_written_but_the_index(two):
  before = set(os.listdir(two))
  source = webdataset(urls=str(two))
  [source[i] for i in range(5)]
  assert set(os.listdir(two)) - before == {"00000.tar" + indexes.SUFFIX, "00001.tar" + indexes.SUFFIX}
