"""Attention: the implementations agree, hidden positions have no influence, and the fused GPU form lowers without a GPU."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from mmdiff.core.errors import ConfigError
from mmdiff.nn import attention as module
from mmdiff.nn.attention import Attention, Device, attention


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


T4, A100, L4, RTX4090 = (Device("gpu", capability, 91_800) for capability in ((7, 5), (8, 0), (8, 9), (8, 9)))
H100, B200 = Device("gpu", (9, 0), 91_800), Device("gpu", (10, 0), 91_800)
B300, ROCM, TPU = Device("gpu", (10, 3), 91_000), Device("gpu"), Device("tpu")


@pytest.mark.parametrize("device,widths", [
  (A100, {40: "cudnn", 64: "cudnn", 80: "cudnn", 88: "cudnn", 104: "cudnn", 128: "cudnn", 160: "xla", 176: "xla", 256: "xla", 512: "xla"}),
  (L4, {64: "cudnn", 160: "xla", 176: "xla"}), (RTX4090, {64: "cudnn", 160: "xla", 176: "xla"}),
  (H100, {40: "cudnn", 72: "cudnn", 160: "cudnn", 176: "cudnn", 256: "cudnn", 264: "xla", 512: "xla", 12: "xla", 100: "xla"}),
  (B200, {64: "cudnn", 128: "cudnn", 160: "xla"}), (B300, {64: "xla"}), (T4, {64: "xla"}), (ROCM, {64: "xla"}), (TPU, {64: "xla"}),
  (Device("gpu", (9, 0), 0), {64: "xla"}), (Device("cpu"), {64: "cpu", 160: "cpu"})])
def test_auto_takes_cudnn_only_where_it_works(device, widths):
  """SD 1's innermost heads are 160 wide, those of CoCa 2.1B 176: not on A100, L4 and 4090."""
  for width, expected in widths.items():
    assert module.resolve("auto", width=width, dtype=jnp.bfloat16, device=device) == expected, width
    assert module.resolve("auto", width=width, dtype=jnp.float32, device=device) == ("cpu" if device.backend == "cpu" else "xla")


def test_names_are_taken_as_they_are_and_unknown_ones_refused():
  assert module.resolve("auto", width=64) == "cpu"
  assert all(module.resolve(name, width=160, device=A100) == name for name in module.IMPLEMENTATIONS)
  with pytest.raises(ConfigError, match="flashy.*known: auto, xla"):
    module.resolve("flashy", width=64)


@pytest.mark.parametrize("device,width,dtype,said", [
  (A100, 160, jnp.bfloat16, "heads are 160 wide; a multiple of 8, at most 128 on compute capability 8.0"),
  (H100, 12, jnp.bfloat16, "heads are 12"),
  (H100, 64, jnp.float32, "bfloat16 is needed, found float32"), (T4, 64, jnp.bfloat16, "8.0 .Ampere. or newer is needed, found 7.5"),
  (B300, 64, jnp.bfloat16, "needs cuDNN 9.11"), (TPU, 64, jnp.bfloat16, "a CUDA GPU with cuDNN is needed, found tpu")])
def test_cudnn_by_name_says_why_it_cannot_be_had(device, width, dtype, said, monkeypatch):
  monkeypatch.setattr(module, "this_device", lambda: device)
  x = jnp.zeros((1, 4, 2, width), dtype)
  with pytest.raises(ConfigError, match=f"attention='cudnn' cannot be had: .*{said}"):
    attention(x, x, x, implementation="cudnn")
  if device.backend != "cpu":                     # nobody who left the key alone meets it
    assert attention(x, x, x).shape == x.shape


def test_the_limits_are_not_wider_than_jax_takes(monkeypatch):
  """JAX's own check, asked with the same facts, takes all that `cudnn_refuses` lets through."""
  for device in (A100, L4, H100, B200):
    at_least = lambda text: device.capability >= tuple(map(int, text.split(".")))              # noqa: B023
    monkeypatch.setattr(cudnn, "check_compute_capability", at_least)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda text: at_least(text) and text == "10.3")     # noqa: B023
    for width in range(4, 300, 4):
      if not module.cudnn_refuses(device, width=width, dtype=jnp.bfloat16):
        x = jax.ShapeDtypeStruct((2, 8, 2, width), jnp.bfloat16)
        cudnn.check_is_flash_attention(x, x, x, cudnn.AttentionLayout.BTNH.value, device.cudnn, False, True)


@pytest.mark.parametrize("length,causal,masked", [(50, False, False), (77, True, False), (77, False, True)])
def test_cudnn_form_lowers_for_cuda_with_its_gradient(length, causal, masked, monkeypatch):
  """Odd lengths are the trap: JAX refuses their gradient, so they are padded. No score tensor may remain."""
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
  monkeypatch.setattr(module, "this_device", lambda: H100)
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
