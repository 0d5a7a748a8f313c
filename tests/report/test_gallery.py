"""Pages of pictures: small, linked, escaped, and growing while pictures come."""
import re
import time

import numpy as np
import pytest
from PIL import Image

from mmdiff.report import gallery
from mmdiff.report.html import page


def photo(seed: int, side: int = 512) -> Image.Image:
  """Smooth shapes with a grain, as hard to compress as a photo."""
  drawn = np.random.default_rng(seed)
  coarse = Image.fromarray(drawn.integers(0, 256, (side // 16, side // 16, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
  return Image.fromarray(np.clip(np.asarray(coarse, int) + drawn.normal(0, 6, (side, side, 1)), 0, 255).astype(np.uint8))


def test_a_hundred_pictures_make_a_small_page(tmp_path):
  thumbs, pictures = gallery.Thumbs(tmp_path), [photo(i) for i in range(10)]
  started = time.process_time()
  shots = [gallery.Shot([("drawn", thumbs.of(f"{i}.png", pictures[i % 10]))], "a prompt") for i in range(100)]
  made = page("x", gallery.body("x", [(f"prompt {i}", shots[4 * i:4 * i + 4]) for i in range(25)]))
  assert len(made) < 2_000_000 and made.count("<img ") == 100 and made.count("<h3>") == 25
  assert time.process_time() - started < 20                       # 2 on an idle core; here it only must not explode


def test_even_noise_has_its_bound():
  made = gallery.thumbnail(Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)), "a b.png")
  assert len(made) < 60_000 and '<a href="a%20b.png">' in made


def test_small_pictures_keep_their_pixels():
  picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
  assert "class=pixels" in gallery.thumbnail(picture) and "image/png" in gallery.thumbnail(picture)
  assert "image/jpeg" in gallery.thumbnail(photo(0, 256).convert("RGBA"))


def test_sections_parts_and_hostile_texts():
  parts = [("picture", "<img a>"), ("mask", "<img b>"), ("drawn", "<img c>")]
  made = gallery.body("<b>", [("<script>x", [gallery.Shot(parts, "", "0_0.png · seed 3"), gallery.Shot(parts)]),
                              ("one", [gallery.Shot(parts[2:], "one")]), ("two", [gallery.Shot(parts[2:], "two")])],
                      lead="4 pictures", settings=dict(steps=30, sampler=""), command="mmdiff sample '--prompts=<x>'")
  assert "<script" not in made and "&lt;script&gt;x" in made and "&lt;x&gt;" in made
  assert made.count("<small>mask</small>") == 2 and "<small>drawn</small>" in made
  assert made.count('class="shots"') == 2                         # single pictures lie together, with no heading each
  assert re.search(r"30</b><span>steps", made) and "sampler" not in made


def test_what_cannot_be_read_is_said(tmp_path):
  (tmp_path / "a.png").write_bytes(b"no picture")
  thumbs = gallery.Thumbs(tmp_path)
  assert "a.png cannot be read" in thumbs.of("a.png") and "none.png cannot be read" in thumbs.of("none.png")
  photo(0).save(tmp_path / "a.png")
  first = thumbs.of("a.png")
  (tmp_path / "a.png").unlink()
  assert thumbs.of("a.png") == first and 'href="a.png"' in first


@pytest.mark.parametrize("times, written", [([0, 1, 2], 1), ([0, 11, 12, 22], 3)])
def test_a_page_grows_not_too_often(tmp_path, times, written):
  made, state = [], dict(now=0.0)
  growing = gallery.Growing(tmp_path / "index.html", "x", lambda: made.append(1) or "body", clock=lambda: state["now"])
  for state["now"] in times:
    growing()
  assert len(made) == written and "body" in (tmp_path / "index.html").read_text()
