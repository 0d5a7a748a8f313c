"""What loaded models can be asked of pictures and prompts: public Stable Diffusions draw and edit, and so do models trained here."""
import json

import numpy as np
import pytest
from PIL import Image

import mmdiff
from mmdiff import prompted
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_pipelines, toy_runs


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
  return mmdiff.load(toy_pipelines.folder(tmp_path_factory.mktemp("sd") / "sd"))


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
  return mmdiff.load(toy_runs.make(tmp_path_factory.mktemp("latent"), toy_runs.latent()))


def pictures(count, height=16, width=16):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def box(height=16, width=16):
  mask = np.zeros((height, width), bool)
  mask[4:11, 2:9] = True
  return mask


def test_a_public_model_draws(sd):
  assert sd.config["data"]["image_size"] == 16 and sd.sampling == dict(steps=50, guidance=7.5, rows=4)
  one = sd.generate(["a cat", "a dog"], seeds=[3, 4], steps=2, output="uint8")
  assert one.shape == (2, 16, 16, 3) and one.dtype == np.uint8
  again, = sd.generate("a dog", seeds=4, steps=2)                # a picture of PIL
  assert again.size == (16, 16) and np.abs(np.asarray(again, int) - one[1]).max() <= 1
  drawn = {name: sd.generate("a dog", seeds=4, steps=3, sampler=name, output="float") for name in ("pndm", "heun", "unipc", None)}
  assert all(np.abs(drawn[name] - drawn[None]).max() > 1e-3 for name in ("pndm", "heun", "unipc"))
  rescaled = sd.generate("a dog", seeds=4, steps=3, output="float", rescale=0.7)
  assert np.abs(rescaled - drawn[None]).max() > 1e-3
  with pytest.raises(ConfigError, match="sampler: unknown value 'eulr'"):
    sd.generate("a", steps=2, sampler="eulr")
  assert sd.generate("a dog", steps=2, height=24, width=32)[0].size == (32, 24)


def test_pictures_come_back_as_asked():
  floats = np.linspace(-1, 1, 2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)
  bytes_, shown = prompted.finished(floats, "uint8"), prompted.finished(floats, "pil")
  assert bytes_.dtype == np.uint8 and (bytes_.min(), bytes_.max()) == (0, 255) and prompted.finished(floats, "float") is floats
  assert [picture.size for picture in shown] == [(5, 4)] * 2
  np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in shown]), bytes_)
  assert prompted.finished(floats[:0], "pil") == []


@pytest.mark.long
def test_pictures_go_in_by_path_of_pil_or_as_arrays(sd, tmp_path):
  """One of them is a batch of one; so are masks."""
  draw = lambda image, output="uint8": sd.img2img(image, "a", steps=2, strength=0.5, output=output)
  wanted = draw(pictures(1)[0])
  assert wanted.shape == (1, 16, 16, 3) and draw(pictures(1), "latents").shape == (1, 8, 8, 4)
  Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
  for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png"), [str(tmp_path / "a.png")]):
    np.testing.assert_array_equal(draw(image), wanted)
  np.testing.assert_array_equal(sd.encode(tmp_path / "a.png"), sd.encode(pictures(1)))
  Image.fromarray(box()).save(tmp_path / "mask.png")
  np.testing.assert_array_equal(np.stack(sd.inpaint(tmp_path / "a.png", tmp_path / "mask.png", "a", steps=2)),
                                sd.inpaint(pictures(1), box(), "a", steps=2, output="uint8"))


def test_what_can_not_be_drawn_is_refused_wherever_it_is_asked(sd):
  picture = np.zeros((1, 16, 16, 3), np.uint8)
  for odd in (dict(height=0), dict(width=10 ** 9), dict(steps=1.5), dict(batch_size=-1), dict(latents=np.full((1, 8, 8, 4), np.nan)),
              dict(guidance="x"), dict(guidance=np.nan), dict(rescale="x"), dict(eta="x")):
    for draws in (sd.generate, lambda prompts, **how: sd.img2img(picture, prompts, **how)):
      with pytest.raises(ConfigError, match=f"{next(iter(odd))}: expected"):
        draws("a", **odd)
  with pytest.raises(ConfigError, match="output: expected one of pil, uint8, float, latents, found 'np'"):
    sd.generate("a", output="np")


def test_noise_of_another_layout_is_refused_with_the_one_expected(sd):
  """Before anything is compiled; it ended in flax's or XLA's message, or in a picture of another size than was asked for."""
  image, first = pictures(1), np.zeros((1, 4, 8, 8))
  for draws in (sd.generate, lambda prompts, **how: sd.img2img(image, prompts, **how),
                lambda prompts, **how: sd.inpaint(image, box(), prompts, **how)):
    with pytest.raises(ConfigError, match=r"latents: expected \[(h, w|8, 8), 4\] for each picture, found \[4, 8, 8\]; channels come last"):
      draws("a", steps=2, latents=first)
  with pytest.raises(ConfigError, match=r"latents: expected \[8, w, 4\] for each picture, found \[12, 12, 4\]"):
    sd.generate("a", steps=2, height=16, latents=np.zeros((1, 12, 12, 4)))


def test_options_without_a_meaning_for_the_model_are_refused(sd, tmp_path):
  image = pictures(1)
  for draws in (sd.generate, lambda prompts, **how: sd.img2img(image, prompts, **how)):
    with pytest.raises(ConfigError, match="size: this model's denoiser reads no sizes of pictures; leave it out"):
      draws("a", steps=2, size=np.zeros((1, 6), np.int32))
  with pytest.raises(ConfigError, match="handover: says when a refiner takes over, and there is none"):
    sd.generate("a", handover=0.5)
  with pytest.raises(ConfigError, match="feather: fades pixels, and output='latents' has none"):
    sd.inpaint(image, box(), "a", feather=2, output="latents")
  pixel, clip = (mmdiff.load(toy_runs.make(tmp_path / name, getattr(toy_runs, name)())) for name in ("t2i", "clip"))
  for draws in (pixel.generate, lambda prompts, **how: pixel.img2img(image, prompts, **how)):
    with pytest.raises(ConfigError, match="height and width: this model draws 16×16, found 24×16"):
      draws("a", height=24)
  for refiner, said in ((clip, "is a contrastive model: it has .*, not generate"), (pixel, "was trained here: only public models"),
                        ("sdxl-refiner", "expected a text-to-image model, as mmdiff.load returns it, found str")):
    with pytest.raises(ConfigError, match=f"refiner: .*{said}"):
      sd.generate("a", refiner=refiner)
  with pytest.raises(ConfigError, match="handover: expected a number above 0, below 1, found 1.5"):
    sd.generate("a", refiner=sd, handover=1.5)


def test_long_prompts_are_counted_or_encoded_in_chunks(sd, capsys):
  short, long = "a cat", "a cat on a long wall"
  cut = sd.generate([short, long], steps=2, output="float")
  assert "1 of 2 prompts are longer than 12 tokens and were cut; the first lost 5: 'g wall'" in capsys.readouterr().err
  whole = sd.generate([short, long], steps=2, output="float", long_prompts="chunks")
  twice = sd.generate([short] * 2, steps=2, output="float", long_prompts="chunks")
  np.testing.assert_allclose(twice[0], cut[0], atol=1e-5)
  assert "cut" not in capsys.readouterr().err
  assert whole.shape == cut.shape and np.abs(whole[1] - cut[1]).max() > 1e-4
  np.testing.assert_allclose(whole[0], twice[0], atol=1e-3)        # of its own chunks alone, whatever stands beside it
  away = lambda texts: sd.generate(["a dog"] * len(texts), texts, steps=2, output="float", long_prompts="chunks", seeds=[5] * len(texts))
  np.testing.assert_allclose(away([short, long])[0], away([short] * 2)[0], atol=1e-3)
  with pytest.raises(ConfigError, match="long_prompts: expected 'cut' or 'chunks', found 'split'"):
    sd.generate(short, long_prompts="split")


def test_image_to_image_goes_from_the_picture_to_noise(sd):
  image = pictures(1)
  edit = lambda strength, **kw: sd.img2img(image, "a cat", strength=strength, steps=10, output="float", **kw)
  moved = [np.abs(edit(strength) - edit(0.1)).mean() for strength in (0.2, 0.9)]
  assert 0 < moved[0] < moved[1]
  np.testing.assert_array_equal(edit(0.5), edit(0.5))
  for wrong in (0, 1.5, -1):
    with pytest.raises(ConfigError, match="strength: expected a number above 0, up to 1"):
      edit(wrong)
  with pytest.raises(ConfigError, match="0.05 of 10 steps is less than one; use at least 0.1"):
    edit(0.05)


@pytest.mark.long
def test_pictures_keep_their_size(sd):
  for shape in ((17, 30), (9, 16)):
    made = sd.img2img(pictures(1, *shape), "a cat", steps=2, strength=0.5)
    assert [picture.size for picture in made] == [shape[::-1]]
  assert sd.img2img(Image.fromarray(pictures(1, 40, 20)[0]), ["a", "b"], steps=2, strength=0.5, height=16, width=16,
                    output="uint8").shape == (2, 16, 16, 3)
  with pytest.raises(ConfigError, match="expected one size, found 2, such as 8×8 and 9×9; give height and width"):
    sd.img2img([pictures(1, 8, 8)[0], pictures(1, 9, 9)[0]], "a")
  with pytest.raises(ConfigError, match="as many of both, or one of either, found 2 and 3"):
    sd.img2img(pictures(2), ["a", "b", "c"])


@pytest.mark.long
@pytest.mark.parametrize("inpaints, strength", [(True, 1.0), (True, 0.5), (False, 1.0), (False, 0.5)])
def test_what_is_outside_a_mask_stays_bit_for_bit(tmp_path, sd, inpaints, strength):
  model = mmdiff.load(toy_pipelines.folder(tmp_path / "nine", inpaints=True)) if inpaints else sd
  image, mask = pictures(2), box()
  made = model.inpaint(image, mask, "a cat", steps=4, strength=strength, output="uint8")
  np.testing.assert_array_equal(made[:, ~mask], image[:, ~mask])
  assert np.abs(made[:, mask].astype(int) - image[:, mask]).mean() > 5
  soft = model.inpaint(image, mask, "a cat", steps=4, strength=strength, feather=3, output="uint8")
  np.testing.assert_array_equal(soft[:, ~mask], image[:, ~mask])
  edge = np.abs(soft.astype(float) - image)[:, 4, 2:9].mean()
  assert edge < np.abs(made.astype(float) - image)[:, 4, 2:9].mean() and np.array_equal(soft[:, 7, 5], made[:, 7, 5])
  if inpaints:
    with pytest.raises(ConfigError, match="reads 5 channels beside the noisy 4: it fills masks; use inpaint"):
      model.generate("a cat", steps=2)


@pytest.mark.long
def test_masks_of_every_kind(sd):
  image, mask = pictures(1), box()
  wanted = sd.inpaint(image, mask, "a", steps=2, output="uint8")
  shown = Image.fromarray(mask.astype(np.uint8) * 255)
  for same in (mask[None], [mask], mask.astype(np.float32), mask.astype(np.uint8), shown, shown.convert("RGB"), [shown.convert("RGB")]):
    np.testing.assert_array_equal(sd.inpaint(image, same, "a", steps=2, output="uint8"), wanted)
  layer = np.full((16, 16, 4), 255, np.uint8)
  layer[..., 3] = 255 * mask
  for strokes in (layer, layer[None], Image.fromarray(layer)):       # white on an empty layer
    np.testing.assert_array_equal(np.stack(sd.inpaint(image, strokes, "a", steps=2)), wanted)
  half = sd.inpaint(image, mask, "a", steps=2, height=16, width=8, output="uint8")[0]         # the mask is cropped as the picture is
  np.testing.assert_array_equal(half[~mask[:, 4:12]], image[0, :, 4:12][~mask[:, 4:12]])
  assert (half[mask[:, 4:12]] != image[0, :, 4:12][mask[:, 4:12]]).any()
  with pytest.raises(DataError, match="mask 0: 8x16 pixels, its picture has 16x16"):
    sd.inpaint(image, mask[:, :8], "a")
  with pytest.raises(DataError, match="mask 0: expected .H W. of bool"):
    sd.inpaint(image, np.zeros((2, 3, 4, 5)), "a")
  with pytest.raises(ConfigError, match="at least one of each, found 0 and 1"):
    sd.inpaint([], mask, "a")
  with pytest.raises(ConfigError, match="one for each of the 1 images, found 2"):
    sd.inpaint(image, [mask, mask], "a")


@pytest.mark.long
def test_an_upscaler_draws_large_what_it_is_shown(tmp_path):
  model = mmdiff.load(toy_pipelines.folder(tmp_path / "x4", enlarges=True))
  assert not any(hasattr(model, name) for name in ("generate", "img2img", "inpaint"))
  small, how = pictures(2, 7, 9), dict(steps=2, output="float")
  large = model.upscale(small, ["a cat", "a dog"], seeds=[3, 4], **how)
  assert large.shape == (2, 14, 18, 3)
  np.testing.assert_allclose(model.upscale(small[1:], "a dog", seeds=4, **how)[0], large[1], atol=1e-5)
  for other in (dict(noise_level=300), dict(small_noise=np.zeros((1, 7, 9, 3)))):
    assert np.abs(model.upscale(small[1:], "a dog", seeds=4, **how, **other)[0] - large[1]).max() > 1e-4
  assert np.abs(model.upscale(small[:1], "a dog", seeds=4, **how)[0] - large[1]).max() > 1e-3
  for level in (351, 1.5, "x"):
    with pytest.raises(ConfigError, match=f"noise_level: expected a whole number from 0 to 350, found {level!r}"):
      model.upscale(small, "a", noise_level=level)
  noise = np.zeros((2, 5, 7, 9))
  for given, expected in ((dict(small_noise=noise), r"\[7, 9, 3\]"), (dict(latents=noise), r"\[7, 9, 4\]")):
    with pytest.raises(ConfigError, match=f"{next(iter(given))}: expected {expected} for each picture"):
      model.upscale(small, "a", **how, **given)
  mmdiff.save(model, tmp_path / "again")
  assert json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == "StableDiffusionUpscalePipeline"
  np.testing.assert_allclose(mmdiff.load(tmp_path / "again").upscale(small[1:], "a dog", seeds=4, **how)[0], large[1], atol=1e-6)


@pytest.mark.long
def test_models_trained_here_edit(latent, tmp_path):
  pixel = mmdiff.load(toy_runs.make(tmp_path / "t2i", toy_runs.t2i()))
  for model in (latent, pixel):
    image, mask = pictures(2), box()
    assert [one.size for one in model.img2img(image, "a red circle", steps=4, strength=0.5)] == [(16, 16)] * 2
    made = model.inpaint(image, mask, "a red circle", steps=4, output="uint8")
    np.testing.assert_array_equal(made[:, ~mask], image[:, ~mask])


@pytest.mark.long
def test_two_encoders_and_a_refiner(tmp_path):
  xl = mmdiff.load(toy_pipelines.folder(tmp_path / "xl", xl=True))
  assert xl.sampling["guidance"] == 5.0
  draw = lambda **kw: xl.generate("a cat", steps=5, output="float", **kw)
  whole = draw()
  sizes = np.asarray([[512, 512, 0, 0, 16, 16]], np.int32)
  assert np.abs(draw(size=sizes) - whole).max() > 1e-4
  # A model that takes over from itself draws what it would have drawn, of pictures of other sizes too.
  np.testing.assert_allclose(draw(refiner=xl, handover=0.6), whole, atol=1e-3)
  np.testing.assert_allclose(draw(refiner=xl, handover=0.6, size=sizes), draw(size=sizes), atol=1e-3)


@pytest.mark.long
def test_tiles_change_little(tmp_path):
  folder = toy_pipelines.folder(tmp_path / "sd")
  whole, tiled = mmdiff.load(folder), mmdiff.load(folder, tile=16)
  np.testing.assert_allclose(whole.generate("a", steps=2, output="float"), tiled.generate("a", steps=2, output="float"), atol=1e-5)
  assert tiled.generate("a", steps=2, height=40, width=24)[0].size == (24, 40)


@pytest.mark.long
def test_options_are_checked(tmp_path):
  folder = toy_pipelines.folder(tmp_path / "sd")
  with pytest.raises(ConfigError, match="dtype: expected float32 or bfloat16, found 'int8'"):
    mmdiff.load(folder, dtype="int8")
  with pytest.raises(ConfigError, match="is a folder, whose configs say more .* leave out prediction"):
    mmdiff.load(folder, prediction="v")
  half = mmdiff.load(folder, dtype="bfloat16").generate("a", steps=2, output="float")
  assert 0 < np.abs(half - mmdiff.load(folder).generate("a", steps=2, output="float")).mean() < 0.4      # random weights let rounding grow


def test_written_and_read_again(tmp_path, sd):
  wanted = sd.generate("a cat", steps=2, output="float")
  mmdiff.save(sd, tmp_path / "folder")
  np.testing.assert_allclose(mmdiff.load(tmp_path / "folder").generate("a cat", steps=2, output="float"), wanted, atol=1e-5)
  with pytest.raises(ConfigError, match="written as diffusers or ldm, found 'open_clip'"):
    mmdiff.save(sd, tmp_path / "x", format="open_clip")
