"""The emoji set as a TFDS builder, for those who read it with TensorFlow Datasets alone; neither it nor reading needs TensorFlow.

    import tensorflow_datasets as tfds
    import mmdiff.data.emoji_tfds                        # registers "emoji"
    builder = tfds.builder("emoji", data_dir="data")
    builder.download_and_prepare(file_format="array_record")
    source = builder.as_data_source(split="train")

Nothing is downloaded: the pictures are drawn from the system's font, see `emoji`. `mmdiff data build emoji` writes the same set.
"""
import tensorflow_datasets

from mmdiff.core.errors import DataError
from mmdiff.data import array_records, emoji
from mmdiff.data.quarantine import BadRecord

KINDS = ("long", "original", "short")


class Emoji(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Features and splits are those of `mmdiff data build emoji`."""
  VERSION = tensorflow_datasets.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Unicode's fully-qualified sequences in Noto Color Emoji, with captions of three kinds."}
  code_path = None                                       # there is no package of checksums to look for

  def _info(self):
    return tensorflow_datasets.core.DatasetInfo(builder=self, description=emoji.__doc__, features=array_records.features_of(KINDS))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in emoji.SPLITS}

  def _generate_examples(self, split):
    source = emoji.emoji(split=split)
    for i in range(len(source)):
      try:
        record = source[i]
      except BadRecord as fault:
        raise DataError(f"emoji {split} {i}: {fault}") from None
      yield record["key"], array_records.example_of(record, KINDS)
