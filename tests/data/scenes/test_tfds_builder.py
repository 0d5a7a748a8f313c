"""The TFDS builder writes ArrayRecord without TensorFlow and reads back what the source says."""
import json
import sys

import numpy as np
import tensorflow_datasets

from mmdiff.data.scenes.source import scenes
from mmdiff.data.scenes.tfds_builder.mmdiff_scenes import MmdiffScenes, ScenesConfig
from mmdiff.data.scenes.tiers import SPLITS


def test_prepares_a_small_set_and_reads_it_back_equal(tmp_path):
  tensorflow_datasets.disable_progress_bar()
  builder = MmdiffScenes(config=ScenesConfig(name="small", tier="T16", size=12), data_dir=tmp_path)
  builder.download_and_prepare(file_format="array_record")
  assert "tensorflow" not in sys.modules
  assert {split: builder.info.splits[split].num_examples for split in SPLITS} == dict.fromkeys(SPLITS, 12)
  again = tensorflow_datasets.builder_from_directory(builder.data_dir)
  for split in ("train", "val_comp"):
    source = scenes(tier="T16", split=split, size=12)
    expected = {record["key"]: record for record in (source[i] for i in range(12))}
    read = again.as_data_source(split=split)
    assert len(read) == 12
    for i in range(12):
      found = read[i]
      record = expected.pop(found["key"].decode())
      np.testing.assert_array_equal(found["image"], record["image"])
      assert {kind: [text.decode() for text in texts] for kind, texts in found["captions"].items()} == {
        kind: [text] for kind, text in record["captions"].items()}
      assert json.loads(found["extras"]) == {"facts": record["facts"], "scene": record["scene"]}
    assert not expected
