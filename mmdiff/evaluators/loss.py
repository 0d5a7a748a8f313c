"""The training loss on a fixed set with fixed randomness, so that two checkpoints differ by their parameters alone."""
import jax
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import DataError
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, left_out, records, require, streamed, ways

NAMES = ("image", "tokens", "mask", "id", "valid")


def loss(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", limit: int | None = None,
         caption: str = "", seed: int = 0) -> Evaluator:
  """The mean of every metric of `predict["loss"]` over the source.

  Noise and times come from one key folded with each record's id, the same at every evaluation. A loss that is a mean over examples
  leaves out the padding of the last batch (`valid`), and batches count by their valid rows. A contrastive loss depends on the batch: it
  is that of `services.batch_size` pairs, or of all if there are fewer, and the records that do not fill a batch are left out.

  Args:
    limit: records, from the source's first.
    caption: kind of caption; "" draws one of `data.captions` by the record's key.
    seed: of the key.
  """
  require(services, "loss", *NEEDS["loss"])
  dataset = services.dataset(source)
  metrics_of = jax.jit(services.predict["loss"])
  contrastive = "embed_text" in services.predict

  def run(params, step, extra=()):
    key, totals, count = jax.random.key(seed), {}, 0
    found = records(dataset, limit)
    size = min(services.batch_size, max(found // ways(), 1) * ways()) if contrastive else services.batch_size
    batches = dataset.eval_batches(batch_size=size, limit=limit, caption_kind=caption or None)
    whole = (batch for batch in batches if batch["valid"].all() or not contrastive)
    for batch, metrics in streamed(services, lambda arrays: metrics_of(params, arrays, key, extra=extra), whole, NAMES,
                                   optional=("size",), total=found):
      rows = int(batch["valid"].sum())
      count += rows
      for name, value in metrics.items():
        totals[name] = totals.get(name, 0.0) + rows * np.float64(value)
    if not count:
      raise DataError(f"loss: the source gave fewer than {size if contrastive else 1} records")
    means = {name: float(total / count) for name, total in totals.items()}
    return Result(means | {"records": float(count)} | left_out(dataset, limit, count))

  return Evaluator(every_steps, params, run)
