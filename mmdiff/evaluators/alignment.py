"""How well a text-to-image model's pictures fit the captions that they are drawn for, by a CLIP model and, on scenes, by the judge.

The protocol of DALL·E 3's ablation (Betker et al. 2023, section 3): pictures are drawn for held-out captions of several kinds, each is
scored against the caption that it was drawn for, and the CLIP score is 100 × the mean cosine, without a prefix. Prompts and noise are the
same at every step and in every run, so that runs can be compared picture by picture.
"""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import sidecar as sidecars
from mmdiff.data.pipelines import NO_CAPTION
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.records import without_image
from mmdiff.data.scenes.judge import judge
from mmdiff.data.scenes.source import Scenes
from mmdiff.evaluators import NEEDS, likeness
from mmdiff.evaluators.base import Evaluator, Result, Services, captions_of, draw, fitting, grid, records, require, to_uint8
from mmdiff.evaluators.clipscore import cosines
from mmdiff.evaluators.scenes import by_attribute, graded


class Prompt(NamedTuple):
  """A caption to draw."""
  number: int                  # of its record
  text: str
  facts: list[dict]            # what it claims, [] where nobody knows


def alignment(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, scorer: str = "", params: str = "",
              limit: int = 256, captions: tuple[str, ...] = ("long", "original"), sidecar: str = "", steps: int = 20, guidance: float = 2.0,
              sampler: str | None = None, seed: int = 0, shown: int = 16, columns: int = 8) -> Evaluator:
  """Scalars `clipscore_KIND` for each kind of caption, and `all_facts`, `unparseable` and `accuracy/ATTRIBUTE` where the source is scenes.

  The facts are asked of the pictures of the first kind. Table `pictures`: one a row, the same rows in every run. Table
  `protocol`: what the scores depend on.

  Args:
    source: held-out records, whose captions are the prompts.
    scorer: run directory of a CLIP model; "" for no CLIP score.
    limit: records, from the source's first; one picture for each of their captions.
    captions: the kinds; a record that lacks one is left out of that kind.
    sidecar: captions that join the source by record key.
    steps, guidance, sampler: of the sampler; None is the model's own.
    seed: the picture of record i starts from the noise of seed + i, whatever the kind.
    shown, columns: pictures in the grid of each kind, and how many a row.
  """
  require(services, "alignment", *NEEDS["alignment"])
  if min(limit, columns, shown) < 1 or not captions:
    raise ConfigError(f"alignment: limit, columns and shown are at least 1 and captions not empty; found {limit}, {columns}, {shown} and "
                      f"{captions!r}")
  dataset = services.dataset(source)
  tier = dataset.source.tier.name if isinstance(dataset.source, Scenes) else ""
  prompts = read_prompts(sidecars.join(dataset.source, sidecar), captions, records(dataset, limit))
  clip = opened(services.load, scorer) if scorer else None
  texts = {kind: clip.embed_text([prompt.text for prompt in found]) for kind, found in prompts.items()} if clip else {}
  protocol = dict(clip_score="100 × mean cosine, no prefix", scorer=scorer, scorer_step=clip.report["step"] if clip else 0, params=params,
                  sampler=sampler or "the model's own", steps=steps, guidance=guidance, first_seed=seed,
                  prompts={kind: len(found) for kind, found in prompts.items()},
                  texts={kind: likeness.digest([prompt.text for prompt in found]) for kind, found in prompts.items()},
                  shown={kind: [prompt.text for prompt in found[:shown]] for kind, found in prompts.items()})
  protocol |= {f"true pictures, {kind}": true_score(clip, dataset, found, texts[kind]) for kind, found in prompts.items() if clip}

  def run(params, step, extra=()):
    scalars: dict[str, float] = {}
    images, table = {}, []
    for kind, asked in prompts.items():
      facts_asked = bool(tier) and kind == captions[0]
      first, right, readings = [], [], []
      likeness: list[float] = []
      size = fitting(services, len(asked))
      for start in range(0, len(asked), size):                  # a batch at a time: tens of thousands of pictures need not be in memory
        part = asked[start:start + size]
        seeds = (np.array([prompt.number for prompt in part]) + seed) % 2 ** 32
        made = to_uint8(draw(services, params, *dataset.tokenize([prompt.text for prompt in part]), seeds, sampler=sampler, steps=steps,
                             guidance=guidance, extra=extra, size=size))
        services.progress(len(part), len(asked))
        first += list(made[:max(shown - start, 0)])
        if clip:
          likeness += (100 * cosines(clip.embed_image(made), texts[kind][start:start + size])).tolist()
        if facts_asked:
          readings += judge(made, tier)
      first_of: dict[str, int] = {}                             # prompts of one text are one observation to whoever compares runs
      rows: list[dict] = [dict(kind=kind, prompt=prompt.number, same=first_of.setdefault(prompt.text, prompt.number)) for prompt in asked]
      if clip:
        scalars[f"clipscore_{kind}"] = float(np.mean(likeness))
        rows = [row | dict(clip_similarity=value) for row, value in zip(rows, likeness)]
      if facts_asked:
        right = graded(readings, [prompt.facts for prompt in asked]).tolist()
        scalars |= dict(all_facts=float(np.mean(right)), unparseable=float(np.mean([not reading.parseable for reading in readings])))
        scalars |= {f"accuracy/{name}": value for name, value in by_attribute(readings, [prompt.facts for prompt in asked]).items()}
        rows = [row | dict(right=good, parseable=reading.parseable) for row, good, reading in zip(rows, right, readings)]
      table += rows
      images["" if kind == captions[0] else kind] = grid(np.stack(first), columns)
    return Result(scalars, {"protocol": [protocol], "pictures": table}, images)

  return Evaluator(every_steps, params, run)


def read_prompts(source: Sequence[Mapping], kinds: Sequence[str], count: int) -> dict[str, list[Prompt]]:
  """The captions of each kind of the first `count` records. Raises DataError for a kind that none of them has."""
  found: dict[str, list[Prompt]] = {kind: [] for kind in kinds}
  for number in range(count):
    try:
      record = without_image(source, number)
    except BadRecord:                                             # the table `protocol` says how many prompts there are
      continue
    for kind in kinds:
      if (record.get("captions") or {}).get(kind):
        facts = (record.get("facts") or {}).get(kind, [])
        found[kind].append(Prompt(number, captions_of(record, kind)[0], facts))
  lacking = [kind for kind, prompts in found.items() if not prompts]
  if lacking:
    raise DataError(f"alignment: none of the first {count} records has a caption of kind {', '.join(lacking)}; set captions, or sidecar")
  return found


def true_score(clip: Any, dataset, prompts: Sequence[Prompt], texts: np.ndarray, *, limit: int = 256) -> float:
  """The CLIP score of the records' own pictures, the first `limit`: what a model that draws them perfectly would reach."""
  few = prompts[:limit]
  pictures = np.stack([dataset.plain_at(prompt.number, NO_CAPTION)[0].image for prompt in few])
  return float(100 * cosines(clip.embed_image(pictures), texts[:len(few)]).mean())


@functools.lru_cache(maxsize=2)
def opened(load: Callable[[str], Any], path: str) -> Any:
  """The scoring model, opened once for the runs of a process. Raises DataError if it cannot score."""
  model = load(path)
  if not hasattr(model, "embed_image") or not hasattr(model, "embed_text"):
    raise DataError(f"alignment: scorer {path} is no CLIP model: it embeds no pictures and texts")
  return model
