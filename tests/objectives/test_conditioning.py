"""Captions, dropped or not, and sizes."""
import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.objectives.conditioning import as_text, choose, drop_captions, fill_empty, interleave, separate, whole_picture, zero_where


def test_dropped_captions_are_the_encoders_own_empty_one():
  tokens, mask = drop_captions(jnp.full((2, 3), 5, jnp.int32), jnp.ones((2, 3), bool), jnp.asarray([True, False]))
  assert tokens.tolist() == [[5] * 3, [0] * 3] and mask.sum(1).tolist() == [3, 0]
  filled, seen = fill_empty(tokens, mask, (8, 9))
  assert filled.tolist() == [[5] * 3, [8, 9, 0]] and seen.tolist() == [[True] * 3, [True, True, False]]
  assert fill_empty(tokens, mask, (8, 9, 7, 6))[0].tolist() == [[5] * 3, [8, 9, 7]]           # longer than the text
  jax.tree.map(np.testing.assert_array_equal, fill_empty(tokens, mask, ()), (tokens, mask))


def test_an_array_becomes_a_text_dict():
  text = as_text(jnp.ones((2, 6, 4)), jnp.asarray([[True] * 3 + [False] * 3, [False] * 6]))
  np.testing.assert_allclose(text["pooled"], [[1] * 4, [0] * 4])
  assert text["mask"].sum(1).tolist() == [3, 1] and not np.asarray(text["tokens"][1]).any()


def test_rows_of_two_texts():
  text, other = (as_text(jnp.full((rows, 2, 3), float(rows)), jnp.ones((rows, 2), bool)) for rows in (2, 1))
  mixed = choose(jnp.asarray([True, False]), text, other)
  assert mixed["tokens"][:, 0, 0].tolist() == [2, 1] and mixed["pooled"][:, 0].tolist() == [2, 1]
  blank = zero_where(text, jnp.asarray([True, False]))
  assert blank["tokens"][:, 0, 0].tolist() == [0, 2] and blank["mask"].all()


def test_small_parts():
  a, b = jnp.arange(6.0).reshape(3, 2), jnp.arange(6.0).reshape(3, 2) + 10
  jax.tree.map(np.testing.assert_array_equal, separate(interleave(a, b)), (a, b))
  assert whole_picture(2, 48, 64).tolist() == [[48, 64, 0, 0, 48, 64]] * 2
