import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.data import jobs, webdataset
from mmdiff.data.sidecar import Sidecar
from tests.data.fixtures import shard
from tests.data.toy_job import PER_UNIT, RECORDS, contents, work
from tests.data.worlds import Holed, World

ROOT = Path(__file__).parent.parent.parent


def test_two_workers_on_one_list_lose_and_duplicate_nothing_under_kill_9():
  done = subprocess.run([sys.executable, "-m", "tests.data.toy_job", "20", "0"], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr[-3000:]


def test_units_cover_every_record_once(tmp_path):
  units = jobs.units_of(World(10), per_unit=4)
  assert [unit.name for unit in units] == ["00000", "00001", "00002"] and [i for unit in units for i in unit.rows] == list(range(10))
  for n, count in enumerate((3, 5)):
    shard(tmp_path / f"{n}.tar", n * 10, count)
  units = jobs.units_of(webdataset.webdataset(urls=str(tmp_path)), per_unit=2)
  assert [(unit.shard, unit.rows) for unit in units] == [("0.tar", range(0, 3)), ("1.tar", range(3, 8))]


def test_what_a_finished_job_says(tmp_path):
  work(tmp_path)
  entry = json.loads((tmp_path / "00000.json").read_text())
  assert entry["count"] == 2 and entry["bad"] == {"unreadable": 2} and entry["rows"] == [0, PER_UNIT]
  assert entry["offenders"][0] == {"key": "k0", "kind": "unreadable", "detail": "a hole"}
  assert json.loads((tmp_path / "manifest.json").read_text())["count"] == RECORDS * 2 // 3
  assert not (tmp_path / "claims").exists() and not list(tmp_path.glob(".*"))
  sidecar = Sidecar(tmp_path)
  assert len(sidecar) == 40 and sidecar.get("k4") == {"dense": "long caption of picture 4"} and sidecar.get("k3") == {}


def test_a_finished_job_is_not_done_again(tmp_path):
  work(tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("000*")}
  work(tmp_path)
  assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("000*")}


def test_a_damaged_unit_is_found_and_redone(tmp_path):
  work(tmp_path)
  expected = contents(tmp_path)
  (tmp_path / "00003.jsonl").write_text("cut")
  with pytest.raises(DataError, match="00003.jsonl.*found 3 bytes.*redoes"):
    Sidecar(tmp_path)
  (tmp_path / "00004.jsonl").unlink()
  (tmp_path / "00005.json").write_text("{")
  work(tmp_path)
  assert contents(tmp_path) == expected


def test_captions_of_another_unit_are_no_captions_of_this_one(tmp_path):
  work(tmp_path)
  expected = contents(tmp_path)
  first, second = tmp_path / "00003.jsonl", tmp_path / "00006.jsonl"
  assert first.stat().st_size == second.stat().st_size
  first.write_bytes(second.read_bytes())
  with pytest.raises(DataError, match="00003.jsonl: its bytes are not those of its manifest .*redoes this unit"):
    Sidecar(tmp_path)
  (tmp_path / "00005.json").write_text('{"files": {}}')
  (tmp_path / "00007.json").write_text('{"files": []}')
  work(tmp_path)
  assert contents(tmp_path) == expected


def test_an_unfinished_job_is_no_sidecar(tmp_path):
  work(tmp_path)
  (tmp_path / "00003.json").unlink()
  with pytest.raises(DataError, match="14 of 15 units are finished"):
    Sidecar(tmp_path)


def test_another_job_is_refused_with_every_difference(tmp_path):
  work(tmp_path)
  with pytest.raises(ConfigError, match="(?s)records: that job has 60, now 61.*source: that job has"):
    work(tmp_path, source=Holed(61))
  (tmp_path / "job.json").write_text("{")
  with pytest.raises(DataError, match="job.json"):
    work(tmp_path)


def test_who_comes_second_with_a_unit_changes_nothing(tmp_path):
  units = jobs.units_of(World(4), per_unit=4)
  first, second = (jobs.Job(tmp_path, units, {}) for _ in range(2))
  outputs = [job.output(units[0]) for job in (first, second)]
  for output, text in zip(outputs, (b"one\n", b"another\n")):
    with output.open("txt") as file:
      file.write(text)
  first.commit(units[0], outputs[0], {})
  second.commit(units[0], outputs[1], {})
  assert (tmp_path / "00000.txt").read_bytes() == b"one\n" and first.finished() == second.finished() == {"00000"}
  assert second.done() == 4 and list(second.todo()) == []
  first.close()
  second.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.json", "00000.txt", "digests.mmdiff-index", "job.json"]


def test_what_killed_processes_were_writing_is_swept_away_at_the_end(tmp_path):
  for name in (".00001.jsonl.1234abcd.part", ".00002.json.x_1y", ".manifest.json.k2_9", ".job.json.12ab"):
    (tmp_path / name).write_text("half")
  (tmp_path / ".kept").write_text("of someone else")
  work(tmp_path)
  assert [path.name for path in tmp_path.glob(".*")] == [".kept"]


def test_a_bug_ends_the_worker_and_frees_its_unit(tmp_path):
  units = jobs.units_of(World(4), per_unit=2)
  job = jobs.Job(tmp_path, units, {})
  with pytest.raises(ZeroDivisionError):
    for _ in job.todo():
      raise ZeroDivisionError
  job.close()
  assert not list((tmp_path / "claims").iterdir())


def test_a_folder_that_can_not_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CannotWrite):
    jobs.Job(tmp_path / "file" / "out", [], {})


def test_records_are_prepared_in_order_whatever_the_threads():
  for threads in (1, 4):
    bad = []
    keys = list(jobs.prepared(Holed(20), range(2, 20), lambda record: record["key"], threads=threads, ahead=3, bad=bad))
    assert keys == [f"k{i}" for i in range(2, 20) if i % 3] and [offence.key for offence in bad] == ["k3", "k6", "k9", "k12", "k15", "k18"]
  assert [len(batch) for batch in jobs.batches(iter(range(7)), 3)] == [3, 3, 1]


def test_differences():
  assert list(jobs.differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})) == [("a.c", 2, 3), ("d", "nothing", 4)]
