"""Pictures of the same prompts from the same noise at every evaluation, so that a run's grids can be laid over each other."""
import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data.pipelines import OWN_CAPTION
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, captions_of, draw, grid, require, to_uint8


def samples(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", count: int = 16,
            caption: str = "", prompts: tuple[str, ...] = (), steps: int = 20, guidance: float = 1.0, sampler: str | None = None,
            seed: int = 0, columns: int = 4, guidances: tuple[float, ...] = ()) -> Evaluator:
  """A grid of `count` pictures and a table of their prompts, in reading order.

  Args:
    source: whose first captions are the prompts; its tokenizer serves `prompts` too.
    count: of pictures.
    caption: kind of caption; "" is `original` where a record has it, else its first kind.
    prompts: texts instead of captions, repeated from new noise until there are `count`.
    steps, guidance, sampler: of the sampler; None is the model's own.
    seed: picture i starts from the noise of seed + i.
    columns: of the grid.
    guidances: one further image: a row for each of these scales, the first `columns` prompts from the same noise.
  """
  require(services, "samples", *NEEDS["samples"])
  if count < 1 or columns < 1:
    raise ConfigError(f"samples: count and columns must be at least 1, found {count} and {columns}")
  dataset = services.dataset(source)
  shown: list[tuple[str, str]] = [("", prompts[i % len(prompts)]) for i in range(count)] if prompts else []
  if not prompts:
    for batch in dataset.eval_batches(batch_size=count, limit=count, caption_kind=caption or OWN_CAPTION):
      shown += [(record["key"], captions_of(record, caption)[0]) for record in batch["records"]]
  if not shown:
    raise DataError("samples: the source gave no records")
  tokens, mask = dataset.tokenize([text for _, text in shown])
  seeds = (np.arange(len(shown)) + seed).astype(np.uint32)

  def run(params, step, extra=()):
    options = dict(sampler=sampler, steps=steps, extra=extra)
    made = to_uint8(draw(services, params, tokens, mask, seeds, guidance=guidance, **options))
    images = {"": grid(made, columns)}
    if guidances:
      few = slice(0, min(columns, len(shown)))
      rows = [draw(services, params, tokens[few], mask[few], seeds[few], guidance=scale, **options) for scale in guidances]
      images["guidance"] = grid(to_uint8(np.concatenate(rows)), len(shown[few]))
    table = [dict(key=key, prompt=text, seed=int(one)) for (key, text), one in zip(shown, seeds)]
    # Burnt pictures (too much guidance) sit at the ends of the range; a collapsed model draws one picture for all prompts.
    scalars = dict(pixel_mean=float(made.mean()), pixel_std=float(made.std()), saturated=float(np.mean((made == 0) | (made == 255))),
                   between_prompts_std=float(made.std(0).mean()))
    return Result(scalars, {"samples": table}, images)

  return Evaluator(every_steps, params, run)
