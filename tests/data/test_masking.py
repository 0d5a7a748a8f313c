"""Masks: every form of them, and how a new part joins a picture."""
import numpy as np
import pytest
from PIL import Image

from mmdiff.core.errors import DataError
from mmdiff.data import masking

MASK = np.zeros((9, 12), bool)
MASK[2:8, 3:10] = True


def test_every_form():
  read = lambda mask: masking.read(mask, height=9, width=12)
  bytes_ = MASK.astype(np.uint8) * 255
  for form in (MASK, bytes_, MASK.astype(np.uint8), MASK.astype(np.float32), MASK[..., None], Image.fromarray(bytes_),
               Image.fromarray(bytes_).convert("RGB"), np.where(MASK, 200, 90).astype(np.uint8)):
    np.testing.assert_array_equal(read(form), MASK)
  assert not read(np.zeros((9, 12))).any()
  twice = masking.read(np.kron(MASK, np.ones((2, 2), bool)), height=9, width=12)
  np.testing.assert_array_equal(twice, MASK)
  for wrong in (np.zeros(3), np.zeros((2, 3, 4)), np.zeros((0, 4)), np.asarray([["a"]])):
    with pytest.raises(DataError, match="expected .H W. of bool"):
      read(wrong)


def test_feathers_lie_within_the_mask():
  np.testing.assert_array_equal(masking.weights(MASK, 0), MASK.astype(np.float32))
  soft = masking.weights(MASK, 2)
  assert not soft[~MASK].any() and soft.max() == 1
  np.testing.assert_allclose(soft[5, 3:10], [1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3], rtol=1e-6)
  # A mask that reaches the border does not fade there.
  assert masking.weights(np.ones((5, 5), bool), 3).min() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_kept_is_kept_bit_for_bit(dtype):
  rng = np.random.default_rng(0)
  old, new = ((255 * rng.random((9, 12, 3))).astype(dtype) for _ in range(2))
  made = masking.joined(old, new, masking.weights(MASK, 2))
  assert made.dtype == dtype
  np.testing.assert_array_equal(made[~MASK], old[~MASK])
  np.testing.assert_array_equal(made[5, 5:8], new[5, 5:8])
  assert (np.abs(made.astype(float) - old) <= np.abs(new.astype(float) - old) + 0.5).all()
