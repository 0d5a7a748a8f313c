"""Attention: the implementations agree, hidden positions have no influence, and the fused GPU form lowers without a GPU."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from mmdiff.core.errors import ConfigError
from mmdiff.nn import attention as module
from mmdiff.nn.attention import Attention, attention


def qkv(queries, keys, *, heads=2, head_dim=8, batch=3, seed=0):
  k_q, k_k, k_v = jax.random.split(jax.random.key(seed), 3)
  return (jax.random.normal(k_q, (batch, queries, heads, head_dim)), jax.random.normal(k_k, (batch, keys, heads, head_dim)),
          jax.random.normal(k_v, (batch, keys, heads, head_dim)))


@pytest.mark.parametrize("queries,keys,causal,masked", [(5, 9, False, True), (7, 7, True, False), (257, 257, True, True)])
def test_cpu_form_equals_xla(queries, keys, causal, masked):
  inputs = qkv(queries, keys)
  lengths = jnp.array([1, keys // 2, keys]) if masked else None

  def value_and_grads(implementation):
    def loss(inputs):
      out = attention(*inputs, lengths=lengths, causal=causal, implementation=implementation)
      return jnp.sum(jnp.sin(out)), out
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)

  (_, ours), grads = value_and_grads("cpu")
  (_, theirs), expected = value_and_grads("xla")
  for a, b in zip([ours, *grads], [theirs, *expected]):
    assert jnp.abs(a - b).max() <= 1e-5 * max(1, jnp.abs(b).max())


def test_hidden_keys_have_no_influence():
  q, k, v = qkv(4, 6)
  lengths = jnp.array([2, 6, 4])
  grads = jax.grad(lambda kv: jnp.sum(attention(q, *kv, lengths=lengths, implementation="cpu") ** 2))((k, v))
  hidden = jnp.arange(6)[None] >= lengths[:, None]
  for grad in grads:
    assert jnp.all(jnp.where(hidden[..., None, None], grad, 0) == 0)
    assert jnp.all(jnp.abs(jnp.where(hidden[..., None, None], 1, grad)).sum((2, 3)) > 0)


def test_auto_is_resolved_from_the_backend(monkeypatch):
  assert module.resolve("auto") == "cpu"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert module.resolve("auto", dtype=jnp.bfloat16) == "cudnn"
  assert module.resolve("auto", dtype=jnp.float32) == "xla"       # cuDNN's flash attention has no float32
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert module.resolve("auto", dtype=jnp.bfloat16) == "xla"
  with pytest.raises(ConfigError, match="flashy.*known: auto, xla"):
    module.resolve("flashy")


@pytest.mark.parametrize("length,causal,masked", [(50, False, False), (77, True, False), (77, False, True)])
def test_cudnn_form_lowers_for_cuda_with_its_gradient(length, causal, masked, monkeypatch):
  """Odd lengths are the trap: JAX refuses their gradient, so they are padded. No score tensor may remain."""
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
  shape = jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16)
  lengths = jnp.array([3, length]) if masked else None

  def loss(q, k, v):
    return attention(q, k, v, lengths=lengths, causal=causal, implementation="cudnn").astype(jnp.float32).sum()

  unchecked = [jax.export.DisabledSafetyCheck.custom_call(name) for name in
               ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "CustomSPMDPartitioning")]
  export = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["cuda"], disabled_checks=unchecked)
  text = export(shape, shape, shape).mlir_module()
  assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
  even = length + length % 2
  assert not re.search(rf"tensor<2x4x{even}x{even}x", text)


def test_cudnn_form_refuses_what_the_kernel_would():
  with pytest.raises(ConfigError, match="bfloat16"):
    attention(*qkv(4, 4), implementation="cudnn")


def test_padding_to_even_lengths_changes_nothing():
  """What the cuDNN form does around its kernel, with the kernel's own definition in its place."""
  q, k, v = qkv(5, 7)
  (q_even, queries), (k_even, keys), (v_even, _) = module.pad_even(q), module.pad_even(k), module.pad_even(v)
  assert (q_even.shape[1], queries, k_even.shape[1], keys) == (6, 5, 8, 7)
  out = jax.nn.dot_product_attention(q_even, k_even, v_even, query_seq_lengths=jnp.full((3,), queries),
                                     key_value_seq_lengths=jnp.full((3,), keys))
  assert jnp.abs(out[:, :queries] - attention(q, k, v, implementation="xla")).max() <= 1e-5


def test_cross_attention_takes_another_width():
  x, kv = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (2, 5, 12))
  layer = Attention(2, use_bias=False, out_dim=6)
  params = jax.jit(layer.init)(jax.random.key(2), x, kv)
  shapes = {name: leaf["kernel"].shape for name, leaf in params["params"].items()}
  assert shapes == {"query": (8, 8), "key": (12, 8), "value": (12, 8), "out": (8, 6)}
  assert layer.apply(params, x, kv, lengths=jnp.array([1, 5])).shape == (2, 3, 6)
  with pytest.raises(ConfigError, match="does not divide"):
    Attention(3).init(jax.random.key(0), x)


def test_a_mask_adds_to_the_other_rules_in_every_form():
  q, k, v = qkv(5, 5)
  mask = jnp.asarray(np.random.default_rng(0).random((3, 1, 5, 5)) < 0.7) | jnp.eye(5, dtype=bool)[None, None]
  lengths = jnp.array([5, 5, 5])
  expected = attention(q, k, v, mask=mask & jnp.tri(5, dtype=bool)[None, None], implementation="xla")
  for implementation in ("xla", "cpu"):
    out = attention(q, k, v, lengths=lengths, causal=True, mask=mask, implementation=implementation)
    assert jnp.abs(out - expected).max() <= 1e-5


def test_steps_with_a_cache_are_causal_self_attention_and_cross_attention():
  x, kv = jax.random.normal(jax.random.key(0), (2, 6, 16)), jax.random.normal(jax.random.key(1), (2, 4, 12))
  own, cross = Attention(heads=2, causal=True), Attention(heads=2)
  own_params, cross_params = jax.jit(own.init)(jax.random.key(2), x), jax.jit(cross.init)(jax.random.key(3), x, kv)
  expected, expected_cross = jax.jit(own.apply)(own_params, x), jax.jit(cross.apply)(cross_params, x, kv)

  @jax.jit
  def steps(x, kv):
    kept = module.keys_values(cross_params["params"], kv, heads=2)

    def one(cache, position):
      row = jax.lax.dynamic_slice_in_dim(x, position, 1, axis=1)
      out, cache = own.apply(own_params, row, cache=cache, position=position)
      return cache, (out[:, 0], cross.apply(cross_params, row, cache=kept)[0][:, 0])
    return jax.lax.scan(one, module.empty_cache(2, 6, heads=2, head_dim=8), jnp.arange(6))[1]
  for out, whole in zip(steps(x, kv), (expected, expected_cross)):
    assert jnp.abs(jnp.swapaxes(out, 0, 1) - whole).max() <= 1e-5
