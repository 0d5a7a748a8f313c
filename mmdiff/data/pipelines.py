"""Named functions that turn a source's record into an example, as pure functions of (record, recipe, seed, epoch)."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmdiff.data import buckets, captions, decode, draws, sizes, transforms
from mmdiff.data.quarantine import BadRecord

# Kinds of caption that evaluation may ask for, beside those that records name.
NO_CAPTION, OWN_CAPTION = "", "*"


class Recipe(NamedTuple):
  """How a record becomes an example."""
  mix: captions.Mix
  image_size: int
  resize: str = "crop"
  interpolation: str = "bicubic"
  crop: tuple[float, ...] = ()
  flip: bool = False
  position: str = "centre"             # of the crop to a bucket: centre or random
  max_pixels: int = decode.MAX_PIXELS
  max_bytes: int = decode.MAX_BYTES    # of memory for decoding
  allow_empty: bool = False            # "" is a caption in this source
  sizes: bool = False                  # say how each picture was scaled and cropped, as buckets always do
  sentences: bool = False              # those after a caption's first in another order every epoch


class Example(NamedTuple):
  """What `image_text` makes."""
  key: str
  image: np.ndarray | None             # uint8 [S S 3], or of a bucket; None where features stand in for it
  text: str
  kind: str                            # the kind of caption used
  id: int                              # of this occurrence, see `draws.record_id`
  missing: str = ""                    # the kind that was drawn, when the record lacks it
  more: Mapping[str, np.ndarray] = {}  # further arrays of the row: `size`, and precomputed features


def image_text(record: Mapping, recipe: Recipe, *, seed: int, epoch: int, kind: str = "", bucket: tuple[int, int] | None = None,
               features=None, instead: int | None = None) -> Example:
  """One picture with one caption.

  The kind of caption, the one of several captions, the order of its sentences, the crop and the flip are drawn from (seed, epoch, record
  key). `kind` presets the kind, `bucket` is the picture's height and width instead of the recipe's, `features` (see `latents`) stand in for
  what they hold. `instead` is the index of the record that this one stands in for: its crop and flip are then others than at its own turn.
  Raises BadRecord, and what `captions.choose` raises.
  """
  key = key_of(record)
  wanted = kind or captions.draw(recipe.mix, seed=seed, epoch=epoch, key=key)
  texts = record["captions"]
  if not isinstance(texts, Mapping):
    raise BadRecord("bad_type", f"captions must be a mapping of kind to text, found {type(texts).__name__}", key)
  used = captions.choose(texts, wanted, mix=recipe.mix, key=key)
  text = captions.text_of(texts[used], key=key, allow_empty=recipe.allow_empty, draw_from=("text", seed, epoch, key))
  if recipe.sentences:
    text = captions.reordered(text, ("sentences", seed, epoch, key))
  more = features.of(key, used, text) if features else {}
  image = None
  if not features or not features.has_latents:
    image, size = picture_and_size(record, recipe, key=key, seed=seed, epoch=epoch, bucket=bucket, instead=instead)
    if size:
      more["size"] = np.array(size, np.int32)
  identity = draws.record_id(key, epoch=epoch, instead=instead)
  return Example(key, image, text, used, identity, "" if used == wanted else wanted, more)


def plain(record: Mapping, recipe: Recipe, *, seed: int, kind: str | None = None) -> Example:
  """The example for evaluation: no augmentation, and the first of several captions.

  kind: None draws it as training does, and takes "" for a record that has no captions at all; NO_CAPTION needs none and takes "";
  OWN_CAPTION is `original` where the record has it, else its first kind; a name is that kind and no other. Raises BadRecord, and what
  `captions.choose` raises.
  """
  if not isinstance(record, Mapping):
    key_of(record)
  texts = record.get("captions") or {}
  key = key_of(dict(record, captions=texts))
  used = wanted = _wanted(kind, texts, recipe, seed=seed, key=key)
  text = ""
  if kind is None and texts:
    used = captions.choose(texts, wanted, mix=recipe.mix, key=key)
  if used and used not in texts and kind:
    raise BadRecord("missing_caption", f"no caption of kind {used!r} among: {', '.join(texts) or 'none'}", key)
  if used in texts:
    text = captions.text_of(texts[used], key=key, allow_empty=recipe.allow_empty)
  else:
    used = ""
  recipe = recipe._replace(crop=(), flip=False, sentences=False)
  image, size = picture_and_size(record, recipe, key=key, seed=seed, epoch=0)
  more = {"size": np.array(size, np.int32)} if size else {}
  missing = wanted if kind is None and texts and used != wanted else ""
  return Example(key, image, text, used, draws.record_id(key), missing, more)


def _wanted(kind: str | None, texts: Mapping, recipe: Recipe, *, seed: int, key: str) -> str:
  if kind is None:
    return captions.draw(recipe.mix, seed=seed, epoch=0, key=key)
  if kind == OWN_CAPTION:
    return "original" if "original" in texts else next(iter(texts), "original")
  return kind


def key_of(record: Mapping) -> str:
  """The record's key, after checking that the parts are there. Raises BadRecord."""
  if not isinstance(record, Mapping):
    raise BadRecord("bad_type", f"a record must be a mapping, found {type(record).__name__}")
  for part in ("key", "image", "captions"):
    if record.get(part) is None:
      raise BadRecord("missing_key", f"no {part!r} in the record (it has: {', '.join(map(str, record))})", str(record.get("key") or ""))
  if not isinstance(record["key"], str) or not record["key"]:
    raise BadRecord("bad_type", f"a record's key must be text, found {record['key']!r:.80}")
  return record["key"]


def picture(record: Mapping, recipe: Recipe, *, key: str, seed: int, epoch: int) -> np.ndarray:
  """The record's picture, augmented and at the recipe's size: uint8 [S S 3]. Raises BadRecord."""
  return picture_and_size(record, recipe, key=key, seed=seed, epoch=epoch)[0]


def bucketed(record: Mapping, recipe: Recipe, shapes: Sequence[tuple[int, int]], *, key: str) -> tuple[np.ndarray, tuple[int, ...]]:
  """The same without augmentation, in the bucket of `shapes` that fits the picture. Raises BadRecord."""
  if not shapes:
    return picture_and_size(record, recipe, key=key, seed=0, epoch=0)
  size = np.array([sizes.size_of(record["image"])])
  return picture_and_size(record, recipe, key=key, seed=0, epoch=0, bucket=shapes[int(buckets.assign(size, shapes)[0])])


def picture_and_size(record: Mapping, recipe: Recipe, *, key: str, seed: int, epoch: int,
                     bucket: tuple[int, int] | None = None, instead: int | None = None) -> tuple[np.ndarray, tuple[int, ...]]:
  """(the record's picture, augmented and at the size of the bucket or of the recipe, its `size`, see `transforms.cover`, in a bucket or
  where the recipe asks for sizes, else ())."""
  # A reduced JPEG is at least twice as long as what is kept of it, so that the resampling filter still does the work. `size` has the sides
  # that the header says: they are a condition of the model.
  at_least = 0 if bucket else int(2 * recipe.image_size / (recipe.crop[0] ** 0.5 * 0.75 if recipe.crop else 1.0))
  try:
    image = decode.pixels(record["image"], max_pixels=recipe.max_pixels, max_bytes=recipe.max_bytes, at_least=at_least)
  except BadRecord as fault:
    raise BadRecord(fault.kind, fault.detail, key) from None
  augmented = recipe.crop or recipe.flip or (bucket and recipe.position == "random")
  turn = () if instead is None else (instead,)
  rng = draws.generator("augment", seed, epoch, key, *turn) if augmented else None
  mirrored = bool(rng is not None and recipe.flip and rng.random() < 0.5)
  if bucket:
    at = (float(rng.random()), float(rng.random())) if rng is not None and recipe.position == "random" else (0.5, 0.5)
    return transforms.cover(image, height=bucket[0], width=bucket[1], at=at, mirrored=mirrored, interpolation=recipe.interpolation)
  sides = sizes.size_of(record["image"]) if recipe.sizes else (0, 0)
  box = transforms.random_box(*image.shape[:2], area=recipe.crop, rng=rng) if rng is not None and recipe.crop else None
  if box:
    size = transforms.cropped(*sides, box, of=image.shape[:2], size=recipe.image_size, mirrored=mirrored)
    image = transforms.part(image, box, size=recipe.image_size, interpolation=recipe.interpolation)
  else:
    resize = "crop" if recipe.crop else recipe.resize
    size = transforms.fitted(*sides, size=recipe.image_size, resize=resize, mirrored=mirrored) if recipe.sizes else ()
    image = transforms.fit(image, size=recipe.image_size, resize=resize, interpolation=recipe.interpolation)
  return image[:, ::-1] if mirrored else image, size if recipe.sizes else ()
