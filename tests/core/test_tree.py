"""Trees by path."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core import tree

PARAMS = {"image": {"stack": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}, "text": {"kernel": jnp.ones(4)}, "scale": jnp.ones(())}


def test_paths_are_slashed():
  assert tree.paths(PARAMS) == ["image/stack/bias", "image/stack/kernel", "scale", "text/kernel"]


@pytest.mark.parametrize("patterns", [(), ("image/.*",), (".*kernel", "scale"), (".*",)])
def test_merge_undoes_partition(patterns):
  kept, matched = tree.partition(PARAMS, patterns)
  jax.tree.map(np.testing.assert_array_equal, tree.merge(kept, matched), PARAMS)
  assert len(jax.tree.leaves(kept)) + len(jax.tree.leaves(matched)) == 4
  assert all(tree.matches(path, patterns) for path in tree.paths(matched))


def test_a_pattern_that_matches_nothing_is_an_error():
  with pytest.raises(ValueError, match=r"'imag/.\*' matches no parameter; top-level groups are \['image', 'scale', 'text'\]"):
    tree.partition(PARAMS, ("imag/.*",))


def test_select_does_not_leak_nan():
  new, old = {"a": jnp.full(3, jnp.nan)}, {"a": jnp.arange(3.0)}
  np.testing.assert_array_equal(tree.select(jnp.bool_(False), new, old)["a"], old["a"])


def test_count_and_cast():
  assert tree.count(PARAMS) == 14 and tree.count(jax.eval_shape(lambda: PARAMS)) == 14
  cast = tree.cast({"a": jnp.ones(2), "b": jnp.ones(2, jnp.int32)}, jnp.bfloat16)
  assert cast["a"].dtype == jnp.bfloat16 and cast["b"].dtype == jnp.int32
