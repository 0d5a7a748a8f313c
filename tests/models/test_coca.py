"""CoCa: published sizes, who sees what, and decoding steps that agree with the whole pass."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff import decode
from mmdiff.core.errors import ConfigError
from mmdiff.core.tree import count
from mmdiff.models.coca import PRESETS, class_token_mask, coca, step_function, uncached_step_function

# Millions: image tower and text (both halves, embedding and head) of Table 1; totals as open_clip publishes them.
TABLE = {"Base": (86, 297), "Large": (303, 484), "2.1B": (1_000, 1_100)}
OPEN_CLIP = {"ViT-B/32": 253.6, "ViT-L/14": 638.5}


def shapes(model):
  size, length = model.image_size, model.text.length
  shape = jax.ShapeDtypeStruct
  return jax.eval_shape(model.init, jax.random.key(0), shape((1, size, size, 3), jnp.uint8), shape((1, length), jnp.int32),
                        shape((1, length), bool))["params"]


@pytest.mark.parametrize("variant", PRESETS)
def test_parameter_counts(variant):
  params = shapes(coca(variant=variant))
  parts = {name: count(part) / 1e6 for name, part in params.items()}
  if variant in TABLE:
    image, text = TABLE[variant]
    slack = 1 if variant != "2.1B" else 100                   # "1B" and "1.1B" are what the paper prints
    assert abs(parts["image"] - image) <= slack and abs(parts["text"] + parts["decoder"] - text) <= slack
  elif variant in OPEN_CLIP:
    assert abs(count(params) / 1e6 - OPEN_CLIP[variant]) <= 0.06
  else:
    assert 1 <= count(params) / 1e6 <= 2


def tiny(**options):
  return coca(**(dict(variant="tiny", image_size=8, patch=4, image_width=16, image_depth=1, image_heads=2, text_width=16, text_heads=2,
                      unimodal_depth=1, multimodal_depth=2, queries=3, embed_dim=8, vocab=20, text_len=7) | options))


def inputs(rows=3, length=7, seed=0):
  r = np.random.default_rng(seed)
  lengths = np.array([length, 3, 5, 2])[:rows]
  return (jnp.asarray(r.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)), jnp.asarray(r.integers(3, 20, (rows, length), dtype=np.int32)),
          jnp.asarray(np.arange(length)[None] < lengths[:, None]))


def made(model, rows=3):
  """Random parameters with nothing near zero, so that every path matters, and a batch."""
  batch, r = inputs(rows), np.random.default_rng(0)
  params = jax.eval_shape(model.init, jax.random.key(0), *batch)["params"]
  return jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape) * (0.6 if x.ndim > 1 else 0.3), jnp.float32), params), batch


BOTH = pytest.mark.parametrize("open_clip", [False, True], ids=["paper", "open_clip"])


@BOTH
def test_the_class_token_sees_the_words_and_nobody_sees_it(open_clip):
  words = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  mask = np.asarray(class_token_mask(words, sees_one_more=open_clip))[:, 0]
  assert np.array_equal(mask[:, :4], np.broadcast_to(np.tri(4, 5, dtype=bool), (2, 4, 5)))
  assert mask[0, 4].tolist() == [True] * 5
  # open_clip pads its mask on the wrong side: a short text's class token sees the first padding and not itself.
  assert mask[1, 4].tolist() == ([True, True, True, False, False] if open_clip else [True, True, False, False, True])


@BOTH
def test_padding_does_not_reach_the_embedding(open_clip):
  model = tiny(open_clip=open_clip)
  params, (image, tokens, mask) = made(model)
  other = jnp.where(mask, tokens, 4)
  if open_clip:                     # but for the first padding token
    other = other.at[1, 3].set(tokens[1, 3]).at[2, 5].set(tokens[2, 5])
  embed = jax.jit(lambda tokens, mask: model.apply({"params": params}, tokens, mask, method="encode_text"))
  assert jnp.abs(embed(tokens, mask) - embed(other, mask)).max() <= 1e-5
  if not open_clip:
    assert jnp.abs(embed(tokens[1:2, :3], mask[1:2, :3]) - embed(tokens, mask)[1:2]).max() <= 1e-5


def test_the_decoder_is_causal_and_sees_the_image_and_the_text_embedding_does_not():
  model = tiny()
  params, (image, tokens, mask) = made(model)
  pixels = image.astype(jnp.float32) / 127.5 - 1
  way, reader = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)

  def outputs(pixels, nudge):
    """(text embedding, a number per position of the decoder), with the word at i moved by nudge[i]."""
    moved = params["text"]["position"].at[:7].add(nudge[:, None] * way[None])
    _, text, hidden = model.apply({"params": params | {"text": params["text"] | {"position": moved}}}, pixels, tokens[:1], mask[:1])
    return text, hidden[0] @ reader
  zero = jnp.zeros((7,))
  by_word = np.abs(jax.jit(jax.jacfwd(lambda nudge: outputs(pixels[:1], nudge)[1]))(zero))                        # [L-1, L]
  assert np.all(by_word[np.triu_indices(6, 1, 7)] == 0) and np.all(np.diag(by_word[:, :6]) > 0)
  by_pixel = jax.jit(jax.jacrev(lambda pixels: outputs(pixels, zero)))(pixels[:1])
  assert jnp.all(by_pixel[0] == 0) and jnp.all(jnp.abs(by_pixel[1]).max((1, 2, 3, 4)) > 0)


@pytest.mark.parametrize("options, tolerance", [(dict(), 1e-4), (dict(open_clip=True), 1e-4), (dict(queries=0, text_width=24), 1e-4),
                                                (dict(dtype="bfloat16"), 0.1)], ids=["paper", "open_clip", "no pooler", "bfloat16"])
def test_steps_with_a_cache_are_the_whole_pass(options, tolerance):
  model = tiny(**options)
  params, (image, tokens, mask) = made(model)

  @jax.jit
  def worst(params):
    _, _, hidden = model.apply({"params": params}, image, tokens, mask)
    whole = (hidden @ params["decoder"]["project_vocab"]["kernel"].astype(hidden.dtype)).astype(jnp.float32)
    step, cache = step_function(model, params, model.apply({"params": params}, image, method="encode_image")[1], max_len=7)

    def one(cache, position):
      logits, cache = step(tokens[:, position], position, cache)
      return cache, jnp.abs(logits - whole[:, position]).max()
    return jax.lax.scan(one, cache, jnp.arange(6))[1] / jnp.abs(whole).max()
  assert worst(params).max() <= tolerance


@pytest.mark.parametrize("options", [dict(), dict(method="beam", beams=2, length_penalty=0.5)], ids=["greedy", "beam"])
def test_cached_is_uncached_and_a_batch_is_its_rows(options):
  model = tiny()
  params, (image, _, _) = made(model, rows=4)
  settings = decode.settings(start=1, end=2, max_len=7, **options)

  def write(make, params, image):
    tokens = model.apply({"params": params}, image, method="encode_image")[1]
    step, cache = make(model, params, jnp.repeat(tokens, settings.beams, axis=0), max_len=7)
    return decode.decode(step, cache, jnp.zeros((image.shape[0],), jnp.uint32), settings)
  write = jax.jit(write, static_argnums=0)
  cached, uncached = write(step_function, params, image), write(uncached_step_function, params, image)
  assert jnp.array_equal(cached.tokens, uncached.tokens) and jnp.array_equal(cached.lengths, uncached.lengths)
  assert len({tuple(row.tolist()) for row in cached.tokens}) > 1
  assert jnp.array_equal(write(step_function, params, image[2:3]).tokens[0], cached.tokens[2])


def test_a_cached_step_costs_a_fraction_of_an_uncached_one():
  """FLOPs of a step of 64 positions, since seconds are another program's business (tests/peers/decode_speed.py)."""
  model = tiny(text_len=64)
  params = shapes(model)

  def flops(make):
    def one(params, image_tokens, tokens, position):
      step, cache = make(model, params, image_tokens, max_len=64)
      return step(tokens, position, cache)[0]
    shape = jax.ShapeDtypeStruct
    return jax.jit(one).lower(params, shape((2, 3, 16), jnp.float32), shape((2,), jnp.int32), shape((), jnp.int32)).cost_analysis()["flops"]
  assert 5 * flops(step_function) <= flops(uncached_step_function)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ConfigError, match="does not divide into patches"):
    coca(variant="Base", image_size=224)
  with pytest.raises(ConfigError, match="queries: 0 is of the paper's structure"):
    coca(variant="ViT-B/32", queries=0)
  model = tiny()
  params, (image, tokens, mask) = made(model)
  with pytest.raises(ConfigError, match="make data.image_size"):
    model.apply({"params": params}, image[:, :4], tokens, mask)
  with pytest.raises(ConfigError, match="8 tokens do not fit 7 positions"):
    model.apply({"params": params}, jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool), method="encode_text")
  with pytest.raises(ConfigError, match="max_len: 9 tokens"):
    step_function(model, params, jnp.zeros((1, 3, 16)), max_len=9)
