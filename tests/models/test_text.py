"""Text towers: causality, masks, pooling."""
import jax
import jax.numpy as jnp

from mmdiff.models.text import TextTransformer, causal_text

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
