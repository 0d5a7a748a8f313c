import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.losses.adversarial import adaptive_weight, generator, hinge


def test_hinge_by_hand():
  real, fake = jnp.asarray([[2.0, 0.5], [-1.0, 1.0]])[:, :, None, None], jnp.asarray([[-2.0, 0.0], [0.5, -1.0]])[:, :, None, None]
  np.testing.assert_allclose(hinge(real, fake), [0.5 * (0.25 + 0.5), 0.5 * (1.0 + 0.75)])
  np.testing.assert_allclose(generator(fake), [1.0, 0.25])


def test_the_hinge_lets_go_of_logits_beyond_the_margin():
  pull = jax.grad(lambda real: hinge(real, -2 * jnp.ones((1, 2, 1, 1))).sum())(jnp.asarray([0.9, 1.1])[None, :, None, None])
  np.testing.assert_allclose(pull.ravel(), [-0.25, 0.0])


def test_the_adaptive_weight_balances_the_two_gradients_and_is_a_constant():
  kernel = jnp.asarray([[1.0, 2.0]])
  strong, faint = lambda k: 3.0 * jnp.square(k).sum(), lambda k: 0.1 * k.sum()
  weight = adaptive_weight(strong, faint, kernel)
  np.testing.assert_allclose(weight, np.sqrt(36 + 144) / (0.1 * np.sqrt(2) + 1e-4), rtol=1e-5)
  np.testing.assert_allclose(adaptive_weight(strong, lambda k: 0.0 * k.sum(), kernel), 1e4)
  np.testing.assert_allclose(adaptive_weight(strong, faint, kernel, largest=7.0), 7.0)
  assert not np.asarray(jax.grad(lambda k: adaptive_weight(strong, faint, k))(kernel)).any()
