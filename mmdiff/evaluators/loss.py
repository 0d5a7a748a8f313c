"""The training loss on a fixed set with fixed randomness, so that two checkpoints differ by their parameters alone."""
import jax
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import DataError
from mmdiff.evaluators.base import Evaluator, Result, Services, require, streamed

NAMES = ("image", "tokens", "mask", "id", "valid")


def loss(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", limit: int | None = None,
         caption: str = "", seed: int = 0) -> Evaluator:
  """The mean of every metric of `predict["loss"]` over the source.

  Noise and times come from one key folded with each record's id, the same at every evaluation. The objective leaves out the padding of the
  last batch (`valid`), and batches count by their valid rows. The loss of a contrastive objective depends on the batch: it is that of
  `services.batch_size` pairs.

  Args:
    limit: records, from the source's first.
    caption: kind of caption; "" draws one of `data.captions` by the record's key.
    seed: of the key.
  """
  require(services, "loss", "loss")
  dataset = services.dataset(source)
  metrics_of = jax.jit(services.predict["loss"])

  def run(params, step, extra=()):
    key, totals, count = jax.random.key(seed), {}, 0
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind=caption or None)
    for batch, metrics in streamed(services, lambda arrays: metrics_of(params, arrays, key, extra=extra), batches, NAMES):
      rows = int(batch["valid"].sum())
      count += rows
      for name, value in metrics.items():
        totals[name] = totals.get(name, 0.0) + rows * np.float64(value)
    if not count:
      raise DataError("loss: the source gave no records")
    return Result({name: float(total / count) for name, total in totals.items()} | {"records": float(count)})

  return Evaluator(every_steps, params, run)
