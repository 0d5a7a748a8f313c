"""Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1) with the implementation chosen explicitly.

JAX's own default never picks a fused kernel, and the fused ones refuse platforms, dtypes and odd lengths that the others take. So
one function holds them all, `resolve` picks one in Python while tracing, and everything they disagree about is handled in here.
"""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax._src import lib as jax_lib

from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array, Params

Implementation = Literal["auto", "xla", "cudnn", "cpu"]


class KeysValues(NamedTuple):
  """Keys and values [B N S Dh] that decoding keeps; heads first, so that a step reads each head's in one piece."""
  k: Array
  v: Array


class Device(NamedTuple):
  """What decides which kernels there are."""
  backend: str                           # "cpu", "gpu", "tpu"
  capability: tuple[int, int] = (0, 0)   # of the least CUDA GPU of this process; (0, 0): not CUDA
  cudnn: int = 0                         # version, e.g. 91002; 0: none


def this_device() -> Device:
  """The facts of this process's devices."""
  backend = jax.default_backend()
  devices = jax.local_devices(backend=backend) if backend == "gpu" else []
  capabilities = [tuple(int(part) for part in str(getattr(device, "compute_capability", "")).split(".") if part.isdigit())
                  for device in devices]
  if not capabilities or any(len(found) != 2 for found in capabilities):              # ROCm's are names
    return Device(backend)
  versions = getattr(jax_lib, "cuda_versions", None)             # JAX's own attention asks the same; there is no public way
  return Device(backend, min(capabilities), versions.cudnn_get_version() if versions else 0)


def cudnn_refuses(device: Device, *, width: int, dtype: Any) -> str:
  """Why cuDNN's flash attention, forward and backward, cannot take heads of this width and dtype on that device; "" if it can.

  The widths are those of cuDNN's support matrix (docs.nvidia.com/cudnn, "Attention", 9.18) where the gradient works too: 256 on Hopper,
  128 before and after it. Lengths, causality and masks decide nothing: `cudnn_attention` brings them into a form that it takes.
  """
  widest = 256 if device.capability[0] == 9 else 128
  if device.backend != "gpu" or not device.cudnn or device.capability == (0, 0):
    return f"a CUDA GPU with cuDNN is needed, found {device.backend}" + (" without cuDNN" if device.backend == "gpu" else "")
  major, minor = device.capability
  if device.capability < (8, 0):
    return f"a GPU of compute capability 8.0 (Ampere) or newer is needed, found {major}.{minor}"
  if device.capability == (10, 3) and device.cudnn < 91_100:
    return f"compute capability 10.3 needs cuDNN 9.11 or newer, found {device.cudnn}"
  if dtype != jnp.bfloat16:
    return f"bfloat16 is needed, found {jnp.dtype(dtype).name} (the model's dtype)"
  if width % 8 or width > widest:
    return f"heads are {width} wide; a multiple of 8, at most {widest} on compute capability {major}.{minor}, is needed"
  return ""


def resolve(name: str, *, width: int, dtype: Any = jnp.float32, device: Device | None = None) -> str:
  """The implementation that `name` means: "auto" is the fastest one that can take heads of `width` in `dtype` on `device`, by default
  this process's. Raises ConfigError for an unknown name."""
  if name not in ("auto", *IMPLEMENTATIONS):
    raise ConfigError(f"unknown attention implementation {name!r} (known: auto, {', '.join(IMPLEMENTATIONS)})")
  if name != "auto":
    return name
  device = device or this_device()
  return "cpu" if device.backend == "cpu" else "xla" if cudnn_refuses(device, width=width, dtype=dtype) else "cudnn"


def attention(q: Array, k: Array, v: Array, *, lengths: Array | None = None, causal: bool = False, mask: Array | None = None,
              implementation: str = "auto") -> Array:
  """softmax(q kᵀ / √Dh) v per head; scores and softmax in float32.

  Args:
    q: [B L N Dh].
    k: [B S N Dh].
    v: [B S N Dh].
    lengths: int32 [B], keys at positions ≥ lengths are hidden. None = all are seen.
    causal: query i sees keys ≤ i.
    mask: bool [B|1 1 L S], true where a query may look, besides; for the few patterns that the two above cannot say.
    implementation: see `resolve`.

  Returns:
    [B L N Dh] in the dtype of `v`. All implementations agree to rounding.
  """
  return IMPLEMENTATIONS[resolve(implementation, width=q.shape[-1], dtype=q.dtype)](q, k, v, lengths, causal, mask)


def step_attention(q: Array, kv: KeysValues, position: Array | None) -> Array:
  """Attention of one query per row: [B 1 N Dh] and keys of which those ≤ `position` int32 [] are seen (None: all) -> [B 1 N Dh]."""
  scores = jnp.einsum("bnd,bnsd->bns", q[:, 0] * q.shape[-1] ** -0.5, kv.k, preferred_element_type=jnp.float32)
  if position is not None:
    scores = jnp.where((jnp.arange(kv.k.shape[2]) <= position)[None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(kv.v.dtype)
  return jnp.einsum("bns,bnsd->bnd", weights, kv.v)[:, None]


def visible(queries: int, keys: int, lengths: Array | None, causal: bool, mask: Array | None = None) -> Array | None:
  """Bool [B|1 1 L S], true where a query may look, or None when it may look everywhere."""
  seen = mask
  if lengths is not None:
    within = (jnp.arange(keys)[None] < lengths[:, None])[:, None, None]                     # [B 1 1 S]
    seen = within if seen is None else seen & within
  if causal:
    lower = jnp.tri(queries, keys, dtype=bool)[None, None]
    seen = lower if seen is None else seen & lower
  return seen


def xla_attention(q, k, v, lengths, causal, mask=None):
  """JAX's plain form: two einsums and a softmax."""
  return jax.nn.dot_product_attention(q, k, v, mask=visible(q.shape[1], k.shape[1], lengths, causal, mask))


def cudnn_attention(q, k, v, lengths, causal, mask=None):
  """cuDNN's flash attention. Raises ConfigError for what `cudnn_refuses`.

  Its gradient is refused for odd lengths, so both sides are padded to even ones and the padding is hidden by lengths: masks would
  be materialised as a bias. A `mask` that is given pays that price.
  """
  if refusal := cudnn_refuses(this_device(), width=q.shape[-1], dtype=q.dtype):
    raise ConfigError(f"attention='cudnn' cannot be had: {refusal}; attention='auto' takes the fastest form that can")
  (q, queries), (k, keys), (v, _) = pad_even(q), pad_even(k), pad_even(v)
  if mask is not None:
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, q.shape[1] - queries), (0, k.shape[1] - keys)))
  batch = q.shape[0]
  padded = queries < q.shape[1] or keys < k.shape[1]
  if lengths is None and padded:
    lengths = jnp.full((batch,), keys, jnp.int32)
  query_lengths = None if lengths is None else jnp.full((batch,), queries, jnp.int32)
  out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, query_seq_lengths=query_lengths, key_value_seq_lengths=lengths,
                                     implementation="cudnn")
  return out[:, :queries]


def pad_even(x: Array) -> tuple[Array, int]:
  """[B L N Dh] with L rounded up to an even number by zeros, and the L that it had."""
  length = x.shape[1]
  return (jnp.pad(x, ((0, 0), (0, length % 2), (0, 0), (0, 0))) if length % 2 else x), length


def cpu_attention(q, k, v, lengths, causal, mask=None):
  """Heads first, so that XLA:CPU sees plain matrix products, and the division after the second product, where it is smaller.

  Long sequences go head by head with recomputation: the scores of one head stay in cache, and memory does not grow with N.
  """
  seen = visible(q.shape[1], k.shape[1], lengths, causal, mask)

  def heads(q, k, v):                                                                         # [… L Dh], [… S Dh]
    scores = jnp.einsum("...ld,...sd->...ls", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if seen is not None:
      scores = jnp.where(seen if scores.ndim == 4 else seen[:, 0], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    return (jnp.einsum("...ls,...sd->...ld", weights.astype(v.dtype), v) / total).astype(v.dtype)

  if q.shape[1] * k.shape[1] < 2**16:
    return jnp.swapaxes(heads(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v))), 1, 2)
  out = jax.lax.map(lambda head: jax.checkpoint(heads)(*head), tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v)))
  return jnp.moveaxis(out, 0, 2)


IMPLEMENTATIONS = {"xla": xla_attention, "cudnn": cudnn_attention, "cpu": cpu_attention}


class Attention(nn.Module):
  """Self-attention of `x`, or cross-attention from `x` to `kv`. Kernels are 2-D: `query`, `key`, `value` [D N·Dh], `out` [N·Dh D]."""
  heads: int
  head_dim: int | None = None               # default: width / heads
  out_dim: int | None = None                # default: width
  use_bias: bool = True
  causal: bool = False
  implementation: str = "auto"
  dtype: Any = jnp.float32
  qkv_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: Array, kv: Array | None = None, *, lengths: Array | None = None, mask: Array | None = None,
               cache: KeysValues | None = None, position: Array | None = None) -> Any:
    """[B L D] (and [B S C], of which `lengths` [B] are real) -> [B L D].

    With `cache` x is the one query [B 1 D] of a decoding step and the result a pair (out, cache). Self-attention writes the query's own
    key and value at `position` int32 [] and sees those up to it; cross-attention has no position and finds in the cache what
    `keys_values` made.
    """
    width = x.shape[-1]
    if self.head_dim is None and width % self.heads:
      raise ConfigError(f"a width of {width} does not divide into {self.heads} heads")
    head_dim = self.head_dim or width // self.heads

    def project(source, name):
      flat = nn.Dense(self.heads * head_dim, use_bias=self.use_bias, dtype=self.dtype, kernel_init=self.qkv_init, name=name)(source)
      return flat.reshape(*flat.shape[:2], self.heads, head_dim)

    if cache is None:
      kv = x if kv is None else kv
      out = attention(project(x, "query"), project(kv, "key"), project(kv, "value"), lengths=lengths, causal=self.causal, mask=mask,
                      implementation=self.implementation)
    else:
      if position is not None:
        write = lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, jnp.swapaxes(new, 1, 2).astype(kept.dtype), position, axis=2)
        cache = KeysValues(write(cache.k, project(x, "key")), write(cache.v, project(x, "value")))
      out = step_attention(project(x, "query"), cache, position)
    out = out.reshape(*out.shape[:2], self.heads * head_dim)
    out = nn.Dense(self.out_dim or width, use_bias=self.use_bias, dtype=self.dtype, kernel_init=self.out_init, name="out")(out)
    return out if cache is None else (out, cache)


def keys_values(params: Params, source: Array, *, heads: int, dtype: Any = jnp.float32) -> KeysValues:
  """What cross-attention makes of `source` [B S C] alone, to be made once per decoding; params: of an `Attention`."""
  def project(name):
    dense = nn.Dense(params[name]["kernel"].shape[-1], use_bias="bias" in params[name], dtype=dtype)
    flat = dense.apply({"params": params[name]}, source)
    return jnp.swapaxes(flat.reshape(*flat.shape[:2], heads, -1), 1, 2)
  return KeysValues(project("key"), project("value"))


def empty_cache(rows: int, length: int, *, heads: int, head_dim: int, dtype: Any = jnp.float32) -> KeysValues:
  """Room for the keys and values of `length` positions."""
  return KeysValues(*(jnp.zeros((rows, heads, length, head_dim), dtype) for _ in range(2)))
