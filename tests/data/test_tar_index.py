"""The tar index against Python's tarfile, and against hostile and damaged tars."""
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import DataError
from mmdiff.data import tar_index
from tests.data.fixtures import link, write_tar

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/."), min_size=1, max_size=130)


@settings(max_examples=40, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=5),
       form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_members_are_those_of_tarfile(tmp_path_factory, files, form):
  path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", [(f"{name}.txt", data) for name, data in files.items()], form=form)
  found = list(tar_index.members(path))
  with tarfile.open(path) as tar:
    assert [(m.name, m.offset, m.size) for m in found] == [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
  assert not any(member.refused for member in found)


def test_ustar_prefix_and_directories(tmp_path):
  directory = link("a", tarfile.DIRTYPE)
  long = "/".join(["folder" * 5] * 4) + "/x.txt"
  path = write_tar(tmp_path / "a.tar", [directory, (long, b"1")], form=tarfile.USTAR_FORMAT)
  assert [member.name for member in tar_index.members(path)] == [long]


def test_members_that_lead_elsewhere_are_left_out_and_counted(tmp_path):
  path = write_tar(tmp_path / "a.tar", [
    ("../evil.jpg", b"x"), ("/etc/evil.txt", b"x"), ("a/../../evil.txt", b"x"), ("bad\nname.txt", b"x"),
    link("s.jpg", tarfile.SYMTYPE, "/etc/passwd"), link("h.txt", tarfile.LNKTYPE, "../../etc/passwd"), link("d.txt", tarfile.CHRTYPE),
    link("b.txt", tarfile.BLKTYPE), link("f.txt", tarfile.FIFOTYPE), (".hidden.txt", b"x"), ("README", b"x"), ("a.npy", b"x"),
    ("good.jpg", b"picture"), ("./good.txt", b"text")])
  table = tar_index.build(path)
  assert bytes(table["keys"]) == b"good"
  assert table["size"].tolist() == [7, 4]
  skipped = bytes(table["skipped"]).decode()
  for reason in ('"unsafe_path": 4', '"symlink": 1', '"hardlink": 1', '"device": 2', '"fifo": 1', '"other_file": 3'):
    assert reason in skipped


def test_sparse_members_are_left_out(tmp_path):
  pax = tarfile.TarInfo("s.txt")
  pax.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.size": "10000000000"}
  old = tarfile.TarInfo("t.txt").tobuf()
  old = bytearray(old)
  old[156:157] = b"S"
  old[482] = 1                                                            # one more block of the sparse map follows
  old[148:156] = b" " * 8
  old[148:156] = b"%06o\0 " % sum(old)
  path = tmp_path / "a.tar"
  write_tar(path, [pax])
  whole = path.read_bytes()[:2048].rstrip(b"\0")
  whole += bytes(-len(whole) % 512)
  path.write_bytes(whole + bytes(old) + bytes(512) + bytes(1024))
  assert [member.refused for member in tar_index.members(str(path))] == ["sparse", "sparse"]


def test_a_sample_of_one_picture_has_all_texts_of_its_first_dot(tmp_path):
  path = write_tar(tmp_path / "a.tar", [("d/k.seg.png", b"1"), ("d/k.long.txt", b"22"), ("d/K.JPG", b"333")])
  table = tar_index.build(path)
  assert bytes(table["keys"]) == b"d/kd/K" and table["member_ends"].tolist() == [2, 3]
  assert bytes(table["suffixes"]).split(b"\n") == [b"seg.png", b"long.txt", b"jpg"]


@pytest.mark.parametrize("names, image, keys", [
  (["22.05.png", "22.05.txt", "22.06.png", "22.06.txt"], "", ["22.05", "22.05", "22.06", "22.06"]),
  (["22.05.png", "22.06.png"], "", ["22.05", "22.06"]),                                    # pictures alone
  (["22.05.png", "22.05.long.txt", "22.05.json", "22.txt"], "", ["22"] * 4),               # webdataset's rule: 22 has a text of its own
  (["v1.0-cat.png", "v1.0-cat.long.txt", "v1.0-cat.cls"], "", ["v1.0-cat"] * 3),
  (["a.png", "a.txt", "a.2.png", "a.2.txt"], "", ["a", "a", "a.2", "a.2"]),
  (["a.png", "a.txt", "a.depth.png"], "", ["a", "a", None]),
  (["a.photo.png", "a.depth.png", "a.txt"], "photo.png", ["a", None, "a"]),
  (["a.photo.png", "a.depth.png", "a.txt"], "depth.png", [None, "a", "a"]),
  (["22.05.jpg", "22.05.png", "22.05.txt", "22.06.png"], "png", [None, "22.05", "22.05", "22.06"]),
  (["22.05.txt", "22.06.txt", "22.06.long.txt"], "", ["22.05", "22.06", "22.06"]),         # without pictures still two
  (["a.b/c.png", "a.b/c.txt", "a.png", "a.txt"], "", ["a.b/c", "a.b/c", "a", "a"])])
def test_pictures_say_what_a_sample_is(names, image, keys):
  assert tar_index.assign(names, image=image) == keys


@pytest.mark.parametrize("names", [
  ["a.photo.png", "a.depth.png", "a.txt"], ["22.05.png", "22.06.png", "22.json"], ["a.jpg", "a.png", "a.txt"]])
def test_two_pictures_are_never_one_sample(tmp_path, names):
  path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in names])
  with pytest.raises(DataError, match="(?s)a.tar: sample '.*' has the pictures .*set `image`"):
    tar_index.build(path)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.from_regex(r"[ab](\.[12])?(\.[xy])?\.(png|jpg|txt|json)", fullmatch=True), unique=True, max_size=8))
def test_every_picture_is_a_sample_or_counted_or_refused(tmp_path_factory, names):
  path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", [(name, b"x") for name in sorted(names)])
  try:
    table = tar_index.build(path)
  except DataError:
    return
  suffixes, ends = bytes(table["suffixes"]).decode().split("\n"), [0, *table["member_ends"].tolist()]
  held = [[suffixes[code] for code in table["suffix"][a:b]] for a, b in zip(ends, ends[1:])]
  pictures = [sum(tar_index._suffix(suffix) in ("png", "jpg") for suffix in sample) for sample in held]
  skipped = json.loads(bytes(table["skipped"]))
  assert max(pictures, default=0) <= 1 and sum(map(len, held)) + skipped.get("other_picture", 0) == len(names)
  assert sum(pictures) + skipped.get("other_picture", 0) == sum(name.endswith(("png", "jpg")) for name in names)


@pytest.mark.parametrize("names, said", [
  (["a.jpg", "b.jpg", "a.txt"], "two places"), (["a.jpg", "a.txt", "a.jpg"], "twice"), (["a.jpg", "./a.jpg"], "twice")])
def test_interleaved_and_duplicate_names_are_refused(tmp_path, names, said):
  path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in names])
  with pytest.raises(DataError, match=said) as caught:
    tar_index.build(path)
  assert "a.tar" in str(caught.value)


def test_a_tar_cut_inside_a_member_is_refused(tmp_path):
  write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 700), ("a.txt", b"y")])   # headers at 0 and 1536, the last body at 2048
  whole, cut = (tmp_path / "a.tar").read_bytes(), tmp_path / "b.tar"
  for size in (1, 500, 513, 1000, 1211, 1537, 2047, 2048):
    cut.write_bytes(whole[:size])
    with pytest.raises(DataError, match="cut short"):
      tar_index.build(str(cut))


def test_a_claim_of_ten_gigabytes_is_refused(tmp_path):
  info = tarfile.TarInfo("a.jpg")
  info.size = 10 * 2**30
  (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
  with pytest.raises(DataError, match="claims 10,737,418,240 bytes"):
    tar_index.build(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", [b"L", b"x", b"g", b"K"])
def test_huge_headers_are_refused(tmp_path, kind):
  info = tarfile.TarInfo("a")
  info.type, info.size = kind, 2 * 2**20
  (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(2 * 2**20 + 1024))
  with pytest.raises(DataError, match="2,097,152 byte header"):
    tar_index.build(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("content, said", [
  (b"<html>not found</html>" * 100, "not a tar"), (b"\x1f\x8b" + bytes(600), "compressed"), (b"PK\3\4" + bytes(600), "not a tar")])
def test_other_files_are_refused(tmp_path, content, said):
  (tmp_path / "a.tar").write_bytes(content)
  with pytest.raises(DataError, match=said):
    tar_index.build(str(tmp_path / "a.tar"))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 3071), value=st.integers(0, 255))
def test_one_changed_byte_never_crashes_or_reads_outside(tmp_path_factory, at, value):
  folder = tmp_path_factory.mktemp("fuzz")
  info = tarfile.TarInfo("b.txt")
  info.pax_headers = {"path": "c.txt"}
  path = folder / "a.tar"
  write_tar(path, [("a.jpg", b"x" * 100), info])
  data = bytearray(path.read_bytes())
  data[at] = value
  path.write_bytes(data)
  try:
    table = tar_index.build(str(path))
  except DataError:
    return
  assert np.all(table["offset"] + table["size"] <= len(data))


@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
@pytest.mark.parametrize("size", [struct.pack(">4sq", b"\xff" * 4, -1024), b"-00000001000"])
def test_negative_sizes_are_refused(tmp_path, kind, size):
  """In both ways of writing them; that of a long name would lead back to its own header, for ever."""
  header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
  header[124:136], header[156:157] = size, kind
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  (tmp_path / "a.tar").write_bytes(io.BytesIO(header).getvalue() + bytes(1024))
  with pytest.raises(DataError, match="negative size"):
    tar_index.build(str(tmp_path / "a.tar"))
