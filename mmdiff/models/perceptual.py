"""Perceptual distances between pictures: LPIPS's network, and two that need no downloaded weights."""
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float
from safetensors.numpy import load_file

from mmdiff.core.errors import DataError
from mmdiff.core.types import Array, Key, Tree
from mmdiff.nn.conv import conv

# VGG16 (https://arxiv.org/abs/1409.1556, column D): convolutions of each stage by width; LPIPS looks after the last of a stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)         # index of each convolution in torchvision's `features`
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)         # lpips.ScalingLayer, for pixels in [-1, 1]


class Perceptual(NamedTuple):
  """`distance(params, a, b)`: pictures [B H W 3] in [-1, 1] -> float32 [B]. `init(key)` makes params, {} where there are none to keep;
  `given` says that it reads them from files."""
  init: Callable[[Key], Tree]
  distance: Callable[[Tree, Array, Array], Array]
  given: bool = False


def unit(x: Array) -> Array:
  """Features [B H W C] with unit length along C, float32; a zero stays zero, with a zero gradient."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-20))


class VGG16(nn.Module):
  """The features after the last relu of each stage: a list of [B H W C], each half as large as the one before."""
  dtype: Any

  @nn.compact
  def __call__(self, image: Float[Array, "B H W 3"]) -> list[Array]:
    per_channel = lambda values: jnp.asarray(values, jnp.float32)[None, None, None]
    x, found = ((image - per_channel(SHIFT)) / per_channel(SCALE)).astype(self.dtype), []
    for stage, widths in enumerate(STAGES):
      if stage:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for i, width in enumerate(widths):
        x = nn.relu(conv(width, dtype=self.dtype, init=nn.initializers.he_normal(), name=f"conv{stage}_{i}")(x))
      found.append(x)
    return found


def lpips(*, files: tuple[str, ...] = (), dtype: Literal["float32", "bfloat16"] = "float32") -> Perceptual:
  """LPIPS (https://arxiv.org/abs/1801.03924, eq. 1) on VGG16: Σ over stages of the mean over positions of Σ_c w_c (f_c(a) − f_c(b))², with
  unit-length features f. Its parameters are a group to freeze: `freeze=("perceptual/.*",)`.

  Args:
    files: .safetensors or .npz that together hold torchvision's VGG16 (`features.N.weight`, `.bias`) and LPIPS's weights
      (`linK.model.1.weight`); () = random convolutions and equal weights, to be replaced by a checkpoint's or to be used as they are.
    dtype: of the activations.

  Raises:
    DataError: a file that cannot be read or lacks a tensor; the message names it.
  """
  network = VGG16(jnp.dtype(dtype))

  def init(key: Key) -> Tree:
    if files:
      return _from_torch(files)
    params = network.init(key, jnp.zeros((1, 16, 16, 3)))["params"]
    return dict(params, **{f"weight{stage}": jnp.full((widths[-1],), 1.0 / widths[-1]) for stage, widths in enumerate(STAGES)})

  def distance(params: Tree, a: Array, b: Array) -> Array:
    total = jnp.zeros(a.shape[0], jnp.float32)
    for stage, (x, y) in enumerate(zip(network.apply({"params": params}, a), network.apply({"params": params}, b))):
      total = total + (jnp.square(unit(x) - unit(y)) * params[f"weight{stage}"][None, None, None]).sum(-1).mean((1, 2))
    return total

  return Perceptual(init, distance, given=bool(files))


def _from_torch(files: tuple[str, ...]) -> Tree:
  tensors: dict[str, np.ndarray] = {}
  for file in files:
    try:
      tensors |= dict(np.load(file)) if file.endswith(".npz") else load_file(file)
    except Exception as error:
      raise DataError(f"objective.perceptual.files: cannot read {file}: {error}; give .safetensors or .npz files") from None

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    key = next((key for key in tensors if key == name or key.endswith("." + name)), None)
    if key is None:
      raise DataError(f"objective.perceptual.files: no tensor {name} in {', '.join(files)} (there are {', '.join(list(tensors)[:3])}, …)")
    if tensors[key].shape != shape:
      raise DataError(f"objective.perceptual.files: {key} has shape {tensors[key].shape}, expected {shape}")
    return np.asarray(tensors[key], np.float32)

  params: dict[str, Any] = {}
  index, inputs = iter(TORCHVISION), 3
  for stage, widths in enumerate(STAGES):
    for i, width in enumerate(widths):
      n = next(index)
      kernel, bias = take(f"features.{n}.weight", (width, inputs, 3, 3)), take(f"features.{n}.bias", (width,))
      params[f"conv{stage}_{i}"] = {"kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0)), "bias": jnp.asarray(bias)}
      inputs = width
    params[f"weight{stage}"] = jnp.asarray(take(f"lin{stage}.model.1.weight", (1, inputs, 1, 1)).reshape(-1))
  return params


def random(*, widths: tuple[int, ...] = (32, 64, 128), seed: int = 0) -> Perceptual:
  """LPIPS's distance on a small network with fixed random weights, a function of `seed` alone: no file, nothing in the checkpoint.

  Random convolutions already see edges and texture at several scales (https://arxiv.org/abs/1606.04801). A stage is a 3×3 convolution, relu
  and a mean over 2×2; distances are means over positions and channels.
  """
  rng, kernels, inputs = np.random.default_rng(seed), [], 3
  for width in widths:
    kernels.append(rng.normal(0.0, (2 / (9 * inputs)) ** 0.5, (3, 3, inputs, width)).astype(np.float32))
    inputs = width

  def features(x: Array) -> list[Array]:
    found = []
    for kernel in kernels:
      x = nn.relu(jax.lax.conv_general_dilated(x, jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
      found.append(x)
      x = nn.avg_pool(x, (2, 2), (2, 2))
    return found

  def distance(params: Tree, a: Array, b: Array) -> Array:
    pairs = zip(features(a.astype(jnp.float32)), features(b.astype(jnp.float32)))
    return sum((jnp.square(unit(x) - unit(y)).sum(-1).mean((1, 2)) for x, y in pairs), jnp.zeros(a.shape[0], jnp.float32))

  return Perceptual(lambda key: {}, distance)


def gradients(*, scales: int = 3) -> Perceptual:
  """Mean absolute first difference of the error, right plus down, summed over `scales` sizes, each half the one before: cheap, sharpens
  edges, no parameters. (A plain form of the gradient difference loss, https://arxiv.org/abs/1511.05440 §3.2.)"""
  def distance(params: Tree, a: Array, b: Array) -> Array:
    error, total = a.astype(jnp.float32) - b.astype(jnp.float32), jnp.zeros(a.shape[0], jnp.float32)
    for _ in range(scales):
      total = total + jnp.abs(jnp.diff(error, axis=1)).mean((1, 2, 3)) + jnp.abs(jnp.diff(error, axis=2)).mean((1, 2, 3))
      error = nn.avg_pool(error, (2, 2), (2, 2))
    return total

  return Perceptual(lambda key: {}, distance)
