"""How exact the products of float32 matrices are.

An accelerator multiplies float32 in TensorFloat-32 (GPUs) or in one pass of bfloat16 (TPUs) unless a program asks for more, which costs
three to eleven bits of what `dtype="float32"` promises. `config.precision` says it for a whole run; what is bfloat16 already is no slower
at any. Where an error decides whatever the config says, the code asks for `EXACT` itself: similarities times 100, variances as differences.
"""
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mmdiff.core.build import build
from mmdiff.core.objective import Objective

EXACT = jax.lax.Precision.HIGHEST
USUAL = "highest"                  # the default of `config.precision`, and of public checkpoints


def precise(fn: Callable, precision: str) -> Callable:
  """`fn` whose matrix products and convolutions have that precision when it is traced, where they ask for none: default, high, highest."""
  @functools.wraps(fn)
  def inside(*args, **options):
    with jax.default_matmul_precision(precision):
      return fn(*args, **options)
  return inside


def all_precise(functions: Mapping[str, Callable], precision: str) -> dict[str, Callable]:
  """The same of every function, e.g. of `Objective.predict`."""
  return {name: precise(fn, precision) for name, fn in functions.items()}


def objective_of(table: Mapping[str, str], config: Mapping[str, Any]) -> Objective:
  """The objective of a whole config, all of whose functions compute with `config["precision"]`; gradients do as what they are of."""
  made, precision = build(table, config["objective"]), config.get("precision", USUAL)
  return made._replace(init=precise(made.init, precision), loss=precise(made.loss, precision), predict=all_precise(made.predict, precision))
