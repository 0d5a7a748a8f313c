"""The report holds everything, shows nothing that it should not, and asks for nothing."""
import html.parser
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mmdiff.core.errors import CannotWrite
from mmdiff.train import charts
from mmdiff.train.page import cut, table
from mmdiff.train.report import write_report
from mmdiff.train.writer import Writer

EVIL = "<script>alert('caption')</script><img src=http://evil.test/x.png onerror=alert(1)> & \"quotes\""
CONFIG = dict(
  seed=0, steps=400, batch_size=64, log_every_steps=10, checkpoint=dict(every_steps=100, keep=3), mesh=dict(data=-1, fsdp=1, tensor=1),
  objective=dict(name="diffusion", schedule="flow", denoiser=dict(name="dit", variant="tiny"), condition=dict(name="conv_text", width=128)),
  data=dict(source=dict(name="scenes", tier="T32"), captions=dict(long=0.95, original=0.05), image_size=16),
  optim=dict(default=dict(name="adamw", lr=2e-3)), ema=dict(eval=0.99), evals={})


class Page(html.parser.HTMLParser):
  """Tags that opened and closed, and the addresses asked for."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.links, self.words = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "xlink:href")]
    assert not any(name.startswith("on") for name, _ in attrs)
    if tag not in ("meta", "img"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


def sheet(rng, rows, columns, side=16):
  pictures = rng.integers(0, 200, (rows, columns, side, side, 3), np.uint8)
  made = np.full((rows * (side + 2) - 2, columns * (side + 2) - 2, 3), 255, np.uint8)
  for r in range(rows):
    for c in range(columns):
      made[r * (side + 2):r * (side + 2) + side, c * (side + 2):c * (side + 2) + side] = pictures[r, c]
  return made, pictures.reshape(-1, side, side, 3)


def make_run(workdir, *, seed=0, caption="a large red circle left of a small blue square, on a white background"):
  """A run directory as the loop leaves it, of invented numbers."""
  rng = np.random.default_rng(seed)
  names = ["caption/long", "caption/original", "caption/other", "bad/undecodable", "bad/too_large", "replaced"]
  with Writer(workdir) as writer:
    for step in range(10, 401, 10):
      counts = dict(zip(names, [int(step * 60.7), int(step * 3.3), 0, step // 50, 0, step // 50]))
      writer.write_scalars(step, {
        "loss": np.float32(2 * math.exp(-step / 150) + 0.1 * rng.random()), "mse/x0": np.float32(0.5 / step),
        "grad_norm": np.float32(rng.random()), "skipped": 1 if step > 200 else 0, "skipped_in_a_row": 0,
        "learning_rate/default": 1e-3 * min(step / 50, 1) * (1 - step / 420),
        "images_per_second": 320 + 10 * rng.random(), "data_wait": 0.02, "seconds": step * 0.2, "mfu": 0.31,
        **{f"count/{name}": value for name, value in counts.items()}})
      if step % 200 == 0:
        made, _ = sheet(rng, 2, 4)
        writer.write_images(step, {"samples": made})
        write(workdir / "eval" / f"samples_{step:08}.json", dict(
          name="samples", step=step, evaluator=dict(name="samples", steps=20, guidance=2.0), scalars=dict(pixel_mean=100.0 + step),
          tables=dict(samples=[dict(key=f"k{i}", prompt=caption, seed=i) for i in range(8)]), images=[f"samples_{step:08}.png"]))
        groups = [dict(group=name, prompts=256, right=share, low=share - 0.05, high=min(share + 0.04, 1.0), unparseable=0.01)
                  for name, share in (("val_iid", 0.4 + step / 1000), ("val_comp", 0.3 + step / 1000))]
        write(workdir / "eval" / f"judge_{step:08}.json", dict(
          name="judge", step=step, scalars=dict(all_facts=0.4 + step / 1000, all_facts_low=0.38, all_facts_high=0.85),
          tables=dict(groups=groups, prompts=[dict(category="val_iid", prompt=i, text=caption, right=i % 3 > 0) for i in range(100)]),
          images=[]))
  write(workdir / "config.json", CONFIG)
  write(workdir / "run.json", dict(argv=["train", "--config=configs/t2i_pixels.py", "--config.seed=1"], versions=dict(jax="0.10.2"),
                                   devices=["TPU v5e"], device_count=8))
  return workdir


def write(file, value):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(value))


def test_page_is_whole_and_self_contained(tmp_path):
  path = write_report(make_run(tmp_path / "run"))
  text = path.read_text()
  page = Page(text)
  assert path == tmp_path / "run" / "report.html" and not page.open
  assert all(link.startswith(("data:", "#")) for link in page.links)
  assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text
  assert page.tags.count("polyline") > 8 and page.tags.count("figure") > 16
  words = " ".join(page.words)
  for expected in ("400 of 400", "31.0 %", "1:20", "learning rate", "bad/undecodable", "optim.default.lr", "--config.seed=1", "TPU v5e",
                   "val_comp", "40 further rows", "not finite: 1", "mse/x0"):
    assert expected in words, expected


def test_every_text_is_escaped(tmp_path):
  run = make_run(tmp_path / "run", caption=EVIL)
  config = json.loads(json.dumps(CONFIG))
  config["data"]["source"][EVIL] = config["objective"]["name"] = config["objective"]["condition"]["name"] = EVIL
  write(run / "config.json", config)
  write(run / "run.json", dict(argv=[EVIL], versions={EVIL: EVIL}, devices=[EVIL], device_count=1))
  write(run / "eval" / "x.json", dict(name=EVIL, step=400, evaluator={EVIL: EVIL}, scalars={EVIL: 1.0},
                                      tables={EVIL: [{EVIL: EVIL, "list": [EVIL]}]}, images=["../../" + EVIL + ".png"]))
  with Writer(run, resume_step=400) as writer:
    writer.write_scalars(400, {"loss": 1.0, EVIL: 2.0, "count/" + EVIL: 3, "learning_rate/" + EVIL: 1.0, "text": EVIL})
  text = write_report(run, title=EVIL, runs={EVIL: run, "other": run}, summary={EVIL: EVIL}).read_text()
  page = Page(text)
  assert "script" not in page.tags and "<script" not in text and not page.open
  assert all(link.startswith(("data:", "#")) for link in page.links)
  assert "default-src &#x27;none&#x27;" in text


def test_pictures_outside_samples_are_not_read(tmp_path):
  run = make_run(tmp_path / "run")
  (tmp_path / "secret.png").write_bytes((run / "samples" / "samples_00000400.png").read_bytes())
  for name in ("../../secret.png", str(tmp_path / "secret.png")):
    write(run / "eval" / "x.json", dict(name="x", step=400, scalars={}, images=[name]))
    assert "secret.png is missing" in write_report(run).read_text()


def test_environment_does_not_leak(tmp_path, monkeypatch):
  monkeypatch.setenv("SECRET_TOKEN", "hunter2-hunter2")
  assert "hunter2" not in write_report(make_run(tmp_path / "run")).read_text()


def test_what_is_missing_or_broken_is_left_out(tmp_path):
  assert Page(write_report(tmp_path / "nothing").read_text()).tags
  run = make_run(tmp_path / "run")
  (run / "eval" / "cut.json").write_text('{"name": "x", "st')
  (run / "samples" / "samples_00000400.png").write_bytes(b"no picture")
  with Writer(run, resume_step=400) as writer:
    writer.write_scalars(410, {"loss": float("nan"), "grad_norm": float("inf")})
  text = write_report(run).read_text()
  assert "samples_00000400.png is missing" in text and not Page(text).open


def test_runs_side_by_side(tmp_path):
  runs = {name: make_run(tmp_path / name, seed=i) for i, name in enumerate(["long95", "original"])}
  path = write_report(tmp_path, runs=runs, title="caption mix", summary=dict(clip=dict(recall=0.5)), out=tmp_path / "all" / "page.html")
  words = " ".join(Page(path.read_text()).words)
  assert path == tmp_path / "all" / "page.html" and "Side by side" in words and "clip · recall" in words and "original" in words


def test_unwritable_place_is_said(tmp_path):
  run = make_run(tmp_path / "run")
  (tmp_path / "file").write_text("")
  with pytest.raises(CannotWrite, match="report.html"):
    write_report(run, out=tmp_path / "file" / "report.html")


@pytest.mark.parametrize("rows,columns,side", [(4, 4, 16), (2, 8, 32), (1, 3, 9), (1, 1, 16)])
def test_sheets_come_apart_into_their_pictures(rows, columns, side):
  made, pictures = sheet(np.random.default_rng(0), rows, columns, side)
  assert np.array_equal(cut(made), pictures)


def test_what_is_no_sheet_stays_whole():
  assert cut(np.random.default_rng(0).integers(0, 255, (34, 70, 3), np.uint8)) == []


def test_intervals_stand_beside_their_value():
  made = table([dict(group="a", prompts=5, right=0.5, low=0.4, high=0.6)])
  assert made.index("right") < made.index("95 % interval") and "0.4 – 0.6" in made and made.count("<svg") == 1
  assert "1.2 – 3" in table([dict(group="a", score=2.0, low=1.2, high=3.0)])


@pytest.mark.parametrize("low,high", [(0, 1), (0, 400), (-3.2, 7.9), (1e-9, 2e-9), (99.5, 100), (5, 5), (0, 1e12)])
def test_ticks_are_few_round_and_inside(low, high):
  made = charts.ticks(low, high)
  span = high - low
  assert 1 <= len(made) <= 6 and all(low - 1e-9 * span <= t <= high + 1e-9 * span for t in made)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [1e-6, 1.0, 1e3], [0.0, 1.0], [-1.0, 1.0], list(range(5_000)),
                                    [math.nan, 1.0, math.inf]])
def test_charts_are_xml_inside_their_frame(values):
  made = charts.line_chart("a <b> & c", {"x": list(enumerate(values))}, smooth=True)
  root = ElementTree.fromstring(made)
  for line in root.iter("polyline"):
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert len(points) <= charts.POINTS + 1
    assert all(charts.LEFT <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1 for x, y in points)


def test_charts_of_nothing():
  assert charts.line_chart("a", {"x": []}) == "" and charts.line_chart("a", {"x": [(1, math.nan)]}) == ""


@pytest.mark.parametrize("value,shown", [(0, "0"), (3, "3"), (0.5, "0.5"), (1234, "1234"), (12_345, "12.3k"), (1_234_567, "1.23M"),
                                         (0.000012, "1.2e-05"), (math.nan, "nan"), ("x", "x"), (-20_000.0, "-20k"), (True, "True")])
def test_numbers_are_short(value, shown):
  assert charts.number(value) == shown


def test_page_of_a_long_run_stays_small(tmp_path):
  run = make_run(tmp_path / "run")
  with Writer(run, resume_step=400) as writer:
    for step in range(401, 4_000):
      writer.write_scalars(step, {"loss": 1 / step, "grad_norm": 1.0})
  assert write_report(run).stat().st_size < 400_000
  assert re.search(r'points="[^"]{100,}"', (run / "report.html").read_text())


@pytest.mark.parametrize("low,high", [(0.004, 0.4), (1e-9, 1e3), (1, 60), (2e-5, 9e-4)])
def test_decades_are_inside(low, high):
  made = charts.decades(low, high)
  assert 1 <= len(made) <= 5 and all(low <= mark <= high for mark in made)


def test_ticks_of_a_narrow_range_differ():
  made = charts.line_chart("x", {"x": [(1, 127.2001), (2, 127.2009)]})
  labels = [node.text for node in ElementTree.fromstring(made).iter("text") if node.get("text-anchor") == "end"]
  assert len(labels) > 1 and len(set(labels)) == len(labels)
