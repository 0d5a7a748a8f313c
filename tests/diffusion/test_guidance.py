import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.diffusion.guidance import dynamic_threshold, guide


def pair():
  k_a, k_b = jax.random.split(jax.random.key(0))
  return jax.random.normal(k_a, (3, 4, 4, 2)), 0.5 + jax.random.normal(k_b, (3, 4, 4, 2))


def test_scale_one_is_the_conditional_and_zero_the_unconditional():
  a, b = pair()
  np.testing.assert_allclose(guide(a, b, 1.0), a, atol=1e-6)
  np.testing.assert_allclose(guide(a, b, 0.0), b, atol=1e-6)
  np.testing.assert_allclose(guide(a, b, 3.0), b + 3 * (a - b), atol=1e-5)


def test_full_rescale_restores_the_standard_deviation_of_each_example():
  a, b = pair()
  np.testing.assert_allclose(guide(a, b, 7.5, 1.0).std((1, 2, 3)), a.std((1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(guide(a, b, 7.5, 0.7), 0.7 * guide(a, b, 7.5, 1.0) + 0.3 * guide(a, b, 7.5), atol=1e-5)


def test_rescale_of_a_constant_output_is_finite():
  assert np.isfinite(guide(jnp.ones((1, 4)), jnp.ones((1, 4)), 2.0, 0.7)).all()


def test_dynamic_threshold_leaves_pictures_in_range_alone():
  inside = jnp.linspace(-1, 1, 24).reshape(2, 12)
  np.testing.assert_array_equal(dynamic_threshold(inside), inside)
  outside = dynamic_threshold(4 * inside, quantile=0.9)
  assert float(jnp.abs(outside).max()) == 1.0
