"""`mmdiff_scenes/T16`, `/T32` and `/T64` for TensorFlow Datasets, prepared and read without TensorFlow:

  from mmdiff.data.scenes.tfds_builder.mmdiff_scenes import MmdiffScenes
  builder = MmdiffScenes(config="T32", data_dir=DIR)
  builder.download_and_prepare(file_format="array_record")      # TFDS's default format needs TensorFlow
  builder.as_data_source(split="train")[0]["captions"]["long"]

Features: `key`, `image` (PNG), `captions/KIND` (a list of texts), and `extras`, the JSON of the record's facts and scene. The source
`tfds` reads them back as the records of the source `scenes`.
"""
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets
from PIL import Image
from tensorflow_datasets import features

from mmdiff.data.scenes.source import KINDS, scenes
from mmdiff.data.scenes.tiers import SPLITS, TIERS


@dataclasses.dataclass
class ScenesConfig(tensorflow_datasets.core.BuilderConfig):
  """`size` records per split (0: the tier's own) and other options of the source `scenes`."""
  tier: str = "T32"
  size: int = 0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def png(image) -> bytes:
  """uint8 [H W 3] as PNG: TFDS takes bytes without TensorFlow, arrays not."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG", compress_level=1)
  return buffer.getvalue()


class MmdiffScenes(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Captioned scenes with facts, every split of a tier."""
  VERSION = tensorflow_datasets.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Version 1 of the scenes."}
  BUILDER_CONFIGS = [ScenesConfig(name=tier, tier=tier, description=f"Pictures of {spec.px} pixels.") for tier, spec in TIERS.items()]

  def _info(self):
    text = features.Text()
    px = TIERS[self.builder_config.tier].px
    return tensorflow_datasets.core.DatasetInfo(
      builder=self, description="Procedural scenes whose captions state machine-checkable facts.",
      features=features.FeaturesDict({
        "key": text, "image": features.Image(shape=(px, px, 3)), "extras": text,
        "captions": {kind: features.Sequence(text) for kind in KINDS}}))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    config = self.builder_config
    source = scenes(tier=config.tier, split=split, size=config.size, **config.options)
    for i in range(len(source)):
      record = source[i]
      captions = {kind: [text] if isinstance(text, str) else text for kind, text in record["captions"].items()}
      yield record["key"], {"key": record["key"], "image": png(record["image"]), "captions": captions,
                            "extras": json.dumps({"facts": record["facts"], "scene": record["scene"]})}
