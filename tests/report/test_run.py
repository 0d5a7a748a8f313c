"""The report holds everything, shows nothing that it should not, and asks for nothing."""
import html
import html.parser
import json
import math
import re
import time

import numpy as np
import pytest

from mmdiff.core import locks
from mmdiff.core.errors import CannotWrite
from mmdiff.report.comparison import write_comparison, write_story
from mmdiff.report.reading import read_run, score
from mmdiff.report.run import write_report
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
  for expected in ("finished, step 400 of 400", "31.0 %", "1:20", "learning rate", "bad/undecodable", "optim.default.lr", "--config.seed=1",
                   "TPU v5e", "val_comp", "40 further rows", "not finite: 1", "mse · x0", "Draw pictures from texts", "scenes(tier=T32)"):
    assert expected in words, expected
  loss, scores, table = (text.index(part) for part in ('class="chart big"', 'class="tiles scores"', "<table>"))
  assert scores < text.index('class="cards"') < loss < text.index('class="charts"') < table
  assert "mfu by step" not in text                                  # a constant says nothing in a chart


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
  for text in (write_report(run).read_text(), write_story(tmp_path, EVIL, [(EVIL, EVIL, EVIL)], {EVIL: run}).read_text(),
               write_comparison([run, make_run(tmp_path / "other")], tmp_path / "both.html").read_text()):
    check_escaped(text)


def check_escaped(text):
  page = Page(text)
  assert page.tags.count("script") == text.count("<script") <= 1 and "alert('caption')</script>" not in text and not page.open
  assert all(link.startswith(("data:", "#", "run/", "other/", html.escape(EVIL), EVIL)) for link in page.links)
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


def test_unwritable_place_is_said(tmp_path):
  run = make_run(tmp_path / "run")
  (tmp_path / "file").write_text("")
  with pytest.raises(CannotWrite, match="report.html"):
    write_report(run, out=tmp_path / "file" / "report.html")


def test_page_of_a_long_run_stays_small(tmp_path):
  run = make_run(tmp_path / "run")
  with Writer(run, resume_step=400) as writer:
    for step in range(401, 4_000):
      writer.write_scalars(step, {"loss": 1 / step, "grad_norm": 1.0})
  started = time.process_time()
  assert write_report(run).stat().st_size < 200_000
  assert time.process_time() - started < 5
  assert re.search(r'points="[^"]{100,}"', (run / "report.html").read_text())


def start(at, *, step, **more):
  return dict(at=at, step=step, machine=dict(host="here"), code=dict(commit="0123456789abcdef", patch="x"), versions=dict(jax="1"),
              devices=["cpu:0"], device_count=1, argv=["train", '--config.data.captions={"original": 1.0}'], **more)


def logged(run, lines):
  run.mkdir(parents=True, exist_ok=True)
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_start_counts_and_what_was_killed_counts_at_least(tmp_path):
  """The first start was killed after step 40 at its 80th second; the second took 30 s."""
  logged(tmp_path, [dict(step=step, loss=1 / step, seconds=2.0 * step) for step in (10, 20, 30, 40)] +
         [dict(step=step, loss=1 / step, seconds=0.5 * (step - 40), skipped=step // 60) for step in (50, 60)])
  starts = [start("2026-01-01T10:00:00+00:00", step=0), start("2026-01-02T10:00:00+00:00", step=40, seconds=30.0, ended="x")]
  write(tmp_path / "run.json", starts[-1] | dict(starts=starts))
  write(tmp_path / "config.json", CONFIG | dict(steps=100))
  run = read_run(tmp_path, "x")
  assert run.seconds() == (110.0, False) and run.resumed() == [50] and run.refused() == [60] and run.state() == "stopped at step 60 of 100"
  words = " ".join(Page(write_report(tmp_path).read_text()).words)
  for expected in ("at least 1:50", "wall time of 2 starts", "2026-01-01 10:00:00", "0123456789ab and changes", "0:30", "1 × resumed",
                   """mmdiff train '--config.data.captions={"original": 1.0}'"""):
    assert expected in words, expected


def test_a_run_says_whether_it_goes_on(tmp_path):
  logged(tmp_path, [dict(step=10, loss=1.0, seconds=5.0)])
  write(tmp_path / "config.json", CONFIG)
  write(tmp_path / "run.json", dict(starts=[start("2026-01-01T10:00:00+00:00", step=0)]))
  assert "killed?" in read_run(tmp_path, "x").state()
  with locks.held(tmp_path, busy=""):
    run = read_run(tmp_path, "x")
    assert run.state() == "running, step 10 of 400" and run.seconds() == (5.0, True)


@pytest.mark.parametrize("kind,values,best", [("retrieval", [0.1, 0.5, 0.3], (0.5, 20)), ("loss", [3.0, 1.0, 2.0], (1.0, 20)),
                                              ("retrieval", [0.5, 0.5], (0.5, 20))])
def test_the_best_score_is_that_of_its_kind(tmp_path, kind, values, best):
  name = {"retrieval": "recall_at_1"}.get(kind, kind)
  for i, value in enumerate(values, 1):
    write(tmp_path / "eval" / f"mine_{10 * i}.json", dict(name="mine", step=10 * i, evaluator=dict(name=kind, source=dict(name="scenes")),
                                                          scalars={name: value, "images": 200.0}))
  found = score(read_run(tmp_path, "x"), "mine")
  assert (found.best.value, found.best_step) == best and found.newest.value == values[-1]
  words = " ".join(Page(write_report(tmp_path).read_text()).words)
  if kind == "retrieval":
    assert "chance 0.5 %" in words and "200 images of scenes" in words
    assert ("best 50.0 % at step 20" if len(values) == 3 else "the best so far") in words


def test_data_that_are_not_those_trained_on_are_said(tmp_path):
  write(tmp_path / "config.json", CONFIG | dict(data=dict(source=dict(name="folder", path="/mine"))))
  result = dict(name="mine", step=1, evaluator=dict(name="retrieval", source=dict(name="scenes")), scalars=dict(recall_at_1=0.1))
  write(tmp_path / "eval" / "mine_1.json", result)
  assert "not data of the kind" in write_report(tmp_path).read_text()
