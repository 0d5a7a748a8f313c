"""Analytic FLOPs against the published figures and against the compiler's own count of the unrolled program."""
import jax
import jax.numpy as jnp
import pytest

from mmdiff.models import flops
from mmdiff.models.clip import clip
from mmdiff.models.coca import coca
from mmdiff.models.conv_text import conv_text
from mmdiff.models.dit import dit
from mmdiff.models.t5 import t5
from mmdiff.models.unet import unet

# Forward GFLOPs of one pair, OpenCLIP's model_profile.csv. Its ResNet figures also count the norms and pools, about 3 %.
PUBLISHED = {"RN50": 18.2, "RN101": 25.5, "RN50x4": 51.8, "RN50x16": 162.7, "RN50x64": 552.7, "ViT-B/32": 14.8, "ViT-B/16": 41.1,
             "ViT-L/14": 175.3, "ViT-L/14@336": 395.2}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes(variant):
  got = flops.clip(clip(variant=variant)) / 1e9
  if variant.startswith("RN"):
    assert 0.96 * PUBLISHED[variant] <= got <= PUBLISHED[variant]
  else:
    assert abs(got - PUBLISHED[variant]) <= 0.05


WIDE = dict(image_size=64, text_width=256, text_depth=2, text_heads=4)


@pytest.mark.parametrize("options", [
  dict(variant="tiny", image_width=256, image_depth=2, image_heads=4, act="silu"),
  dict(variant="siglip-tiny", image_width=256, image_depth=2, image_heads=4, embed_dim=256),
  dict(variant="tiny-rn"),
], ids=lambda options: options["variant"])
def test_compilers_count(options):
  """Unrolled, since a scanned body is counted once. The compiler adds norms, activations and softmax, and leaves out what a
  convolution multiplies by its zero padding."""
  model = clip(**WIDE, **options, unroll=True, attention="xla")
  shape = jax.ShapeDtypeStruct
  size, length = model.image_size, model.text.length
  inputs = shape((2, size, size, 3), jnp.float32), shape((2, length), jnp.int32), shape((2, length), bool)
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  counted = jax.jit(model.apply).lower(params, *inputs).cost_analysis()["flops"] / 2
  assert 0.9 * counted <= flops.clip(model) <= 1.01 * counted


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_the_compilers_count_of_a_denoiser_and_its_text(kind):
  denoiser = dit(variant="tiny", image_size=32, patch=4, width=256, depth=2, text=kind, unroll=2, attention="xla")
  encoder = conv_text(vocab=64, text_len=24, width=128)
  shape = jax.ShapeDtypeStruct
  tokens, mask = shape((2, 24), jnp.int32), shape((2, 24), bool)
  text_params = jax.eval_shape(encoder.init, jax.random.key(0), tokens, mask)
  described = jax.eval_shape(encoder.apply, text_params, tokens, mask)
  inputs = shape((2, 32, 32, 3), jnp.float32), shape((2,), jnp.float32), described
  params = jax.eval_shape(denoiser.init, jax.random.key(0), *inputs)

  def both(text_params, params, tokens, mask, x, time):
    return denoiser.apply(params, x, time, encoder.apply(text_params, tokens, mask))
  counted = jax.jit(both).lower(text_params, params, tokens, mask, *inputs[:2]).cost_analysis()["flops"] / 2
  assert 0.9 * counted <= flops.text_to_image(denoiser, encoder, text_len=24) <= 1.02 * counted


def test_traced_counts_are_the_formulas():
  """Scanned and rematerialised blocks, strided convolutions, and the transformer that has a formula of its own."""
  model = clip(variant="tiny", image_size=32, remat="full", attention="xla")
  inputs = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((1, model.text.length), jnp.int32), \
    jax.ShapeDtypeStruct((1, model.text.length), bool)
  assert flops.traced(model.apply, jax.eval_shape(model.init, jax.random.key(0), *inputs), *inputs) == flops.clip(model)
  convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  assert flops.traced(convolve, jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))) == flops.dense(16, 27, 5)


def test_a_published_unet():
  """SDXL at 256 px: forward GFLOPs by a counter on the released model."""
  assert abs(flops.unet(unet(variant="sdxl", image_size=32), text_len=77, text_width=2048, pooled_width=1280) / 1e9 - 427.8) <= 0.1


def test_frozen_encoders_are_left_out():
  denoiser = unet(variant="tiny", image_size=8, width=8, groups=4, text_width=16, heads=2)
  frozen = flops.text_to_image(denoiser, t5(variant="tiny", vocab=16), text_len=4)
  assert frozen == flops.unet(denoiser, text_len=4, text_width=64, pooled_width=64)


@pytest.mark.parametrize("variant, published", [("Base", 98.7), ("ViT-B/32", 33.3), ("ViT-L/14", 214.5)])
def test_published_captioners(variant, published):
  """Forward GFLOPs of a pair; open_clip's profile of its two models, and of its coca_base, whose decoder has more MLPs than the paper's."""
  got = flops.coca(coca(variant=variant, text_len=76)) / 1e9
  assert (0.85 if variant == "Base" else 0.97) * published <= got <= 1.02 * published


@pytest.mark.parametrize("open_clip", [False, True])
def test_the_compilers_count_of_a_captioner(open_clip):
  model = coca(variant="tiny", image_width=256, text_width=256, embed_dim=256, unroll=True, attention="xla", open_clip=open_clip)
  shape = jax.ShapeDtypeStruct
  inputs = shape((2, 32, 32, 3), jnp.float32), shape((2, 66), jnp.int32), shape((2, 66), bool)
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)

  def forward(params, image, tokens, mask):
    image, text, hidden = model.apply(params, image, tokens, mask)
    return image, text, hidden @ params["params"]["decoder"]["project_vocab"]["kernel"]
  counted = jax.jit(forward).lower(params, *inputs).cost_analysis()["flops"] / 2
  assert 0.9 * counted <= flops.coca(model) <= 1.01 * counted
