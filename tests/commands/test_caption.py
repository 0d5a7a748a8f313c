"""`mmdiff caption`: how a source is named, what a unit holds, and that nothing depends on batches, threads or restarts."""
import pytest

from mmdiff.__main__ import main
from mmdiff.commands import caption
from mmdiff.core.errors import ConfigError
from mmdiff.data import jobs
from mmdiff.data.sidecar import Sidecar
from tests.data.worlds import Holed, World

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
  return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_signs_of_degeneration():
  found = caption.degeneration(["a b a b", "a b a b", "", "c d"], [True, False, False, False])
  assert found == dict(distinct_1=0.4, distinct_2=round(3 / 7, 6), duplicates=0.25, truncated=0.25, empty=0.25, words=2.5)
  assert caption.degeneration([], [])["distinct_1"] == 0.0


def test_how_a_source_is_named():
  expected = caption.source_of("scenes:T16:val_comp", [])
  assert expected[0]["tier"] == "T16" and not expected[1]
  assert caption.source_of("name=scenes,tier=T16,split=val_comp", []) == expected
  assert caption.source_of("scenes:T32:val_comp", [("tier", "T16")]) == expected
  assert caption.source_of("configs/clip.py:tiny", [("size", "7")])[0]["size"] == 7


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
