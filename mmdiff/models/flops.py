"""Analytic FLOPs: two per multiply-add of every matrix product and convolution, nothing else. The base of every MFU figure.

A training step costs three forward passes (https://arxiv.org/abs/2001.08361 §2.1); what rematerialisation recomputes is not counted.
"""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmdiff.models.clip import CLIP
from mmdiff.models.coca import CoCa
from mmdiff.models.conv_text import ConvText
from mmdiff.models.dit import TIME_WIDTH, DiT
from mmdiff.models.resnet import ResNet
from mmdiff.models.text import TextTransformer
from mmdiff.models.unet import UNet
from mmdiff.models.vit import ViT

TRAIN = 3               # forward passes' worth of a forward and a backward pass


def dense(rows: int, inputs: int, outputs: int) -> int:
  """[rows inputs] @ [inputs outputs]."""
  return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int, *, out: int | None = None, kv_width: int | None = None) -> int:
  """Projections, scores and mixing; a causal mask saves nothing, since the products are computed whole."""
  projections = dense(queries, width, width) + 2 * dense(keys, kv_width or width, width) + dense(queries, width, out or width)
  return projections + 2 * dense(queries, width, keys)


def mlp(rows: int, width: int, hidden: int) -> int:
  return 2 * dense(rows, width, hidden)


def transformer(length: int, *, width: int, depth: int, mlp_dim: int) -> int:
  """`depth` pre-LayerNorm blocks on one sequence."""
  return depth * (attention(length, length, width) + mlp(length, width, mlp_dim))


def vit(model: ViT, image_size: int) -> int:
  """One image."""
  patches = (image_size // model.patch) ** 2
  length = patches + (model.pool == "cls")
  total = dense(patches, 3 * model.patch**2, model.width)
  total += transformer(length, width=model.width, depth=model.depth, mlp_dim=model.mlp_dim)
  if model.pool == "map":
    total += attention(1, length, model.width) + mlp(1, model.width, model.mlp_dim)
  return total + (dense(1, model.width, model.embed_dim) if model.embed_dim else 0)


def text(model: TextTransformer, text_len: int) -> int:
  """One text of `text_len` positions, padding included; looking tokens up is free."""
  total = transformer(text_len, width=model.width, depth=model.depth, mlp_dim=model.mlp_dim)
  return total + (dense(1, model.width, model.embed_dim) if model.embed_dim and model.pool != "none" else 0)


def resnet(model: ResNet, image_size: int) -> int:
  """One image."""
  width, side = model.width, image_size // 2
  total = dense(side**2, 9 * 3, width // 2) + dense(side**2, 9 * (width // 2), width // 2) + dense(side**2, 9 * (width // 2), width)
  side, channels = side // 2, width
  for stage, depth in enumerate(model.blocks):
    inner = width * 2**stage
    for i in range(depth):
      after = side // 2 if stage and not i else side
      total += dense(side**2, channels, inner) + dense(side**2, 9 * inner, inner) + dense(after**2, inner, 4 * inner)
      total += dense(after**2, channels, 4 * inner) if not i else 0
      side, channels = after, 4 * inner
  return total + attention(1, side**2 + 1, channels, out=model.embed_dim)


def clip(model: CLIP, *, text_len: int | None = None) -> int:
  """The forward pass of one image and one text; `text_len` = None is the model's longest. The loss's B × D per pair is left out."""
  image = resnet(model.image, model.image_size) if isinstance(model.image, ResNet) else vit(model.image, model.image_size)
  return image + text(model.text, text_len or model.text.length)


def coca(model: CoCa, *, text_len: int | None = None) -> int:
  """The forward pass of one image and one caption of `text_len` positions, class token and head included."""
  length, width, tower = text_len or model.text.length, model.text.width, model.image
  patches = (model.image_size // tower.patch) ** 2
  keys = patches + bool(tower.class_token)
  total = dense(patches, 3 * tower.patch**2, tower.width) + transformer(keys, width=tower.width, depth=tower.depth, mlp_dim=tower.mlp_dim)
  queries = model.pool.queries
  total += attention(queries, keys, width, kv_width=tower.width)
  if not model.pool.single:
    total += attention(1, queries, width)
  total += 2 * dense(1, width, model.pool.embed_dim)
  total += transformer(length + 1, width=width, depth=model.text.depth, mlp_dim=model.text.mlp_dim)
  words, seen = length - 1, queries - model.pool.single
  layer = attention(words, words, width) + attention(words, seen, width) + mlp(words, width, model.decoder.mlp_dim)
  layer += mlp(words, width, model.decoder.mlp_dim) if model.decoder.self_mlp else 0
  return total + model.decoder.depth * layer + dense(words, width, model.decoder.vocab)


def conv_text(model: ConvText, text_len: int) -> int:
  """One text of `text_len` positions."""
  return model.layers * dense(text_len, model.kernel * model.width, model.width)


def dit(model: DiT, *, text_len: int, text_width: int) -> int:
  """One picture's forward pass, given its encoded text."""
  width, length, values = model.width, (model.image_size // model.patch) ** 2, model.patch**2 * model.channels
  block = dense(1, width, 6 * width) + mlp(length, width, 4 * width)
  if model.joint:
    block += attention(length, length + text_len, width)
  else:
    block += attention(length, length, width) + attention(length, text_len, width)
  condition = dense(1, TIME_WIDTH, width) + dense(1, width, width) + dense(1, text_width, width) + dense(text_len, text_width, width)
  return condition + 2 * dense(length, values, width) + dense(1, width, 2 * width) + model.depth * block


def unet(model: UNet, *, text_len: int, text_width: int, pooled_width: int) -> int:
  """One picture's forward pass, given its encoded text."""
  shape = jax.ShapeDtypeStruct
  x, time = shape((1, model.image_size, model.image_size, model.channels), jnp.float32), shape((1,), jnp.float32)
  described = {"tokens": shape((1, text_len, text_width), jnp.float32), "mask": shape((1, text_len), bool),
               "pooled": shape((1, pooled_width), jnp.float32), "size": shape((1, 6), jnp.int32), "level": shape((1,), jnp.int32)}
  plain = model.clone(attention="xla", remat="none", parent=None)            # a fused kernel hides its products
  params = jax.eval_shape(plain.init, jax.random.key(0), x, time, described)
  return traced(plain.apply, params, x, time, described)


def text_to_image(denoiser: DiT | UNet, encoder: nn.Module, *, text_len: int) -> int:
  """The forward pass of one picture, or its latents, and of its caption where the encoder is one that trains along. Published encoders
  and autoencoders, which are frozen and may have been run before, are left out."""
  encoded = conv_text(encoder, text_len) if isinstance(encoder, ConvText) else \
    text(encoder, text_len) if isinstance(encoder, TextTransformer) else 0
  if isinstance(denoiser, UNet):
    return encoded + unet(denoiser, text_len=text_len, text_width=encoder.width,
                          pooled_width=getattr(encoder, "pooled_width", encoder.width))
  return encoded + dit(denoiser, text_len=text_len, text_width=encoder.width)


def traced(fn: Callable, *args) -> int:
  """Of the matrix products and convolutions that `fn(*args)` traces to; `args` may be `ShapeDtypeStruct`s. For models whose shapes are
  easier to trace than to sum up: convolutions count whole, zero padding included; of `cond` the dearest branch, of `while` one round."""
  return _products(jax.make_jaxpr(fn)(*args).jaxpr)


def _products(jaxpr) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
      kernel, (out_axis, *_) = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[out_axis]
    inner = [getattr(part, "jaxpr", part) for value in eqn.params.values() for part in (value if isinstance(value, tuple) else (value,))]
    counts = [_products(part) for part in inner if hasattr(part, "eqns")]
    total += max(counts, default=0) if eqn.primitive.name == "cond" else sum(counts) * eqn.params.get("length", 1)
  return total
