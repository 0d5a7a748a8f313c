"""What is typed for a source, in every command."""
import pytest

from mmdiff.commands import caption, flags, sources
from mmdiff.core.errors import ConfigError, DataError


def test_one_source_in_every_spelling():
  expected = sources.read("scenes:T16:val_comp", [], "--data.")
  assert expected[0]["tier"] == "T16" and not expected[1]
  assert sources.read("name=scenes,tier=T16,split=val_comp", [], "--data.") == expected
  assert sources.read("scenes:T32:val_comp", [("tier", "T16")], "--data.") == expected
  assert sources.read("configs/clip.py:tiny", [("size", "7")], "--data.")[0]["size"] == 7
  assert sources.read("name=webdataset,urls=('a.tar','b.tar'),image=png", [], "--data.")[0]["urls"] == ("a.tar", "b.tar")


def test_a_flag_and_its_keys():
  given = flags.parse(["--model=m", "--out=o", "--data=scenes:T16", "--data.size", "5"], caption.FLAGS)
  assert given["data"]["size"] == 5 and given["data"]["tier"] == "T16"
  with pytest.raises(ConfigError, match="--data.size: needs --data=SOURCE"):
    flags.parse(["--data.size=3"], dict(data=dict(type="source")))
  with pytest.raises(ConfigError, match="--out: required"):            # before what is missing on the disk
    flags.parse(["--data=/nope/x.csv/y", "--model=m"], caption.FLAGS)
  with pytest.raises(DataError, match="/nope/it.here: no such file or folder"):
    flags.parse(["--data=/nope/it.here"], dict(data=dict(type="source")))


def test_a_word_in_the_place_of_a_flag():
  table = dict(data=dict(type="source"))
  assert flags.parse(["scenes:T16", "--data.size=3"], table, positional=("data",))["data"]["size"] == 3
  with pytest.raises(ConfigError, match="--data: given twice"):
    flags.parse(["scenes:T16", "--data=scenes:T32"], table, positional=("data",))


def test_pictures_alone_where_captions_are_not_read():
  assert sources.pictures_of(dict(name="folder", path="x", captionless=False))["captionless"]
  assert sources.pictures_of(dict(name="scenes")) == dict(name="scenes")
