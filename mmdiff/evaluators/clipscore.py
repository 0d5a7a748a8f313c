"""CLIP score of pictures with captions, in both conventions, because numbers of different ones do not compare.

`clipscore`: 2.5 · max(cos, 0) with "A photo depicts " before the caption (Hessel et al. 2021, https://arxiv.org/abs/2104.08718).
`clip_similarity`: 100 · cos with the bare caption, what papers on text-to-image models report.
The table `protocol` says what the numbers depend on. A model that was trained or guided with the scoring CLIP scores too high.
"""
from collections.abc import Sequence

import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data.pipelines import OWN_CAPTION
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, captions_of, embed_images, embed_texts, left_out, records, require
from mmdiff.evaluators.statistics import standard_error

WEIGHT = 2.5
PREFIX = "A photo depicts "


def clipscore(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", limit: int | None = None,
              caption: str = "", prefix: str = PREFIX, candidates: int = 0, seed: int = 0) -> Evaluator:
  """Scores the source's pictures against their own captions; the model is the scorer.

  Args:
    limit: records, from the source's first.
    caption: kind of caption; "" is `original` where a record has it, else its first kind. Of several the first is taken.
    prefix: before the caption in `clipscore`.
    candidates: above 0 also gives CLIP R-precision: how often a picture's caption is the best of so many, the others drawn at random
      from the set (100 is usual); ties count against the picture.
    seed: of that draw.
  """
  require(services, "clipscore", *NEEDS["clipscore"])
  dataset = services.dataset(source)
  if candidates == 1:
    raise ConfigError("candidates: expected 0 or at least 2, found 1")

  def run(params, step, extra=()):
    images, texts, keys = [], [], []
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind=caption or OWN_CAPTION)
    for batch, made in embed_images(services, params, batches, extra=extra, total=records(dataset, limit)):
      images.append(made)
      texts += [captions_of(record, caption)[0] for record in batch["records"]]
      keys += batch["keys"]
    if not images:
      raise DataError("clipscore: the source gave no records")
    image = np.concatenate(images)
    prefixed, bare = (embed_texts(services, params, *dataset.tokenize([start + text for text in texts]), extra=extra)
                      for start in (prefix, ""))
    rows, scalars = score(image, prefixed, bare, texts)
    scalars |= left_out(dataset, limit, len(rows))
    if candidates:
      scalars["r_precision"] = r_precision(image, bare, candidates=candidates, seed=seed)
    protocol = dict(scorer=str(services.workdir), step=step, params=params_name, prefix=prefix, weight=WEIGHT, candidates=candidates,
                    image_size=dataset.recipe.image_size, resize=dataset.recipe.resize, interpolation=dataset.recipe.interpolation)
    return Result(scalars, {"protocol": [protocol], "pictures": [dict(key=key, caption=text) | row
                                                                for key, text, row in zip(keys, texts, rows)]})

  params_name = params
  return Evaluator(every_steps, params, run)


def cosines(image: np.ndarray, text: np.ndarray) -> np.ndarray:
  """Row by row, float64 [N], of unit-norm embeddings [N D]."""
  return np.sum(image.astype(np.float64) * text, 1)


def score(image: np.ndarray, prefixed: np.ndarray, bare: np.ndarray,
          texts: Sequence[str]) -> tuple[list[dict[str, float]], dict[str, float]]:
  """(one row a picture, means) of unit-norm embeddings [N D]: of pictures, of prefixed and of bare captions. The standard error counts
  pictures of one text as one observation."""
  clip, similarity = WEIGHT * np.maximum(cosines(image, prefixed), 0), 100 * cosines(image, bare)
  rows = [dict(clipscore=float(a), clip_similarity=float(b)) for a, b in zip(clip, similarity)]
  return rows, dict(clipscore=float(clip.mean()), clip_similarity=float(similarity.mean()),
                    clip_similarity_stderr=standard_error(similarity, texts), records=float(len(similarity)))


def r_precision(image: np.ndarray, text: np.ndarray, *, candidates: int, seed: int = 0) -> float:
  """Share of pictures [N D] whose own caption [N D] scores strictly above `candidates` - 1 other rows, drawn without replacement.

  Park et al. 2021, "Benchmark for Compositional Text-to-Image Synthesis". Raises DataError if there are fewer rows than candidates.
  """
  count = len(image)
  if count < candidates:
    raise DataError(f"candidates: {candidates} captions to choose from, but the set has {count}; lower candidates or raise limit")
  rng, won, own = np.random.default_rng(seed), 0, cosines(image, text)
  for i in range(count):
    others = rng.choice(count - 1, candidates - 1, replace=False)
    others += others >= i
    won += bool(np.all(text[others].astype(np.float64) @ image[i] < own[i]))
  return won / count
