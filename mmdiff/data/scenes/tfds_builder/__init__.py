"""The world as a dataset of TensorFlow Datasets; a package of its own, as TFDS wants."""
