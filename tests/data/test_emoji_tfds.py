"""The emoji set through TFDS itself, on a font of this test's own making."""
import sys

import tensorflow_datasets

from mmdiff.data import emoji, emoji_tfds
from mmdiff.data.tfds import tfds
from tests.data.fixtures import Rows, picture

ITEMS = {split: [emoji.Emoji(chr(first + i), f"{split} {i}", "Things", "thing") for i in range(3)]
         for split, first in (("train", 0x1F400), ("val", 0x1F500), ("val_comp", 0x1F600))}


def drawn(*, split: str, size: int = 0, font: str = "", table: str = ""):
  """A source of `emoji.emoji`'s records whose pictures are of one colour: fonts are not everywhere."""
  return Rows([{"key": item.key, "image": picture(i), "captions": emoji.captions(item, ["red"]), "group": item.group,
                "subgroup": item.subgroup} for i, item in enumerate(ITEMS[split])], identity=split)


def test_tfds_builds_and_reads_the_set_without_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setattr(emoji_tfds.emoji, "emoji", drawn)
  tensorflow_datasets.disable_progress_bar()
  builder = tensorflow_datasets.builder("emoji", data_dir=tmp_path)
  builder.download_and_prepare(file_format="array_record")
  again = tensorflow_datasets.builder_from_directory(str(tmp_path / "emoji" / "1.0.0"))
  assert {split: again.info.splits[split].num_examples for split in again.info.splits} == dict.fromkeys(emoji.SPLITS, 3)
  skip = {"image": tensorflow_datasets.decode.SkipDecoding()}
  for split, items in ITEMS.items():
    examples = again.as_data_source(split=split, decoders=skip)
    assert {example["key"].decode(): example["captions"]["short"][0].decode() for example in (examples[i] for i in range(3))} == {
      item.key: item.name for item in items}
    source, expected = tfds(dataset="emoji", split=split, data_dir=str(tmp_path)), drawn(split=split)
    assert {source[i]["key"]: source[i] for i in range(3)} == {record["key"]: record for record in expected.rows}
  assert "tensorflow" not in sys.modules
