"""Image-text retrieval: recall at 1, 5 and 10 and the median rank, in both directions.

The protocol of COCO and Flickr30k (Karpathy & Fei-Fei 2015, https://arxiv.org/abs/1412.2306 §4.2): an image finds its text if any of its
captions is among the first k; a caption finds its image if that one is. Ties count against the model: everything wrong that scores as
high as the right answer comes before it, so that a collapsed model has recall 0, not 1.
"""
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import DataError
from mmdiff.data.pipelines import OWN_CAPTION
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, captions_of, embed_images, embed_texts, left_out, records, require

KS = (1, 5, 10)
ROWS = 512             # queries scored at a time: rows of the similarity matrix that exist at once


def retrieval(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", limit: int | None = None,
              caption: str = "", captions_per_image: int | None = None) -> Evaluator:
  """Retrieval among the images of the source and all their captions of one kind.

  Args:
    limit: records, from the source's first. Recall falls with their number: it is stored beside the scores.
    caption: kind of caption; "" is `original` where a record has it, else its first kind.
    captions_per_image: the first so many captions of each image (COCO's protocol takes 5); None = all.
  """
  require(services, "retrieval", *NEEDS["retrieval"])
  dataset = services.dataset(source)

  def run(params, step, extra=()):
    images, texts = [], []
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind=caption or OWN_CAPTION)
    for batch, made in embed_images(services, params, batches, extra=extra, total=records(dataset, limit)):
      images.append(made)
      texts += [captions_of(record, caption)[:captions_per_image] for record in batch["records"]]
    if not images:
      raise DataError("retrieval: the source gave no records")
    image = np.concatenate(images)
    owner = np.repeat(np.arange(len(texts)), [len(found) for found in texts])
    tokens, mask = dataset.tokenize([text for found in texts for text in found])
    text = embed_texts(services, params, tokens, mask, extra=extra)
    return Result(scores(image, text, owner) | left_out(dataset, limit, len(image)))

  return Evaluator(every_steps, params, run)


def scores(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> dict[str, float]:
  """Recalls (0–1) and median ranks (1 is best) of embeddings image [N D] and text [M D], where text j belongs to image `owner[j]` [M]."""
  found = {}
  for name, rank in (("image_to_text", ranks(image, text, np.arange(len(image)), owner)),
                     ("text_to_image", ranks(text, image, owner, np.arange(len(image))))):
    found |= {f"{name}/recall_at_{k}": float(np.mean(rank <= k)) for k in KS}
    found[f"{name}/median_rank"] = float(np.median(rank))
  both = {f"recall_at_{k}": (found[f"image_to_text/recall_at_{k}"] + found[f"text_to_image/recall_at_{k}"]) / 2 for k in KS}
  return both | found | {"images": float(len(image)), "texts": float(len(text))}


def ranks(queries: np.ndarray, keys: np.ndarray, query_group: np.ndarray, key_group: np.ndarray, *, rows: int = ROWS) -> np.ndarray:
  """1-based rank int [Q] of each query's best right key among the wrong keys; a key is right if its group is the query's.

  queries: [Q D]; keys: [K D]. A wrong key ties or is not a number: it comes first. `rows` queries are scored at a time.
  """
  found = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), rows):
    part = slice(start, start + rows)
    score = queries[part] @ keys.T                                              # [rows K]
    right = query_group[part, None] == key_group[None]
    best = np.where(right, score, -np.inf).max(1, keepdims=True)
    found[part] = 1 + (~right & ~(score < best)).sum(1)
  return found
