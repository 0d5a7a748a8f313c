"""Weights of another size: what the tables and kernels of a larger or smaller model must do."""
import jax
import numpy as np
import pytest

from mmdiff.convert import resize
from mmdiff.core.errors import DataError
from mmdiff.nn.embed import patches


def test_a_grid_of_positions_keeps_its_class_token_and_its_shape():
  rows, columns = np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij")
  table = np.concatenate([[[9.0, 9.0]], np.stack([rows.ravel(), columns.ravel()], 1)]).astype(np.float32)
  larger = resize.positions(table, 65, grid=True)
  np.testing.assert_array_equal(larger[0], [9, 9])
  square = larger[1:].reshape(8, 8, 2)
  np.testing.assert_allclose(square[:, 3, 0], np.clip(np.arange(8) / 2 - 0.25, 0, 3), atol=0.15)
  np.testing.assert_allclose(square[..., 0], square[..., 1].T, atol=1e-6)
  np.testing.assert_allclose(resize.positions(table[1:], 16, grid=True), table[1:], atol=1e-5)
  with pytest.raises(DataError, match="17 positions cannot be interpolated to 20"):
    resize.positions(table, 20, grid=True)


def test_a_smaller_grid_averages_what_it_leaves_out():
  """A pattern that repeats from one new position to the next has none of its own there: its mean is left, zero, not what happens to lie
  under the new positions, all ones."""
  line = np.tile(np.asarray([-1.0, 1.0, 1.0, -1.0], np.float32), 4)
  smaller = resize.positions(np.repeat(line, 16).reshape(256, 1), 16, grid=True).reshape(4, 4)
  assert np.abs(smaller[1:3]).max() < 0.1
  np.testing.assert_allclose(resize.positions(np.ones((64, 1), np.float32), 16, grid=True), 1.0, rtol=1e-5)


def bilinear(images, side):
  return np.asarray(jax.image.resize(images, (len(images), side, side, 3), "linear"))


@pytest.mark.parametrize("old, new", [(4, 8), (4, 6), (8, 12)])
def test_larger_patches_embed_the_enlarged_patch_alike(old, new):
  rng = np.random.default_rng(0)
  images, kernel = rng.normal(size=(5, old, old, 3)).astype(np.float32), rng.normal(size=(old * old * 3, 7)).astype(np.float32)
  embed = lambda images, side, kernel: np.asarray(patches(images, side))[:, 0] @ kernel
  larger = embed(bilinear(images, new), new, resize.patch_kernel(kernel, new))
  np.testing.assert_allclose(larger, embed(images, old, kernel), atol=2e-4)


def test_smaller_patches_come_as_near_as_a_kernel_can():
  rng = np.random.default_rng(0)
  images, kernel = rng.normal(size=(4_000, 8, 8, 3)).astype(np.float32), rng.normal(size=(192, 3)).astype(np.float32)
  wanted, small = images.reshape(4_000, -1) @ kernel, bilinear(images, 4).reshape(4_000, -1)
  error = lambda kernel: np.square(small @ kernel - wanted).mean()
  best = np.linalg.lstsq(small, wanted, rcond=None)[0]
  assert error(best) <= error(resize.patch_kernel(kernel, 4)) <= 1.03 * error(best) + 1e-6


def test_the_same_size_is_the_same_kernel():
  kernel = np.random.default_rng(0).normal(size=(27, 2)).astype(np.float32)
  np.testing.assert_allclose(resize.patch_kernel(kernel, 3), kernel, atol=1e-6)


@pytest.mark.parametrize("kind, old, new, can", [
  ("rows", (5, 3), (9, 3), True), ("rows", (5, 3), (9, 4), False), ("grid", (5, 3), (10, 3), True), ("patch", (12, 3), (27, 3), True),
  ("patch", (12, 3), (13, 3), False), ("same", (5, 3), (9, 3), False), ("rows", (5,), (9,), False)])
def test_what_can_be_fitted(kind, old, new, can):
  assert resize.can_fit(kind, old, new) == can


def test_what_was_done_is_told():
  assert resize.fitted("rows", np.zeros((3, 2)), (6, 2))[1] == "3 positions were interpolated to 6"
  made, told = resize.fitted("patch", np.zeros((12, 2)), (27, 2))
  assert made.shape == (27, 2) and told == "patches of 2×2 pixels were resized to 3×3"
