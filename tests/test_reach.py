"""Every value that a diffusion objective or a plan is given reaches the place where it acts: another value makes another one.

Formulas are tested where they stand; what slips through there is a value that is read, checked and then not handed on. A key that is new
must be added here.
"""
import hashlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from mmdiff.core.build import build
from mmdiff.core.objective import Context
from mmdiff.diffusion import plans, schedules
from mmdiff.objectives import OBJECTIVES
from mmdiff.objectives.diffusion import diffusion
from tests.train import small

DIFFUSION = small.CASES["pixels"].objective
NOISED = DIFFUSION | dict(schedule="cosine", prediction="v", weighting="min_snr")
EDM = DIFFUSION | dict(schedule="edm", prediction="edm")
LATENT = small.CASES["latents"].objective
# Objective -> (factory, its keys but for the models, each with an objective and another value than it has there).
OBJECTIVE_KEYS = {
  "diffusion": (diffusion, {
    "latents": (LATENT, "mean"), "schedule": (NOISED, "linear"), "prediction": (DIFFUSION, "v"), "weighting": (DIFFUSION, "uniform"),
    "min_snr_gamma": (NOISED, 2.0), "time_sampling": (DIFFUSION, "uniform"), "time_mean": (DIFFUSION, 0.3), "time_std": (DIFFUSION, 0.7),
    "time_shift": (DIFFUSION, 3.0), "zero_terminal_snr": (NOISED, True), "sigma_data": (EDM, 0.8), "offset_noise": (DIFFUSION, 0.1),
    "caption_dropout": (DIFFUSION, 0.3), "uncond": (DIFFUSION, "zeros")}),
}
AT_START = {"scale_init", "bias_init"}            # act where parameters are made
MODELS = {"model", "denoiser", "condition", "encode", "perceptual", "discriminator"}


def keys_of(factory) -> set[str]:
  return {name for name, parameter in inspect.signature(factory).parameters.items() if parameter.kind == parameter.KEYWORD_ONLY}


def small_batch() -> dict[str, np.ndarray]:
  return {name: value for name, value in small.batch(0, rows=8).items() if name != "counts"}


def init_of(options: dict):
  made = build(OBJECTIVES, options)
  return lambda key: made.init(key, small_batch())


SHAPES: dict[str, dict] = {}
PROGRAMS: dict[str, str] = {}


def program(options: dict, *, at_start: bool) -> str:
  """What the loss of an objective traces to, or its initialisation. The text leaves out the numbers of tables, such as a schedule's levels,
  so that their digests stand beside it."""
  name = f"{options} {at_start}"
  if name not in PROGRAMS:
    of, given = (init_of, ()) if at_start else (loss_of, (shapes_of(options),))
    traced = jax.make_jaxpr(of(options))(*given, jax.random.key(0))
    PROGRAMS[name] = f"{traced} {[hashlib.sha256(np.asarray(table).tobytes()).hexdigest() for table in tables(traced)]}"
  return PROGRAMS[name]


def shapes_of(options: dict) -> dict:
  """Of the parameters, which depend on the models and on whether a scale or a bias is learned."""
  name = repr({key: options.get(key) for key in (*MODELS, "loss", "learned_scale")})
  if name not in SHAPES:
    SHAPES[name] = jax.eval_shape(init_of(options), jax.random.key(0)).params
  return SHAPES[name]


def loss_of(options: dict):
  made = build(OBJECTIVES, options)
  return lambda params, key: made.loss(params, Context((), {}, jnp.int32(0), key), small_batch())


def tables(program) -> list:
  """The constant arrays of a traced program and of all that it calls."""
  found, jaxpr = list(getattr(program, "consts", ())), getattr(program, "jaxpr", program)
  for eqn in jaxpr.eqns:
    found += [one.val for one in eqn.invars if isinstance(one, Literal) and np.ndim(one.val)]
    for value in eqn.params.values():
      for part in value if isinstance(value, (tuple, list)) else (value,):
        found += tables(part) if hasattr(part, "eqns") or hasattr(part, "jaxpr") else []
  return found


@pytest.mark.parametrize("name, key", [(name, key) for name, (_, keys) in OBJECTIVE_KEYS.items() for key in keys])
def test_a_key_of_an_objective_changes_its_program(name, key):
  options, other = OBJECTIVE_KEYS[name][1][key]
  assert program(options, at_start=key in AT_START) != program(options | {key: other}, at_start=key in AT_START)


@pytest.mark.parametrize("name", OBJECTIVE_KEYS)
def test_every_key_of_an_objective_is_tried(name):
  factory, keys = OBJECTIVE_KEYS[name]
  assert keys.keys() == keys_of(factory) - MODELS


PLAN_KEYS = dict(steps=6, eta=0.3, spacing="leading", guidance=3.0, rescale=0.7, interval=(0.2, 0.6), clip=1.0, variance="large",
                 final="first", strength=0.6)


@pytest.mark.parametrize("key", PLAN_KEYS)
def test_an_option_of_a_plan_changes_it(key):
  base = dict(steps=5, guidance=2.0)
  made = lambda options: plans.plan("ddpm", schedules.schedule("scaled_linear"), **options)
  before, after = made(base), made(base | {key: PLAN_KEYS[key]})
  assert any(not np.array_equal(a, b) for a, b in zip(before, after))


def test_every_option_of_a_plan_is_tried():
  assert PLAN_KEYS.keys() == keys_of(plans.plan)
