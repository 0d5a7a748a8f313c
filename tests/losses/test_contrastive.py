"""Contrastive losses: the chunked ring is the dense loss, on one device and on meshes, in linear memory."""
import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmdiff.losses import contrastive as losses


def pairs(rows=48, width=16):
  k_image, k_text = jax.random.split(jax.random.key(0))
  image = jax.random.normal(k_image, (rows, width))
  text = image + jax.random.normal(k_text, (rows, width))
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return unit(image), unit(text), jnp.float32(14.0), jnp.float32(-3.0)


def loss_fn(kind, chunk):
  if kind == "softmax":
    return lambda image, text, scale, bias: losses.softmax(image, text, scale, chunk=chunk)
  return lambda image, text, scale, bias: losses.sigmoid(image, text, scale, bias, chunk=chunk)


def value_and_grads(kind, chunk, arguments):
  return jax.jit(jax.value_and_grad(loss_fn(kind, chunk), (0, 1, 2, 3), has_aux=True))(*arguments)


def assert_close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * max(1e-30, np.abs(b).max())


def mesh_of(*shape):
  return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def test_softmax_is_two_cross_entropies():
  image, text, scale, _ = pairs(6)
  logits = np.asarray(14.0 * image @ text.T, np.float64)
  rows = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).diagonal().mean()
  columns = -np.log(np.exp(logits) / np.exp(logits).sum(0, keepdims=True)).diagonal().mean()
  assert abs(losses.softmax(image, text, scale)[0] - (rows + columns) / 2) <= 1e-5


def test_sigmoid_is_the_paper_formula():
  image, text, scale, bias = pairs(6)
  logits = np.asarray(14.0 * image @ text.T - 3.0, np.float64)
  sign = 2 * np.eye(6) - 1
  assert abs(losses.sigmoid(image, text, scale, bias)[0] + np.log(1 / (1 + np.exp(-sign * logits))).sum() / 6) <= 1e-5


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_chunked_equals_dense(kind):
  arguments = pairs()
  expected = value_and_grads(kind, 0, arguments)
  for chunk in (7, 1000):                                            # 7 is no divisor of 48: chunks of 6
    assert_close(value_and_grads(kind, chunk, arguments), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(4, 2, 1), (2, 1, 4)])
def test_the_ring_equals_one_device(kind, shape):
  arguments = pairs()
  expected = value_and_grads(kind, 0, arguments)
  mesh = mesh_of(*shape)
  with jax.set_mesh(mesh):
    split = NamedSharding(mesh, P(("data", "fsdp")))
    placed = (*(jax.device_put(x, split) for x in arguments[:2]), *arguments[2:])
    assert_close(value_and_grads(kind, 3, placed), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("devices", [1, 8])
def test_memory_is_linear_in_the_batch(kind, devices):
  """Temporaries of the loss and its gradients by the compiler's count, up to a global batch of 32,768 of width 512."""
  mesh = mesh_of(8, 1, 1) if devices > 1 else None

  def temporaries(rows):
    place = lambda *shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec) if mesh else None)
    arguments = (*[place(rows, 512, spec=P(("data", "fsdp")))] * 2, *[place(spec=P())] * 2)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
      compiled = jax.jit(jax.grad(loss_fn(kind, 256), (0, 1, 2, 3), has_aux=True)).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  small, large = temporaries(8_192), temporaries(32_768)
  assert large <= 4.2 * small
  assert large <= (60e6 if devices > 1 else 200e6)                     # the dense form: 2.2 GB a device, 17 GB


def test_padding_rows_count_for_nothing():
  image, text, scale, bias = pairs(8)
  valid = jnp.arange(8) < 5
  for got, expected in [(losses.softmax(image, text, scale, valid=valid), losses.softmax(image[:5], text[:5], scale)),
                        (losses.sigmoid(image, text, scale, bias, valid=valid), losses.sigmoid(image[:5], text[:5], scale, bias))]:
    assert_close(got, expected)


def test_accuracy_counts_ties_as_misses():
  same = jnp.ones((4, 2)) / jnp.sqrt(2.0)
  for chunk in (0, 2):
    metrics = losses.softmax(same, same, jnp.float32(10.0), chunk=chunk)[1]
    assert metrics["accuracy_image_to_text"] == metrics["accuracy_text_to_image"] == 0
  metrics = losses.softmax(jnp.eye(4), jnp.eye(4)[jnp.array([0, 1, 3, 2])], jnp.float32(10.0))[1]
  assert metrics["accuracy_image_to_text"] == 0.5
