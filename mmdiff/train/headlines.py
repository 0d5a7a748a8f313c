"""The one number of an evaluator that says how a run is doing, and what a model that knows nothing would get."""
from collections.abc import Mapping
from typing import NamedTuple

# By evaluator: the scalars to take, the first that is there; the scalar that counts the choices, for chance = 1 in so many.
NAMES: dict[str, tuple[str, ...]] = {
  "loss": ("loss",), "retrieval": ("recall_at_1",), "collapse": ("alike/image", "alike/text"), "zeroshot": ("top_1",),
  "clipscore": ("clipscore",), "alignment": ("all_facts", "clipscore_long", "clipscore_original"),
  "samples": ("between_prompts_std",), "reconstruction": ("psnr",), "scenes_judge": ("all_facts", "benchmark/mean"),
  "captions": ("fact_precision",),
}
CHOICES = {"retrieval": "images", "zeroshot": "classes"}
# Beginnings of the parts of names whose values go from 0 to 1 and are said in per cent.
SHARES = ("recall", "top_", "all_facts", "accuracy", "fact_", "benchmark", "right", "unparseable", "hallucination", "perfect", "distinct_",
          "duplicates", "truncated", "r_precision", "share", "mfu", "data_wait")
LOWER_IS_BETTER = ("loss", "collapse")


def is_share(name: str) -> bool:
  """Whether a scalar of this name is a share."""
  return any(part.startswith(SHARES) for part in name.split("/"))


class Headline(NamedTuple):
  """One score. `low` and `high`: its interval where the evaluator gives one; `chance`: of a guess, where that is known."""
  name: str
  value: float
  low: float | None = None
  high: float | None = None
  chance: float | None = None

  def said(self) -> str:
    """recall at 1 53.5 % (chance 0.5 %)."""
    write = (lambda value: f"{100 * value:.1f} %") if is_share(self.name) else (lambda value: f"{value:.4g}")
    parts = [f"{write(self.low)} to {write(self.high)}"] if self.low is not None and self.high is not None else []
    parts += [f"chance {write(self.chance)}"] if self.chance is not None else []
    return f"{self.name.replace('_', ' ')} {write(self.value)}" + (f" ({', '.join(parts)})" if parts else "")


def headline(evaluator: str, scalars: Mapping[str, float]) -> Headline | None:
  """Of the evaluator of this factory's name (`config.evals.NAME.name`); the first scalar where it is not known here, None without any."""
  means = [value for key, value in scalars.items() if key.startswith("accuracy/")]
  if evaluator == "hard_negatives" and means:
    return Headline("accuracy", sum(means) / len(means), chance=0.5)
  name = next((name for name in NAMES.get(evaluator, ()) if name in scalars), next(iter(scalars), None))
  if name is None:
    return None
  choices = scalars.get(CHOICES.get(evaluator, ""), 0)
  return Headline(name, scalars[name], scalars.get(f"{name}_low"), scalars.get(f"{name}_high"), 1 / choices if choices else None)
