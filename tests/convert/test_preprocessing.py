"""What public files say of pictures is done, or refused by its name."""
import json

import numpy as np
import pytest

from mmdiff.convert import formats, preprocessing
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.data import transforms
from mmdiff.models.clip import PIXELS
from mmdiff.nn import embed

CLIP = dict(image_processor_type="CLIPImageProcessor", size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))


def by_transformers(pixels, *, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=PIXELS["clip"][0],
                    image_std=PIXELS["clip"][1], **_):
  """image_processing_clip.py's arithmetic on uint8 pixels, written out."""
  x = pixels.astype(np.float64) * (rescale_factor if do_rescale else 1)
  return (x - np.asarray(image_mean)) / np.asarray(image_std) if do_normalize else x


@pytest.mark.parametrize("more", [
  {}, dict(do_normalize=False), dict(do_rescale=False), dict(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
  dict(do_normalize=False, rescale_factor=0.5), dict(do_rescale=False, do_normalize=False),
  dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]), dict(do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3)])
def test_scale_and_shift_of_any_kind(more):
  found, data, notices = preprocessing.hf(CLIP | more, image_size=32)
  mean, std = PIXELS[found["pixels"]] if "pixels" in found else (found["mean"], found["std"])
  pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
  expected = by_transformers(pixels, **more)
  made = embed.normalize(pixels, mean=tuple(mean), std=tuple(std))
  np.testing.assert_allclose(made, expected, atol=1e-5 * max(1, np.abs(expected).max()))
  assert data == dict(resize="crop", interpolation="bicubic") and not notices


@pytest.mark.parametrize("config, resize, interpolation, pixels", [
  (dict(feature_extractor_type="CLIPFeatureExtractor", size=32, crop_size=32), "crop", "bicubic", "clip"),
  (dict(size=32, crop_size=32, resample=1), "crop", "lanczos", "clip"),
  (dict(image_processor_type="SiglipImageProcessor", size=dict(height=32, width=32)), "squash", "bicubic", "half"),
  (dict(image_processor_type="SiglipImageProcessorFast", size=dict(height=32, width=32), resample=2), "squash", "bilinear", "half"),
  (dict(image_processor_type="ViTImageProcessor", size=32), "squash", "bilinear", "half"),
  (CLIP | dict(size=dict(height=32, width=32)), "squash", "bicubic", "clip")])
def test_kinds_of_processors(config, resize, interpolation, pixels):
  found, data, notices = preprocessing.hf(config, image_size=32)
  assert (found, data, notices) == (dict(pixels=pixels), dict(resize=resize, interpolation=interpolation), [])


@pytest.mark.parametrize("change, message", [
  (dict(do_resize=False), "do_resize: false"), (dict(crop_size=dict(height=28, width=28)), "size .*shortest_edge.* and crop_size .*28"),
  (dict(size=dict(shortest_edge=36)), "crop_size"), (dict(size=dict(longest_edge=32)), "size: expected height and width, or shortest_edge"),
  (dict(size=dict(height=32, width=48)), "crop_size"), (dict(do_pad=True), "do_pad True"), (dict(pad=4), "pad 4"),
  (dict(resample=4), "resample"), (dict(crop_pct=0.875), "crop_pct: 0.875"),
  (dict(do_flip_channel_order=True), "do_flip_channel_order True"),
  (dict(image_processor_type="BitImageProcessor"), "image_processor_type: 'BitImageProcessor' is not read"),
  (dict(rescale_factor=0), "rescale_factor"), (dict(image_std=[0.5, 0.0, 0.5]), "image_std"), (dict(image_mean=[1, 2]), "image_mean"),
  (dict(rescale_offset=True), "rescale_offset"), (dict(size="large"), "size, crop_size: expected a number or an object")])
def test_what_is_not_done_is_refused_by_name(change, message):
  with pytest.raises(DataError, match=f"preprocessor_config.json: .*{message}"):
    preprocessing.hf(CLIP | change, image_size=32)


@pytest.mark.parametrize("change, image_size, message", [
  (dict(do_convert_rgb=False), 32, "do_convert_rgb"), ({}, 64, "resized to the model's 64 pixels, not to 32"),
  (dict(do_center_crop=False), 32, "squashed to squares")])
def test_what_is_done_otherwise_is_said(change, image_size, message):
  assert message in "; ".join(preprocessing.hf(CLIP | change, image_size=image_size)[2])


@pytest.mark.parametrize("shown, expected", [
  ({}, (dict(pixels="clip"), dict(resize="crop", interpolation="bicubic"), [])),
  (dict(mean=0.5, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash", size=[32, 32], mode="RGB", fill_color=0),
   (dict(pixels="half"), dict(resize="squash", interpolation="bilinear"), [])),
  (dict(interpolation="random", resize_mode="longest"), (dict(pixels="clip"), dict(resize="pad", interpolation="bicubic"), [])),
  (dict(fill_color=255), (dict(pixels="clip"), dict(resize="crop", interpolation="bicubic"), []))])
def test_open_clips_preprocess_cfg(shown, expected):
  assert preprocessing.open_clip(shown, "x", image_size=32) == expected


@pytest.mark.parametrize("shown, message", [
  (dict(resize_mode="longest", fill_color=255), "fill_color: 255"), (dict(mode="L"), "mode: 'L'"),
  (dict(resize_mode="zoom"), "resize_mode"), (dict(antialias=True), "antialias True")])
def test_open_clips_other_ways_are_refused(shown, message):
  with pytest.raises(DataError, match=message):
    preprocessing.open_clip(shown, "open_clip_config.json", image_size=32)


def test_another_size_than_the_models_is_said():
  assert "not to 40" in preprocessing.open_clip(dict(size=40), "x", image_size=32)[2][0]


def test_where_the_processor_is_found(tmp_path):
  write = lambda path, content: (path.parent.mkdir(exist_ok=True), path.write_text(json.dumps(content)))
  (tmp_path / "image_encoder").mkdir()
  assert formats.image_processor(tmp_path / "image_encoder") == {}
  write(tmp_path / "feature_extractor" / "preprocessor_config.json", dict(a=1))
  assert formats.image_processor(tmp_path / "image_encoder") == dict(a=1)
  write(tmp_path / "image_encoder" / "preprocessor_config.json", dict(b=1))
  assert formats.image_processor(tmp_path / "image_encoder") == dict(b=1)
  write(tmp_path / "image_encoder" / "processor_config.json", dict(processor_class="CLIPProcessor", image_processor=dict(c=1)))
  assert formats.image_processor(tmp_path / "image_encoder") == dict(c=1)


def test_back_again():
  for resize in ("crop", "squash"):
    data = dict(resize=resize, interpolation="bilinear")
    made = preprocessing.to_hf(32, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), data, siglip=False)
    assert preprocessing.hf(made, image_size=32) == (dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), data, [])
    made = preprocessing.to_open_clip((0.5,) * 3, (0.5,) * 3, data, {})
    assert preprocessing.open_clip(made, "x", image_size=32) == (dict(pixels="half"), data, [])
  with pytest.raises(ConfigError, match="open_clip resizes bicubic or bilinear: data.interpolation is 'lanczos'"):
    preprocessing.to_open_clip((0.5,) * 3, (0.5,) * 3, dict(interpolation="lanczos"), {})
  assert set(preprocessing.RESIZE_MODES.values()) == set(transforms.RESIZES)
