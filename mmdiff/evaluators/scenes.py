"""Prompt following and word order on the built-in world, whose truth is known exactly.

`scenes_judge` draws pictures for held-out captions and has a program read them back (`data.scenes.judge`): a picture is right if every
fact that its prompt claims holds. `hard_negatives` asks whether an image embedding lies nearer to the right caption than to one in which
a single fact is exchanged (`data.scenes.swaps`).
"""
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.data.scenes import benchmark as prompt_sets
from mmdiff.data.scenes import swaps
from mmdiff.data.scenes.facts import attributes, score
from mmdiff.data.scenes.judge import Reading, judge
from mmdiff.data.scenes.source import scenes
from mmdiff.data.scenes.tiers import SPLITS, tier_named
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, draw, embed_images, embed_texts, grid, require, to_uint8
from mmdiff.evaluators.statistics import bootstrap

SUFFIX = {"val_iid": "", "val_comp": "_held_out"}      # of the names of a split's scalars; other splits go by their own name
SHOWN = 32                                              # pictures in the grid


def scenes_judge(services: Services, *, tier: Literal["T16", "T32", "T64"], every_steps: int, prompts: int = 256,
                 caption: Literal["long", "short"] = "long", splits: tuple[str, ...] = ("val_iid", "val_comp"), params: str = "",
                 steps: int = 20, guidance: float = 2.0, sampler: str | None = None, seed: int = 0,
                 benchmark: bool = False, per_category: int = 300, noises: int = 4) -> Evaluator:
  """The share of pictures with every asked fact right: `all_facts` (unseen scenes), `all_facts_held_out` (pairs never trained).

  Scalars per split: `all_facts…` with the limits of its 95 % interval (`…_low`, `…_high`), `accuracy…/ATTRIBUTE`, `unparseable…`. With
  `benchmark` also `benchmark/CATEGORY` with limits, and `benchmark/mean`. Tables: `prompts`, one row per picture (what
  `statistics.compare` pairs), and `groups`.

  Args:
    prompts: captions of each split, one picture each.
    caption: the words of the prompts; short ones are scored on what they say.
    splits: held-out splits to draw from.
    steps, guidance, sampler: of the sampler; None is the model's own.
    seed: picture i of a group starts from the noise of seed + i.
    benchmark: draw the eight categories too, `per_category` prompts from `noises` noises each.
  """
  require(services, "scenes_judge", *NEEDS["scenes_judge"])
  unknown = [name for name in splits if name not in SPLITS]
  if unknown or min(prompts, per_category, noises) < 1:
    raise ConfigError(f"scenes_judge: prompts, per_category and noises are at least 1 and splits among {', '.join(SPLITS)}; found "
                      f"{unknown or (prompts, per_category, noises)}")
  world = tier_named(tier)
  dataset = services.dataset(dict(name="scenes", tier=tier, split="val_iid"))

  def answered(params, extra, texts: Sequence[str], offset: int) -> np.ndarray:
    """uint8 pictures [N px px 3] of the texts; the one place that draws."""
    tokens, mask = dataset.tokenize(list(texts))
    seeds = (np.arange(len(texts)) + offset) % 2 ** 32
    made = to_uint8(draw(services, params, tokens, mask, seeds, sampler=sampler, steps=steps, guidance=guidance, extra=extra))
    if made.shape[1:] != (world.px, world.px, 3):
      raise ConfigError(f"scenes_judge reads {tier} pictures of {world.px} pixels, the model draws {made.shape[1:]}; set tier, or the "
                        "model's image_size")
    return made

  def run(params, step, extra=()):
    scalars, rows, groups, images = {}, [], [], {}
    for split in splits:
      suffix = SUFFIX.get(split, f"_{split}")
      source = scenes(tier=tier, split=split)
      records = [source[i] for i in range(min(prompts, len(source)))]
      texts, asked = [r["captions"][caption] for r in records], [r["facts"][caption] for r in records]
      made = answered(params, extra, texts, seed)
      readings = judge(made, tier)
      right = graded(readings, asked)
      rows += table(split, range(len(texts)), texts, readings, right, seed)
      groups.append(group(split, right[:, None], readings, texts))
      scalars |= {f"all_facts{suffix}": groups[-1]["right"], f"all_facts{suffix}_low": groups[-1]["low"],
                  f"all_facts{suffix}_high": groups[-1]["high"], f"unparseable{suffix}": groups[-1]["unparseable"]}
      scalars |= {f"accuracy{suffix}/{name}": value for name, value in by_attribute(readings, asked).items()}
      images.setdefault("", grid(made[:SHOWN], 8))
    if benchmark:
      measured = run_benchmark(params, extra, rows)
      groups += measured
      scalars |= {f"benchmark/{row['group']}": row["right"] for row in measured}
      scalars |= {f"benchmark/{row['group']}_{end}": row[end] for row in measured for end in ("low", "high")}
      scalars["benchmark/mean"] = float(np.mean([row["right"] for row in measured]))
    return Result(scalars, {"prompts": rows, "groups": groups}, images)

  def run_benchmark(params, extra, rows: list[dict]) -> list[dict]:
    found = []
    asked = prompt_sets.prompts(world, per_category=per_category, style=caption)
    for category in dict.fromkeys(prompt.category for prompt in asked):
      each = [prompt for prompt in asked if prompt.category == category for _ in range(noises)]
      readings = judge(answered(params, extra, [prompt.text for prompt in each], seed), tier)
      right = graded(readings, [prompt.facts for prompt in each])
      rows += table(category, [prompt.index for prompt in each], [prompt.text for prompt in each], readings, right, seed)
      found.append(group(category, right.reshape(-1, noises), readings, [prompt.text for prompt in each[::noises]]))
    return found

  return Evaluator(every_steps, params, run)


def graded(readings: Sequence[Reading], asked: Sequence[list[dict]]) -> np.ndarray:
  """bool [N]: whether a picture can be read and every fact asked of it holds."""
  return np.array([reading.parseable and all(score(reading.scene, facts)) for reading, facts in zip(readings, asked)], bool)


def by_attribute(readings: Sequence[Reading], asked: Sequence[list[dict]]) -> Mapping[str, float]:
  """Share of facts that hold, by what they are about; those asked of an unreadable picture do not."""
  found: dict[str, list[bool]] = {}
  for reading, facts in zip(readings, asked):
    for name, right in attributes(reading.scene, facts).items():
      found.setdefault(name, []).extend(one and reading.parseable for one in right)
  return {name: float(np.mean(right)) for name, right in found.items()}


def group(name: str, right: np.ndarray, readings: Sequence[Reading], texts: Sequence[str]) -> dict:
  """One line of the table of groups. `right`: bool [prompts noises]; the interval resamples prompts, those of one text together."""
  share = bootstrap(right, clusters=texts)
  return {"group": name, "prompts": len(right), "pictures": right.size, "right": share.mean, "low": share.low, "high": share.high,
          "unparseable": float(np.mean([not reading.parseable for reading in readings]))}


def table(category: str, numbers: Sequence[int], texts: Sequence[str], readings: Sequence[Reading], right: np.ndarray,
          seed: int) -> list[dict]:
  """One row per picture."""
  return [{"category": category, "prompt": number, "seed": seed + i, "text": text, "right": bool(good), "parseable": reading.parseable,
           "residual": round(reading.residual, 2)} for i, (number, text, reading, good) in enumerate(zip(numbers, texts, readings, right))]


def hard_negatives(services: Services, *, tier: Literal["T16", "T32", "T64"], every_steps: int, params: str = "",
                   split: Literal["val_iid", "val_comp", "val_rel", "val_count", "val_len"] = "val_iid", limit: int = 500) -> Evaluator:
  """Of pictures and pairs of captions that differ in one kind of fact, the share nearer to the right caption: `accuracy/KIND`.

  A tie is half right. The kinds that exchange something between two objects leave the bag of words as it is (chance for a model that
  only counts words); `count` and `background` do not. `limit` scenes from the split's first; a kind has a pair where the scene allows one.
  """
  require(services, "hard_negatives", *NEEDS["hard_negatives"])
  world = tier_named(tier)
  dataset = services.dataset(dict(name="scenes", tier=tier, split=split))

  def run(params, step, extra=()):
    image, pairs, owner = [], [], []
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind="long")
    for batch, made in embed_images(services, params, batches, extra=extra):
      for embedding, record in zip(made, batch["records"]):
        found = swaps.pairs(record["scene"], world)
        owner += [len(image)] * len(found)
        pairs += found
        image.append(embedding)
    tokens, mask = dataset.tokenize([text for pair in pairs for text in (pair.right, pair.wrong)])
    text = embed_texts(services, params, tokens, mask, extra=extra).reshape(len(pairs), 2, -1)
    likeness = np.einsum("nd,nkd->nk", np.stack(image)[owner], text)
    won = (likeness[:, 0] > likeness[:, 1]) + 0.5 * (likeness[:, 0] == likeness[:, 1])
    kinds = np.array([pair.kind for pair in pairs])
    rows = []
    for kind in dict.fromkeys(kinds.tolist()):
      share = bootstrap(won[kinds == kind], clusters=np.array(owner)[kinds == kind].tolist())       # pairs of one picture together
      rows.append({"kind": kind, "pairs": int((kinds == kind).sum()), "accuracy": share.mean, "low": share.low, "high": share.high})
    return Result({f"accuracy/{row['kind']}": row["accuracy"] for row in rows}, {"kinds": rows})

  return Evaluator(every_steps, params, run)
