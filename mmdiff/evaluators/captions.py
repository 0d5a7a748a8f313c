"""What a captioner writes: how true and how complete it is on the built-in world, whose truth is known exactly, and whether it degenerates.

`captions` writes captions for held-out scenes and reads them back with the grammar (`data.scenes.parse`). The facts claimed are compared
with the scene: precision is the share of claimed facts that hold, recall the share of the scene's facts that were claimed.
`degeneration` needs no truth and serves every set of captions.
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.data.scenes.facts import ATTRIBUTES, score
from mmdiff.data.scenes.parse import parse
from mmdiff.data.scenes.tiers import SPLITS, Tier, tier_named
from mmdiff.evaluators import NEEDS, base
from mmdiff.evaluators.base import Evaluator, Result, Services

PARTS = ("count", "background", "object")            # what every long caption says; relations are optional


def captions(services: Services, *, tier: Literal["T16", "T32", "T64"], every_steps: int, limit: int = 500,
             kind: Literal["long", "short"] = "long", splits: tuple[str, ...] = ("val_iid", "val_comp"), params: str = "",
             method: Literal["greedy", "sample", "beam"] = "greedy", max_len: int = 0, min_len: int = 0, beams: int = 4,
             temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0, no_repeat_ngram: int = 0,
             length_penalty: float = 1.0, seed: int = 0) -> Evaluator:
  """Scalars per split (see `measure` and `degeneration`): those of val_iid bare, of val_comp with "_held_out", of others by their name.

  Args:
    limit: scenes of each split.
    kind: the captions that it should write; of short ones recall is what they leave unsaid.
    splits: held-out splits.
    method … length_penalty: see `mmdiff.decode.settings`; max_len 0 = the length of the training captions.
    seed: caption i of a split is drawn with seed + i.
  """
  base.require(services, "captions", *NEEDS["captions"])
  unknown = [name for name in splits if name not in SPLITS]
  if unknown or limit < 1:
    raise ConfigError(f"captions: limit is at least 1 and splits among {', '.join(SPLITS)}; found {unknown or limit}")
  world = tier_named(tier)
  decoding = dict(method=method, min_len=min_len, beams=beams, temperature=temperature, top_k=top_k, top_p=top_p,
                  repetition_penalty=repetition_penalty, no_repeat_ngram=no_repeat_ngram, length_penalty=length_penalty)
  decoding |= dict(max_len=max_len) if max_len else {}

  def run(params, step, extra=()) -> Result:
    scalars, rows = {}, []
    for split in splits:
      dataset = services.dataset(dict(name="scenes", tier=tier, split=split))
      count = base.records(dataset, limit)
      examples = [dataset.plain_at(i, kind) for i in range(count)]
      settings = base.caption_settings(dataset.tokenizer, dataset.text_len, **decoding)
      tokens, lengths = base.write_captions(services, params, np.stack([example.image for example, _ in examples]),
                                            (np.arange(count) + seed) % 2 ** 32, settings, extra=extra)
      texts = [dataset.tokenizer.decode(row[:length]) for row, length in zip(tokens, lengths)]
      cut = [bool(row[length - 1] != dataset.tokenizer.end) for row, length in zip(tokens, lengths)]
      found, told = measure(texts, [record["scene"] for _, record in examples], [record["facts"]["long"] for _, record in examples], world)
      for name, value in (found | degeneration(texts, cut)).items():
        what, slash, part = name.partition("/")
        scalars[what + suffix_of(split) + slash + part] = value
      rows += [dict(split=split, key=example.key, caption=text, wanted=example.text, **row)
               for (example, _), text, row in zip(examples, texts, told)]
    return Result(scalars, {"captions": rows})

  return Evaluator(every_steps, params, run)


def suffix_of(split: str) -> str:
  """As `evaluators.scenes` names its scalars."""
  return {"val_iid": "", "val_comp": "_held_out"}.get(split, f"_{split}")


def measure(texts: Sequence[str], scenes: Sequence[Mapping[str, Any]], gold: Sequence[Sequence[Mapping[str, Any]]],
            tier: Tier) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """(scalars, a row per caption) of captions of scenes whose long captions' facts are `gold`.

  fact_precision: of the facts claimed. fact_recall: of count, background and objects, each object with its place and every attribute.
  recall/ATTRIBUTE: of the objects, at the place where they stand. hallucination: captions with any false fact. perfect: captions that claim
  every fact and no false one. facts: claimed per caption.
  """
  right = claimed = there = told = 0
  by_attribute: dict[str, list[bool]] = {}
  rows: list[dict[str, Any]] = []
  for text, scene, truth in zip(texts, scenes, gold, strict=True):
    facts = parse(text, tier)
    holds = score(scene, facts)
    wanted = [fact for fact in truth if fact["fact"] in PARTS]
    hits = [fact in facts for fact in wanted]
    for fact in wanted:
      if fact["fact"] == "object":
        at_place = [said for said in facts if said["fact"] == "object" and said.get("cell") == fact["cell"]]
        for name in (name for name in ATTRIBUTES if name in fact):
          by_attribute.setdefault(name, []).append(any(said.get(name) == fact[name] for said in at_place))
    right, claimed, there, told = right + sum(holds), claimed + len(holds), there + sum(hits), told + len(hits)
    rows.append(dict(right=all(holds) and all(hits), claimed=len(holds), false=len(holds) - sum(holds), missed=len(hits) - sum(hits)))
  scalars = dict(fact_precision=right / max(claimed, 1), fact_recall=there / max(told, 1),
                 hallucination=float(np.mean([row["false"] > 0 for row in rows])), perfect=float(np.mean([row["right"] for row in rows])),
                 facts=claimed / max(len(rows), 1))
  return scalars | {f"recall/{name}": float(np.mean(values)) for name, values in by_attribute.items()}, rows


def degeneration(texts: Sequence[str], cut: Sequence[bool] = ()) -> dict[str, float]:
  """Whether a set of captions degenerates.

  distinct_1, distinct_2: different words and pairs of words, of all (Li et al. 2016, https://arxiv.org/abs/1510.03055). duplicates:
  captions that another one repeats word for word. repetitive: captions in which some four words in a row occur twice. empty, truncated
  (`cut`): the shares of those. words: mean length.
  """
  if not texts:
    return {}
  split = [text.split() for text in texts]
  grams = lambda words, n: list(zip(*(words[i:] for i in range(n))))
  scalars = {}
  for n in (1, 2):
    every = [gram for words in split for gram in grams(words, n)]
    scalars[f"distinct_{n}"] = len(set(every)) / max(len(every), 1)
  times = Counter(texts)
  fours = [grams(words, 4) for words in split]
  scalars |= dict(duplicates=sum(count for count in times.values() if count > 1) / len(texts),
                  repetitive=float(np.mean([len(set(found)) < len(found) for found in fours])),
                  empty=float(np.mean([not words for words in split])), words=float(np.mean([len(words) for words in split])))
  return scalars | ({"truncated": float(np.mean(cut))} if len(cut) else {})
