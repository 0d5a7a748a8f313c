import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmdiff.core import tree
from mmdiff.core.errors import DataError
from mmdiff.models.perceptual import STAGES, TORCHVISION, gradients, lpips, random


def pictures(size=16, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3)), jnp.float32)


@pytest.mark.parametrize("made", [gradients(scales=2), random(widths=(4, 8))], ids=["gradients", "random"])
def test_a_distance_without_files(made):
  """Zero for equal pictures, symmetric, row by row, with a finite gradient even on flat black; nothing to keep."""
  a, b = pictures(), pictures(seed=1)
  params = made.init(jax.random.key(0))
  distance = jax.jit(lambda x, y: made.distance(params, x, y))
  assert params == {}
  np.testing.assert_allclose(distance(a, a), 0.0, atol=1e-6)
  np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-5)
  np.testing.assert_allclose(distance(a.at[1].set(0.0), b)[0], distance(a, b)[0], rtol=1e-5)
  assert (np.asarray(distance(a, b)) > 0).all()
  flat = jnp.zeros_like(a)
  assert np.isfinite(jax.jit(jax.grad(lambda x: made.distance(params, x, flat).sum()))(flat)).all()


def test_random_networks_depend_on_their_seed_alone():
  a, b = pictures(), pictures(seed=1)
  of = lambda seed: np.asarray(random(widths=(4,), seed=seed).distance({}, a, b))
  np.testing.assert_array_equal(of(0), of(0))
  assert not np.allclose(of(0), of(1))


def torch_tensors(seed=0):
  rng, inputs, tensors = np.random.default_rng(seed), 3, {}
  index = iter(TORCHVISION)
  for stage, widths in enumerate(STAGES):
    for width in widths:
      n = next(index)
      tensors[f"features.{n}.weight"] = (rng.normal(size=(width, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5).astype(np.float32)
      tensors[f"features.{n}.bias"] = rng.normal(size=width).astype(np.float32) * 0.1
      inputs = width
    tensors[f"lin{stage}.model.1.weight"] = rng.uniform(0, 0.1, (1, inputs, 1, 1)).astype(np.float32)
  return tensors


@pytest.mark.long
def test_lpips_reads_torchvisions_and_its_own_weights(tmp_path):
  """14,714,688 parameters of VGG16's convolutions and 1,472 weights; the first stage by hand."""
  tensors = torch_tensors()
  save_file({name: value for name, value in tensors.items() if name.startswith("features")}, tmp_path / "vgg16.safetensors")
  np.savez(tmp_path / "lpips.npz", **{name: value for name, value in tensors.items() if name.startswith("lin")})
  made = lpips(files=(str(tmp_path / "vgg16.safetensors"), str(tmp_path / "lpips.npz")))
  params = made.init(jax.random.key(0))
  assert tree.count(params) == 14_714_688 + 1_472
  abstract = jax.eval_shape(lpips().init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, abstract)
  a, b = pictures(), pictures(seed=1)
  only_first = params | {f"weight{stage}": jnp.zeros_like(params[f"weight{stage}"]) for stage in range(1, 5)}

  def first_stage(x):
    x = (x - np.asarray([-0.030, -0.088, -0.188])[None, None, None]) / np.asarray([0.458, 0.448, 0.450])[None, None, None]
    for n in (0, 2):
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      taps = [np.einsum("bhwi,oi->bhwo", padded[:, dy:dy + 16, dx:dx + 16], tensors[f"features.{n}.weight"][:, :, dy, dx])
              for dy in range(3) for dx in range(3)]
      x = np.maximum(sum(taps) + tensors[f"features.{n}.bias"][None, None, None], 0)
    return x / (np.sqrt(np.square(x).sum(-1, keepdims=True)) + 1e-10)
  want = (np.square(first_stage(np.asarray(a)) - first_stage(np.asarray(b))) * tensors["lin0.model.1.weight"].reshape(1, 1, 1, -1)).sum(-1)
  np.testing.assert_allclose(jax.jit(made.distance)(only_first, a, b), want.mean((1, 2)), rtol=1e-4)


def test_files_that_lack_something_are_named(tmp_path):
  np.savez(tmp_path / "half.npz", **{"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)})
  with pytest.raises(DataError, match="no tensor features.0.bias in .*half.npz"):
    lpips(files=(str(tmp_path / "half.npz"),)).init(jax.random.key(0))
  with pytest.raises(DataError, match="cannot read .*nothing.safetensors"):
    lpips(files=(str(tmp_path / "nothing.safetensors"),)).init(jax.random.key(0))
