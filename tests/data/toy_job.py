"""A job of a few milliseconds, and a campaign that kills its workers. Run as a program it imports no JAX, so it may fork."""
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from mmdiff.data import jobs
from tests.data.worlds import Holed

RECORDS, PER_UNIT = 60, 4


def work(out, *, pause=0.0, source=None, **options):
  """One worker: a line for each record, bad ones counted."""
  source = source or Holed(RECORDS)
  job = jobs.Job(out, jobs.units_of(source, per_unit=PER_UNIT), {"task": "toy", "source": source.fingerprint()},
                 **{"beat_seconds": 0.05, "stale_seconds": 30.0, "poll_seconds": 0.01} | options)
  try:
    for unit in job.todo():
      bad, output = [], job.output(unit)
      with output.open("jsonl") as file:
        for key, text in jobs.prepared(source, unit.rows, lambda record: (record["key"], record["captions"]["long"]), threads=1, ahead=2,
                                       bad=bad):
          time.sleep(pause)
          file.write((json.dumps({"key": key, "dense": text}) + "\n").encode())
      job.commit(unit, output, dict(count=len(unit.rows) - len(bad), **jobs.faults(bad)))
    job.complete(lambda entries: {"count": sum(entry["count"] for entry in entries)})
  finally:
    job.close()


def fork(out, **options) -> int:
  pid = os.fork()
  if not pid:
    try:
      work(out, **options)
      os._exit(0)
    except BaseException:
      traceback.print_exc()
      os._exit(1)
  return pid


def contents(folder) -> dict[str, str]:
  """Relative name -> digest of every file but job.json, which says how the job was started, and what was found of the files since."""
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
          for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name not in ("job.json", "digests.mmdiff-index")}


def trial(folder: Path, rng: random.Random, expected: dict[str, str], kills: int) -> None:
  """Two workers on one list; one of them is killed at a random moment, and another takes its place, `kills` times."""
  pids = [fork(folder, pause=0.002) for _ in range(2)]
  for _ in range(kills):
    time.sleep(rng.uniform(0.0, 0.05))
    os.kill(victim := pids.pop(0), signal.SIGKILL)
    os.waitpid(victim, 0)
    pids.append(fork(folder, pause=0.002))
  codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
  assert codes == [0, 0], codes
  assert contents(folder) == expected
  keys = [json.loads(line)["key"] for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
  assert keys == [f"k{i}" for i in range(RECORDS) if i % 3], keys


def campaign(trials: int, seed: int) -> None:
  rng = random.Random(seed)
  with tempfile.TemporaryDirectory() as root:
    work(Path(root, "straight"))
    expected = contents(Path(root, "straight"))
    for number in range(trials):
      trial(Path(root, str(number)), rng, expected, kills=2)


if __name__ == "__main__":
  campaign(int(sys.argv[1]), int(sys.argv[2]))
