"""Weights for pictures, patches and texts of another size: position tables by interpolation, patch embeddings by pseudo-inverse."""
import math

import jax
import jax.numpy as jnp
import numpy as np

from mmdiff.core.errors import DataError
from mmdiff.core.types import Array

KINDS = ("rows", "grid", "patch")         # positions of tokens [L D]; of patches, perhaps after a class token's [L D]; kernels [p·p·3 D]


def can_fit(kind: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
  """Whether a leaf of this kind and shape is another one's but for a size that `fitted` changes."""
  if kind not in KINDS or len(old) != 2 or len(new) != 2 or old[1] != new[1]:
    return False
  return kind != "patch" or all(3 * patch_side(shape) ** 2 == shape[0] for shape in (old, new))


def fitted(kind: str, value: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
  """(The leaf in another shape, what was done to it). Raises DataError for positions of patches that are not on a square."""
  if kind == "patch":
    old, new = patch_side(value.shape), patch_side(shape)
    return patch_kernel(value, new), f"patches of {old}×{old} pixels were resized to {new}×{new}"
  return positions(value, shape[0], grid=kind == "grid"), f"{len(value)} positions were interpolated to {shape[0]}"


def positions(table: np.ndarray, rows: int, *, grid: bool) -> np.ndarray:
  """A learned position table [L D] for `rows` positions: patches on a square by antialiased bicubic interpolation after a class token's
  own row (as open_clip's resize_pos_embed), tokens linearly. Raises DataError if either number of patches is not a square."""
  if not grid:
    return np.asarray(jax.image.resize(table, (rows, table.shape[1]), "linear"))
  extra = next((extra for extra in (0, 1) if math.isqrt(rows - extra) ** 2 == rows - extra
                and math.isqrt(len(table) - extra) ** 2 == len(table) - extra), None)
  if extra is None:
    raise DataError(f"{len(table)} positions cannot be interpolated to {rows}: both must be a square, or a square and a class token")
  old, new = math.isqrt(len(table) - extra), math.isqrt(rows - extra)
  patches = jax.image.resize(table[extra:].reshape(old, old, -1), (new, new, table.shape[1]), "cubic", antialias=True)
  return np.concatenate([table[:extra], np.asarray(patches).reshape(new * new, -1)])


def patch_side(shape: tuple[int, ...]) -> int:
  """p of a kernel [p·p·3 D]."""
  return math.isqrt(shape[0] // 3)


def patch_kernel(kernel: np.ndarray, side: int) -> np.ndarray:
  """A patch embedding [p·p·3 D] for patches of `side` pixels: [side·side·3 D].

  FlexiViT's (https://arxiv.org/abs/2212.08013, §3.4): with B the bilinear resize of a patch, the kernel (Bᵀ)⁺ ω embeds a resized patch as ω
  embeds the patch: exactly where patches grow, with the least squared error over white noise where they shrink.
  """
  old = patch_side(kernel.shape)
  taps = np.linalg.pinv(patch_resize(old, side).T.astype(np.float64)) @ kernel.reshape(old * old, -1)
  return taps.reshape(side * side * 3, kernel.shape[1]).astype(kernel.dtype)


def patch_resize(old: int, new: int) -> np.ndarray:
  """B [new·new old·old]: the bilinear resize of one channel of a patch as a matrix, antialiased where it shrinks."""
  def resized(flat: Array) -> Array:
    return jax.image.resize(flat.reshape(old, old), (new, new), "linear").ravel()
  return np.asarray(jax.vmap(resized)(jnp.eye(old * old))).T
