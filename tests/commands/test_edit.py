"""`mmdiff edit`: pictures, masks and prompts pair up, what is kept is kept, and a second start does the rest."""
import json

import numpy as np
import pytest
from PIL import Image

from mmdiff.commands import edit, sample
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.report import gallery
from mmdiff.train import distributed
from tests import toy_pipelines


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  monkeypatch.setattr(distributed, "initialize", lambda: None)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
  return toy_pipelines.folder(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture
def pictures(tmp_path):
  rng = np.random.default_rng(0)
  for name in ("images", "masks"):
    (tmp_path / name).mkdir()
  for i in range(2):
    Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[4:9, 5 + i:15] = 255
    layer = Image.merge("LA", (Image.new("L", (24, 16), 255), Image.fromarray(mask)))        # strokes on an empty layer
    (layer if i else Image.fromarray(mask)).save(tmp_path / "masks" / f"{i}.png")
  return tmp_path


def run(method, sd, pictures, *flags):
  return edit.main([method, f"--model={sd}", f"--images={pictures / 'images'}", f"--out={pictures / 'out'}", "--steps=2", *flags])


def test_the_page_shows_what_was_given_wherever_it_lies(tmp_path, monkeypatch):
  """Pictures are named from where the command runs, and the page lies in --out."""
  monkeypatch.chdir(tmp_path)
  for name in ("room.png", "out/00000_00.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
  job = sample.Job("00000_00.png", "a sofa", 3, "", "room.png", str(tmp_path / "room.png"))
  made = sample.page_of(tmp_path / "out", [job], {}, gallery.Thumbs(tmp_path / "out"),
                        facts=dict(settings=dict(steps=2), model=dict(path="sd"), argv=["edit", "inpaint"]))
  assert made.count("<img ") == 3 and "cannot be read" not in made and 'href="00000_00.png"' in made and "href=\"room" not in made


def test_inpainting_keeps_what_is_outside_the_mask(sd, pictures, capsys):
  assert run("inpaint", sd, pictures, f"--masks={pictures / 'masks'}", "--prompts=a cat", "--per_prompt=2") == 0
  out = pictures / "out"
  rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
  assert [row["file_name"] for row in rows] == ["00000_00.png", "00000_01.png", "00001_00.png", "00001_01.png"]
  for row in rows:
    old, new, mask = (np.asarray(Image.open(file)) for file in (row["image"], out / row["file_name"], row["mask"]))
    mask = mask[..., -1] if mask.ndim == 3 else mask
    np.testing.assert_array_equal(new[mask == 0], old[mask == 0])
    assert (new[mask > 0] != old[mask > 0]).any()
  assert json.loads((out / "sample.json").read_text())["settings"]["method"] == "inpaint"
  (out / "00001_00.png").unlink()
  run("inpaint", sd, pictures, f"--masks={pictures / 'masks'}", "--prompts=a cat", "--per_prompt=2")
  assert "1 of them drawn now" in capsys.readouterr().out
  with pytest.raises(ConfigError, match="holds pictures of other settings: feather was 0, now 2"):
    run("inpaint", sd, pictures, f"--masks={pictures / 'masks'}", "--prompts=a cat", "--per_prompt=2", "--feather=2")


@pytest.mark.long
def test_image_to_image(sd, pictures):
  (pictures / "p.txt").write_text("a cat\na dog\n")
  assert run("img2img", sd, pictures, f"--prompts={pictures / 'p.txt'}", "--strength=0.5") == 0
  assert np.asarray(Image.open(pictures / "out" / "00001_00.png")).shape == (16, 24, 3)


@pytest.mark.long
def test_upscaling(tmp_path, pictures):
  x4 = toy_pipelines.folder(tmp_path / "x4", enlarges=True)
  assert run("upscale", x4, pictures, "--prompts=a cat", "--noise_level=30") == 0
  assert np.asarray(Image.open(pictures / "out" / "00001_00.png")).shape == (32, 48, 3)
  assert json.loads((pictures / "out" / "sample.json").read_text())["settings"]["noise_level"] == 30
  with pytest.raises(ConfigError, match="strength"):
    run("upscale", x4, pictures, "--prompts=a cat", "--strength=0.5")


def test_what_does_not_fit_is_said_first(sd, pictures):
  out = pictures / "out"
  masked = lambda: run("inpaint", sd, pictures, f"--masks={pictures / 'mask.png'}", "--prompts=a cat")
  for mask, said in ((np.full((24, 16), 255, np.uint8), "mask.png: 16x24 pixels, its picture has 24x16"),
                     (np.zeros((16, 24), np.uint8), "mask.png: nothing in it is to be drawn"),
                     (np.full((16, 24, 4), (255, 255, 255, 0), np.uint8), "mask.png: nothing in it is to be drawn")):
    Image.fromarray(mask).save(pictures / "mask.png")
    with pytest.raises(DataError, match=said):
      masked()
  with pytest.raises(ConfigError, match="unknown command 'inpant'; did you mean inpaint"):
    edit.main(["inpant", f"--model={sd}", "--images=a", "--prompts=a", f"--out={out}"])
  with pytest.raises(ConfigError, match="--masks: required"):
    run("inpaint", sd, pictures, "--prompts=a")
  with pytest.raises(ConfigError, match="--masks: unknown flag"):
    run("img2img", sd, pictures, "--prompts=a", f"--masks={pictures / 'masks'}")
  with pytest.raises(DataError, match="no such file or folder"):
    edit.main(["img2img", f"--model={sd}", "--images=none.png", "--prompts=a", f"--out={out}"])
  (pictures / "p.txt").write_text("a\nb\nc\n")
  with pytest.raises(ConfigError, match="as many of each, or one for all, found 3 prompts, 2 images, 1 masks"):
    run("img2img", sd, pictures, f"--prompts={pictures / 'p.txt'}")
  Image.new("RGB", (8, 8)).save(pictures / "images" / "2.png")
  with pytest.raises(ConfigError, match="2 sizes; give --height and --width"):
    run("img2img", sd, pictures, "--prompts=a")
  (pictures / "images" / "2.png").write_bytes(b"no picture")
  with pytest.raises(DataError, match="2.png: cannot be read"):
    run("img2img", sd, pictures, "--prompts=a", "--height=16", "--width=16")
  with pytest.raises(ConfigError, match="strength: expected a number above 0"):
    edit.main(["img2img", f"--model={sd}", f"--images={pictures / 'images' / '0.png'}", "--prompts=a", f"--out={out}", "--strength=2"])
  with pytest.raises(ConfigError, match="strength: expected a number above 0, up to 1, found 0"):
    edit.main(["img2img", f"--model={sd}", f"--images={pictures / 'images' / '0.png'}", "--prompts=a", f"--out={out}", "--strength=0"])
