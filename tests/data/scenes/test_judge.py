"""The judge reads what was drawn, through noise and JPEG, and is not fooled by the right picture of another prompt."""
import io

import numpy as np
import pytest
from PIL import Image

from mmdiff.data.scenes.facts import score
from mmdiff.data.scenes.judge import judge
from mmdiff.data.scenes.source import scenes
from mmdiff.data.scenes.tiers import TIERS

COUNTS = {"T16": 1_000, "T32": 160, "T64": 24}
each_tier = pytest.mark.parametrize("name", TIERS)


@pytest.fixture(scope="module", params=TIERS)
def drawn(request):
  """(tier, records, pictures) of some training scenes and some with an object more than ever trained."""
  name = request.param
  count = COUNTS[name]
  records = [scenes(tier=name, split=split)[i] for split in ("train", "val_len") for i in range(count // 2)]
  return name, records, np.stack([record["image"] for record in records])


def told(scene, jitter=False):
  names = ("shape", "color", "tex", "size", "rot", "cell") + (("dx", "dy") if jitter else ())
  return scene["bg"], [[obj.get(name) for name in names] for obj in scene["objs"]]


def test_renders_are_read_exactly(drawn):
  name, records, pictures = drawn
  readings = judge(pictures, name)
  assert all(told(reading.scene, True) == told(record["scene"], True) for reading, record in zip(readings, records))
  assert max(reading.residual for reading in readings) < 0.2 and all(reading.parseable for reading in readings)


def test_strong_noise_changes_at_most_one_reading_in_a_thousand(drawn):
  name, records, pictures = drawn
  noisy = pictures + np.random.default_rng(1).normal(0, 40, pictures.shape)
  readings = judge(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), name)
  wrong = sum(told(reading.scene) != told(record["scene"]) for reading, record in zip(readings, records))
  assert wrong <= len(records) // 1_000


def test_noise_of_sigma_25_is_parseable_and_random_pixels_are_not(drawn):
  name, records, pictures = drawn
  noisy = np.clip(np.rint(pictures + np.random.default_rng(2).normal(0, 20, pictures.shape)), 0, 255).astype(np.uint8)
  assert all(reading.parseable for reading in judge(noisy[:100], name))
  static = np.random.default_rng(3).integers(0, 256, pictures[:20].shape, dtype=np.uint8)
  assert not any(reading.parseable for reading in judge(static, name))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_readings_survive_files(drawn, kind):
  name, records, pictures = drawn
  few = pictures[:60]

  def through_a_file(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return np.array(Image.open(buffer))
  readings = judge(np.stack([through_a_file(picture) for picture in few]), name)
  assert all(reading.parseable and told(reading.scene) == told(record["scene"]) for reading, record in zip(readings, records))


def test_permuted_prompts_score_chance(drawn):
  name, records, pictures = drawn
  readings = judge(pictures[:200], name)
  facts = [record["facts"]["long"] for record in records]
  assert all(all(score(reading.scene, fact)) for reading, fact in zip(readings, facts))
  shifted = [all(score(reading.scene, fact)) for reading, fact in zip(readings, facts[7:] + facts[:7])]
  assert np.mean(shifted) <= 0.02


def test_a_pixel_beyond_the_jitter_is_still_read():
  records = [scenes(tier="T32")[i] for i in range(60)]
  small = [r for r in records if all(obj["size"] == "small" for obj in r["scene"]["objs"]) and r["scene"]["bg"] != "gradient"]
  moved = np.stack([np.roll(r["image"], (1, 1), axis=(0, 1)) for r in small])
  assert all(told(reading.scene) == told(r["scene"]) for reading, r in zip(judge(moved, "T32"), small))


def test_chunks_do_not_matter():
  pictures = np.stack([scenes(tier="T16")[i]["image"] for i in range(10)])
  assert judge(pictures, "T16", chunk=3) == judge(pictures, "T16")


@pytest.mark.parametrize("pictures", [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float32)])
def test_other_pictures_are_refused(pictures):
  with pytest.raises(ValueError, match="T16 reads uint8"):
    judge(pictures, "T16")
