import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.nn.conv import Downsample, GroupNorm, ResBlock, Upsample, conv, nearest


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_group_norm_is_flax_own():
  x = 3.0 + 2.0 * draw(2, 5, 4, 12)
  params = {"params": {"scale": draw(12, seed=1), "bias": draw(12, seed=2)}}
  want = nn.GroupNorm(num_groups=3, epsilon=1e-6)
  with jax.numpy_rank_promotion("allow"):
    wanted = want.apply(params, x)
  np.testing.assert_allclose(GroupNorm(groups=3).apply(params, x), wanted, atol=1e-5)


def test_group_norm_keeps_float32_statistics_and_is_not_fooled_by_a_large_mean():
  x = 1000.0 + 0.5 * draw(1, 8, 8, 4)
  made, params = GroupNorm(groups=2, eps=0.0).init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(made.reshape(64, 2, 2).std((0, 2)), np.ones(2), atol=1e-3)
  half = GroupNorm(groups=2, eps=0.0, dtype=jnp.bfloat16).apply(params, x)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), made, atol=2e-2)
  with pytest.raises(ConfigError, match="4 channels do not divide into 3 groups"):
    GroupNorm(groups=3).init(jax.random.key(0), x)


def test_a_block_starts_as_its_shortcut_where_told_and_changes_width():
  x = draw(2, 4, 4, 8)
  block = ResBlock(8, groups=4, out_init=nn.initializers.zeros)
  made, _ = block.init_with_output(jax.random.key(0), x)
  np.testing.assert_array_equal(made, x)
  shapes = jax.eval_shape(ResBlock(12, groups=4).init, jax.random.key(0), x)["params"]
  assert set(shapes) == {"norm1", "conv1", "norm2", "conv2", "conv_shortcut"} and shapes["conv_shortcut"]["kernel"].shape == (1, 1, 8, 12)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_a_condition_speaks_for_its_own_row(conditioning):
  block, x, condition = ResBlock(8, groups=4, conditioning=conditioning), draw(2, 4, 4, 8), draw(2, 6, seed=1)
  params = block.init(jax.random.key(0), x, condition)
  assert params["params"]["project"]["kernel"].shape == (6, 16 if conditioning == "scale_shift" else 8)
  pull = jax.jacrev(lambda c: block.apply(params, x, c).mean((1, 2, 3)))(condition)                    # [2 2 6]
  assert np.abs(pull[0, 0]).max() > 1e-6 and not np.asarray(pull[0, 1]).any()


def test_the_two_paddings_of_a_downsample():
  """A kernel that picks its centre: symmetric padding sees the even pixels, the VAE's asymmetric one the odd pixels."""
  x = draw(1, 6, 4, 1)
  centre = {"params": {"conv": {"kernel": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0), "bias": jnp.zeros(1)}}}
  np.testing.assert_allclose(Downsample().apply(centre, x), x[:, ::2, ::2])
  np.testing.assert_allclose(Downsample(asymmetric=True).apply(centre, x), x[:, 1::2, 1::2])


def test_upsample_repeats_pixels_before_its_convolution():
  x = draw(1, 3, 2, 4)
  np.testing.assert_array_equal(nearest(x)[:, 1::2, ::2], x)
  assert Upsample().init_with_output(jax.random.key(0), x)[0].shape == (1, 6, 4, 4)


def test_kernel_names_are_those_of_the_sharding_rules():
  shapes = jax.eval_shape(ResBlock(8, groups=4).init, jax.random.key(0), draw(2, 4, 4, 4), draw(2, 6))["params"]
  kernels = [path for path in tree.paths(shapes) if path.endswith("kernel")]
  assert sorted(kernels) == ["conv1/kernel", "conv2/kernel", "conv_shortcut/kernel", "project/kernel"]
  assert conv(3).padding == 1
