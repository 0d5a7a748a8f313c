"""Vision Transformer (https://arxiv.org/abs/2010.11929): CLIP's form with a class token, SigLIP's with attention pooling, or a mean."""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from mmdiff.core.types import Array
from mmdiff.nn import embed, pool
from mmdiff.nn.transformer import Block, clip_inits, layer_norm, stack

# Width, depth, heads, MLP width: CLIP §2.4, Table 1 of https://arxiv.org/abs/2212.07143 (H, g), OpenCLIP's configs (bigG),
# Table 1 of https://arxiv.org/abs/2305.13035 (So400m).
VARIANTS = {
  "B": dict(width=768, depth=12, heads=12, mlp_dim=3072),
  "L": dict(width=1024, depth=24, heads=16, mlp_dim=4096),
  "So400m": dict(width=1152, depth=27, heads=16, mlp_dim=4304),
  "H": dict(width=1280, depth=32, heads=16, mlp_dim=5120),
  "g": dict(width=1408, depth=40, heads=16, mlp_dim=6144),
  "bigG": dict(width=1664, depth=48, heads=16, mlp_dim=8192),
}


class ViT(nn.Module):
  """[B H W 3], normalised -> float32 [B embed_dim], or [B L D] with pool="none"; the position table fits the image size that `init` saw."""
  width: int
  depth: int
  heads: int
  mlp_dim: int
  patch: int
  embed_dim: int | None = None        # of the projection without bias; None = no projection, D out
  pool: str = "cls"                   # "cls": class token and a norm before the blocks (CLIP) | "map" (SigLIP) | "avg" | "none": all tokens
  position_std: float | None = None   # of the positions at the start; None = width ** -0.5
  class_token: bool | None = None     # with the norm before the blocks; None = where pool is "cls"
  act: str = "gelu"
  eps: float = 1e-5
  dtype: Any = jnp.float32
  remat: str = "none"
  unroll: int | bool = 1
  attention: str = "auto"

  @nn.compact
  def __call__(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B ..."]:
    cls = self.pool == "cls" if self.class_token is None else self.class_token
    norm = lambda name: layer_norm(name, dtype=self.dtype, eps=self.eps)
    if self.pool == "map":                # So400m/14 at 384 pixels: a convolution without padding leaves the last six rows and columns out
      image = image[:, :image.shape[1] // self.patch * self.patch, :image.shape[2] // self.patch * self.patch]
    x = nn.Dense(self.width, use_bias=not cls, dtype=self.dtype, kernel_init=nn.initializers.lecun_normal(), name="patchify")(
      embed.patches(image.astype(self.dtype), self.patch))                                    # [B L D]
    normal = nn.initializers.normal(self.width**-0.5)
    if cls:
      token = self.param("class_token", normal, (self.width,)).astype(self.dtype)
      x = jnp.concatenate([jnp.broadcast_to(token[None, None], (x.shape[0], 1, self.width)), x], axis=1)
    spread = normal if self.position_std is None else nn.initializers.normal(self.position_std)
    x = x + self.param("position", spread, x.shape[1:]).astype(self.dtype)[None]
    if cls:
      x = norm("norm_pre")(x)
    x, _ = stack(Block, self.depth, remat=self.remat, unroll=self.unroll, heads=self.heads, mlp_dim=self.mlp_dim, act=self.act,
                 eps=self.eps, dtype=self.dtype, implementation=self.attention, inits=clip_inits(self.width, self.depth))(x)
    if self.pool == "none":
      return x
    if self.pool == "cls":
      x = norm("norm_post")(x[:, 0])                                                          # [B D]
    elif self.pool == "map":
      x = pool.MapPool(self.heads, self.mlp_dim, act=self.act, eps=self.eps, dtype=self.dtype, implementation=self.attention,
                       name="pool")(norm("norm_post")(x))
    else:
      x = pool.average(norm("norm_post")(x))
    if self.embed_dim is not None:
      x = nn.Dense(self.embed_dim, use_bias=False, dtype=self.dtype, kernel_init=normal, name="projection")(x)
    return x.astype(jnp.float32)


def vit(variant: str, **overrides) -> ViT:
  """`vit("B/16", pool="map", dtype=jnp.bfloat16)`: a published size and patch, with any field overridden."""
  size, patch = variant.split("/")
  return ViT(**(VARIANTS[size] | dict(patch=int(patch)) | overrides))
