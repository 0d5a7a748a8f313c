import jax
import numpy as np
import pytest

from mmdiff import parallel
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.evaluators import base, clipscore, collapse, retrieval, zeroshot
from tests.evaluators import toys


def prompts(count):
  return toys.dataset().tokenize([f"a red square {i}" for i in range(count)])


def test_chunks_cover_every_row_once_and_have_one_shape():
  parts = list(base.chunks(dict(x=np.arange(10)), 4))
  assert [len(part["x"]) for part in parts] == [4, 4, 4]
  assert np.concatenate([part["x"] for part in parts])[:10].tolist() == list(range(10))
  assert parts[-1]["x"].tolist() == [8, 9, 9, 9]


def test_one_program_serves_every_batch():
  traces = []

  def embed_text(params, tokens, mask, *, extra=()):
    traces.append(tokens.shape)
    return toys.embed_text(params, tokens, mask)
  services = toys.services(toys.CLIP | dict(embed_text=embed_text))
  for count in (1, 7, 8, 21):
    made = base.embed_texts(services, toys.PARAMS, *prompts(count))
    assert made.shape == (count, 6)
  assert traces == [(8, toys.LENGTH)]


def test_rows_do_not_depend_on_the_batch_or_the_mesh():
  tokens, mask = prompts(13)
  alone = base.embed_texts(toys.services(toys.CLIP, batch_size=1), toys.PARAMS, tokens, mask)
  mesh = parallel.make_mesh(data=4, fsdp=2)
  with jax.set_mesh(mesh):
    spread = base.embed_texts(toys.services(toys.CLIP, batch_size=8, mesh=mesh), toys.PARAMS, tokens, mask)
  np.testing.assert_allclose(alone, spread, rtol=1e-6)


def test_pictures_depend_on_their_prompt_and_seed_alone():
  tokens, mask = prompts(5)
  seeds = [9, 1, 5, 5, 2]
  draw = lambda rows, **kw: base.draw(toys.services(toys.DRAWS, **kw), {}, tokens[rows], mask[rows], np.asarray(seeds)[rows], guidance=3.0)
  whole = draw(np.arange(5))
  assert whole.shape == (5, toys.SIZE, toys.SIZE, 3)
  np.testing.assert_allclose(whole[:, 0, 0, 0], np.asarray(seeds) / 100, rtol=1e-6)
  np.testing.assert_array_equal(draw(np.arange(5), batch_size=2), whole)
  np.testing.assert_array_equal(draw(np.asarray([3, 0])), whole[[3, 0]])


def test_steps_and_guidance_do_not_compile_again():
  traces = []

  def sample(*args, **kw):
    traces.append(1)
    return toys.sample(*args, **kw)
  services, (tokens, mask) = toys.services(dict(plan=toys.plan, sample=sample)), prompts(3)
  for steps, guidance in ((5, 1.0), (50, 7.5)):
    base.draw(services, {}, tokens, mask, [0, 1, 2], steps=steps, guidance=guidance)
  assert len(traces) == 1


def test_negative_prompts_and_latents_reach_the_sampler():
  services, (tokens, mask) = toys.services(toys.DRAWS), prompts(3)
  plain = base.draw(services, {}, tokens, mask, [0, 0, 0])
  same = base.draw(services, {}, tokens, mask, [0, 0, 0], negative=(tokens, mask))
  assert np.all(plain[..., 1] > 0) and not same[..., 1].any()
  latents = np.full((3, toys.SIZE, toys.SIZE, 3), 0.25, np.float32)
  np.testing.assert_allclose(base.draw(services, {}, tokens, mask, [0, 0, 0], rows=dict(latents=latents)), plain + 0.25, rtol=1e-6)


def test_a_batch_fits_the_rows_and_the_mesh():
  with jax.set_mesh(parallel.make_mesh(data=2, fsdp=2, tensor=2)):
    services = toys.services(toys.DRAWS, batch_size=16)
    assert [base.fitting(services, count) for count in (1, 4, 5, 16, 99)] == [4, 4, 8, 16, 16]


def test_missing_predict_functions_are_named():
  with pytest.raises(ConfigError, match="needs the predict functions sample, plan; this objective has embed_image, embed_text"):
    base.require(toys.services(toys.CLIP), "samples", "sample", "plan")


def test_to_uint8_inverts_the_reading_of_pixels():
  levels = np.arange(256)
  np.testing.assert_array_equal(base.to_uint8(levels / 127.5 - 1), levels)
  np.testing.assert_array_equal(base.to_uint8(np.asarray([-3.0, 3.0])), [0, 255])


def test_grid_places_pictures_in_reading_order():
  images = np.stack([np.full((2, 3, 3), i, np.uint8) for i in range(5)])
  sheet = base.grid(images, 2, gap=1)
  assert sheet.shape == (8, 7, 3)
  assert [int(sheet[y, x, 0]) for y in (0, 3, 6) for x in (0, 4)] == [0, 1, 2, 3, 4, 255]


def test_captions_of_a_kind():
  record = toys.Colors()[3]
  assert base.captions_of(record) == ["white 3"]
  assert base.captions_of(record, "long") == ["a white square 3", "3 white"]
  with pytest.raises(DataError, match="'r3' has no caption of kind 'short' .it has long, original."):
    base.captions_of(record, "short")


@pytest.mark.parametrize("policy", ["original", "replace", "error"])
def test_evaluators_read_what_they_need_and_say_what_they_left_out(policy):
  """Training reads long captions. Of 15 records, 3 have no caption and 4 more have no long one."""
  services = toys.services(toys.CLIP, data=toys.dataset(15, source=toys.Sparse, on_missing=policy))
  scored = lambda evaluator, **kw: evaluator(services, source={}, every_steps=1, **kw).run(toys.PARAMS, 0).scalars
  assert scored(zeroshot.zeroshot)["records"] == 15
  for evaluator, name in ((retrieval.retrieval, "images"), (clipscore.clipscore, "records")):
    for kind, used in (("", 12), ("original", 12), ("long", 8)):
      found = scored(evaluator, caption=kind)
      assert (found[name], found["left_out"]) == (used, 15 - used)
  assert scored(collapse.collapse, stop_at=1.0)["left_out"] == 3
  assert "left_out" not in scored(zeroshot.zeroshot)
