"""The keys of an ablation's config: one experiment, the arms that change it, and what is made first. Nothing here runs."""
from collections.abc import Mapping

from mmdiff.core.experiment import Experiment

AREA, HALF, END = "area", "half-way", "end"     # where two arms are compared: over the learning curve, and at two steps


class Ablation:
  base: Experiment
  arms: Mapping[str, tuple[str, ...]]             # arm -> what it changes in `base`, as flags say it: ("data.captions={'long': 1.0}",)
  seeds: tuple[int, ...]                          # each arm is trained with each; takes the place of base.seed
  reference: str                                  # the arm that the others are compared with
  read: str = "alignment"                         # the entry of base.evals that the report is made from
  prepare: Mapping[str, tuple[str, ...]] = {}     # name -> command line of mmdiff; run in order, once, before the arms
