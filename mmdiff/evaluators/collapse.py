"""A canary for contrastive training: whether all pictures, or all texts, are being given one embedding.

The usual ends of fine-tuning a CLIP model with a rate too high, a batch too small or a tower of one kind of input: the loss settles at
ln(batch) and says nothing. Wang and Isola 2020 (https://arxiv.org/abs/2005.10242) call the opposite uniformity.
"""
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import DataError, GaveUp
from mmdiff.data.pipelines import OWN_CAPTION
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, captions_of, embed_images, embed_texts, left_out, records, require


def collapse(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", limit: int = 256,
             caption: str = "", stop_at: float = 0.98) -> Evaluator:
  """How alike the embeddings of different records are; training gives up (exit 70) when they are all one.

  Scalars, of images and texts: `alike/…`, the mean cosine of two different records, and `dimensions/…`, the exponential of the entropy of
  the embeddings' spectrum: how many directions they use.

  Args:
    limit: records, from the source's first.
    caption: kind of caption; "" is `original` where a record has it, else its first kind.
    stop_at: mean cosine of images or of texts above which training gives up; 1 never does. A model at the start, and one of 0.9, may
      still learn.
  """
  require(services, "collapse", *NEEDS["collapse"])
  dataset = services.dataset(source)

  def run(params, step, extra=()):
    images, texts = [], []
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind=caption or OWN_CAPTION)
    for batch, made in embed_images(services, params, batches, extra=extra, total=records(dataset, limit)):
      images.append(made)
      texts += [captions_of(record, caption)[0] for record in batch["records"]]
    if len(texts) < 2:
      raise DataError(f"collapse: two records are compared, the source gave {len(texts)}")
    different = list(dict.fromkeys(texts))                         # the same caption twice has the same embedding
    towers = {"image": np.concatenate(images), "text": embed_texts(services, params, *dataset.tokenize(different), extra=extra)}
    scalars = {f"{what}/{name}": measure(tower) for name, tower in towers.items() if len(tower) > 1
               for what, measure in (("alike", alike), ("dimensions", dimensions))}
    gone = [f"{name} {scalars[f'alike/{name}']:.3f}" for name in towers if scalars.get(f"alike/{name}", 0.0) > stop_at]
    if gone and step > 0:
      raise GaveUp(f"step {step}: the embeddings of different records are alike (mean cosine of {', '.join(gone)}, the limit is "
                   f"{stop_at}): the model has collapsed. Go back to an earlier step with a lower learning rate, a larger batch or a "
                   "locked tower; evals.….stop_at=1 goes on")
    return Result(scalars | left_out(dataset, limit, len(texts)))

  return Evaluator(every_steps, params, run)


def alike(x: np.ndarray) -> float:
  """Mean cosine of two different rows of x [N D], unit norm; at most 1, however the norms were rounded."""
  count = len(x)
  return min(1.0, float((np.square(x.sum(0, dtype=np.float64)).sum() - count) / (count * (count - 1))))


def dimensions(x: np.ndarray) -> float:
  """exp(entropy) of the shares of the squared singular values of x [N D]: 1 if all rows are one direction, at most min(N, D)."""
  share = np.square(np.linalg.svd(np.asarray(x, np.float64), compute_uv=False))
  share = share / share.sum()
  share = share[share > 1e-15]
  return float(np.exp(-(share * np.log(share)).sum()))
