"""The pre-LayerNorm transformer block (https://arxiv.org/abs/2002.04745, fig. 1b) and a stack of blocks as one scanned program.

Scanning compiles one layer instead of all (14 times faster to compile at 24 layers) and adds a leading `layers` axis to every
parameter of the stack. Any block of the form `(x, *shared) -> (x, None)` can be stacked.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array, Params
from mmdiff.nn.attention import Attention, KeysValues, keys_values

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),       # every weight that OpenAI published for CLIP
  "silu": jax.nn.silu,
}

# What the backward pass may read instead of recomputing; "full" recomputes the whole block.
REMAT: dict[str, Callable | None] = {
  "full": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "names": jax.checkpoint_policies.save_only_these_names("attention_out", "mlp_hidden"),
}


class Inits(NamedTuple):
  """Kernel initialisers of a block."""
  qkv: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  out: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  up: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  down: nn.initializers.Initializer = nn.initializers.xavier_uniform()


def clip_inits(width: int, depth: int) -> Inits:
  """CLIP's, from `initialize_parameters` of openai/CLIP model.py: what a block adds to the stream shrinks with the depth."""
  normal, out = nn.initializers.normal, width**-0.5 * (2 * depth)**-0.5
  return Inits(qkv=normal(width**-0.5), out=normal(out), up=normal((2 * width)**-0.5), down=normal(out))


def layer_norm(name: str | None = None, *, dtype: Any = jnp.float32, eps: float = 1e-5, affine: bool = True) -> nn.LayerNorm:
  """LayerNorm whose statistics are float32 whatever `dtype` it returns; `affine=False` leaves out scale and bias."""
  return nn.LayerNorm(epsilon=eps, dtype=dtype, use_scale=affine, use_bias=affine, use_fast_variance=False, name=name)


class Mlp(nn.Module):
  """up -> activation -> down; kernels `up` [D hidden] and `down` [hidden D]."""
  hidden: int
  act: str = "gelu"
  use_bias: bool = True
  dtype: Any = jnp.float32
  up_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  down_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = lambda width, init, name: nn.Dense(width, use_bias=self.use_bias, dtype=self.dtype, kernel_init=init, name=name)
    hidden = checkpoint_name(dense(self.hidden, self.up_init, "up")(x), "mlp_hidden")
    return dense(x.shape[-1], self.down_init, "down")(ACTIVATIONS[self.act](hidden))


class GatedMlp(nn.Module):
  """down(act(gate(x)) · up(x)) (https://arxiv.org/abs/2002.05202, eq. 5); kernels `gate`, `up` [D hidden] and `down` [hidden D].

  `down_dtype` is the last product's, None = `dtype`: T5 adds to its stream in float32.
  """
  hidden: int
  act: str = "gelu"
  use_bias: bool = True
  dtype: Any = jnp.float32
  down_dtype: Any = None
  up_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  down_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    up = lambda name: nn.Dense(self.hidden, use_bias=self.use_bias, dtype=self.dtype, kernel_init=self.up_init, name=name)(x)
    hidden = checkpoint_name(ACTIVATIONS[self.act](up("gate")) * up("up"), "mlp_hidden")
    return nn.Dense(x.shape[-1], use_bias=self.use_bias, dtype=self.down_dtype or self.dtype, kernel_init=self.down_init,
                    name="down")(hidden)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)). Called with `kv` the attention is to norm(kv) instead of to x itself."""
  heads: int
  mlp_dim: int                        # 0: no MLP
  act: str = "gelu"
  causal: bool = False
  eps: float = 1e-5
  dtype: Any = jnp.float32
  implementation: str = "auto"
  inits: Inits = Inits()

  @nn.compact
  def __call__(self, x: Array, lengths: Array | None = None, mask: Array | None = None, kv: Array | None = None,
               cache: KeysValues | None = None, position: Array | None = None) -> tuple[Array, KeysValues | None]:
    """[B L D], of which `lengths` int32 [B] positions are real (None: all) -> ([B L D], None).

    mask: see `attention`. kv: [B S C] to attend to. With `cache`, x is one position [B 1 D] and the new cache is returned too: see
    `Attention`.
    """
    x = pin(x, BATCH)
    norm = lambda name: layer_norm(name, dtype=self.dtype, eps=self.eps)
    attend = Attention(self.heads, causal=self.causal, implementation=self.implementation, dtype=self.dtype,
                       qkv_init=self.inits.qkv, out_init=self.inits.out, name="attention")
    h = norm("norm_attention")(x)
    if cache is not None:
      h, cache = attend(h, cache=cache, position=position)
    else:
      h = attend(h, None if kv is None else norm("norm_kv")(kv), lengths=lengths, mask=mask)
    x = x + checkpoint_name(h, "attention_out")
    if self.mlp_dim:
      mlp = Mlp(self.mlp_dim, self.act, dtype=self.dtype, up_init=self.inits.up, down_init=self.inits.down, name="mlp")
      x = x + mlp(norm("norm_mlp")(x))
    return pin(x, BATCH), cache


def block_keys_values(params: Params, kv: Array, *, heads: int, dtype: Any = jnp.float32, eps: float = 1e-5) -> KeysValues:
  """The cache of a cross-attending `Block` with these parameters, for kv [B S C]."""
  normed = layer_norm(dtype=dtype, eps=eps).apply({"params": params["norm_kv"]}, kv)
  return keys_values(params["attention"], normed, heads=heads, dtype=dtype)


def layers_of(params: Params, depth: int) -> list[Params]:
  """The parameters of a stack, layer by layer. Decoding runs layers one after another: each step would slice all of a scanned stack."""
  return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(depth)]


def stack(block: type[nn.Module], depth: int, *, remat: str = "none", unroll: int | bool = 1, name: str = "stack",
          **fields) -> nn.Module:
  """`depth` blocks as one module to call inside a compact method: `x, _ = stack(Block, 12, heads=8, mlp_dim=2048)(x, lengths)`.

  Args:
    block: a module class whose call maps (x, *shared) to (x, None); `shared` is the same for every layer.
    depth: number of layers; every parameter and every variable of the collection `cache` gets this leading axis, every layer its own
      initial value.
    remat: "none" keeps all activations for the backward pass, "full" only the blocks' inputs, "dots" also the matrix products,
      "names" also what the block named by `checkpoint_name`.
    unroll: layers per iteration of the scan; True = all.
    name: of the parameter group.
    **fields: the block's own.
  """
  if remat != "none":
    if remat not in REMAT:
      raise ConfigError(f"unknown remat policy {remat!r} (known: none, {', '.join(REMAT)})")
    block = nn.remat(block, policy=REMAT[remat], prevent_cse=False)       # inside a scan XLA can't undo it
  scanned = nn.scan(block, variable_axes={"params": 0, "cache": 0}, split_rngs={"params": True, "dropout": True}, in_axes=nn.broadcast,
                    length=depth, unroll=depth if unroll is True else unroll)
  return scanned(**fields, name=name)
