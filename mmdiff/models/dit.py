"""Diffusion transformer with adaLN-Zero (Peebles & Xie 2022, https://arxiv.org/abs/2212.09748) that reads text, on pixels or latents.

Differences from the published DiT, which knows a class label only: the label embedding is replaced by a projection of the pooled text,
added to the time embedding; and text tokens reach the picture either as further keys and values of its self-attention (`joint`, one
stream of MM-DiT, https://arxiv.org/abs/2403.03206) or by a cross-attention between self-attention and MLP (`cross`, as in PixArt,
https://arxiv.org/abs/2310.00426). The output has the input's channels: no learned variance.

Parameters at width D, depth N, patch p, C channels, text width T, T' of the pooled text:
  blocks N (18 D² + 15 D), with `cross` + N (4 D² + 6 D); time 256 D + D² + 2 D; text T D + D + 2 T and T' D + D + 2 T';
  patches p²C D + D; final 2 D² + 2 D + p²C D + p²C; learned positions (H/p)² D, sin-cos ones none.
DiT-XL/2 on 4-channel latents is 675 M with its 1,001 labels and 8 output channels; ours with joint text of width 768 is 675.4 M.
"""
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from mmdiff.core.build import OneOf
from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.nn import embed
from mmdiff.nn.attention import Attention
from mmdiff.nn.transformer import Mlp, layer_norm, stack

PRESETS = {                                    # depth, width, heads, patch, position
  "tiny": (3, 128, 4, 8, "learned"),
  "base64": (12, 512, 8, 4, "sincos"),
  "S/2": (12, 384, 6, 2, "sincos"), "S/4": (12, 384, 6, 4, "sincos"), "S/8": (12, 384, 6, 8, "sincos"),
  "B/2": (12, 768, 12, 2, "sincos"), "B/4": (12, 768, 12, 4, "sincos"), "B/8": (12, 768, 12, 8, "sincos"),
  "L/2": (24, 1024, 16, 2, "sincos"), "L/4": (24, 1024, 16, 4, "sincos"), "L/8": (24, 1024, 16, 8, "sincos"),
  "XL/2": (28, 1152, 16, 2, "sincos"), "XL/4": (28, 1152, 16, 4, "sincos"), "XL/8": (28, 1152, 16, 8, "sincos"),
}
TIME_WIDTH = 256
EPS = 1e-6


class Modulated(nn.Module):
  """norm(x) (1 + scale) + shift in one float32 expression, rounded once."""
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]) -> Float[Array, "B L D"]:
    normed = layer_norm("norm", eps=EPS, affine=False)(x.astype(jnp.float32))
    return (normed * (1 + scale[:, None].astype(jnp.float32)) + shift[:, None].astype(jnp.float32)).astype(self.dtype)


def modulation(module_dtype: Any, condition: Float[Array, "B D"], parts: str, width: int,
               gate_init: float = 0.0) -> list[Float[Array, "B D"]]:
  """An array [B D] from silu(condition) per letter of `parts`: (s)hift and (c) scale start at zero, a (g)ate at `gate_init`."""
  starts = np.repeat([gate_init if part == "g" else 0.0 for part in parts], width)
  dense = nn.Dense(len(parts) * width, dtype=module_dtype, kernel_init=nn.initializers.zeros, name="modulation",
                   bias_init=lambda key, shape, dtype: jnp.asarray(starts, dtype))
  # Without the pin GSPMD splits these by feature and exchanges them in every block.
  return jnp.split(pin(dense(condition), BATCH), len(parts), -1)


class CrossAttention(nn.Module):
  """Pre-norm attention to the text, zero at the start of training."""
  heads: int
  implementation: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], text: Float[Array, "B S D"], lengths: Int[Array, " B"]) -> Float[Array, "B L D"]:
    attend = Attention(self.heads, implementation=self.implementation, dtype=self.dtype, out_init=nn.initializers.zeros, name="attention")
    return attend(layer_norm("norm", dtype=self.dtype, eps=EPS)(x), text, lengths=lengths)


class DiTBlock(nn.Module):
  """x + gate · attention(modulated x), [x + attention to text], x + gate · mlp(modulated x)."""
  heads: int
  mlp_dim: int
  joint: bool
  gate_init: float = 0.0
  implementation: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], condition: Float[Array, "B D"], text: Float[Array, "B S D"],
               lengths: Int[Array, " B"]) -> tuple[Float[Array, "B L D"], None]:
    """x [B L D], condition [B D] after silu, text [B S D] of which `lengths` [B] are real -> ([B L D], None)."""
    x = pin(x, BATCH)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation(self.dtype, condition, "scgscg", x.shape[-1], self.gate_init)
    attend = Attention(self.heads, implementation=self.implementation, dtype=self.dtype, name="attention")
    h = Modulated(self.dtype, name="norm_attention")(x, shift, scale)
    h = attend(h, jnp.concatenate([h, text], 1), lengths=x.shape[1] + lengths) if self.joint else attend(h)
    x = x + gate[:, None] * checkpoint_name(h, "attention_out")
    if not self.joint:
      x = x + CrossAttention(self.heads, self.implementation, self.dtype, name="cross")(x, text, lengths)
    h = Modulated(self.dtype, name="norm_mlp")(x, mlp_shift, mlp_scale)
    x = x + mlp_gate[:, None] * Mlp(self.mlp_dim, "gelu_tanh", dtype=self.dtype, name="mlp")(h)
    return pin(x, BATCH), None


class DiT(nn.Module):
  """(x [B H W C], time [B], text dict) -> float32 [B H W C]; see `conv_text` for the text dict."""
  depth: int
  width: int
  heads: int
  patch: int
  image_size: int
  channels: int
  joint: bool
  position: str
  position_std: float
  patch_std: float | None = None
  gate_init: float = 0.0
  remat: str = "none"
  unroll: int = 1
  implementation: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], time: Float[Array, " B"], text: Mapping[str, Array]) -> Float[Array, "B H W C"]:
    height, width = x.shape[1:3]
    dense = lambda size, name, std=None: nn.Dense(
      size, dtype=self.dtype, name=name, kernel_init=nn.initializers.normal(std) if std else nn.initializers.xavier_uniform())
    condition = dense(self.width, "project_time_in", 0.02)(embed.sinusoid(time, TIME_WIDTH))
    condition = dense(self.width, "project_time_out", 0.02)(jax.nn.silu(condition))                                   # [B D]
    condition = condition + dense(self.width, "project_pooled")(layer_norm("norm_pooled", dtype=self.dtype, eps=EPS)(text["pooled"]))
    condition = pin(jax.nn.silu(condition), BATCH)
    tokens = dense(self.width, "project_text")(layer_norm("norm_text", dtype=self.dtype, eps=EPS)(text["tokens"]))    # [B S D]
    lengths = text["mask"].sum(1, dtype=jnp.int32)

    h = dense(self.width, "patchify", self.patch_std)(embed.patches(x.astype(self.dtype), self.patch))                     # [B L D]
    h = pin(h + self.positions(height, width)[None].astype(self.dtype), BATCH)
    blocks = stack(DiTBlock, self.depth, remat=self.remat, unroll=self.unroll, heads=self.heads, mlp_dim=4 * self.width, joint=self.joint,
                   gate_init=self.gate_init, implementation=self.implementation, dtype=self.dtype)
    h, _ = blocks(h, condition, pin(tokens, BATCH), lengths)
    out = Final(self.patch**2 * self.channels, self.dtype, name="final")(h, condition)
    return embed.unpatch(out, self.patch, height=height, width=width)

  def positions(self, height: int, width: int) -> Float[Array, "L D"]:
    """[L D]. Sin-cos ones exist for any size, learned ones for `image_size` only."""
    rows, columns = height // self.patch, width // self.patch
    if self.position == "sincos":
      return jnp.asarray(embed.sincos_positions(rows, columns, self.width))
    if (height, width) != (self.image_size, self.image_size):
      raise ConfigError(f"learned positions are for {self.image_size} px, found a picture of {height}×{width}; use position='sincos'")
    return self.param("position", nn.initializers.normal(self.position_std), (rows * columns, self.width))


class Final(nn.Module):
  """Modulated norm and a projection to patch values, zero at the start of training; float32."""
  values: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"], condition: Float[Array, "B D"]) -> Float[Array, "B L V"]:
    shift, scale = modulation(self.dtype, condition, "sc", x.shape[-1])
    x = Modulated(self.dtype, name="norm")(x, shift, scale)
    return nn.Dense(self.values, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="project_values")(x).astype(jnp.float32)


def dit(*, variant: OneOf["PRESETS"], image_size: int, channels: int = 3, patch: int | None = None, width: int | None = None,
        depth: int | None = None, heads: int | None = None, text: Literal["joint", "cross"] = "joint",
        position: Literal["learned", "sincos"] | None = None, position_std: float = 0.4,
        patch_std: float | None = None, gate_init: float = 0.0, dtype: Literal["float32", "bfloat16"] = "float32",
        remat: Literal["none", "full", "dots", "names"] = "none", unroll: int = 1,
        attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> DiT:
  """The denoiser of a preset; what is None is the preset's.

  Args:
    variant: `tiny` for 32 px in minutes of CPU, `base64` for 64 px, S, B, L, XL with a patch of 2, 4 or 8 as published.
    image_size: side of the square pictures (or latents) that it trains on.
    channels: of its input and output.
    text: how text tokens reach the picture, see the module.
    position: `learned` (normal, `position_std`) or fixed `sincos`. Small models learn where things are much sooner from a large
      `position_std`, since it is all that tells patches apart at the start.
    patch_std: of the patch projection's kernel; None is Xavier's. A small one lets positions speak before pixels, which noise fills.
    gate_init: of every residual branch; 0 is adaLN-Zero, which steadies deep models, 1 lets shallow ones start at once.
    remat: what the backward pass recomputes, see `nn.transformer.stack`.
    unroll: layers per iteration of the scan.
  """
  if variant not in PRESETS:
    raise ConfigError(f"denoiser.variant: unknown value {variant!r}; known: {', '.join(PRESETS)}")
  own_depth, own_width, own_heads, own_patch, own_position = PRESETS[variant]
  patch, width = patch or own_patch, width or own_width
  if image_size % patch:
    raise ConfigError(f"denoiser.image_size: {image_size} does not divide into patches of {patch}; set denoiser.patch or another size")
  if width % (heads or own_heads) or width % 4:
    raise ConfigError(f"denoiser.width: {width} does not divide into {heads or own_heads} heads, or by 4 for sin-cos positions")
  return DiT(depth or own_depth, width, heads or own_heads, patch, image_size, channels, text == "joint", position or own_position,
             position_std, patch_std, gate_init, remat, unroll, attention, jnp.dtype(dtype))
