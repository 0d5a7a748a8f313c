"""What loaded models can be asked beside drawing, and what every call is told of options that it does not take."""
import inspect
import re

import numpy as np
import pytest
from PIL import Image

import mmdiff
from mmdiff.core.errors import ConfigError
from mmdiff.model import ABILITIES
from tests import toy_pipelines, toy_runs


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
  return mmdiff.load(toy_pipelines.folder(tmp_path_factory.mktemp("sd") / "sd"))


def pictures(count, height=16, width=16):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.fixture(scope="module", params=["folder", "file"])
def part(request, tmp_path_factory):
  """(a function that loads a part, what is loaded whole)."""
  root = tmp_path_factory.mktemp(request.param)
  if request.param == "folder":
    folder = toy_pipelines.folder(root / "sd")
    names = dict(unet="unet", vae="vae", text="text_encoder")
    return (lambda part: mmdiff.load(folder / names[part], quiet=True)), folder
  single = toy_pipelines.file(root)
  return (lambda part: mmdiff.load(single, part=part, quiet=True)), single


def test_every_part_can_be_asked_what_it_can(part, sd):
  load, whole = part
  vae, text, images = load("vae"), load("text"), pictures(3)
  latents = vae.encode(images)
  np.testing.assert_allclose(latents, sd.encode(images), atol=1e-5)
  expected = sd.origin.parts["autoencoder"].module.apply({"params": sd.params["autoencoder"]}, images / 127.5 - 1.0, method="encode")[0]
  np.testing.assert_allclose(latents, expected, atol=1e-4)
  assert vae.decode(latents).dtype == np.uint8 and vae.decode(latents).shape == images.shape
  np.testing.assert_allclose(vae.decode(latents, output="float"), sd.decode(latents, output="float"), atol=1e-5)
  np.testing.assert_allclose(vae.encode(Image.fromarray(images[1])), latents[1:2], atol=1e-4)
  states, mask = text.encode_text(["a cat", ""])
  again, seen = sd.encode_text(["a cat", ""])
  np.testing.assert_allclose(states, again, atol=1e-5)
  assert states.shape == (2, toy_pipelines.LENGTH, 12) and (mask == seen).all() and mask[1].sum() == 2
  with pytest.raises(AttributeError, match="is an autoencoder model: it has encode, decode, not generate"):
    vae.generate("a cat")
  with pytest.raises(AttributeError, match="is a text model: it has encode_text, not encode"):
    text.encode(images)
  with pytest.raises(AttributeError) as error:
    load("unet").generate("a cat")
  assert "is a denoiser model: it has no methods, not generate; a denoiser draws only with the autoencoder, " in str(error.value)
  assert str(error.value).endswith(f": mmdiff.load('{whole}')")


def test_pictures_of_an_autoencoder(sd):
  with pytest.raises(ConfigError, match="expected pictures of one size, found 2 sizes; give height and width"):
    sd.encode([pictures(1)[0], pictures(1, 24)[0]])
  for wrong in (dict(height=0), dict(width=10 ** 9), dict(batch_size=0)):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: expected a whole number from 1"):
      sd.encode(pictures(1), **wrong)
  with pytest.raises(ConfigError, match=r"latents: expected finite numbers \[1 h w C\].*with others among them"):
    sd.decode(np.full((1, 8, 8, 4), np.nan))
  assert sd.encode([pictures(1)[0], pictures(1, 24)[0]], height=8, width=16).shape == (2, 4, 8, 4)
  with pytest.raises(ConfigError, match="reduces its pictures 2 times; 15×16 does not divide"):
    sd.encode(pictures(1, 15))
  with pytest.raises(ConfigError, match=r"expected latents .B h w C. and output 'uint8' or 'float', found .4, 4, 4. and 'uint8'"):
    sd.decode(np.zeros((4, 4, 4)))


def test_rows_of_pictures_go_as_one_progress_line(sd, capfd):
  """On a terminal and in a notebook, or where it is asked for; else nothing is said."""
  sd.encode(pictures(1, 24))
  assert not capfd.readouterr().err
  with sd._running("encode", "pictures", 5, (1,), progress=True) as (services, size):
    services.progress(5, 5)
  assert capfd.readouterr().err.startswith("encode: compiling, seconds to minutes") and size == 8
  with pytest.raises(ConfigError, match="progress: expected True, False or None, found 'yes'"):
    sd.generate("a", progress="yes")


@pytest.mark.parametrize("method, given, said", [
  ("generate", dict(seed=3), "generate takes no seed; did you mean seeds?"),
  ("generate", dict(num_inference_steps=3), "generate takes no num_inference_steps; did you mean steps?"),
  ("generate", dict(guidance_scale=3), "generate takes no guidance_scale; did you mean guidance?"),
  ("generate", dict(num_images=3), "generate takes no num_images; a picture is drawn for each prompt: give as many prompts"),
  ("generate", dict(negative_prompt="x"), "did you mean negative_prompts?"), ("generate", dict(output_type="np"), "did you mean output?"),
  ("img2img", dict(denoising_strength=0.5), "did you mean strength?"), ("inpaint", dict(mask_image=0), "did you mean masks?"),
  ("inpaint", dict(seed=3), "inpaint takes no seed; did you mean seeds?"),
  ("img2img", dict(refiner=None), "img2img takes no refiner, which generate takes"),
  ("generate", dict(strength=0.5), "generate takes no strength, which img2img and inpaint take"),
  ("generate", dict(begin=0.5), "generate takes no begin"), ("generate", dict(where="x"), "generate takes no where"),
  ("encode", dict(heigth=8), "encode takes no heigth; did you mean height?"), ("encode_text", dict(size=1), "encode_text takes no size")])
def test_an_option_that_a_method_does_not_take_is_named_with_the_nearest(sd, method, given, said):
  """These ended in a TypeError of a function within, or were taken as something else: half of the steps, from pure noise."""
  with pytest.raises(ConfigError, match=re.escape(said)):
    getattr(sd, method)("a cat", **given)


def test_what_methods_take_is_what_their_options_stand_for(sd):
  assert {"eta", "rescale", "guidance"} <= set(sd.takes("generate")) == set(sd.takes("inpaint")) - {
    "images", "masks", "strength", "feather"} | {"refiner", "handover"}
  own = [name for ability in ABILITIES for name, found in vars(ability).items() if inspect.isfunction(found) and name[0] != "_"]
  lacking = ("upscale", "caption", "caption_tokens", "embed_image", "embed_text", "similarity", "classify")
  assert all(hasattr(type(sd), name) == (name not in lacking) for name in own)
  assert inspect.signature(sd.generate).parameters["seeds"].default == 0 and sd.generate.__doc__.startswith("Prompts -> ")


def test_a_captioner_takes_the_options_of_decoding(tmp_path):
  model = mmdiff.load(toy_runs.make(tmp_path, toy_runs.coca()))
  assert {"beams", "top_p", "seeds"} <= set(model.takes("caption")) and not {"start", "pad"} & set(model.takes("caption"))
  for given, said in ((dict(seed=1), "caption takes no seed; did you mean seeds"), (dict(top_q=1), "did you mean top_")):
    with pytest.raises(ConfigError, match=said):
      model.caption(pictures(1), **given)


def test_latents_of_another_layout(sd):
  with pytest.raises(ConfigError, match=r"latents: expected \[h, w, 4\] for each picture, found \[4, 8, 8\]; channels come last"):
    sd.decode(np.zeros((1, 4, 8, 8)))
