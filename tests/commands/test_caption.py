"""`mmdiff caption`: how a source is named, what a unit holds, and that nothing depends on batches, threads or restarts."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmdiff.__main__ import main
from mmdiff.commands import caption
from mmdiff.core.errors import ConfigError
from mmdiff.data import jobs
from mmdiff.data.sidecar import Sidecar
from tests import toy_runs
from tests.data.worlds import Holed, World

ROOT = Path(__file__).parent.parent.parent
RECIPE = dict(image_size=8, resize="crop", interpolation="bicubic", max_pixels=10_000)


def fake(stop_after=None):
  """Says what it sees and the seed's last digit; stops with an error after some batches."""
  calls = []

  def start(images, seeds):
    calls.append(len(images))
    if stop_after and len(calls) > stop_after:
      raise KeyboardInterrupt
    return images[:, 0, 0, 0].tolist(), seeds.tolist()

  def finish(pending):
    return [f"a picture of grey {grey} {seed % 10}" for grey, seed in zip(*pending)], [grey % 5 == 0 for grey in pending[0]]
  return caption.Captioner(start, finish), calls


def work(out, *, source=None, captioner=None, size=3, threads=2, told=lambda *_: None, seed=0):
  source = source or Holed(20)
  job = jobs.Job(out, jobs.units_of(source, per_unit=8), {"seed": seed})
  try:
    caption.work(job, source, captioner or fake()[0], recipe=RECIPE, kind="dense", seed=seed, size=size, threads=threads, progress=told)
    return job.complete(caption.summary)
  finally:
    job.close()


def files(folder):
  """Every file but job.json, which says how the job was started, and what was found of the files since."""
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("job.json", "digests.mmdiff-index")}


def test_a_folder_of_captions_is_a_side_car(tmp_path):
  made = work(tmp_path)
  sidecar = Sidecar(tmp_path)
  assert len(sidecar) == 13 and sidecar.kinds == {"dense": 13} and list(sidecar.keys()) == [f"k{i}" for i in range(20) if i % 3]
  assert sidecar.get("k7")["dense"].startswith("a picture of grey 7 ") and sidecar.get("k6") == {}
  assert made["captions"] == 13 and made["bad"] == {"unreadable": 7}
  assert made["degeneration"]["truncated"] == pytest.approx(2 / 13, abs=1e-5) and made["degeneration"]["words"] == 6


def test_batches_and_threads_do_not_matter(tmp_path):
  for name, options in (("a", {}), ("b", dict(size=7)), ("c", dict(size=1, threads=4))):
    work(tmp_path / name, **options)
  assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
  work(tmp_path / "d", seed=1)
  assert (tmp_path / "a" / "00000.jsonl").read_bytes() != (tmp_path / "d" / "00000.jsonl").read_bytes()


def test_killed_twice_is_as_uninterrupted(tmp_path):
  work(tmp_path / "straight")
  for stop_after in (1, 3):
    with pytest.raises(KeyboardInterrupt):
      work(tmp_path / "killed", captioner=fake(stop_after)[0])
  captioner, calls = fake()
  work(tmp_path / "killed", captioner=captioner)
  assert files(tmp_path / "killed") == files(tmp_path / "straight")
  work(tmp_path / "killed", captioner=captioner)
  assert len(calls) <= 7


def test_every_batch_has_the_same_shape(tmp_path):
  captioner, calls = fake()
  work(tmp_path, captioner=captioner, size=4)
  assert set(calls) == {4}


def test_progress_counts_every_record_once(tmp_path):
  told = []
  work(tmp_path, told=lambda count, total=None: told.append(count))
  assert sum(told) == 20


def test_a_unit_of_bad_records_only(tmp_path):
  class Nothing(World):
    def __getitem__(self, i):
      return {"key": f"k{i}", "image": b"no picture"}
  made = work(tmp_path, source=Nothing(4))
  assert made["captions"] == 0 and made["bad"] == {"undecodable": 4}
  assert (tmp_path / "00000.jsonl").read_bytes() == b""


def test_a_unit_without_a_caption_counts_for_nothing():
  entries = [dict(captions=0, bad={"undecodable": 2}, degeneration={}), dict(captions=3, bad={}, degeneration=dict(words=6.0))]
  assert caption.summary(entries) == dict(captions=3, bad={"undecodable": 2}, degeneration=dict(words=6.0))


@pytest.mark.parametrize("argv, said", [
  (["--data=scenes"], "(?s)--model: required.*--out: required"), (["--data=name=scnes"], "did you mean 'scenes'"),
  (["--data=name=scenes,tir=T16"], "did you mean --data.tier"), (["--data=scenes", "--data.size=many"], "--data.size: expected int"),
  (["--data=scenes", "--kind=key"], "--kind"), (["--data=scenes", "--batch_size=0", "--limit=-1"], "(?s)--batch_size.*--limit"),
])
def test_bad_flags(argv, said):
  rest = [] if "required" in said else ["--model=m", "--out=o"]
  with pytest.raises(ConfigError, match=said):
    caption.main([*argv, *rest])


def test_only_the_first_records():
  units = jobs.units_of(World(10), per_unit=4)
  assert [unit.rows for unit in caption.cut(units, 6)] == [range(0, 4), range(4, 6)] and caption.cut(units, 0) == units


def test_help(capsys):
  assert main(["caption", "--help"]) == 0
  told = capsys.readouterr().out
  assert all(f"--{flag}" in told for flag in caption.FLAGS)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
  """A run directory of a CoCa with random parameters."""
  model = dict(name="coca", variant="tiny", image_size=16, vocab=320, text_len=24, image_width=16, image_depth=1, image_heads=2,
               text_width=16, unimodal_depth=1, multimodal_depth=1, text_heads=2, embed_dim=8, queries=4)
  return toy_runs.make(tmp_path_factory.mktemp("coca"), toy_runs.config(dict(name="coca", model=model)))


def command(captioner, out, *more):
  return ["caption", f"--model={captioner}", "--data=name=scenes,tier=T16,size=40", f"--out={out}", "--per_unit=8", "--batch_size=8",
          "--method=sample", "--max_len=6", *more]


def test_a_real_captioner(captioner, tmp_path, capsys):
  assert main(command(captioner, tmp_path / "a")) == 0
  assert "40 captions of kind long in 5 units" in capsys.readouterr().out
  job = json.loads((tmp_path / "a" / "job.json").read_text())
  assert job["identity"]["decoding"]["top_p"] == 1.0 and job["identity"]["model"]["checkpoint"] and job["started"]["argv"][0] == "caption"
  assert len(Sidecar(tmp_path / "a")) == 40
  assert main(command(captioner, tmp_path / "a", "--seed=1")) == 64
  assert "seed: that job has 0, now 1" in capsys.readouterr().err


def test_a_model_that_writes_nothing(tmp_path, capsys):
  run = toy_runs.make(tmp_path / "clip", toy_runs.clip())
  assert main(command(run, tmp_path / "out")) == 64
  assert "no captioner: " in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_real_job_under_kill_9_and_sigterm(captioner, tmp_path):
  spawn = lambda out: subprocess.Popen([sys.executable, "-m", "mmdiff", *command(captioner, out, "--data.size=400")], cwd=ROOT,
                                       env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.DEVNULL)
  assert spawn(tmp_path / "straight").wait() == 0
  workers = [spawn(tmp_path / "killed"), spawn(tmp_path / "killed")]
  for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
    until = time.monotonic() + 60
    before = len(list((tmp_path / "killed").glob("0*.json")))
    while time.monotonic() < until and len(list((tmp_path / "killed").glob("0*.json"))) < before + 4:
      time.sleep(0.01)
    victim = workers.pop(0)
    victim.send_signal(number)
    assert victim.wait() in (-9, 75, 0)
    workers.append(spawn(tmp_path / "killed"))
  assert [worker.wait() for worker in workers] == [0, 0]
  assert files(tmp_path / "straight") == files(tmp_path / "killed")
