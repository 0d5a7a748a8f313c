import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mmdiff
from mmdiff import abilities
from mmdiff.core import progress
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.evaluators import zeroshot
from tests import toy_runs


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
  return toy_runs.make(tmp_path_factory.mktemp("clip"), toy_runs.clip(), steps=(2, 4))


@pytest.fixture(scope="module")
def clip(clip_run):
  return mmdiff.load(clip_run)


@pytest.fixture(scope="module")
def t2i(tmp_path_factory):
  return mmdiff.load(toy_runs.make(tmp_path_factory.mktemp("t2i"), toy_runs.t2i()), params="raw")


def pictures(count, height=16, width=16):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_call(clip):
  images, texts = pictures(11), [f"a red circle {i}" for i in range(11)]
  image, text = clip.embed_image(images), clip.embed_text(texts)
  assert image.shape == text.shape == (11, 8) and image.dtype == text.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(clip.embed_image(images[4:5]), image[4:5], atol=1e-5)
  np.testing.assert_allclose(clip.embed_text(texts[9]), text[9:10], atol=1e-5)
  assert clip.embed_image([]).shape == clip.embed_text([]).shape == (0, 8)
  assert clip.logit_scale == pytest.approx(np.exp(toy_runs.SCALAR))


def test_any_form_of_picture_is_fitted(clip, tmp_path):
  array = pictures(1, 40, 24)[0]
  expected = clip.embed_image([array])
  assert expected.shape == (1, 8)
  np.testing.assert_array_equal(clip.embed_image([Image.fromarray(array)]), expected)
  mixed = clip.embed_image([array, pictures(1)[0], Image.new("L", (90, 20))])
  np.testing.assert_allclose(mixed[:1], expected, atol=1e-5)
  with pytest.raises(DataError, match="image 1: expected a path, a picture of PIL or uint8 .H W 3., found ndarray"):
    clip.embed_image([array, np.zeros((4, 4, 3))])
  Image.fromarray(array).save(tmp_path / "cat.png")
  for one in (array, Image.fromarray(array), tmp_path / "cat.png", str(tmp_path / "cat.png")):
    np.testing.assert_array_equal(clip.embed_image(one), expected)
  with pytest.raises(DataError, match="dog.png: no such file; expected a picture"):
    clip.embed_image(["dog.png"])


def test_a_call_reuses_what_is_compiled_for_others(tmp_path):
  """One picture on each device, two, then four: one program."""
  model, made = mmdiff.load(toy_runs.make(tmp_path, toy_runs.clip())), []
  count = lambda event, duration_secs, **kwargs: made.append(kwargs["fun_name"]) if event == progress.COMPILED else None
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    shown = [model.embed_image(pictures(rows)) for rows in (8, 16, 32, 19)]
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
  assert len([name for name in made if "embed_image" in name]) == 1 and [len(rows) for rows in shown] == [8, 16, 32, 19]
  np.testing.assert_allclose(shown[1], shown[2][:16], atol=1e-6)
  assert list(model.sizes) == [("embed_image",)] and list(model.sizes["embed_image",]) == [8]


@pytest.mark.parametrize("count, wanted, compiled, size", [
  (1, 1, [], 1), (2, 2, [1], 1), (4, 4, [1], 1), (5, 8, [1], 8), (8, 8, [1, 4], 4), (3, 4, [2, 8], 2), (3, 4, [8], 8), (1, 1, [4], 1),
  (1, 1, [2], 2), (1000, 64, [16], 64), (1000, 64, [16, 64], 64), (6, 8, [2, 4], 2)])
def test_sizes_serve_each_other_within_bounds(count, wanted, compiled, size):
  """At most twice the rows, or four turns."""
  assert abilities.fitting(count, wanted, compiled) == size


def test_similarity_and_classes(clip):
  images, texts = pictures(5), ["a red circle", "a blue square", "a cat"]
  cosines = clip.embed_image(images) @ clip.embed_text(texts).T
  np.testing.assert_allclose(clip.similarity(images, texts), cosines, atol=1e-6)
  found = clip.classify(images, texts, templates="bare")
  odds = np.exp(clip.logit_scale * cosines)
  assert found.dtype == np.float32 and found.shape == (5, 3)
  np.testing.assert_allclose(found, odds / odds.sum(1, keepdims=True), atol=1e-5)
  averaged = zeroshot.class_weights(clip.embed_text, texts, zeroshot.TEMPLATES["openai-7"])
  several = clip.classify(images[0], texts, templates=["openai-7"])
  assert several.shape == (1, 3) and several.argmax() == (clip.embed_image(images[:1]) @ averaged.T).argmax()
  for labels, said in (([], "labels: expected at least one"), (["a", "a"], "'a' stands there 2 times")):
    with pytest.raises(ConfigError, match=said):
      clip.classify(images, labels)
  with pytest.raises(ConfigError, match="neither a text with {} for the class name nor one of .* did you mean 'plain'"):
    clip.classify(images, texts, templates="plan")


def test_a_model_tells_what_it_is(clip, t2i):
  shown = repr(clip)
  assert re.match(r"<contrastive model of .*clip\d*, step 4, eval parameters>\n  parameters  [\d,]+ \(image [\d,]+, ", shown)
  assert "pictures    16×16" in shown and "devices     8 × cpu" in shown
  assert "methods     embed_image, embed_text, logit_scale, similarity, classify" in shown and "generate" in repr(t2i)
  names = [name for name in dir(clip) if name[0] != "_"]
  assert set(names) == {"config", "params", "report", "tokenizer", "tokenize", "methods", "takes", *clip.methods()}


@pytest.mark.parametrize("asked, said", [
  ("encode_image", "not encode_image; did you mean embed_image?"), ("get_text_features", "did you mean embed_text?"),
  ("encode_text", "did you mean embed_text?"), ("embed_imag", "did you mean embed_image?"), ("similarty", "did you mean similarity?"),
  ("predict", "did you mean classify?"), ("save", r"did you mean mmdiff.save\(model, PATH, format=…\)"),
  ("wibble", "a contrastive model has no wibble: it has embed_image, ")])
def test_a_method_by_another_name_is_told_of_ours(clip, asked, said):
  with pytest.raises(AttributeError, match=said):
    getattr(clip, asked)


def test_steps_and_averages_are_chosen(clip_run, clip):
  assert clip.report["step"] == 4 and clip.report["params"] == "eval" and set(clip.report["parameters"]) == {"image", "text", "logit_scale"}
  scale = lambda *args, **kw: mmdiff.load(*args, **kw).logit_scale
  start = toy_runs.SCALAR
  assert clip.logit_scale == pytest.approx(np.exp(start))                    # of the average, which stays
  assert scale(f"{clip_run}@2", params="raw") == pytest.approx(np.exp(1.1 * start), rel=1e-5)
  assert scale(clip_run, step=2, params="raw") == pytest.approx(np.exp(1.1 * start), rel=1e-5)
  assert scale(clip_run, params="raw") == pytest.approx(np.exp(1.21 * start), rel=1e-5)
  with pytest.raises(DataError, match="no checkpoint of step 3; there are 2, 4"):
    mmdiff.load(f"{clip_run}@3")
  with pytest.raises(DataError, match="no average named 'best'; there are eval"):
    mmdiff.load(clip_run, params="best")


def test_a_model_says_what_it_has(clip, t2i):
  with pytest.raises(AttributeError, match="is a contrastive model: it has embed_image, .*, similarity, classify, not generate"):
    clip.generate(["a"])
  with pytest.raises(AttributeError, match="is a diffusion model: it has encode_text, img2img, inpaint, generate, not embed_image"):
    t2i.embed_image(pictures(1))
  assert hasattr(clip, "embed_text") and not hasattr(clip, "generate") and not hasattr(clip, "nonsense")


def test_where_there_is_no_run(tmp_path, clip_run):
  with pytest.raises(DataError, match="no model, but an empty folder; expected a run directory of .mmdiff train., or a folder or file"):
    mmdiff.load(tmp_path)
  with pytest.raises(DataError, match="did you mean .*clip"):
    mmdiff.load(clip_run.parent)


def test_a_picture_depends_on_its_prompt_and_seed_alone(t2i):
  draw = lambda prompts, **kw: t2i.generate(prompts, steps=2, output="float", **kw)
  whole = draw(["a red circle", "a blue square", "a red circle"], seeds=[3, 4, 5])
  assert whole.shape == (3, 16, 16, 3) and whole.dtype == np.float32 and np.abs(whole).max() <= 1
  np.testing.assert_allclose(draw("a blue square", seeds=4), whole[1:2], atol=1e-5)
  np.testing.assert_allclose(draw(["a red circle"] * 3, seeds=3)[[0, 2]], whole[[0, 2]], atol=1e-5)
  assert np.abs(whole[0] - whole[2]).max() > 0.1
  eight = t2i.generate("a blue square", steps=2, seeds=4, output="uint8")
  assert eight.dtype == np.uint8
  np.testing.assert_allclose(eight, (whole[1:2] + 1) * 127.5, atol=0.51)


def test_samplers_negative_prompts_and_guidance_change_the_picture(t2i):
  draw = lambda **kw: t2i.generate(["a red circle"], steps=3, output="float", **kw)
  base = draw()
  for other in (dict(sampler="heun"), dict(guidance=9.0), dict(negative_prompts="a dark picture"), dict(steps=5)):
    assert np.abs(t2i.generate(["a red circle"], **(dict(steps=3, output="float") | other)) - base).max() > 0.1
  np.testing.assert_array_equal(draw(sampler="euler"), base)                  # a flow model's own
  np.testing.assert_allclose(draw(negative_prompts=""), base, atol=5e-3)          # another program, and random weights
  np.testing.assert_array_equal(draw(guidance=1.0, negative_prompts=["a dark picture"]), draw(guidance=1.0))


def test_what_cannot_be_drawn_is_refused(t2i):
  refused = lambda message, **kw: pytest.raises(ConfigError, match=message)
  with refused("one for each of the 2 prompts, found 3"):
    t2i.generate(["a", "b"], seeds=[1, 2, 3])
  with refused("this model draws 16×16, found 32×16"):
    t2i.generate(["a"], height=32)
  with refused("found -1"):
    t2i.generate(["a"], seeds=-1)
  with refused("sampler: unknown value 'eulr'"):
    t2i.generate(["a"], sampler="eulr")
  assert t2i.generate([], output="float").shape == (0, 16, 16, 3)
  with refused("expected one of pil, uint8, float, found 'latents'; this model has no latents"):
    t2i.generate(["a"], output="latents")


@pytest.mark.long
def test_latents_and_other_sizes(tmp_path):
  """Of a model on latents: what pictures are decoded from, and pictures of the size asked for."""
  model = mmdiff.load(toy_runs.make(tmp_path / "latent", toy_runs.latent()))
  draw = lambda **kw: model.generate(["a red circle"], steps=2, **kw)
  latents = draw(output="latents")
  assert latents.shape == (1, 4, 4, 4) and latents.dtype == np.float32
  decoded = model.services.predict["decode"](model.params, jnp.asarray(latents))
  np.testing.assert_allclose(draw(output="float"), decoded, atol=1e-4)
  assert draw(height=8, width=24)[0].size == (24, 8)
  with pytest.raises(ConfigError, match="4 times their latents, found 18×16"):
    draw(height=18)


def test_a_captioner_writes_and_embeds(tmp_path):
  model = mmdiff.load(toy_runs.make(tmp_path / "coca", toy_runs.coca()), params="raw")
  images = pictures(5)
  written = model.caption(images)
  assert len(written) == 5 and all(isinstance(text, str) for text in written) and model.embed_image(images).shape == (5, 8)
  assert model.caption([images[3]]) == written[3:4] and model.caption([]) == []
  tokens, lengths = model.caption_tokens(images, method="sample", seeds=[1, 2, 3, 4, 5], max_len=6)
  assert tokens.shape == (5, 6) and lengths.min() >= 1 and lengths.max() <= 6
  alone, _ = model.caption_tokens(images[4:], method="sample", seeds=[5], max_len=6)
  np.testing.assert_array_equal(alone, tokens[4:])
  wrong = {"caption takes no bems; did you mean beams": dict(bems=2), "top_p: expected more than 0": dict(top_p=0.0, method="sample"),
           "one for each of the 5 images, found 1": dict(seeds=[1]), "max_len: 99 tokens": dict(max_len=99)}
  for message, options in wrong.items():
    with pytest.raises(ConfigError, match=message):
      model.caption(images, **options)
