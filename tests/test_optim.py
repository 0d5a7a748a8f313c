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
  rate = optim.schedule(100, lr=1.0, warmup_steps=10, decay=decay, final=0.1)
  for step, value in values.items():
    assert float(rate(step)) == pytest.approx(value, abs=1e-6), (decay, step)


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
  _, schedules = optim.make(dict(default=dict(name="adamw", lr=0.1, warmup_steps=10)), 100, ("image",))
  assert optim.learning_rates(schedules, 5) == {"learning_rate/default": pytest.approx(0.05)}


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
