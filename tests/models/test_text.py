"""Text towers: causality, masks, pooling."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.core import tree
from mmdiff.core.errors import ConfigError
from mmdiff.models.text import ClipStates, TextTransformer, causal_text, clip_states, two_texts

TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, 20)
MASK = jnp.arange(6)[None] < jnp.array([[3], [6]])


def tower(**options):
  return TextTransformer(**(dict(vocab=20, length=6, width=16, depth=2, heads=2, mlp_dim=32, embed_dim=8) | options))


def test_causal_text_sees_no_token_after_its_end():
  tokens = jnp.arange(12).reshape(2, 6)
  model = tower()
  params = jax.jit(model.init)(jax.random.key(0), tokens, MASK)["params"]

  def loss(table):
    return jnp.sum(model.apply({"params": params | {"embed": {"embedding": table}}}, tokens, MASK)[0] ** 2)
  grad = jnp.abs(jax.jit(jax.grad(loss))(params["embed"]["embedding"])).sum(-1)
  assert jnp.all(grad[:3] > 0) and jnp.all(grad[3:] == 0)


def test_mask_hides_padding_from_a_bidirectional_tower():
  changed = jnp.where(MASK, TOKENS, (TOKENS + 1) % 20)
  for masked in (True, False):
    model = tower(causal=False, masked=masked)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, MASK)
    before, after = jax.jit(model.apply)(params, TOKENS, MASK), jax.jit(model.apply)(params, changed, MASK)
    assert bool(jnp.all(before == after)) == masked


def test_pooling_follows_the_mask_not_the_tokens():
  model = tower()
  params = jax.jit(model.init)(jax.random.key(0), TOKENS, MASK)
  sequence = jax.jit(tower(pool="none").apply)(params, TOKENS, MASK)
  project = lambda x: x @ params["params"]["projection"]["kernel"]
  out = jax.jit(model.apply)(params, TOKENS, MASK)
  assert jnp.abs(out[0] - project(sequence[0, 2])).max() <= 1e-5 and jnp.abs(out[1] - project(sequence[1, 5])).max() <= 1e-5
  last = jax.jit(tower(pool="last").apply)(params, TOKENS, MASK)
  assert jnp.abs(last - project(sequence[:, -1])).max() <= 1e-5


def test_causal_text_gives_a_sequence():
  model = causal_text(vocab=20, text_len=6, width=16, depth=1, heads=2)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS, MASK)
  out = model.apply(params, TOKENS[:, :4], MASK[:, :4])               # shorter texts use the head of the position table
  assert out.shape == (2, 4, 16) and out.dtype == jnp.float32 and "projection" not in params["params"]


def states(**options):
  return ClipStates(**(dict(vocab=20, length=6, width=16, depth=3, heads=2, mlp_dim=32, embed_dim=None) | options))


# Published encoders: CLIP-L of SD 1.x, 23 layers of OpenCLIP H with the final norm (SD 2.x), bigG with its projection (SDXL's second).
@pytest.mark.parametrize("variant,parameters", [("sd1", 123_060_480), ("sd2", 340_387_840), ("sdxl-2", 694_659_840)])
def test_published_conditions(variant, parameters):
  shape = jax.ShapeDtypeStruct
  made = jax.eval_shape(clip_states(variant=variant).init, jax.random.key(0), shape((1, 77), jnp.int32), shape((1, 77), bool))
  assert tree.count(made["params"]) == parameters


def test_any_layer_with_or_without_the_final_norm():
  """The layer kept on the way to the pooled output is what a shorter stack of the same parameters gives."""
  whole = states(embed_dim=8)
  variables = jax.jit(whole.init)(jax.random.key(0), TOKENS, MASK)
  for skip in (1, 2):
    kept = jax.jit(states(embed_dim=8, skip=skip, norm=False).apply)(variables, TOKENS, MASK)
    params = {name: leaf for name, leaf in variables["params"].items() if name != "projection"}
    cut = {"params": params | {"stack": jax.tree.map(lambda leaf: leaf[:3 - skip], params["stack"])}}           # noqa: B023
    short = jax.jit(states(skip=skip, norm=False).apply)(cut, TOKENS, MASK)
    np.testing.assert_allclose(kept["tokens"], short["tokens"], atol=1e-6)
    np.testing.assert_array_equal(kept["pooled"], jax.jit(whole.apply)(variables, TOKENS, MASK)["pooled"])
  normed = jax.jit(states(skip=2).apply)(cut, TOKENS, MASK)["tokens"]
  np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-5)
  assert np.abs(short["tokens"].mean(-1)).max() > 1e-4


def test_conditions_pad_as_their_model_did():
  """Whatever the tokenizer padded with; the states at padding are seen too."""
  model = states(pad=19)
  variables = jax.jit(model.init)(jax.random.key(0), TOKENS, MASK)
  one, other = (jax.jit(model.apply)(variables, jnp.where(MASK, TOKENS, pad), MASK) for pad in (0, 7))
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert one["mask"].all() and model.empty == (18, 19)


def test_a_condition_takes_the_parameters_of_clips_text_tower():
  names = lambda model: set(tree.paths(jax.eval_shape(model.init, jax.random.key(0), TOKENS, MASK)["params"]))
  assert names(states(embed_dim=8)) == names(tower())


def test_two_texts_side_by_side():
  both = two_texts(first=states(width=8), second=states(embed_dim=10, skip=1, norm=False))
  variables = jax.jit(both.init)(jax.random.key(0), TOKENS, MASK)
  assert set(variables["params"]) == {"first", "second"} and both.empty == (18, 19) and both.width == 24
  out = jax.jit(both.apply)(variables, TOKENS, MASK)
  assert out["tokens"].shape == (2, 6, 24) and out["pooled"].shape == (2, 10)
  second = jax.jit(both.second.apply)({"params": variables["params"]["second"]}, TOKENS, MASK)
  np.testing.assert_allclose(out["tokens"][..., 8:], second["tokens"], atol=1e-6)


def test_a_layer_that_does_not_exist():
  with pytest.raises(ConfigError, match="0 to 11"):
    clip_states(variant="sd1", skip=12)
