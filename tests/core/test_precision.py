"""Precision reaches every product: what the config says, and full float32 where it decides."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision
from jax.sharding import AxisType

from mmdiff.core.precision import objective_of, precise
from mmdiff.losses import contrastive, reconstruction
from mmdiff.objectives import OBJECTIVES
from mmdiff.objectives.contrastive import contrastive as contrastive_objective
from tests import toy_runs
from tests.objectives.test_contrastive import Towers, batch_of, context


def products(jaxpr):
  """Every dot_general and convolution of a jaxpr, those of inner ones too."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
      yield eqn
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        yield from products(getattr(inner, "jaxpr", inner))


def precisions(fn, *args):
  return [eqn.params["precision"] for eqn in products(jax.make_jaxpr(fn)(*args).jaxpr)]


def exact(found):
  return bool(found) and all(one is not None and set(one) == {Precision.HIGHEST} for one in found)


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_similarities_are_exact_forward_and_backward(loss, chunk, mesh):
  x, one = jnp.ones((16, 8)), jnp.ones(())
  fn = lambda image, text, scale: getattr(contrastive, loss)(image, text, scale, *[one] * (loss == "sigmoid"), chunk=chunk)[0]
  run = lambda: precisions(jax.value_and_grad(fn, (0, 1, 2)), x, x, one)
  with jax.set_mesh(jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)) if mesh else jax.disable_jit(False):
    found = run()
  assert len(found) >= 3 and exact(found)                  # forward, and one for each side


def test_windows_of_ssim_are_exact():
  x = jnp.zeros((1, 12, 12, 3))
  assert exact(precisions(reconstruction.ssim, x, x))


@pytest.mark.parametrize("precision,expected", [("default", {None}), ("high", {Precision.HIGH}), ("highest", {Precision.HIGHEST})])
def test_the_config_reaches_every_other_product(precision, expected):
  """Of the towers, in loss and gradient, and of what is served; the similarities stay exact."""
  config = toy_runs.clip() | dict(precision=precision)
  objective = objective_of(OBJECTIVES, config)
  batch = dict(image=np.zeros((4, 16, 16, 3), np.uint8), tokens=np.zeros((4, 24), np.int32), mask=np.ones((4, 24), bool),
               id=np.zeros(4, np.uint32))
  params = jax.eval_shape(objective.init, jax.random.key(0), batch).params
  loss = lambda params, batch: objective.loss(params, context(), batch)[0]
  simple = lambda one: None if one is None or set(one) <= {None, Precision.DEFAULT} else one[0]
  found = [simple(one) for one in precisions(jax.grad(loss), params, batch)]
  similarities = [simple(one) for one in precisions(loss, params, batch)][-1]
  assert similarities == Precision.HIGHEST and len(found) > 20
  assert set(found) == expected | {Precision.HIGHEST} and (precision == "highest" or found.count(Precision.HIGHEST) == 3)
  for name, args in (("embed_image", (batch["image"],)), ("embed_text", (batch["tokens"], batch["mask"]))):
    assert {simple(one) for one in precisions(objective.predict[name], params, *args)} == expected


def test_a_precise_function_keeps_its_signature():
  fn = precise(lambda params, x, *, size: x * size, "high")
  assert jax.jit(fn, static_argnames=("size",))(None, 2.0, size=3) == 6


def test_microbatches_keep_the_precision():
  """Recomputed chunks are traced inside as well."""
  made, batch = contrastive_objective(model=Towers()), batch_of(4)
  params = jax.eval_shape(made.init, jax.random.key(0), batch).params
  loss = precise(lambda params, batch: made.loss(params, context(microbatches=2), batch)[0], "highest")
  assert exact(precisions(jax.grad(loss), params, batch))


def test_whoever_builds_a_whole_config_does_it_here():
  """A command that called `build(OBJECTIVES, …)` would leave the config's precision out; what is excepted computes nothing, or wraps it."""
  root = Path(__file__).resolve().parents[2] / "mmdiff"
  found = {str(file.relative_to(root)) for file in root.rglob("*.py") if "build(OBJECTIVES" in file.read_text()}
  assert found - {"core/build.py"} == {"commands/plan_ablation.py", "model.py"}
