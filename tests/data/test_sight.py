"""Columns by their names and by what stands in them; tables of messy names."""
import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import sight
from mmdiff.data.files import folder
from tests.data.fixtures import picture

HERE = {"a.png", "b.png"}.__contains__
ROWS = [{"ID": "1", "Image File": "a.png", "Mask": "b.png", "URL": "https://x/a.png", "note": "seen twice", "Alt Text": "an a"},
        {"ID": "2", "Image File": "b.png", "Mask": "a.png", "URL": "https://x/b.png", "note": None, "Alt Text": "a b"}]


def test_the_pictures_column():
  names = list(ROWS[0])
  assert sight.picture_column(names, ROWS, HERE) == "Image File"                       # two hold files, one is called so
  assert sight.picture_column(["where"], [{"where": "a.png"}], HERE) == "where"        # by content alone
  assert sight.picture_column(["imageFile"], [{"imageFile": "gone.png"}], HERE) == "imageFile"
  assert sight.picture_column(["x", "y"], [{"x": "a.png", "y": "b.png"}], HERE) == ""
  assert sight.picture_column(["image id"], [{"image id": "7"}], HERE) == ""


@pytest.mark.parametrize("names, values, found", [
  (["Alt Text", "note"], ["an a", "seen twice"], {"original": "Alt Text"}),
  (["Caption", "Long Caption", "n"], ["a", "a long a", "3"], {"original": "Caption", "long": "Long Caption"}),
  (["url", "what"], ["https://x/a b", "red shoes"], {"original": "what"}), (["a", "b"], ["red shoes", "blue shoes"], {}),
  (["label"], ["7"], {}), (["sentences", "prompt"], [["a b", "c d"], "x y"], {"original": "prompt"})])
def test_caption_columns(names, values, found):
  assert sight.caption_columns(names, [dict(zip(names, values))] * 3) == found


@pytest.fixture
def mine(tmp_path):
  (tmp_path / "photos").mkdir()
  for i in range(4):
    (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
  return tmp_path


def test_a_table_of_another_name_with_odd_columns(mine, caplog):
  (mine / "My Labels.csv").write_text("Image File,Alt Text,stars\n" + "".join(f"{i}.png,picture number {i},{i}\n" for i in range(4)))
  (mine / "settings.json").write_text('{"a": 1}')
  source = folder(path=str(mine))
  assert [(source[i]["key"], source[i]["captions"]) for i in (0, 3)] == [
    ("0", {"original": "picture number 0"}), ("3", {"original": "picture number 3"})]
  assert source[3]["image"] == picture(3)
  assert "from the column 'Image File', captions from {'original': 'Alt Text'}" in caplog.text and "of the folder photos" in caplog.text
  (mine / "second.tsv").write_text("file\tcaption\nphotos/1.png\tone\n")
  with pytest.raises(DataError, match="My Labels.csv, second.tsv could each be the table .*--data.table='My Labels.csv'"):
    folder(path=str(mine))


def test_texts_beside_the_pictures_come_before_such_a_table(mine):
  (mine / "list.csv").write_text("file,caption\nphotos/1.png,of the table\n")
  (mine / "photos" / "1.txt").write_text("beside")
  assert folder(path=str(mine))[1]["captions"] == {"original": "beside"}


def test_an_id_that_comes_twice_is_no_key(mine, caplog):
  (mine / "captions.csv").write_text("id,image,caption\n1,photos/0.png,zero\n1,photos/1.png,one\n2,photos/2.png,two\n")
  source = folder(path=str(mine))
  assert [source.key(i) for i in range(3)] == ["photos/0", "photos/1", "photos/2"] and "have the same `id`" in caplog.text


def test_a_refusal_is_a_flag_to_type(mine):
  (mine / "captions.csv").write_text("First One,Other\nphotos/0.png,photos/1.png\n")
  with pytest.raises(DataError, match="columns .'First One', 'Other'.*--data.image_column='First One' .in a config, data.source"):
    folder(path=str(mine))


def test_a_parquet_table_beside_pictures(mine):
  from tests.data.test_parquet import write
  write(mine / "metadata.parquet", file_name=["photos/0.png", "photos/1.png"], caption=["zero", None])
  source = folder(path=str(mine), table="metadata.parquet")
  assert [source[i]["captions"] for i in (0, 1)] == [{"original": "zero"}, {}]
