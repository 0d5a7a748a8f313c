import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.evaluators import base
from mmdiff.evaluators.samples import samples
from tests.evaluators import toys


def test_grid_and_table_are_of_the_same_prompts_and_noise_each_time():
  services = toys.services(toys.DRAWS)
  made = samples(services, source={}, every_steps=10, count=6, caption="long", columns=3, seed=40, guidance=2.0)
  first, second = made.run({}, 10), made.run({}, 20)
  assert first.tables == second.tables and np.array_equal(first.images[""], second.images[""])
  texts = [toys.Colors()[i]["captions"]["long"][0] for i in range(6)]
  assert first.tables["samples"] == [dict(key=f"r{i}", prompt=text, seed=40 + i) for i, text in enumerate(texts)]
  pictures = base.to_uint8(base.draw(services, {}, *toys.dataset().tokenize(texts), np.arange(40, 46), guidance=2.0))
  np.testing.assert_array_equal(first.images[""], base.grid(pictures, 3))


def test_given_prompts_repeat_from_new_noise():
  found = samples(toys.services(toys.DRAWS), source={}, every_steps=1, count=3, prompts=("red", "blue")).run({}, 1)
  assert [(row["prompt"], row["seed"]) for row in found.tables["samples"]] == [("red", 0), ("blue", 1), ("red", 2)]


def test_a_strip_of_guidance_scales_keeps_noise_and_prompts():
  found = samples(toys.services(toys.DRAWS), source={}, every_steps=1, count=5, columns=2, guidances=(1.0, 2.0, 9.0)).run({}, 1)
  strip = found.images["guidance"]
  assert strip.shape == (3 * (toys.SIZE + 2) - 2, 2 * (toys.SIZE + 2) - 2, 3)
  top = strip[::toys.SIZE + 2, 0]
  assert np.all(top[:, :2] == top[0, :2]) and np.all(np.diff(top[:, 2].astype(int)) > 0)


def test_nothing_to_draw_is_refused():
  with pytest.raises(ConfigError, match="count and columns must be at least 1"):
    samples(toys.services(toys.DRAWS), source={}, every_steps=1, count=0)
