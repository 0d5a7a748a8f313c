"""Flips, truncations and deletions over every file of a run directory: each is named or provably harmless, and the newest good step is
used."""
import random
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import mmdiff
from mmdiff.__main__ import main
from mmdiff.core.errors import DataError
from mmdiff.data import tokenizers
from mmdiff.train import checkpoint, inspection, run_directory
from mmdiff.train.writer import Writer, changed
from tests import toy_runs

NEVER_READ = re.compile(r"events\.out\.tfevents.*|report\.html|corrupt/.*")
FREEZE = ("image/.*",)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run directory with everything in it: two checkpoints, frozen parameters, results, pictures, logs."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  toy_runs.make(workdir, toy_runs.clip() | dict(freeze=FREEZE), steps=(2, 4), results=True)
  return workdir


def damage(file: Path, how: str, rng: random.Random) -> None:
  content = file.read_bytes()
  if how == "delete":
    file.unlink()
  elif how == "truncate":
    file.write_bytes(content[:rng.randrange(len(content))])
  else:
    at = rng.randrange(len(content))
    file.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1:])


def read_tokens(workdir: Path) -> str:
  return tokenizers.file(path=str(workdir / "tokenizer.json")).fingerprint()


def values(workdir: Path):
  config = run_directory.read_config(workdir)
  params, _, meta = checkpoint.restore_params(workdir)
  return config, params, meta["step"], read_tokens(workdir)


def same(a, b) -> bool:
  return jax.tree.structure(a) == jax.tree.structure(b) and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def part_of(name: str) -> str:
  """What a message calls the part that a file belongs to."""
  found = re.match(r"(checkpoints/\d+|frozen/\w+)/", name)
  return found[1] if found else name


def trial(run: Path, scratch: Path, clean: dict, name: str, how: str, seed: int) -> str:
  """Damages a copy of the run. "named" or "harmless"; anything else is an assertion."""
  shutil.rmtree(scratch, ignore_errors=True)
  shutil.copytree(run, scratch)
  damage(scratch / name, how, random.Random(seed))
  if (scratch / name).is_file() and (scratch / name).read_bytes() == (run / name).read_bytes():
    return "harmless"
  try:
    config, params, step, tokens = values(scratch)
  except DataError as error:                       # nothing is taken, and the message names what is wrong
    assert Path(name).name in str(error) or part_of(name).split("/")[-1] in str(error), (name, how, str(error))
    assert not name.startswith("checkpoints/"), "there is another checkpoint, which is whole"
    return "named"
  assert step in clean and (config, tokens) == (clean[4][0], clean[4][2]) and same(params, clean[step][1]), (name, how, step)
  if NEVER_READ.fullmatch(name):
    return "harmless"
  found = inspection.inspect(scratch)
  told = [line for line in found.damaged + found.unproven if part_of(name) in line or name in line]
  assert told, (name, how, found.damaged, found.unproven)
  assert step == (2 if name.startswith("checkpoints/4/") and not name.endswith("manifest.json") else step), (name, how)
  return "named"


def campaign(run: Path, scratch: Path, trials: int, seed: int) -> dict[str, int]:
  """Trials spread over all files, and what became of them."""
  clean = {step: (run_directory.read_config(run), checkpoint.restore_params(run, step=step)[0], read_tokens(run))
           for step in (2, 4)}
  files = sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and file.stat().st_size)
  rng = random.Random(seed)
  rng.shuffle(files)
  counts = dict(named=0, harmless=0)
  for number in range(trials):
    counts[trial(run, scratch, clean, files[number % len(files)], ("flip", "truncate", "delete")[number // len(files) % 3 if trials > 60
                 else number % 3], seed=number)] += 1
  return counts


def test_no_damage_goes_unnoticed(run, tmp_path):
  counts = campaign(run, tmp_path / "run", 24, seed=0)
  assert counts["named"] >= 18


@pytest.mark.long
def test_no_damage_goes_unnoticed_in_200_trials(run, tmp_path):
  counts = campaign(run, tmp_path / "run", 200, seed=1)
  assert counts["named"] + counts["harmless"] == 200 and counts["named"] >= 180


def test_info_describes_the_newest_whole_checkpoint_beside_a_half_copied_one(run, tmp_path, capsys):
  workdir = shutil.copytree(run, tmp_path / "run")
  for half in ("meta", "params"):
    shutil.rmtree(workdir / "checkpoints" / "4" / half)
    assert main(["info", f"--model={workdir}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^step +2$", out, re.M) and re.search(r"^damaged +checkpoints/4: damaged: ", out, re.M)
    assert mmdiff.load(workdir).report["step"] == 2
  assert main(["info", f"--model={workdir}@4"]) == 65
  assert "checkpoint 4 is damaged or not there" in capsys.readouterr().err


def test_a_changed_config_or_result_is_named_and_may_be_meant(run, tmp_path):
  workdir = shutil.copytree(run, tmp_path / "run")
  file = workdir / "config.json"
  file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
  with pytest.raises(DataError, match=r"config.json is not the file that was written .*delete that line of SHA256SUMS"):
    run_directory.read_config(workdir)
  sums = workdir / "SHA256SUMS"
  sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "config.json" not in line))
  assert run_directory.read_config(workdir)["seed"] == 1
  assert inspection.inspect(workdir).unproven == ["config.json: has no line in SHA256SUMS"]


def test_a_log_that_lost_lines_is_said_when_the_run_goes_on(tmp_path, capsys):
  with Writer(tmp_path) as writer:
    for step in range(1, 5):
      writer.write_scalars(step, dict(loss=step / 2))
    vouched = writer.vouch()
    writer.write_scalars(5, dict(loss=0.0))
  Writer(tmp_path, resume_step=4, vouched=vouched).close()
  assert capsys.readouterr().err == ""
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
  other = lines[0].replace("0.5", "0.7") + "".join(lines[1:])
  for content, told in ((other, "begins with other lines"), (lines[0], f"has {len(lines[0])} bytes and had")):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert changed(tmp_path / "metrics.jsonl", vouched).startswith(f"metrics.jsonl: damaged: it {told}")
    Writer(tmp_path, resume_step=4, vouched=vouched).close()
    assert f"{tmp_path / 'metrics.jsonl'}: damaged: it {told}" in capsys.readouterr().err
