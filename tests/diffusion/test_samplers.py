import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmdiff.diffusion import plans, samplers
from mmdiff.diffusion.plans import COLUMN, Plan, plan
from mmdiff.diffusion.schedules import schedule
from mmdiff.parallel import make_mesh

SCHEDULES = {"sd": schedule("scaled_linear"), "zero": schedule("scaled_linear", zero_terminal_snr=True), "edm": schedule("edm"),
             "flow": schedule("flow"), "shifted": schedule("flow", shift=3.0)}
SEEDS = jnp.arange(8, dtype=jnp.uint32)
SPREAD = 0.6


def point(x, level, guidance):
  return jnp.full_like(x, 0.3)


def gaussian(x, level, guidance):
  return x * level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)


def draw(denoise):
  def run(seeds, plan):
    keys = samplers.picture_keys(seeds)
    return samplers.sample(denoise, plan.start_scale * samplers.start_noise(keys, (4, 4)), plan, keys)
  return jax.jit(run)


draw_point, draw_gaussian = draw(point), draw(gaussian)


def test_a_single_point_comes_out_exactly_and_nothing_compiles_twice():
  for name in plans.SAMPLERS:
    for made in SCHEDULES.values():
      if name in ("dpm++2m_karras", "plms", "lms") and (made.kind == "flow" or made.zero_terminal_snr):
        continue
      for steps in (1, 2, 9):
        made_plan = plan(name, made, steps=steps, guidance=1.0 + steps, rescale=0.1 * steps, interval=(0.1 * steps, 0.9))
        # eps of float32 pictures is rounded by 1 / sigma; those two carry it from the end of a step of two to its beginning.
        rounded = 1e-3 if name in ("plms", "lms") else 1e-6
        np.testing.assert_allclose(draw_point(SEEDS, made_plan), 0.3, atol=rounded, err_msg=f"{name} {made.kind} {steps}")
  assert draw_point._cache_size() == 1


@pytest.mark.parametrize("name,steps,tolerance", [("heun", 150, 2e-3), ("dpm++2m", 150, 4e-3), ("euler", 900, 4e-3)])
@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_the_ode_of_a_gaussian(name, steps, tolerance, kind):
  """x_T sqrt(spread² / marginal variance at T) in float32, through the compiled loop."""
  made = plan(name, SCHEDULES[kind], steps=steps)
  start = made.start_scale * samplers.start_noise(samplers.picture_keys(SEEDS), (4, 4))
  a, s = made.table[0, COLUMN["alpha"]], made.table[0, COLUMN["sigma"]]
  np.testing.assert_allclose(draw_gaussian(SEEDS, made), start * SPREAD / np.sqrt(a**2 * SPREAD**2 + s**2), rtol=tolerance, atol=1e-5)


def test_ancestral_pictures_have_the_datas_spread():
  many = draw_gaussian(jnp.arange(2000, dtype=jnp.uint32), plan("ddpm", SCHEDULES["sd"], steps=500))
  assert abs(float(many.std()) - SPREAD) < 0.02
  assert abs(float(many.mean())) < 0.02


@pytest.mark.parametrize("name", ["ddpm", "heun"])
def test_a_picture_depends_on_its_seed_alone(name):
  made = plan(name, SCHEDULES["flow"], steps=4)
  whole = draw_gaussian(SEEDS, made)
  np.testing.assert_allclose(draw_gaussian(SEEDS[5:6], made), whole[5:6], atol=1e-6)
  np.testing.assert_allclose(draw_gaussian(SEEDS[::-1], made), whole[::-1], atol=1e-6)
  mesh = make_mesh(data=4, fsdp=2)
  with jax.set_mesh(mesh):
    spread = draw_gaussian(jax.device_put(SEEDS, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))), made)
  np.testing.assert_allclose(spread, whole, atol=1e-6)
  assert len(np.unique(np.asarray(whole)[:, 0, 0])) == 8


def test_clip_bounds_what_the_network_expects():
  made = plan("euler", SCHEDULES["edm"], steps=5, clip=0.2)
  np.testing.assert_allclose(draw_point(SEEDS, made), 0.2, atol=1e-6)


def test_rows_may_combine_remembered_values():
  """x_{i+1} = x_i + m1 + 2 m2 + 3 m3 + 4 m12 with m = 2 x + D and D = 1, by hand."""
  table = np.zeros((plans.MAX_ROWS, len(plans.COLUMNS)), np.float32)
  for name, value in dict(keep_x=2.0, keep_d=1.0, on_x=1.0, on_m1=1.0, on_m2=2.0, on_m3=3.0, on_m12=4.0).items():
    table[:, COLUMN[name]] = value
  made = Plan(table, np.int32(14), np.float32(1.0), np.float32(0.0), np.float32(np.inf))
  result = samplers.sample(lambda x, *_: jnp.ones_like(x), jnp.full((1, 2), 0.5), made, samplers.picture_keys(SEEDS[:1]))
  x, memory = 0.5, [0.0] * 12
  for _ in range(14):
    x, memory = x + memory[0] + 2 * memory[1] + 3 * memory[2] + 4 * memory[11], [2 * x + 1, *memory[:-1]]
  np.testing.assert_allclose(result, x, rtol=1e-6)


def bare(rows, **columns):
  """A plan of equal rows; a column may give one number for each."""
  table = np.zeros((plans.MAX_ROWS, len(plans.COLUMNS)), np.float32)
  for name, value in columns.items():
    table[:rows, COLUMN[name]] = value
  return Plan(table, np.int32(rows), np.float32(1.0), np.float32(0.0), np.float32(np.inf))


def test_every_row_draws_its_own_noise():
  """Rows of noise alone leave what the last one drew: fresh in each row and picture, and never the start's."""
  keys = samplers.picture_keys(SEEDS[:2])
  drawn = [samplers.start_noise(keys, (500,)), *(
    samplers.sample(lambda x, *_: x, jnp.zeros((2, 500)), bare(rows, noise=1.0), keys) for rows in (1, 2, 3))]
  flat = np.stack(drawn).reshape(8, 500)
  np.testing.assert_allclose(flat.std(1), 1.0, atol=0.15)
  assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.2
  both = samplers.sample(lambda x, *_: x, jnp.zeros((2, 500)), bare(2, on_x=1.0, noise=1.0), keys)       # variances add
  np.testing.assert_allclose(both, drawn[1] + drawn[2], atol=1e-5)


def test_what_is_known_is_put_back_at_the_next_rows_noise():
  """The second of two pixels is drawn, as what the network sees of the first: at row r the first has row r's noise."""
  clean, noise = jnp.asarray([[2.0, 0.0]]), jnp.asarray([[10.0, 0.0]])
  known = samplers.Known(clean, noise, jnp.asarray([[0.0, 1.0]]))
  made = bare(3, alpha=[0.1, 0.5, 0.9], sigma=[0.9, 0.7, 0.3], on_d=1.0)
  seen = lambda x, *_: jnp.broadcast_to(x[:, :1], x.shape)
  keys = samplers.picture_keys(SEEDS[:1])
  for rows, wanted in ((1, -5.0), (2, 0.5 * 2 + 0.7 * 10), (3, 0.9 * 2 + 0.3 * 10)):
    out = samplers.sample(seen, jnp.full((1, 2), -5.0), made._replace(rows=np.int32(rows)), keys, known)
    np.testing.assert_allclose(out, [[2.0, wanted]], rtol=1e-5)
