"""Objectives × models × meshes × optimisers × freezing × accumulation × averages through the real step, drawn by a seed and traced."""
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import optim, parallel
from mmdiff.core import tree
from mmdiff.core.build import build
from mmdiff.objectives import OBJECTIVES
from mmdiff.train.state import init_state
from mmdiff.train.step import make_train_step
from tests.train import small

MESHES = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 1), (2, 1, 4), (1, 4, 2), (1, 1, 8)]
RULES = [dict(name="adamw", weight_decay=0.1), dict(name="adamw", mu_dtype="bfloat16", layer_decay=0.8, clip=1.0),
         dict(name="lion", clip=1.0), dict(name="lion", mu_dtype="bfloat16", weight_decay=1.0), dict(name="adafactor", min_factored=8),
         dict(name="adafactor", b1=0.0)]
DECAYS = ["cosine", "linear", "constant", "rsqrt", "wsd"]
# Options of the models, by where they stand in the objective; what a case lacks is passed over.
MODELS = [{}, {"dtype": "bfloat16"}, {"remat": "full"}, {"unroll": True}, {"attention": "xla"}]
FROZEN = ["image/.*", "text/.*", "logit_scale", ".*/embed/.*", "denoiser/.*/bias", "autoencoder/encoder/.*", "decoder/stack/.*",
          ".*/norm.*"]


def drawn(seed: int) -> dict:
  """One combination; the same on every machine."""
  r = random.Random(seed)
  name = list(small.CASES)[seed % len(small.CASES)]
  case = small.CASES[name]
  options = {}
  for part in ("model", "denoiser"):
    if part in case.objective:
      known = MODELS if part == "denoiser" or case.objective[part]["name"] != "kl" else [{}, {"dtype": "bfloat16"}, {"remat": "full"}]
      options[part] = case.objective[part] | r.choice(known)
  rule = lambda: r.choice(RULES) | dict(lr=1e-3, warmup_steps=r.choice([0, 3]), decay=r.choice(DECAYS))
  return dict(name=name, objective=case.objective | options, mesh=r.choice(MESHES), accumulate=r.choice([1, 2, 4]), rule=rule(),
              other=rule(), freeze=r.sample(FROZEN, r.choice([0, 0, 1, 2])),
              ema=r.choice([{}, dict(eval=0.99), dict(slow=0.999, fast=0.9)]),
              sharding=r.choice(["auto", "auto", "auto", "replicated"]), own_rule=r.random() < 0.5)


# By default two of the cheapest kind, and one of every other that traces in seconds.
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[] if seed in (0, 1, 2, 3, 4, 6, 8, 11) else pytest.mark.long)
                                  for seed in range(68)])
def test_a_combination_steps(seed):
  made = drawn(seed)
  case = small.CASES[made["name"]]
  objective = build(OBJECTIVES, made["objective"])
  batch = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in small.batch(0, rows=32).items()}
  blank = {name: np.zeros((2, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch.items() if name != "counts"}
  shapes = jax.eval_shape(lambda key: objective.init(key, blank).params, jax.random.key(0))
  freeze = (*case.freeze, *(pattern for pattern in made["freeze"] if any(tree.matches(path, [pattern]) for path in tree.paths(shapes))))
  trains = lambda patterns: tuple(name for name, part in tree.partition(shapes, patterns)[0].items() if jax.tree.leaves(part))
  freeze = freeze if trains(freeze) else case.freeze
  groups = trains(freeze)
  rules = dict(default=made["rule"]) | ({groups[-1]: made["other"]} if made["own_rule"] and len(groups) > 1 else {})
  tx, _ = optim.make(rules, 100, groups)
  mesh = parallel.make_mesh(**dict(zip(("data", "fsdp", "tensor"), made["mesh"])))
  with jax.set_mesh(mesh):
    state = jax.eval_shape(functools.partial(init_state, objective, tx, freeze, tuple(made["ema"]), 2), jax.random.key(0), blank)
    step = make_train_step(objective, tx, ema=made["ema"], microbatches=made["accumulate"])
    after, metrics = jax.eval_shape(step, state, batch)
    layouts = parallel.shardings(state, mesh, made["sharding"])
  kind = lambda leaf: (leaf.shape, leaf.dtype)
  assert jax.tree.structure(after) == jax.tree.structure(state), made                   # so that it can be donated, saved and restored
  assert [kind(leaf) for leaf in jax.tree.leaves(after)] == [kind(leaf) for leaf in jax.tree.leaves(state)], made
  assert {"loss", "grad_norm", "skipped"} <= set(metrics) and all(leaf.shape == () for leaf in metrics.values()), made
  assert metrics["loss"].dtype == jnp.float32

  moving, kept = (set(tree.paths(part)) for part in (state.params, state.frozen))
  assert kept == {path for path in tree.paths(shapes) if tree.matches(path, freeze)} and moving | kept == set(tree.paths(shapes))
  for average in state.ema.values():
    assert set(tree.paths(average)) == moving
  # A moment of a parameter's shape lies where the parameter lies, and no frozen one has any.
  place = dict(zip(tree.paths(state.params), zip(jax.tree.leaves(state.params), jax.tree.leaves(layouts.params))))
  moments = [(path, leaf, at) for path, leaf, at in zip(tree.paths(state.opt_state), jax.tree.leaves(state.opt_state),
                                                        jax.tree.leaves(layouts.opt_state)) if leaf.ndim]
  seen = set()
  for path, leaf, at in moments:
    assert not any(f"/{name}" in f"/{path}" and path.endswith(name) for name in kept - moving), path
    owner = max((name for name in place if path.endswith(f"/{name}")), key=len)
    if leaf.shape == place[owner][0].shape:
      assert at.spec == place[owner][1].spec, path
    seen.add(owner)
  assert {name for name in moving if place[name][0].ndim} <= seen <= moving, made       # a factored moment of a scalar is a vector of one
