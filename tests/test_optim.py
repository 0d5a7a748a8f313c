"""Optimisers: schedules have their shape, groups get their own rule, decay goes by name."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmdiff import optim
from mmdiff.core.errors import ConfigError

PARAMS = {"image": {"stack": {"norm": {"scale": jnp.ones((2, 4))}, "mlp": {"up": {"kernel": jnp.ones((2, 4, 4))}}}},
          "text": {"proj": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones((4,))}}}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)


def updated(config, grads, params=PARAMS):
  tx, _ = optim.make(config, 10, ("image", "text"))
  updates, _ = tx.update(grads, tx.init(params), params)
  return optax.apply_updates(params, updates)


@pytest.mark.parametrize("decay, values", [
  ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 55: 1.0, 100: 1.0}), ("cosine", {5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1}),
  ("linear", {10: 1.0, 55: 0.55, 100: 0.1}), ("wsd", {5: 0.5, 10: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
  ("rsqrt", {10: 1.0, 40: 0.5, 90: 1 / 3})])
def test_schedules(decay, values):
  numbers = optim.numbers(100, lr=1.0, warmup_steps=10, decay=decay, final=0.1)
  for step, value in values.items():
    assert float(optim.rate(numbers, step)) == pytest.approx(value, abs=1e-6), (decay, step)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_decay_touches_kernels_only(name):
  new = updated(dict(default=dict(name=name, lr=0.1, decay="constant", weight_decay=0.5)), ZERO)
  np.testing.assert_array_equal(new["image"]["stack"]["norm"]["scale"], 1.0)
  np.testing.assert_array_equal(new["text"]["proj"]["bias"], 1.0)
  np.testing.assert_allclose(new["image"]["stack"]["mlp"]["up"]["kernel"], 0.95, rtol=1e-6)


def test_each_group_has_its_own_rate():
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  new = updated(dict(default=dict(name="lion", lr=0.1, decay="constant"), text=dict(name="lion", lr=0.3, decay="constant")), grads)
  np.testing.assert_allclose(new["image"]["stack"]["norm"]["scale"], 0.9, rtol=1e-6)
  np.testing.assert_allclose(new["text"]["proj"]["bias"], 0.7, rtol=1e-6)


def test_clipping_is_by_global_norm():
  grads = jax.tree.map(lambda x: 100.0 * jnp.ones_like(x), PARAMS)
  tx, _ = optim.make(dict(default=dict(name="adamw", lr=1.0, clip=1.0, b1=0.0)), 10, ("image", "text"))
  _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
  moment = [x for path, x in jax.tree_util.tree_leaves_with_path(state) if "mu" in jax.tree_util.keystr(path)]
  assert float(optax.tree.norm(moment)) == pytest.approx(1.0, rel=1e-5)


def test_adafactor_factors_large_kernels():
  params = {"image": {"mlp": {"up": {"kernel": jnp.ones((256, 128))}}}}
  tx, _ = optim.make(dict(default=dict(name="adafactor", lr=1.0)), 10, ("image",))
  shapes = {x.shape for x in jax.tree.leaves(tx.init(params)) if x.dtype == jnp.float32}
  assert (256,) in shapes and (128,) in shapes and (256, 128) not in shapes


def test_groups_that_do_not_exist_and_groups_without_a_rule_are_errors():
  adamw = dict(name="adamw", lr=0.1)
  with pytest.raises(ConfigError, match="optim.vision: no parameter group.*image, text"):
    optim.make(dict(default=adamw, vision=adamw), 10, ("image", "text"))
  with pytest.raises(ConfigError, match="nothing updates the parameter group 'text'"):
    optim.make(dict(image=adamw), 10, ("image", "text"))


def test_learning_rates_for_the_log():
  _, numbers = optim.make(dict(default=dict(name="adamw", lr=0.1, warmup_steps=10)), 100, ("image",))
  assert optim.learning_rates(numbers, 5) == {"learning_rate/default": pytest.approx(0.05)}


def test_layers_further_from_the_end_learn_less():
  """Of a tower of two blocks: what comes first by the cube of the decay, the blocks by its square and itself, the head in full."""
  params = {"image": {"stack": {"mlp": {"kernel": jnp.zeros((2, 4, 4))}}, "position": jnp.zeros((3, 4)),
                      "projection": {"kernel": jnp.zeros((4, 4))}},
            "logit_scale": jnp.zeros(())}
  config = dict(default=dict(name="adamw", lr=1.0, decay="constant", layer_decay=0.5, eps=0.0))
  tx, _ = optim.make(config, 10, ("image", "logit_scale"))
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  image = updates["image"]
  np.testing.assert_allclose(image["stack"]["mlp"]["kernel"][:, 0, 0], [-0.25, -0.5], rtol=1e-5)
  np.testing.assert_allclose(image["position"], -0.125, rtol=1e-5)
  np.testing.assert_allclose(image["projection"]["kernel"], -1.0, rtol=1e-5)
  np.testing.assert_allclose(updates["logit_scale"], -1.0, rtol=1e-5)
  with pytest.raises(ConfigError, match="layer_decay: expected a number above 0, up to 1, found 0"):
    optim.make(dict(default=dict(name="adamw", lr=1.0, layer_decay=0.0)), 10, ("image",))


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_weight_decay_goes_with_the_rate_or_with_the_schedule(name):
  """Of a kernel of ones without a gradient, half-way through the warm-up and at the peak: rate × decay, or schedule × decay."""
  for times, shares in (("lr", (0.5e-3 * 0.1, 1e-3 * 0.1)), ("schedule", (0.5 * 0.1, 0.1))):
    tx, _ = optim.make(dict(default=dict(name=name, lr=1e-3, warmup_steps=2, decay="constant", weight_decay=0.1, decay_times=times)), 10,
                       ("image", "text"))
    state, taken = tx.init(PARAMS), []
    for _ in range(3):
      updates, state = tx.update(ZERO, state, PARAMS)
      taken.append(-float(updates["text"]["proj"]["kernel"][0, 0]))
    np.testing.assert_allclose(taken, (0.0, *shares), rtol=1e-5)


def test_the_schedule_convention_is_that_of_big_vision():
  """clip, direction, × lr, + decay × parameter, × schedule, × −1, in this order; a second independent writing of it."""
  from optax import add_decayed_weights, chain, clip_by_global_norm, linear_schedule, scale, scale_by_adam, scale_by_schedule
  mask = {"image": {"stack": {"norm": {"scale": False}, "mlp": {"up": {"kernel": True}}}},
          "text": {"proj": {"kernel": True, "bias": False}}}
  theirs = chain(clip_by_global_norm(1.0), scale_by_adam(b2=0.95), scale(1e-3), add_decayed_weights(1e-4, mask),
                 scale_by_schedule(linear_schedule(0.0, 1.0, 5)), scale(-1.0))
  ours, _ = optim.make(dict(default=dict(name="adamw", lr=1e-3, warmup_steps=5, decay="constant", b2=0.95, weight_decay=1e-4, clip=1.0,
                                         decay_times="schedule")), 10, ("image", "text"))
  states, params = [theirs.init(PARAMS), ours.init(PARAMS)], PARAMS
  for step in range(3):
    grads = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(step).normal(size=x.shape), jnp.float32), params)      # noqa: B023
    (expected, states[0]), (found, states[1]) = (tx.update(grads, state, params) for tx, state in zip((theirs, ours), states))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), found, expected)
    params = optax.apply_updates(params, found)


def test_layers_that_learn_less_decay_no_less_by_the_schedule():
  params = {"image": {"stack": {"mlp": {"kernel": jnp.ones((2, 4, 4))}}}}
  for times, taken in (("lr", [0.25 * 0.1, 0.5 * 0.1]), ("schedule", [0.1, 0.1])):
    tx, _ = optim.make(dict(default=dict(name="lion", lr=1.0, decay="constant", weight_decay=0.1, decay_times=times, layer_decay=0.5)), 10,
                       ("image",))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(-updates["image"]["stack"]["mlp"]["kernel"][:, 0, 0], taken, rtol=1e-5)


def test_decay_by_the_schedule_needs_a_rate():
  with pytest.raises(ConfigError, match="decay_times='schedule' has no meaning with lr 0"):
    optim.make(dict(default=dict(name="lion", lr=0.0, weight_decay=0.1, decay_times="schedule")), 10, ("image",))


def test_adafactor_clips_its_updates_only_if_asked():
  """After a gradient of 1 one of 100 has a direction of about √2 or more; the clip brings its root mean square to at most 1."""
  params = {"image": {"kernel": jnp.zeros((4, 4))}}
  for clip, expected in ((1.0, 1.0), (0.0, 1.9)):
    options = dict(name="adafactor", lr=1.0, decay="constant", b1=0.0, b2_cap=0.75, update_clip=clip)
    tx, _ = optim.make(dict(default=options), 10, ("image",))
    state = tx.init(params)
    for size in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0):
      updates, state = tx.update({"image": {"kernel": jnp.full((4, 4), size)}}, state, params)
    assert float(-updates["image"]["kernel"][0, 0]) == pytest.approx(expected, rel=0.06)


def test_what_decays_by_default_in_a_real_model():
  """Kernels and embeddings; no bias, position, class token, scale of a norm, logit scale."""
  from mmdiff.models.clip import clip
  model = clip(variant="tiny")
  batch = jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool)
  params = jax.tree.map(lambda x: jnp.ones((1,)), jax.eval_shape(model.init, jax.random.key(0), *batch)["params"])       # names alone count
  tx, _ = optim.make(dict(default=dict(name="lion", lr=1.0, decay="constant", weight_decay=0.5)), 10, tuple(params))
  updates = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
  kinds = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
    kinds.setdefault(path[-1].key, set()).add(float(leaf[0]))
  assert kinds == {"kernel": {-0.5}, "embedding": {-0.5}, "bias": {0.0}, "scale": {0.0}, "position": {0.0}, "class_token": {0.0},
                   "logit_scale": {0.0}}


def test_an_update_of_adafactor_has_at_most_unit_size():
  """A gradient that jumps is ahead of its second moment; the update is clipped (§6 of https://arxiv.org/abs/1804.04235)."""
  params = {"image": {"kernel": jnp.ones((4, 4))}}
  tx, _ = optim.make(dict(default=dict(name="adafactor", lr=1.0, decay="constant", b1=0.0)), 10, ("image",))
  state = tx.init(params)
  for size in (1.0, 1.0, 10.0):
    updates, state = tx.update({"image": {"kernel": jnp.full((4, 4), size)}}, state, params)
  np.testing.assert_allclose(jnp.abs(updates["image"]["kernel"]), 1.0, rtol=1e-3)


def test_patterns_of_decay_that_match_nothing_are_named():
  decayed = dict(name="adamw", lr=0.1, weight_decay=0.1)
  assert optim.problems(dict(default=decayed, text=decayed | dict(decayed=(".*/bias",))), PARAMS) == []
  wrong, = optim.problems(dict(default=decayed, image=decayed | dict(decayed=("nothing",))), PARAMS)
  assert "--config.optim.image.decayed" in wrong and "image/stack/mlp/up/kernel" in wrong
