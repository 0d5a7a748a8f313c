"""Folders of pictures in every layout, COCO's JSON, and that no record reaches outside its folder."""
import json
import pickle

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data.files import coco, folder
from mmdiff.data.quarantine import BadRecord
from tests.data.fixtures import picture


@pytest.fixture
def pictures(tmp_path):
  root = tmp_path / "set"
  (root / "sub").mkdir(parents=True)
  for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
    (root / name).write_bytes(picture(i))
  (tmp_path / "secret.png").write_bytes(picture(99))
  return root


def table(root, rows, name="metadata.jsonl"):
  (root / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
  return folder(path=str(root))


def fault(source, i):
  with pytest.raises(BadRecord) as caught:
    source[i]
  return caught.value.kind


def test_jsonl_with_kinds_and_fields(pictures):
  source = table(pictures, [{"file_name": "a.png", "text": "an a", "label": 3}, "",
                            {"file_name": "sub/c.png", "captions": {"long": "a long c", "short": ["c", "see"]}, "caption_tags": "c"}])
  assert source[0] == {"key": "a", "image": picture(0), "captions": {"original": "an a"}, "label": 3}
  assert source[1]["key"] == "sub/c" and source[1]["captions"] == {"long": "a long c", "short": ["c", "see"], "tags": "c"}


def test_empty_cells_of_captions_are_counted(pictures):
  (pictures / "captions.csv").write_text("image,caption,title,long,score\na.png,an a,,a long a,\na.png,,,,\nb.png,,a b,,1\n")
  source = folder(path=str(pictures))
  assert [source[i]["captions"] for i in (0, 1)] == [{"original": "an a", "long": "a long a"}, {"original": "a b"}]
  assert source.skipped == {"empty_caption": 3}
  assert folder(path=str(pictures), captions={"short": "long"}).skipped == {"empty_caption": 2}
  assert folder(path=str(pictures), captionless=True).captionless and not source.captionless


@pytest.mark.parametrize("name, content", [
  ("captions.csv", 'image,caption,long\na.png,"an a, quoted",a long a\nb.png,,\n'),
  ("metadata.csv", "\ufefffilepath,title,caption_long\r\na.png,\"an a, quoted\",a long a\r\nb.png,,\r\n"),
])
def test_csv(pictures, name, content):
  (pictures / name).write_text(content, newline="")
  source = folder(path=str(pictures))
  assert source[0]["captions"] == {"original": "an a, quoted", "long": "a long a"}
  assert source[1]["captions"] == {} and source[1]["key"] == "b"


def test_named_columns_in_a_tsv_elsewhere(pictures, tmp_path):
  (tmp_path / "pairs.tsv").write_text("key\tpic\talt\tsynthetic\nk1\ta.png\tone\ttwo\n")
  source = folder(path=str(pictures), table=str(tmp_path / "pairs.tsv"), image_column="pic",
                  captions={"original": "alt", "long": "synthetic"})
  assert source[0] == {"key": "k1", "image": picture(0), "captions": {"original": "one", "long": "two"}}


def test_rows_of_one_picture_are_one_record(pictures):
  source = table(pictures, [{"image": "a.png", "caption": f"text {i}"} for i in range(3)] + [{"image": "b.png", "caption": "b"}])
  assert [source[i]["captions"] for i in range(len(source))] == [{"original": ["text 0", "text 1", "text 2"]}, {"original": "b"}]
  with pytest.raises(DataError, match="'k' is used for 'a.png' and for 'b.png'"):
    table(pictures, [{"key": "k", "image": "a.png", "caption": "x"}, {"key": "k", "image": "b.png", "caption": "x"}])


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "/etc/passwd", "link.png", "linked/secret.png", "a\0.png"])
def test_no_record_reaches_outside(pictures, tmp_path, name):
  (pictures / "link.png").symlink_to(tmp_path / "secret.png")
  (pictures / "linked").symlink_to(tmp_path)
  source = table(pictures, [{"image": "a.png", "caption": "fine"}, {"image": name, "caption": "evil"}])
  assert source[0]["image"] == picture(0)
  assert fault(source, 1) == "unreadable"


def test_paths_inside_may_be_absolute_or_linked(pictures):
  (pictures / "link.png").symlink_to("sub/c.png")
  source = table(pictures, [{"image": str(pictures / "a.png"), "caption": "x"}, {"image": "link.png", "caption": "x"}])
  assert [source[i]["image"] for i in (0, 1)] == [picture(0), picture(2)]


def test_faults_of_rows(pictures):
  rows = [b'{"image": "a.png", "caption": "fine"}', b'{"image": "b.png", "caption": "caf\xe9"}', b"{broken", b"[1]", b'{"caption": "x"}',
          b'{"image": "gone.png", "caption": "x"}', b'{"image": "sub/c.png", "caption": {"a": 1}}', b"[" * 100_000]
  (pictures / "metadata.jsonl").write_bytes(b"\n".join(rows))
  source = folder(path=str(pictures))
  assert source[0]["captions"] == {"original": "fine"}
  assert [fault(source, i) for i in range(1, 8)] == [
    "non_utf8_caption", "unreadable", "unreadable", "missing_key", "missing_key", "bad_type", "unreadable"]


def test_texts_beside_the_pictures(pictures):
  (pictures / "a.txt").write_text("an a\n")
  (pictures / "a.long.txt").write_text("a long a")
  (pictures / "b.txt").write_bytes(b"\xff\xfe")
  source = folder(path=str(pictures))
  assert source[0] == {"key": "a", "image": picture(0), "captions": {"original": "an a", "long": "a long a"}}
  assert fault(source, 1) == "non_utf8_caption"
  assert source[2]["captions"] == {}


def test_a_text_is_of_the_picture_that_it_names(tmp_path):
  for i, name in enumerate(["22.png", "22.05.png", "22.06.png"]):
    (tmp_path / name).write_bytes(picture(i))
  for name in ("22.txt", "22.05.txt", "22.05.long.txt", "gone.txt", ".hidden.txt", "notes.md"):
    (tmp_path / name).write_text(name)
  source = folder(path=str(tmp_path))
  assert {source[i]["key"]: source[i]["captions"] for i in range(len(source))} == {
    "22": {"original": "22.txt"}, "22.05": {"original": "22.05.txt", "long": "22.05.long.txt"}, "22.06": {}}
  assert source.skipped == {"text_without_picture": 1, "hidden": 1, "other_file": 1}


def test_a_text_may_have_the_whole_name_of_its_picture(tmp_path, caplog):
  """Or else it would be a caption of the kind `jpg`."""
  for i, name in enumerate(["a.jpg", "b.jpg", "b.png", "c.jpg"]):
    (tmp_path / name).write_bytes(picture(i))
  for name in ("a.jpg.txt", "a.jpg.long.txt", "a.short.txt", "b.png.txt", "c.jpg.txt", "c.txt"):
    (tmp_path / name).write_text(name)
  source = folder(path=str(tmp_path))
  assert {source[i]["key"]: source[i]["captions"] for i in range(len(source))} == {
    "a.jpg": {"original": "a.jpg.txt", "long": "a.jpg.long.txt", "short": "a.short.txt"}, "b.jpg": {}, "b.png": {"original": "b.png.txt"},
    "c.jpg": {"original": "c.jpg.txt"}}
  assert source.skipped == {"second_text": 1} and "texts left out: second ones" in caplog.text
  (tmp_path / "b.txt").write_text("of which?")
  with pytest.raises(DataError, match=r"b.jpg, b.png could each claim b.txt; .* or call the text b.jpg.txt or b.png.txt"):
    folder(path=str(tmp_path))


def test_what_a_folder_leaves_out_is_counted(pictures, tmp_path):
  (tmp_path / "far").mkdir()
  (tmp_path / "far" / "z.png").write_bytes(picture(5))
  (pictures / "linked").symlink_to(tmp_path / "far")
  assert folder(path=str(pictures), captionless=True).skipped == {"linked_folder": 1}


def test_rows_of_one_picture_that_differ_otherwise_are_refused(pictures):
  with pytest.raises(DataError, match="row 2: 'a.png' has the label 2 here and 1 before"):
    table(pictures, [{"image": "a.png", "caption": "x", "label": 1}, {"image": "a.png", "caption": "y", "label": 2}])


def test_class_folders(tmp_path):
  for i, name in enumerate(["tabby_cat", "dog"]):
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "1.png").write_bytes(picture(i))
  source = folder(path=str(tmp_path))
  assert source.labels == ("dog", "tabby cat")
  assert [(source[i]["key"], source[i]["label"], source[i]["captions"]) for i in (0, 1)] == [
    ("dog/deep/1", 0, {"original": "dog"}), ("tabby_cat/deep/1", 1, {"original": "tabby cat"})]


def test_same_stem_keeps_the_suffix_in_the_key(tmp_path):
  for name in ("x.png", "x.jpg"):
    (tmp_path / name).write_bytes(picture(1))
  source = folder(path=str(tmp_path), captionless=True)
  assert {source[i]["key"] for i in (0, 1)} == {"x.png", "x.jpg"}


def test_pictures_alone_need_saying_so(pictures):
  with pytest.raises(DataError, match="no captions.*captionless=True"):
    folder(path=str(pictures))
  assert folder(path=str(pictures), captionless=True)[2] == {"key": "sub/c", "image": picture(2), "captions": {}}


@pytest.mark.parametrize("options, said", [
  ({"table": "none.csv"}, "no table none.csv"), ({"layout": "table"}, "no table metadata.jsonl"), ({"layout": "text"}, "no text beside"),
  ({"table": "a.png"}, "unknown kind of table '.png'"), ({"path": "/nope"}, "found nothing, expected a folder")])
def test_wrong_folders(pictures, options, said):
  with pytest.raises(DataError, match=said):
    folder(**{"path": str(pictures)} | options)


@pytest.mark.parametrize("name, content, said", [
  ("metadata.jsonl", '{"pic": "a.tiff", "caption": "x"}', r"no column can be told to be the pictures'; found columns \['pic', 'caption'\]; "
   "say which, for instance --data.image_column=pic"),
  ("metadata.jsonl", '{"image": "a.png", "size": "3"}', r"no captions in columns \['image', 'size'\].* --data.captions.original=size"),
  ("metadata.jsonl", '{"image": "z.png", "caption": "x"}', "none of 1 records has its picture"),
  ("metadata.csv", "image,caption\na.png,x,y\nb.png\n", "none of its 2 rows can be read; .* line 2: 3 cells, the header has 2"),
  ("metadata.jsonl", "[1]\n[2]\n[3]", "none of its 3 rows can be read; .* item 1: not an object"),
  ("metadata.csv", "image,caption\n", "no rows"), ("metadata.json", '{"images": []}', "source `coco`"), ("metadata.json", "{", "not JSON")])
def test_wrong_tables(pictures, name, content, said):
  (pictures / name).write_text(content)
  with pytest.raises(DataError, match=said):
    folder(path=str(pictures))


def test_the_columns_of_a_table_are_those_of_its_good_rows(pictures):
  (pictures / "metadata.csv").write_text("image,caption\n" + "one cell\n" * 200 + "a.png,an a\n")
  assert folder(path=str(pictures))[200]["captions"] == {"original": "an a"}


def test_an_empty_folder(tmp_path):
  with pytest.raises(DataError, match="no pictures .*found nothing"):
    folder(path=str(tmp_path))


def test_fingerprint_and_copies(pictures):
  source = table(pictures, [{"image": "a.png", "caption": "x"}])
  again = table(pictures, [{"image": "a.png", "caption": "x"}])
  other = table(pictures, [{"image": "a.png", "caption": "y"}])
  assert source.fingerprint() == again.fingerprint() != other.fingerprint()
  assert pickle.loads(pickle.dumps(source))[0] == source[0]              # noqa: S301


COCO = {"images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}, {"id": 11, "file_name": "../secret.png"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "b one"}, {"image_id": 7, "id": 2, "caption": "a one"},
                        {"image_id": 7, "id": 3, "caption": "a two"}]}
KARPATHY = {"images": [
  {"filename": "c.png", "filepath": "sub", "split": "train", "sentences": [{"raw": "c one"}, {"raw": "c two"}]},
  {"filename": "a.png", "filepath": "elsewhere", "split": "restval", "sentences": [{"raw": "a one"}]},
  {"filename": "b.png", "filepath": "", "split": "test", "sentences": [{"raw": "b one"}]}]}


def test_coco(pictures):
  (pictures / "captions.json").write_text(json.dumps(COCO))
  source = coco(images=str(pictures), annotations=str(pictures / "captions.json"))
  assert source[0] == {"key": "a", "image": picture(0), "captions": {"original": ["a one", "a two"]}}
  assert source[1]["captions"] == {"original": ["b one"]}
  assert fault(source, 2) == "unreadable"
  with pytest.raises(DataError, match="has no splits"):
    coco(images=str(pictures), annotations=str(pictures / "captions.json"), split="val")


def test_coco_loses_and_merges_nothing(pictures):
  path = str(pictures / "captions.json")
  write = lambda **more: (pictures / "captions.json").write_text(json.dumps(COCO | more))
  write(annotations=[*COCO["annotations"], {"image_id": 99, "id": 4, "caption": "of no picture"}])
  assert coco(images=str(pictures), annotations=path).skipped == {"caption_without_image": 1}
  write(images=[*COCO["images"], {"id": 12, "file_name": "sub/a.png"}])
  assert coco(images=str(pictures), annotations=path).key(3) == "sub/a"
  for again, said in (({"id": 12, "file_name": "a.png"}, "more than once, first 'a'"),
                      ({"id": 7, "file_name": "z.png"}, "4 images share 3 ids")):
    write(images=[*COCO["images"], again])
    with pytest.raises(DataError, match=said):
      coco(images=str(pictures), annotations=path)


@pytest.mark.parametrize("split, keys", [("", ["c", "a", "b"]), ("train+restval", ["c", "a"]), ("test", ["b"])])
def test_karpathys_coco(pictures, split, keys):
  (pictures / "dataset_coco.json").write_text(json.dumps(KARPATHY))
  source = coco(images=str(pictures), annotations=str(pictures / "dataset_coco.json"), split=split)
  assert [source[i]["key"] for i in range(len(source))] == keys
  assert source[0]["image"] == picture({"c": 2, "b": 1}[keys[0]])


@pytest.mark.parametrize("content, split, said", [
  ('{"images": []}', "", "0 records"), ('{"annotations": [{}]}', "", "not a caption file"), ("[]", "", "not a caption file"),
  (json.dumps(KARPATHY), "val", "it has restval, test, train"), ("{", "", "not JSON")])
def test_other_json_is_refused(pictures, content, split, said):
  (pictures / "x.json").write_text(content)
  with pytest.raises(DataError, match=said):
    coco(images=str(pictures), annotations=str(pictures / "x.json"), split=split)


def test_names_that_no_file_has_are_bad_records(pictures):
  source = table(pictures, [{"image": "a.png", "text": "a"}, '{"image": "\\ud800.png", "text": "half a letter"}'])
  assert source[0]["key"] == "a" and fault(source, 1) == "unreadable"
  source = table(pictures, [{"image": "a.png", "text": "a"}, '{"image": "b.png", "key": "\\ud800", "text": "half a letter"}'])
  assert source[0]["key"] == "a" and fault(source, 1) == "unreadable"            # else writing the key down ends the run
  for name in (5, None, ["a.png"]):
    annotations = pictures / "annotations.json"
    annotations.write_text(json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": []}))
    with pytest.raises(DataError, match="a picture is called"):
      coco(images=str(pictures), annotations=str(annotations))


def test_two_pictures_that_could_claim_one_text_are_refused(pictures):
  """As in tars. Where no text tells of them they are two records."""
  (pictures / "a.txt").write_text("an a")
  (pictures / "b.jpg").write_bytes(picture(3))
  assert [folder(path=str(pictures)).key(i) for i in range(4)] == ["a.png", "b.jpg", "b.png", "sub/c.png"]
  (pictures / "b.long.txt").write_text("which b?")
  with pytest.raises(DataError, match=r"b.jpg, b.png could each claim b.long.txt; rename or remove"):
    folder(path=str(pictures))
