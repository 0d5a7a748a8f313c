import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Context
from mmdiff.diffusion.samplers import picture_keys, start_noise
from mmdiff.models import DENOISERS, TEXT_ENCODERS
from mmdiff.models.text import causal_text
from mmdiff.objectives import OBJECTIVES
from mmdiff.objectives.diffusion import diffusion, noise
from mmdiff.parallel import make_mesh

DENOISER = dict(name="dit", variant="tiny", image_size=8, patch=4, width=32, depth=2, heads=2)
TEXT = dict(name="conv_text", vocab=16, text_len=6, width=32)


class Stub(nn.Module):
  """The smallest denoiser that uses everything: it compiles in a tenth of a DiT's time, and starts at zero like one."""
  image_size: int = 8
  channels: int = 3

  @nn.compact
  def __call__(self, x, time, text):
    words = nn.Dense(3, name="words")(text["pooled"] + text["tokens"].mean(1))[:, None, None]
    h = jnp.concatenate([x, jnp.tanh(x + words + 0.001 * time[:, None, None, None])], -1)
    return nn.Dense(3, kernel_init=nn.initializers.zeros, name="out")(h)


def objective(**options):
  """With parts that compile fast, unless others are given."""
  return diffusion(**dict(denoiser=Stub(), condition=build(TEXT_ENCODERS, TEXT | dict(width=8, layers=0))) | options)


def real(**denoiser):
  return dict(denoiser=build(DENOISERS, DENOISER | denoiser), condition=build(TEXT_ENCODERS, TEXT | dict(width=64)))


def make_batch(n=8, seed=0):
  """Left and right half in one of four colours, named by words 1 … 4 at positions 1 and 3."""
  rng = np.random.default_rng(seed)
  colours = np.asarray([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
  words = rng.integers(0, 4, (n, 2))
  image = np.repeat(colours[words][:, None, :, None], 4, 3).reshape(n, 1, 8, 3).repeat(8, 1)
  tokens = np.stack([np.full(n, 9), 1 + words[:, 0], np.full(n, 10), 1 + words[:, 1], np.zeros(n), np.zeros(n)], 1).astype(np.int32)
  mask = np.tile(np.arange(6) < 4, (n, 1))
  return dict(image=image, tokens=tokens, mask=mask, id=rng.integers(0, 2**31, n).astype(np.uint32)), words


def context():
  return Context((), {}, jnp.int32(0), jax.random.key(3))


@functools.cache
def initial():
  return jax.jit(objective().init)(jax.random.key(0), make_batch()[0]).params


@functools.cache
def trained():
  """The default objective with parameters away from their initial zeros."""
  made, params = objective(), initial()
  keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
  return made, jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(next(keys), leaf.shape), params)


@functools.cache
def sampler():
  return jax.jit(trained()[0].predict["sample"])


def rows(batch, index):
  return {name: value[index] for name, value in batch.items()}


def test_built_from_a_config():
  made = build(OBJECTIVES, dict(name="diffusion", denoiser=DENOISER, condition=TEXT))
  params = jax.jit(made.init)(jax.random.key(0), make_batch()[0]).params
  assert set(params) == {"denoiser", "text"} and not made.couples_batch
  value, aux = jax.jit(made.loss)(params, context(), make_batch()[0])
  assert value.dtype == jnp.float32 and value.shape == ()
  np.testing.assert_array_equal(aux.metrics["loss"], value)


def test_the_loss_is_a_mean_of_what_each_record_gives_by_itself():
  """So microbatches, order and devices don't matter."""
  made, params = trained()
  batch = make_batch()[0]
  grad = jax.jit(jax.value_and_grad(lambda p, b, key: made.loss(p, context()._replace(key=key), b)[0]))
  key = lambda: jax.random.key(3)
  whole, whole_gradient = grad(params, batch, key())
  parts = [grad(params, rows(batch, np.arange(8)[i::2]), key()) for i in range(2)]
  np.testing.assert_allclose((parts[0][0] + parts[1][0]) / 2, whole, rtol=1e-6)
  jax.tree.map(lambda a, b, c: np.testing.assert_allclose((a + b) / 2, c, rtol=1e-3, atol=1e-6), parts[0][1], parts[1][1], whole_gradient)
  mesh = make_mesh(data=4, fsdp=2)
  with jax.set_mesh(mesh):
    spread = grad(params, jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))), key())[0]
  np.testing.assert_allclose(spread, whole, rtol=1e-6)
  assert not np.allclose(grad(params, batch, jax.random.key(4))[0], whole)


@pytest.mark.parametrize("share,known", [(0.0, False), (1.0, True)])
def test_caption_dropout(share, known):
  """With every caption dropped the words have no gradient; with none dropped the null has none."""
  made = objective(caption_dropout=share)
  gradient = jax.jit(jax.grad(lambda p: made.loss(p, context(), make_batch()[0])[0]))(trained()[1])["text"]
  assert np.asarray(gradient["null"]).any() == known
  assert np.asarray(gradient["embed"]["embedding"]).any() != known


class Told(nn.Module):
  """Draws what it is told: one number a picture."""
  image_size: int = 1
  channels: int = 3

  @nn.compact
  def __call__(self, x, time, text):
    return jnp.zeros_like(x) + text["pooled"][:, :1][:, None, None] + self.param("zero", nn.initializers.zeros, ())


class Said(nn.Module):
  """One for a caption, zero for none."""
  @nn.compact
  def __call__(self, tokens, mask):
    one = self.param("one", nn.initializers.ones, ())
    return {"tokens": jnp.zeros((*mask.shape, 1)), "mask": jnp.ones_like(mask), "pooled": one * mask.any(1, keepdims=True)}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_as_many_captions_are_dropped_as_asked(share):
  """The error of a picture of zeros is then the share that is kept; which ones changes from step to step."""
  made, n = objective(denoiser=Told(), condition=Said(), caption_dropout=share), 4_000
  batch = dict(image=np.zeros((n, 1, 1, 3), np.float32), tokens=np.ones((n, 2), np.int32), mask=np.ones((n, 2), bool),
               id=np.arange(n, dtype=np.uint32))
  params = dict(denoiser=dict(zero=jnp.zeros(())), text=dict(one=jnp.ones(())))
  loss = jax.jit(lambda key: made.loss(params, context()._replace(key=key), batch)[1].metrics["mse"])
  kept = [float(loss(jax.random.key(step))) for step in range(2)]
  np.testing.assert_allclose(kept, 1 - share, atol=0.025)
  assert (kept[0] != kept[1]) == (0 < share < 1)


def test_offset_noise_is_each_channels_own():
  """Twice the offset adds a constant over the picture, another one in each channel and picture, of deviation one."""
  keys = lambda: jax.random.split(jax.random.key(0), 400)
  one, two = (jax.vmap(lambda key, offset=offset: noise(key, (2, 2, 3), offset))(keys()) for offset in (1.0, 2.0))
  added = np.asarray(two - one)
  np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-5)
  drawn = added[:, 0, 0]
  np.testing.assert_allclose(drawn.std(0), 1.0, atol=0.12)
  assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.2
  made = [objective(schedule="linear", prediction="eps", offset_noise=offset) for offset in (0.0, 0.5)]
  batch = make_batch(n=64)[0]                            # the network starts at zero, so its error is the noise's mean square
  plain, offset = (float(jax.jit(each.loss)(initial(), context(), batch)[1].metrics["mse"]) for each in made)
  np.testing.assert_allclose([plain, offset], [1.0, 1.25], atol=0.08)


@pytest.mark.parametrize("options, at, weight", [
  (dict(schedule="scaled_linear", prediction="v", zero_terminal_snr=True, weighting="min_snr"), 50.0, 1.0),
  (dict(schedule="flow", prediction="x0", weighting="min_snr", min_snr_gamma=0.5), 50.0, 0.5),
  (dict(schedule="flow", prediction="flow", weighting="sigmoid"), 50.0, 1.0),
  (dict(schedule="edm", prediction="x0"), np.log(3.0), (9 + 0.25) / (3 * 0.5) ** 2),
  (dict(schedule="edm", prediction="x0", sigma_data=1.0), np.log(3.0), (9 + 1) / 9)])
def test_the_level_where_sampling_starts_is_trained(options, at, weight):
  """All times are (as good as) one: the loss is the error times that level's weight, as its options and its schedule have it."""
  made = objective(**options, time_mean=at, time_std=1e-4, **({} if options["schedule"] == "edm" else dict(time_sampling="logit_normal")))
  metrics = jax.jit(made.loss)(trained()[1], context(), make_batch()[0])[1].metrics
  np.testing.assert_allclose(metrics["loss"], weight * metrics["mse"], rtol=1e-3)


COMBINATIONS = [
  dict(schedule="linear", prediction="eps"), dict(schedule="cosine", prediction="v", weighting="min_snr"),
  dict(schedule="scaled_linear", prediction="v", zero_terminal_snr=True), dict(schedule="edm", prediction="edm"),
  dict(schedule="flow", prediction="flow", time_shift=3.0),
  dict(schedule="linear", prediction="eps", weighting="sigmoid", offset_noise=0.1),
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_combination_has_a_finite_loss_and_a_unit_error_at_the_start(options):
  """The network starts at zero, so its plain error is the target's mean square: about 1 for unit noise and for EDM's target."""
  made = objective(**options)
  batch = make_batch(n=32)[0]
  value, aux = jax.jit(made.loss)(initial(), context(), batch)
  assert np.isfinite(value)
  expected = 2.0 if options["prediction"] == "flow" else 1.0        # |eps|² + |x0|², pictures here are ±1
  if options["schedule"] != "edm":                                  # whose data have half that deviation
    np.testing.assert_allclose(aux.metrics["mse"], expected, rtol=0.1)


@pytest.mark.parametrize("options,says", [
  (dict(schedule="linear", prediction="eps", zero_terminal_snr=True), "use 'v' or 'x0'"),
  (dict(schedule="flow", prediction="eps"), "use 'flow'"),
  (dict(schedule="edm", prediction="v"), "use 'edm'"),
  (dict(schedule="linear", prediction="edm"), "schedule 'edm'"),
  (dict(schedule="linear", prediction="flow"), "use 'v'"),
  (dict(schedule="edm", zero_terminal_snr=True), "zero_terminal_snr"),
  (dict(schedule="linear", time_shift=3.0), "shift"),
  (dict(schedule="linear", weighting="edm"), "weighting"),
  (dict(schedule="linear", weighting="min_snr", min_snr_gamma=0.0), "min_snr_gamma"),
  (dict(schedule="flow", time_sampling="lognormal"), "time_sampling"), (dict(schedule="flow", sigma_data=1.0), "only schedule 'edm'"),
  (dict(schedule="linear", prediction="eps", time_mean=0.5), "time_sampling 'uniform' has neither"),
  (dict(latents="mean"), "no objective.encode"),
  (dict(schedule="edm", prediction="edm", sigma_data=0.0), "sigma_data: expected a positive number"),
  (dict(caption_dropout=1.5), "caption_dropout"),
  (dict(denoiser=Stub(channels=4)), "channels"),
])
def test_impossible_combinations_name_the_fix(options, says):
  with pytest.raises(ConfigError, match=says):
    objective(**options)


def test_evaluation_leaves_out_padding_and_reports_quarters():
  made, params = trained()
  batch = make_batch()[0]
  evaluate = jax.jit(made.predict["loss"])
  whole = evaluate(params, rows(batch, np.arange(4)), jax.random.key(1))
  padded = evaluate(params, batch | dict(valid=np.arange(8) < 4), jax.random.key(1))
  assert {"loss", "mse", "mse_quarter_1", "mse_quarter_4"} <= set(whole)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, padded)


def test_a_picture_depends_on_its_prompt_and_seed_alone():
  made, params = trained()
  batch = make_batch()[0]
  seeds = jnp.arange(8, dtype=jnp.uint32) + 40
  mesh = make_mesh(data=4, fsdp=2)
  put = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
  for name in ("euler", "ddpm"):
    plan = made.predict["plan"](name, steps=4, guidance=2.0, rescale=0.5)
    whole = sampler()(params, batch["tokens"], batch["mask"], seeds, plan)
    assert whole.shape == (8, 8, 8, 3) and whole.dtype == jnp.float32 and np.abs(whole).max() <= 1
    part = np.asarray([6, 1])
    np.testing.assert_allclose(sampler()(params, batch["tokens"][part], batch["mask"][part], seeds[part], plan), whole[part], atol=2e-5)
    with jax.set_mesh(mesh):
      spread = sampler()(params, put(batch["tokens"]), put(batch["mask"]), put(seeds), plan)
    np.testing.assert_allclose(spread, whole, atol=2e-5)


def test_plans_prompts_and_samplers_do_not_compile_again():
  made, params = trained()
  draw = jax.jit(lambda *args: made.predict["sample"](*args))       # a function of its own, for a cache of its own
  for i, (name, steps, scale) in enumerate([("euler", 2, 1.0), ("heun", 3, 2.0), ("ddpm", 5, 3.0), (None, 4, 7.5)]):
    batch = make_batch(4, seed=i)[0]
    draw(params, batch["tokens"], batch["mask"], jnp.arange(4, dtype=jnp.uint32), made.predict["plan"](name, steps=steps, guidance=scale))
  assert draw._cache_size() == 1


def test_guidance_one_ignores_the_negative_and_the_empty_negative_is_the_default():
  made, params = trained()
  batch = make_batch(4)[0]
  seeds = jnp.arange(4, dtype=jnp.uint32)
  other = (batch["tokens"][::-1].copy(), batch["mask"])
  empty = (jnp.zeros_like(batch["tokens"]), jnp.zeros_like(batch["mask"]))
  run = lambda scale, negative, **more: sampler()(params, batch["tokens"], batch["mask"], seeds,
                                                  made.predict["plan"](steps=3, guidance=scale, **more), negative=negative)
  np.testing.assert_allclose(run(1.0, other), run(1.0, None), atol=1e-5)
  np.testing.assert_allclose(run(3.0, empty), run(3.0, None), atol=1e-5)
  assert np.abs(run(3.0, other) - run(3.0, None)).max() > 1e-4
  assert np.abs(run(9.0, None, rescale=0.7) - run(9.0, None)).max() > 1e-4       # what keeps guidance from burning reaches the loop


def test_given_latents_replace_the_seeds_noise():
  made, params = trained()
  batch = make_batch(4)[0]
  seeds, plan = jnp.arange(4, dtype=jnp.uint32), made.predict["plan"](steps=3, guidance=2.0)
  own = start_noise(picture_keys(seeds), (8, 8, 3))
  run = lambda seeds, latents: sampler()(params, batch["tokens"], batch["mask"], seeds, plan, latents=latents)
  np.testing.assert_allclose(run(seeds + 9, own), run(seeds, None), atol=1e-5)


def test_denoise_is_what_sampling_starts_from():
  made, params = trained()
  batch = make_batch(2)[0]
  x = jax.random.normal(jax.random.key(5), (2, 8, 8, 3))
  out = jax.jit(made.predict["denoise"])(params, x, jnp.ones(2), batch["tokens"], batch["mask"])
  drawn = sampler()(params, batch["tokens"], batch["mask"], jnp.arange(2, dtype=jnp.uint32), made.predict["plan"](steps=1), latents=x)
  assert out.shape == x.shape
  np.testing.assert_allclose(jnp.clip(out, -1, 1), drawn, atol=1e-5)         # of one step, all of the picture


def test_an_array_encoder_becomes_a_text_dict():
  """CLIP's text tower as the encoder; dropped captions no longer depend on their words."""
  made = objective(condition=causal_text(vocab=16, text_len=6, width=16, depth=1, heads=2))
  batch = make_batch(2)[0]
  params = jax.jit(made.init)(jax.random.key(0), batch).params
  assert np.isfinite(jax.jit(made.loss)(params, context(), batch)[0])


RECIPES = {
  "x0": (dict(), 300),
  "v": (dict(schedule="scaled_linear", prediction="v", zero_terminal_snr=True), 400),
  "edm": (dict(schedule="edm", prediction="edm"), 400),
  "cross": (dict(schedule="flow", prediction="flow"), 400),
}


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns_to_draw_what_the_words_say(recipe):
  """Both halves in the colour asked for, from unseen seeds, with every sampler."""
  options, steps = RECIPES[recipe]
  made = diffusion(**real(width=64, heads=4, text="cross" if recipe == "cross" else "joint"), **options)
  params = jax.jit(made.init)(jax.random.key(0), make_batch()[0]).params
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-3, b2=0.98))

  @jax.jit
  def step(params, state, batch, i):
    context = Context((), {}, i, jax.random.fold_in(jax.random.key(1), i))
    gradient = jax.grad(lambda p: made.loss(p, context, batch)[0])(params)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for i in range(steps):
    params, state = step(params, state, make_batch(64, seed=i)[0], i)
  batch, words = make_batch(64, seed=10_000)
  colours = np.asarray([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
  draw = jax.jit(made.predict["sample"])
  for name in ("euler", "ddpm", "heun", "dpm++2m"):
    plan = made.predict["plan"](name, steps=20, guidance=2.0)
    pictures = np.asarray(draw(params, batch["tokens"], batch["mask"], jnp.arange(64, dtype=jnp.uint32), plan))
    halves = pictures.reshape(64, 8, 2, 4, 3).mean((1, 3))
    seen = np.abs(halves[:, :, None] - colours).sum(-1).argmin(-1)
    assert (seen == words).all(1).mean() > 0.95, name
