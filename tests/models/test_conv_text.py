import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core import tree
from mmdiff.models.conv_text import conv_text

TEXT = conv_text(vocab=20, text_len=8, width=16)
encode = jax.jit(TEXT.apply)
TOKENS = jnp.asarray([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 1, 2], [0, 0, 0, 0, 0, 0]], jnp.int32)
MASK = jnp.arange(6)[None] < jnp.asarray([[3], [6], [0]])


@pytest.fixture(scope="module")
def params():
  return jax.jit(TEXT.init)(jax.random.key(0), TOKENS, MASK)


def test_shapes_and_parameters(params):
  out = encode(params, TOKENS, MASK)
  assert out["tokens"].shape == (3, 6, 16) and out["pooled"].shape == (3, 16)
  assert tree.count(params) == 20 * 16 + 8 * 16 + 16 + 2 * (5 * 16 * 16 + 16)
  assert {"params/embed/embedding", "params/conv_0/kernel", "params/position", "params/null"} <= set(tree.paths(params))


def test_padding_changes_nothing(params):
  """Neither what stands in the padding nor how much of it there is."""
  out = encode(params, TOKENS, MASK)
  other = encode(params, jnp.where(MASK, TOKENS, 11), MASK)
  jax.tree.map(np.testing.assert_array_equal, out, other)
  short = encode(params, TOKENS[:1, :3], MASK[:1, :3])
  np.testing.assert_allclose(short["pooled"], out["pooled"][:1], atol=1e-6)
  np.testing.assert_allclose(short["tokens"], out["tokens"][:1, :3], atol=1e-6)
  assert not np.asarray(out["tokens"][0, 3:]).any()


def test_an_empty_caption_is_the_learned_null(params):
  out = encode(params, TOKENS, MASK)
  null = params["params"]["null"][0]
  np.testing.assert_array_equal(out["pooled"][2], null)
  np.testing.assert_array_equal(out["tokens"][2, 0], null)
  assert out["mask"][2].tolist() == [True] + [False] * 5
  assert np.array_equal(out["mask"][:2], MASK[:2])


def test_words_reach_two_neighbours_a_layer_and_no_further(params):
  long = jnp.arange(8)[None] + 1
  whole = jnp.ones((1, 8), bool)
  changed = encode(params, long.at[0, 0].set(15), whole)["tokens"] - encode(params, long, whole)["tokens"]
  reached = np.abs(np.asarray(changed[0])).max(-1) > 0
  assert reached[:5].all() and not reached[5:].any()


def test_too_long_a_caption_is_refused(params):
  with pytest.raises(ValueError, match="positions for 8"):
    encode(params, jnp.zeros((1, 9), jnp.int32), jnp.ones((1, 9), bool))
