"""CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343): two towers into one space.

`PRESETS` has every published size: the paper's nine, OpenCLIP's larger three (https://arxiv.org/abs/2212.07143) and SigLIP's.
Every option of `clip` that is None takes the preset's value.
"""
import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int, Num

from mmdiff.core.build import OneOf
from mmdiff.core.errors import ConfigError
from mmdiff.core.types import Array
from mmdiff.models.resnet import VARIANTS as RESNETS
from mmdiff.models.resnet import ResNet, resnet
from mmdiff.models.text import TextTransformer
from mmdiff.models.vit import ViT, vit
from mmdiff.nn import embed

# `image`: a name for `vit` or `resnet`, or a ViT's fields; `text`: width, depth, heads. What a row leaves out is in DEFAULTS.
PRESETS = {
  "RN50": dict(image="RN50", image_size=224, embed_dim=1024, text=(512, 12, 8)),
  "RN101": dict(image="RN101", image_size=224, embed_dim=512, text=(512, 12, 8)),
  "RN50x4": dict(image="RN50x4", image_size=288, embed_dim=640, text=(640, 12, 10)),
  "RN50x16": dict(image="RN50x16", image_size=384, embed_dim=768, text=(768, 12, 12)),
  "RN50x64": dict(image="RN50x64", image_size=448, embed_dim=1024, text=(1024, 12, 16)),
  "ViT-B/32": dict(image="B/32", image_size=224, embed_dim=512, text=(512, 12, 8)),
  "ViT-B/16": dict(image="B/16", image_size=224, embed_dim=512, text=(512, 12, 8)),
  "ViT-L/14": dict(image="L/14", image_size=224, embed_dim=768, text=(768, 12, 12)),
  "ViT-L/14@336": dict(image="L/14", image_size=336, embed_dim=768, text=(768, 12, 12)),
  "ViT-H/14": dict(image="H/14", image_size=224, embed_dim=1024, text=(1024, 24, 16), act="gelu"),
  "ViT-g/14": dict(image="g/14", image_size=224, embed_dim=1024, text=(1024, 24, 16), act="gelu"),
  "ViT-bigG/14": dict(image="bigG/14", image_size=224, embed_dim=1280, text=(1280, 32, 20), act="gelu"),
  "SigLIP-B/16": dict(image="B/16", image_size=224, embed_dim=768, text=(768, 12, 12), siglip=True),
  "SigLIP-L/16": dict(image="L/16", image_size=256, embed_dim=1024, text=(1024, 24, 16), siglip=True),
  "SigLIP-So400m/14": dict(image="So400m/14", image_size=224, embed_dim=1152, text=(1152, 27, 16), text_mlp_dim=4304, text_len=16,
                           siglip=True),
  "tiny": dict(image=(128, 3, 4, 8), image_size=32, embed_dim=128, text=(96, 2, 3), vocab=512, text_len=64),
  "tiny-rn": dict(image="tiny-rn", image_size=32, embed_dim=128, text=(96, 2, 3), vocab=512, text_len=64),
  "siglip-tiny": dict(image=(128, 3, 4, 8), image_size=32, embed_dim=128, text=(96, 2, 3), vocab=512, text_len=64, siglip=True,
                      masked=True, text_pool="eot"),
}
DEFAULTS = dict(vocab=49_408, text_len=77, act="quick_gelu", pool="cls", pixels="clip", siglip=False, masked=False, text_pool="eot",
                causal=True, eps=1e-5, scale_init=math.log(1 / 0.07), bias_init=None)
# SigLIP: Table 1 and §3.2 of the paper, and the released configs: no causal mask, the last position pooled, a text projection with
# bias and none for images, pixels in [-1, 1].
SIGLIP = dict(vocab=32_000, text_len=64, act="gelu_tanh", pool="map", pixels="half", text_pool="last", causal=False, eps=1e-6,
              scale_init=math.log(10.0), bias_init=-10.0)

PIXELS = {
  "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
  "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),              # SigLIP, and OpenCLIP's ViT-L/14 on LAION-2B
}


class CLIP(nn.Module):
  """Parameter groups `image`, `text`, `logit_scale` (a logarithm) and, where `bias_init` is a number, `logit_bias`."""
  image: ViT | ResNet
  text: TextTransformer
  image_size: int
  mean: tuple[float, float, float] = PIXELS["clip"][0]
  std: tuple[float, float, float] = PIXELS["clip"][1]
  scale_init: float = math.log(1 / 0.07)
  bias_init: float | None = None

  def setup(self):
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(self.scale_init), ())
    if self.bias_init is not None:
      self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.bias_init), ())

  @property
  def has_statistics(self) -> bool:
    """Whether the image tower has batch statistics (collection `batch_stats`), which couple the examples of a batch."""
    return isinstance(self.image, ResNet)

  def encode_image(self, image: Num[Array, "B H W 3"], *, train: bool = False) -> Float[Array, "B D"]:
    """uint8 or [-1, 1] pixels [B H W 3] -> float32 [B D], not normalised."""
    size = (self.image_size, self.image_size, 3)
    if image.shape[1:] != size:
      raise ConfigError(f"the model takes images of {size}, found {image.shape[1:]}: make data.image_size the model's image_size")
    pixels = embed.normalize(image, mean=self.mean, std=self.std)
    return self.image(pixels, train=train) if self.has_statistics else self.image(pixels)

  def encode_text(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """int32 [B L], bool [B L] -> float32 [B D], not normalised."""
    return self.text(tokens, mask)

  def __call__(self, image: Num[Array, "B H W 3"], tokens: Int[Array, "B L"], mask: Bool[Array, "B L"], *,
               train: bool = False) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
    return self.encode_image(image, train=train), self.encode_text(tokens, mask)


def clip(*, variant: OneOf["PRESETS"] = "ViT-B/32", image_size: int | None = None, vocab: int | None = None, text_len: int | None = None,
         embed_dim: int | None = None, patch: int | None = None, image_width: int | None = None, image_depth: int | None = None,
         image_heads: int | None = None, image_mlp_dim: int | None = None, blocks: tuple[int, ...] | None = None,
         text_width: int | None = None, text_depth: int | None = None, text_heads: int | None = None, text_mlp_dim: int | None = None,
         pool: Literal["cls", "map", "avg"] | None = None, text_pool: Literal["eot", "last"] | None = None,
         act: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] | None = None,
         text_act: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] | None = None, eps: float | None = None,
         pixels: Literal["clip", "half"] | None = None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
         masked: bool | None = None, dtype: Literal["float32", "bfloat16"] = "float32",
         remat: Literal["none", "dots", "full", "names"] = "none", unroll: bool = False,
         attention: Literal["auto", "xla", "cudnn", "cpu"] = "auto") -> CLIP:
  """A CLIP of a preset's shape, with any part overridden.

  Args:
    variant: the preset.
    image_size: pixels a side; the position table's size follows.
    vocab, text_len: of the tokenizer, and rows of the text's position table.
    embed_dim: width of the shared space.
    patch, image_depth, pool: of a vision transformer; a ResNet takes none of them.
    image_width, image_heads: of the vision transformer, or a ResNet's first width and the heads of its attention pool.
    image_mlp_dim, text_mlp_dim: by default four times a width that is given.
    blocks: of a ResNet's four stages.
    text_width, text_depth, text_heads: of the text transformer.
    text_pool: where a text ends ("eot") or its last position ("last").
    act: MLP activation of both towers; text_act: of the text tower, where it has its own.
    eps: of the transformers' norms.
    pixels: normalisation, CLIP's mean and std or 0.5 and 0.5; mean, std: any other, of pixels in [0, 1].
    masked: hide padding from attention in the text tower.
    dtype: of the computation; parameters are float32.
    remat, unroll, attention: see `nn.transformer.stack` and `nn.attention.resolve`.
  """
  preset = PRESETS[variant]
  given = dict(image_size=image_size, vocab=vocab, text_len=text_len, embed_dim=embed_dim, act=act, pool=pool, pixels=pixels, masked=masked,
               text_pool=text_pool, eps=eps)
  row = DEFAULTS | (SIGLIP if preset.get("siglip") else {}) | preset | {key: value for key, value in given.items() if value is not None}
  run = dict(dtype=jnp.dtype(dtype), remat=remat, attention=attention)

  shape = dict(width=image_width, depth=image_depth, heads=image_heads, patch=patch,
               mlp_dim=image_mlp_dim or (image_width and 4 * image_width))
  if row["image"] in RESNETS:
    own = dict(patch=patch, image_depth=image_depth, image_mlp_dim=image_mlp_dim, pool=pool)
    if wrong := sorted(key for key, value in own.items() if value is not None):
      raise ConfigError(f"{variant} is a ResNet and takes none of {wrong}; choose a ViT preset to set them")
    shape = dict(width=image_width, heads=image_heads, blocks=blocks and tuple(blocks))
    image = resnet(row["image"], embed_dim=row["embed_dim"], **{key: value for key, value in shape.items() if value is not None}, **run)
  else:
    if blocks is not None:
      raise ConfigError(f"{variant} is no ResNet and takes no blocks; choose an RN preset to set them")
    shape = {key: value for key, value in shape.items() if value is not None}
    shape |= dict(pool=row["pool"], act=row["act"], eps=row["eps"], unroll=unroll, **run)
    shape["embed_dim"] = None if row["siglip"] else row["embed_dim"]
    if isinstance(row["image"], str):
      image = vit(row["image"], **shape)
    else:
      width, depth, heads, size = row["image"]
      image = ViT(**(dict(width=width, depth=depth, heads=heads, mlp_dim=4 * width, patch=size) | shape))
    if row["siglip"] and image.width != row["embed_dim"]:
      raise ConfigError(f"{variant} has no image projection: embed_dim {row['embed_dim']} must be the image width {image.width}")

  width, depth, heads = (value or default for value, default in zip((text_width, text_depth, text_heads), row["text"]))
  text = TextTransformer(
    vocab=row["vocab"], length=row["text_len"], width=width, depth=depth, heads=heads,
    mlp_dim=text_mlp_dim or (4 * width if text_width else row.get("text_mlp_dim", 4 * width)), embed_dim=row["embed_dim"],
    causal=row["causal"], masked=row["masked"], pool=row["text_pool"], projection_bias=row["siglip"], act=text_act or row["act"],
    eps=row["eps"], unroll=unroll, **run)
  preset_mean, preset_std = PIXELS[row["pixels"]]
  return CLIP(image=image, text=text, image_size=row["image_size"], mean=tuple(mean or preset_mean), std=tuple(std or preset_std),
              scale_init=row["scale_init"], bias_init=row["bias_init"])
