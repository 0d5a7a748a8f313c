"""mmdiff: models between images and text, as objectives of one sharded train step."""
__version__ = "0.1.0"


def load(path, **options):
  """Loads a trained model: `mmdiff.load("runs/clip").embed_text(["a red circle"])`. See `mmdiff.model.load`."""
  from mmdiff.model import load as _load  # importing JAX takes a second: only those who load a model pay it
  return _load(path, **options)


def save(model, path, **options):
  """Writes a model in a public format: `mmdiff.save(model, "out", format="hf-clip")`. See `mmdiff.model.save`."""
  from mmdiff.model import save as _save
  return _save(model, path, **options)
