"""The world as a source of records, and as the factory that configs name."""
import hashlib
from typing import Any, Literal

from mmdiff.data.scenes import captions
from mmdiff.data.scenes.alt_text import Noise, alt_text
from mmdiff.data.scenes.render import render
from mmdiff.data.scenes.tiers import VERSION, Tier, tier_named
from mmdiff.data.scenes.wording import Digits
from mmdiff.data.scenes.world import sample, to_json

KINDS = ("long", "short", "original")


def caption(scene: dict[str, Any], tier: Tier, kind: str, variant: int = 0, noise: Noise = Noise()) -> tuple[str, list[dict[str, Any]]]:  # noqa: B008
  """(text, facts) of a scene's JSON: a function of (scene id, kind, variant) and, for `original`, the noise."""
  digits = Digits(scene["id"], kind, variant)
  if kind == "original":
    return alt_text(scene, tier, digits, noise)
  return {"long": captions.long, "short": captions.short}[kind](scene, tier, digits)


class Scenes:
  """Record i: key, image uint8 [px px 3], captions, facts and scene. Random access, no files, a few numbers of state.

  With one variant of a kind `captions[kind]` is a str and `facts[kind]` its list of facts; with more, both are lists of such.
  """
  allow_empty_captions = True         # the noise model's empty alt text is the valid caption ""

  def __init__(self, tier: str, split: str, size: int, variants: dict[str, int], noise: Noise):
    self.tier = tier_named(tier)
    self.split, self.size, self.variants, self.noise = split, size, variants, noise

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._record(int(index), drawn=True)

  def without_image(self, index: int) -> dict[str, Any]:
    """The same record, whose picture is b"" and was not drawn."""
    return self._record(int(index), drawn=False)

  def _record(self, index: int, *, drawn: bool) -> dict[str, Any]:
    if not 0 <= index < self.size:
      raise IndexError(f"scenes {self.tier.name} {self.split} has {self.size} records, asked for {index}")
    scene = sample(self.tier, self.split, index)
    told = to_json(scene)
    texts, facts = {}, {}
    for kind, number in self.variants.items():
      said = [caption(told, self.tier, kind, variant, self.noise) for variant in range(number)]
      texts[kind], facts[kind] = said[0] if number == 1 else ([text for text, _ in said], [claims for _, claims in said])
    return {"key": f"{self.tier.name}-{self.split}-{index:07d}", "image": render(scene) if drawn else b"", "captions": texts,
            "facts": facts, "scene": told}

  def fingerprint(self) -> str:
    """Changes with anything that changes a record."""
    told = repr((VERSION, self.tier, self.split, self.size, sorted(self.variants.items()), tuple(self.noise)))
    return f"scenes-{self.tier.name}-{self.split}-{self.size}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def scenes(*, tier: Literal["T16", "T32", "T64"] = "T32",
           split: Literal["train", "val_iid", "val_comp", "val_rel", "val_count", "val_len"] = "train", size: int = 0,
           long_variants: int = 1, short_variants: int = 1, original_variants: int = 1,
           alt_empty: float = 0.08, alt_no_content: float = 0.32, alt_keep_color: float = 0.60, alt_wrong_color: float = 0.15,
           alt_keep_shape: float = 0.70, alt_wrong_shape: float = 0.10, alt_other_image: float = 0.03, alt_file_name: float = 0.06,
           alt_typo: float = 0.05, alt_foreign: float = 0.05, alt_caps: float = 0.05, alt_entities: float = 0.03,
           alt_emoji: float = 0.03, alt_cut: float = 0.04, alt_repeat: float = 0.03, alt_cut_chars: int = 30) -> Scenes:
  """The built-in world. `size` 0 is the tier's own: 10,000 / 50,000 / 200,000 for training, 1,000 / 2,000 / 4,000 for each other split.

  `alt_…` are the probabilities of `alt_text.Noise`. Raises ValueError for a negative size, a variant count below 1 or a probability
  outside 0–1.
  """
  noise = Noise(alt_empty, alt_no_content, alt_keep_color, alt_wrong_color, alt_keep_shape, alt_wrong_shape, alt_other_image, alt_file_name,
                alt_typo, alt_foreign, alt_caps, alt_entities, alt_emoji, alt_cut, alt_repeat, alt_cut_chars)
  variants = dict(zip(KINDS, (long_variants, short_variants, original_variants)))
  wrong = [f"alt_{name} = {value}" for name, value in zip(Noise._fields[:-1], noise) if not 0 <= value <= 1]
  if wrong or min(variants.values()) < 1 or size < 0 or alt_cut_chars < 1:
    raise ValueError(f"scenes: probabilities are in 0–1, sizes not negative and variants at least 1; found "
                     f"{', '.join(wrong) or dict(variants, size=size, alt_cut_chars=alt_cut_chars)}")
  world = tier_named(tier)
  return Scenes(tier, split, size or (world.train_size if split == "train" else world.val_size), variants, noise)
