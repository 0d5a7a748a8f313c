"""The CLIP composite: every published size has the published number of parameters, and options do what they say."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.core.tree import count, paths
from mmdiff.models.clip import PRESETS, clip

# Exact counts: the reference implementations' own; otherwise millions (total, image, text) as OpenCLIP publishes them.
EXACT = {"ViT-B/32": 151_277_313, "ViT-L/14": 427_616_513, "ViT-H/14": 986_109_441, "ViT-g/14": 1_366_678_273,
         "ViT-bigG/14": 2_539_567_105, "RN50": 102_007_137, "SigLIP-B/16": 203_155_970, "SigLIP-L/16": 652_150_786}
MILLIONS = {"RN50": (102.0, 38.3, 63.7), "RN101": (119.7, 56.3, 63.4), "RN50x4": (178.3, 87.1, 91.2), "RN50x16": (291.0, 167.3, 123.7),
            "RN50x64": (623.3, 420.4, 202.9), "ViT-B/32": (151.3, 87.9, 63.4), "ViT-B/16": (149.6, 86.2, 63.4),
            "ViT-L/14": (427.6, 304.0, 123.7), "ViT-L/14@336": (427.9, 304.3, 123.7), "SigLIP-So400m/14": (877.4, 427.7, 449.7)}


def abstract(model):
  size, length = model.image_size, model.text.length
  shape = jax.ShapeDtypeStruct
  return jax.eval_shape(model.init, jax.random.key(0), shape((1, size, size, 3), jnp.uint8), shape((1, length), jnp.int32),
                        shape((1, length), bool))


@pytest.mark.parametrize("variant", sorted(EXACT.keys() | MILLIONS.keys()))
def test_parameter_counts(variant):
  params = abstract(clip(variant=variant))["params"]
  total = count(params)
  assert total == EXACT.get(variant, total)
  if variant in MILLIONS:
    counts = np.array([total, count(params["image"]), count(params["text"])]) / 1e6
    assert np.abs(counts - MILLIONS[variant]).max() <= 0.07


def test_every_preset_is_counted():
  assert EXACT.keys() | MILLIONS.keys() == {name for name in PRESETS if "tiny" not in name}


def tiny(**options):
  return clip(**(dict(variant="tiny", image_size=16, text_len=8, image_width=32, image_depth=2, image_heads=2, text_width=32, text_depth=2,
                      text_heads=2, embed_dim=16, vocab=32) | options))


def inputs(model, rows=3):
  size, length = model.image_size, model.text.length
  k_image, k_text = jax.random.split(jax.random.key(1))
  image = jax.random.randint(k_image, (rows, size, size, 3), 0, 256).astype(jnp.uint8)
  tokens = jax.random.randint(k_text, (rows, length), 0, model.text.vocab)
  return image, tokens, jnp.arange(length)[None] < jnp.array([[3], [length], [1]])[:rows]


def test_groups_and_kernel_names():
  model = tiny()
  names = paths(abstract(model)["params"])
  assert {name.split("/")[0] for name in names} == {"image", "text", "logit_scale"}
  for name in ("image/patchify/kernel", "image/stack/attention/query/kernel", "image/stack/mlp/up/kernel", "image/projection/kernel",
               "text/embed/embedding", "text/stack/attention/out/kernel", "text/stack/mlp/down/kernel", "text/projection/kernel"):
    assert name in names


def test_bytes_and_floats_are_the_same_picture():
  model = tiny()
  image, tokens, mask = inputs(model)
  params = jax.jit(model.init)(jax.random.key(0), image, tokens, mask)
  embed = lambda x: model.apply(params, x, method="encode_image")
  assert jnp.abs(embed(image) - embed(image.astype(jnp.float32) / 127.5 - 1)).max() <= 1e-5


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  model = tiny(dtype="bfloat16")
  image, tokens, mask = inputs(model)
  params = jax.jit(model.init)(jax.random.key(0), image, tokens, mask)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  program = jax.jit(model.apply).lower(params, image, tokens, mask).as_text()
  products = [line for line in program.splitlines() if "dot_general" in line and "->" in line]
  assert products and all("bf16" in line.split("->")[0] for line in products)
  got, expected = jax.jit(model.apply)(params, image, tokens, mask), jax.jit(tiny().apply)(params, image, tokens, mask)
  for a, b in zip(got, expected):
    assert a.dtype == jnp.float32 and jnp.abs(a - b).max() <= 0.05 * jnp.abs(b).max()


def test_wrong_sizes_are_refused_by_name():
  model = tiny()
  image, tokens, mask = inputs(model)
  params = jax.jit(model.init)(jax.random.key(0), image, tokens, mask)
  with pytest.raises(ConfigError, match="data.image_size"):
    model.apply(params, image[:, :8], method="encode_image")
  with pytest.raises(ConfigError, match="8 positions"):
    model.apply(params, jnp.zeros((1, 9), jnp.int32), jnp.ones((1, 9), bool), method="encode_text")
  with pytest.raises(ConfigError, match="is a ResNet and takes none of"):
    clip(variant="tiny-rn", patch=4)
  with pytest.raises(ConfigError, match="must be the image width"):
    clip(variant="siglip-tiny", embed_dim=64)
  with pytest.raises(ConfigError, match="takes no blocks"):
    clip(variant="tiny", blocks=(1, 1, 1, 1))


def test_every_field_can_be_said():
  model = tiny(image_mlp_dim=48, text_mlp_dim=40, text_pool="last", text_act="gelu", act="silu", eps=1e-3, mean=(0.1, 0.2, 0.3),
               std=(1.0, 1.0, 1.0))
  assert (model.image.mlp_dim, model.text.mlp_dim, model.text.pool, model.image.act, model.text.act) == (48, 40, "last", "silu", "gelu")
  assert model.image.eps == model.text.eps == 1e-3 and model.mean == (0.1, 0.2, 0.3) and model.std == (1.0, 1.0, 1.0)
  resnet = clip(variant="tiny-rn", image_width=8, image_heads=2, blocks=(1, 2, 1, 1)).image
  assert (resnet.width, resnet.heads, resnet.blocks) == (8, 2, (1, 2, 1, 1))
  assert tiny(image_width=32).image.mlp_dim == tiny(text_width=32).text.mlp_dim == 128
