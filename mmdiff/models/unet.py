"""The UNet of latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752; openaimodel.py of CompVis/latent-diffusion).

| variant   | what                                                                                              | parameters    |
|-----------|---------------------------------------------------------------------------------------------------|---------------|
| `sd1`     | Stable Diffusion 1.x: 8 heads, CLIP-L states of width 768                                         | 859,520,964   |
| `sd2`     | 2.x: heads of 64, OpenCLIP-H states of width 1024                                                 | 865,910,724   |
| `sdxl`    | XL (https://arxiv.org/abs/2307.01952): three levels, transformers 0, 2, 10 deep, sizes and pooled | 2,567,463,684 |
|           | text join the time; text of width 2048, pooled 1280                                               |               |
| `refiner` | XL's second model: text of width 1280, five numbers instead of six                                | 2,259,526,660 |
| `x4`      | 2.x's upscaler: 3 more input channels, their noise level as a class, no self-attention on the     | 473,398,020   |
|           | first three levels; text of width 1024                                                            |               |
| `dalle3`  | DALL-E 3's ablation model (Betker et al. 2023, app. A): three levels, a transformer over T5       | 711,816,516   |
|           | states ("xfnet") whose output is attended to, time as scale and shift of group norms; the paper   |               |
|           | gives no sizes, these are ours                                                                    |               |
| `tiny`    | `dalle3` for small latents or pixels on a CPU                                                     |               |

Beyond x, time and the text dict of `conv_text`, it reads from that dict `size` int32 [B 6] (original height and width, top and left of the
crop, target height and width), `concat` [B H W C'] (further input channels: mask and masked latents, a low-resolution picture), `level`
int32 [B] (the class of `x4`) and `times` float32 [R] (all that `time` takes in a sampling loop, embedded together before it).
"""
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from mmdiff.core.build import OneOf
from mmdiff.core.errors import ConfigError
from mmdiff.core.sharding import BATCH, pin
from mmdiff.core.types import Array
from mmdiff.nn import pool
from mmdiff.nn.conv import TORCH_INIT, Downsample, GroupNorm, ResBlock, Upsample, conv
from mmdiff.nn.embed import sinusoid
from mmdiff.nn.spatial import SpatialTransformer, kept
from mmdiff.nn.transformer import REMAT, Block, layer_norm, stack

SIZE_WIDTH = 256                        # features of each number in `size`
EPS = 1e-5

PRESETS = {
  "sd1": dict(width=320, mults=(1, 2, 4, 4), depths=(1, 1, 1, 0), heads=8),
  "sd2": dict(width=320, mults=(1, 2, 4, 4), depths=(1, 1, 1, 0), head_dim=64),
  "sdxl": dict(width=320, mults=(1, 2, 4), depths=(0, 2, 10), head_dim=64, sizes=6),
  "refiner": dict(width=384, mults=(1, 2, 4, 4), depths=(0, 4, 4, 0), middle=4, head_dim=64, sizes=5),
  "x4": dict(width=256, mults=(1, 2, 2, 4), depths=(0, 1, 1, 1), heads=8, text_only=(True, True, True, False), levels=1000),
  "dalle3": dict(width=320, mults=(1, 2, 4), depths=(0, 1, 1), head_dim=64, conditioning="scale_shift", text_width=1024, text_layers=6),
  "tiny": dict(width=64, mults=(1, 2), blocks=1, depths=(0, 1), heads=4, groups=8, conditioning="scale_shift", text_width=128),
}


class UNet(nn.Module):
  """(x [B H W C], time [B], text dict) -> float32 [B H W channels]."""
  image_size: int                       # of the (square) latents or pictures that it trains on; others work too
  channels: int
  width: int
  mults: tuple[int, ...]                # widths of the levels, in multiples of `width`
  depths: tuple[int, ...]               # of the transformers at each level; 0: none
  middle: int                           # of the transformer between down and up
  blocks: int = 2                       # residual blocks of a level on the way down; one more on the way up
  heads: int | None = None
  head_dim: int | None = None
  sizes: int = 0                        # numbers of `size` that are read, with `pooled`; 0: neither
  size_width: int = SIZE_WIDTH          # features of each of these numbers
  levels: int = 0                       # classes of `level`
  text_only: tuple[bool, ...] = ()      # by level: no self-attention
  text_width: int = 0                   # > 0: text is normed and projected to this width, and its mean joins the time
  text_layers: int = 0                  # of the transformer over the projected text
  conditioning: str = "add"             # how a residual block takes the time: "add" or "scale_shift"
  groups: int = 32
  position_std: float = 0.0             # > 0: learned positions of the full resolution, for `image_size` only
  open_start: bool = False              # residual branches start at their size instead of zero
  remat: str = "none"
  unroll: int | bool = 1
  attention: str = "auto"
  dtype: Any = jnp.float32

  @property
  def multiple(self) -> int:
    """What the sides of its input are multiples of."""
    return 2 ** (len(self.mults) - 1)

  keeps_text = True                     # an apply with mutable=["cache"] leaves what depends on the text, or on `times`, alone

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], time: Float[Array, " B"], text: Mapping[str, Array]) -> Float[Array, "B H W K"]:
    if x.shape[1] % self.multiple or x.shape[2] % self.multiple:
      raise ConfigError(f"this UNet halves its input {len(self.mults) - 1} times: sides must be multiples of {self.multiple}, found "
                        f"{x.shape[1]}×{x.shape[2]}")
    states, lengths = self.read(text)
    condition = self.condition(time, text, states)
    if "concat" in text:
      x = jnp.concatenate([x, text["concat"].astype(x.dtype)], -1)

    out_init = TORCH_INIT if self.open_start else nn.initializers.zeros
    res_block = ResBlock if self.remat == "none" else nn.remat(ResBlock, policy=REMAT[self.remat])

    def res(h: Array, level: int, name: str) -> Array:
      block = res_block(self.width * self.mults[level], self.groups, EPS, self.conditioning, out_init, self.dtype, name=name)
      return block(h, condition)

    def attend(h: Array, depth: int, level: int, name: str) -> Array:
      transformer = SpatialTransformer(
        depth, self.heads, self.head_dim, bool(self.text_only) and self.text_only[level], self.groups, self.remat, self.unroll,
        self.attention, self.dtype, out_init, name=name)
      return transformer(h, states, lengths)

    h = conv(self.width, dtype=self.dtype, name="conv_in")(pin(x.astype(self.dtype), BATCH))
    if self.position_std:
      h = h + self.positions(*x.shape[1:3])[None].astype(self.dtype)
    skips = [h]
    for level, depth in enumerate(self.depths):
      for i in range(self.blocks):
        h = res(h, level, f"down_{level}_res_{i}")
        h = attend(h, depth, level, f"down_{level}_attention_{i}") if depth else h
        skips.append(h)
      if level + 1 < len(self.depths):
        h = Downsample(dtype=self.dtype, name=f"down_{level}_shrink")(h)
        skips.append(h)

    last = len(self.depths) - 1
    h = res(h, last, "middle_res_0")
    h = attend(h, self.middle, last, "middle_attention")
    h = res(h, last, "middle_res_1")

    for level, depth in reversed(list(enumerate(self.depths))):
      for i in range(self.blocks + 1):
        h = res(jnp.concatenate([h, skips.pop()], -1), level, f"up_{level}_res_{i}")
        h = attend(h, depth, level, f"up_{level}_attention_{i}") if depth else h
      h = Upsample(dtype=self.dtype, name=f"up_{level}_grow")(h) if level else h

    h = jax.nn.silu(GroupNorm(self.groups, EPS, self.dtype, name="norm_out")(h))
    return conv(self.channels, dtype=self.dtype, init=nn.initializers.zeros, name="conv_out")(h).astype(jnp.float32)

  def positions(self, height: int, width: int) -> Array:
    """[H W width]."""
    if (height, width) != (self.image_size, self.image_size):
      raise ConfigError(f"learned positions are for sides of {self.image_size}, found {height}×{width}; set position_std=0")
    return self.param("position", nn.initializers.normal(self.position_std), (height, width, self.width))

  def read(self, text: Mapping[str, Array]) -> tuple[Array, Array]:
    """(states [B S D] that cross-attentions read, int32 [B] how many of them are real), kept in the cache where there is one."""
    lengths = text["mask"].sum(1, dtype=jnp.int32)
    if not self.text_width:
      return pin(text["tokens"].astype(self.dtype), BATCH), lengths

    def project() -> Array:
      normed = layer_norm("norm_text", dtype=self.dtype)(text["tokens"])
      h = nn.Dense(self.text_width, dtype=self.dtype, name="project_text")(normed)
      if self.text_layers:
        h, _ = stack(Block, self.text_layers, remat=self.remat, unroll=self.unroll, heads=max(self.text_width // 64, 1),
                     mlp_dim=4 * self.text_width, dtype=self.dtype, implementation=self.attention, name="text")(h, lengths)
        h = layer_norm("norm_text_out", dtype=self.dtype)(h)
      return h
    return pin(kept(self, "text_states", project), BATCH), lengths

  def condition(self, time: Array, text: Mapping[str, Array], states: Array) -> Array:
    """[B 4·width]: the time's embedding, plus those of the pooled text, the sizes and the level where the model has them."""
    width = 4 * self.width
    dense = lambda name: nn.Dense(width, dtype=self.dtype, kernel_init=TORCH_INIT, name=name)
    embed = lambda x, name: dense(f"{name}_out")(jax.nn.silu(dense(f"{name}_in")(x.astype(self.dtype))))
    if "times" in text:
      table = kept(self, "times", lambda: embed(sinusoid(text["times"], self.width), "project_time"))
      condition = table[jnp.abs(text["times"][None] - time[:, None]).argmin(1)]
    else:
      condition = embed(sinusoid(time, self.width), "project_time")
    if self.sizes:
      def vector() -> Array:
        numbers = text["size"][:, :self.sizes]
        features = sinusoid(numbers.reshape(-1), self.size_width).reshape(numbers.shape[0], -1)
        return embed(jnp.concatenate([text["pooled"].astype(jnp.float32), features], -1), "project_vector")
      condition = condition + kept(self, "vector", vector)
    if self.levels:
      condition = condition + nn.Embed(self.levels, width, embedding_init=nn.initializers.normal(1.0), dtype=self.dtype,
                                       name="embed_level")(text["level"])
    if self.text_width:
      condition = condition + dense("project_pooled")(pool.average(states, text["mask"]))
    return pin(condition, BATCH)


def unet(*, variant: OneOf["PRESETS"], image_size: int, channels: int = 4, width: int | None = None, mults: tuple[int, ...] | None = None,
         depths: tuple[int, ...] | None = None, blocks: int | None = None, heads: int | None = None, text_width: int | None = None,
         text_layers: int | None = None, groups: int | None = None, position_std: float = 0.0, open_start: bool = False,
         dtype: Literal["float32", "bfloat16"] = "float32",
         remat: Literal["none", "full", "dots", "names"] = "none", unroll: bool = False,
         attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> UNet:
  """The denoiser of a variant (see the module); what is None is the variant's.

  Args:
    image_size: side of the square latents, or pictures, that it trains on: the picture's by the autoencoder's factor.
    channels: of the noisy input and of the output. Further input channels come with the batch.
    width: of the first level; mults: of the levels, in multiples of it.
    depths: of the transformers at each level, 0 for none; between down and up it is the last level's, at least 1.
    blocks: residual blocks of a level on the way down.
    heads: of each attention.
    text_width, text_layers: of the transformer over the text (`dalle3`, `tiny`).
    groups: of the group norms.
    position_std: of learned positions; 0 is none, as published. A small model learns where things are much sooner with them, since noise
      has none.
    open_start: residual branches start at their size; published models start them at zero, which steadies deep ones.
    remat: what the backward pass recomputes, see `nn.transformer.stack`.
  """
  if variant not in PRESETS:
    raise ConfigError(f"denoiser.variant: unknown value {variant!r}; known: {', '.join(PRESETS)}")
  given = dict(width=width, mults=mults, depths=depths, blocks=blocks, heads=heads, text_width=text_width, text_layers=text_layers,
               groups=groups)
  fields: dict[str, Any] = PRESETS[variant] | {name: value for name, value in given.items() if value is not None}
  if heads is not None:
    fields["head_dim"] = None
  if len(fields["mults"]) != len(fields["depths"]):
    raise ConfigError(f"denoiser.depths: one depth for each of the {len(fields['mults'])} levels of mults {fields['mults']}, found "
                      f"{fields['depths']}")
  fields.setdefault("middle", max(fields["depths"][-1], 1))
  return UNet(image_size=image_size, channels=channels, dtype=jnp.dtype(dtype), remat=remat, unroll=unroll, attention=attention,
              position_std=position_std, open_start=open_start, **fields)
