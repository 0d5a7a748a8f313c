"""Where records come from and how captions become tokens, by name."""
SOURCES = {
  "scenes": "mmdiff.data.scenes.source:scenes",
  "webdataset": "mmdiff.data.webdataset:webdataset",
  "folder": "mmdiff.data.files:folder",
  "coco": "mmdiff.data.files:coco",
  "tfds": "mmdiff.data.tfds:tfds",
  "parquet": "mmdiff.data.parquet:parquet",
  "emoji": "mmdiff.data.emoji:emoji",
  "held_out": "mmdiff.data.held_out:held_out",
}
TOKENIZERS = {
  "file": "mmdiff.data.tokenizers:file",
  "clip": "mmdiff.data.tokenizers:clip",
  "siglip": "mmdiff.data.tokenizers:siglip",
  "bpe": "mmdiff.data.tokenizers:bpe",
}
