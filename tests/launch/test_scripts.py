"""The shell scripts against recorded fakes of gcloud, sbatch, srun and scontrol."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["train", "--config=configs/clip.py:tiny", "--workdir=/mnt/shared/a run"]
TPU = ["--name=demo", "--zone=us-x1-a"]

# Writes down how it was called, and answers `describe` and `ssh` from a queue of prepared answers; the last answer stays.
FAKE = """#!{python}
import json, os, sys
folder = os.environ["FAKES"]
name = os.path.basename(sys.argv[0])
with open(os.path.join(folder, "calls.jsonl"), "a") as file:
  file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
kind = next((kind for kind in ("describe", "ssh", "srun") if kind in (name, *sys.argv)), None)
if kind == "ssh" and not any("exec .venv/bin/python" in word for word in sys.argv):
  kind = None
queue = os.path.join(folder, f"{{kind}}.json")
if kind and os.path.exists(queue):
  answers = json.load(open(queue))
  json.dump(answers[1:] or answers, open(queue, "w"))
  if isinstance(answers[0], int):
    sys.exit(answers[0])
  print(answers[0])
"""


@pytest.fixture
def shell(tmp_path):
  """shell(script, *args, describe=[states], ssh=[exit codes], srun=[exit codes]) -> (finished process, recorded calls)."""
  for name in ("gcloud", "sbatch", "srun", "scontrol"):
    fake = tmp_path / name
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(0o755)

  def run(script, *args, env=None, **answers):
    for kind, queue in answers.items():
      (tmp_path / f"{kind}.json").write_text(json.dumps(queue))
    full = dict(os.environ, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", FAKES=str(tmp_path), MMDIFF_PYTHON=sys.executable,
                MMDIFF_POLL_SECONDS="0", **(env or {}))
    done = subprocess.run(["bash", str(ROOT / "launch" / script), *args], env=full, capture_output=True, text=True, timeout=120,
                          cwd=tmp_path)
    record = tmp_path / "calls.jsonl"
    return done, [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
  return run


def verbs(calls):
  """Which gcloud actions were called, in order, without the looks at the state."""
  known = ("create", "delete", "scp", "ssh", "describe")
  return [verb for call in calls for verb in known if verb in call and verb != "describe"]


def test_tpu_is_dry_by_default(shell):
  done, calls = shell("tpu_vm.sh", "babysit", *TPU, "--spot", "--", *COMMAND)
  assert done.returncode == 0, done.stderr
  assert calls == []
  assert "queued-resources create demo --zone=us-x1-a" in done.stdout and "--spot" in done.stdout and "dry run" in done.stdout


def test_tpu_start_runs_one_command_on_all_workers(shell):
  done, calls = shell("tpu_vm.sh", "start", *TPU, "--project=p", "--run", "--", *COMMAND)
  assert done.returncode == 0, done.stderr
  (call,) = calls
  assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "demo"] and "--worker=all" in call and "--project=p" in call
  remote = next(word for word in call if word.startswith("--command="))
  # What arrives on the worker is the same words again, spaces kept.
  words = subprocess.run(["bash", "-c", f"exec() {{ printf '%s\\n' \"$@\"; }}; cd() {{ :; }}; {remote.removeprefix('--command=')}"],
                         capture_output=True, text=True, check=True).stdout.splitlines()
  assert words == [".venv/bin/python", "-m", "mmdiff", *COMMAND]


def test_tpu_create_waits_until_active(shell):
  done, calls = shell("tpu_vm.sh", "create", *TPU, "--type=v6e-8", "--run", describe=["ACCEPTED", "PROVISIONING", "ACTIVE"])
  assert done.returncode == 0, done.stderr
  assert "--runtime-version=v2-alpha-tpuv6e" in calls[0] and "--accelerator-type=v6e-8" in calls[0]
  assert len(calls) == 4


def test_tpu_create_says_when_the_request_failed(shell):
  done, _ = shell("tpu_vm.sh", "create", *TPU, "--run", describe=["PROVISIONING", "FAILED"])
  assert done.returncode == 1 and "FAILED" in done.stderr


def test_babysit_starts_again_after_a_preemption(shell):
  done, calls = shell("tpu_vm.sh", "babysit", *TPU, "--run", "--", *COMMAND, ssh=[255, 75, 0],
                      describe=["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"])
  assert done.returncode == 0, done.stderr
  assert verbs(calls) == ["scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "scp", "ssh", "ssh"]


@pytest.mark.parametrize("code", [64, 65, 70, 73])
def test_babysit_does_not_repeat_what_cannot_be_mended(shell, code):
  done, calls = shell("tpu_vm.sh", "babysit", *TPU, "--run", "--", *COMMAND, ssh=[code], describe=["ACTIVE"])
  assert done.returncode == code
  assert verbs(calls) == ["scp", "ssh", "ssh"]


def test_babysit_gives_up(shell):
  done, _ = shell("tpu_vm.sh", "babysit", *TPU, "--run", "--restarts=2", "--", *COMMAND, ssh=[255], describe=["ACTIVE"])
  assert done.returncode == 255 and "gave up after 2" in done.stderr


@pytest.mark.parametrize("args, said", [
  (["start", "--name=demo", "--run", "--", *COMMAND], "--zone"),
  (["begin", *TPU], "begin"),
  (["create", *TPU, "--type=h100-8"], "--version"),
  (["start", *TPU, "--run"], "needs a command"),
  (["start", *TPU, "--run", "--", *COMMAND, "--config.stps=3"], "steps"),
])
def test_tpu_mistakes_are_found_before_anything_is_asked_for(shell, args, said):
  done, calls = shell("tpu_vm.sh", *args)
  assert done.returncode == 64 and said in done.stderr and calls == []


def test_slurm_is_dry_by_default(shell):
  done, calls = shell("slurm.sh", "--nodes=2", "--", *COMMAND)
  assert done.returncode == 0, done.stderr
  assert calls == [] and "sbatch" in done.stdout and "dry run" in done.stdout


def test_slurm_submits_one_task_per_gpu(shell):
  done, calls = shell("slurm.sh", "--nodes=2", "--gpus=4", "--partition=gpu", "--run", "--", *COMMAND)
  assert done.returncode == 0, done.stderr
  (call,) = calls
  assert call[0] == "sbatch" and call[-4:] == ["launch/slurm.sbatch", *COMMAND]
  assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"} <= set(call)


@pytest.mark.parametrize("args, said", [
  (["--gpus=0", "--", *COMMAND], "found 0"), (["--gpu=8", "--", *COMMAND], "--gpu=8"), (["--run"], "no command"),
  (["--run", "--", "train", "--config=configs/clp.py"], "clip.py")])
def test_slurm_mistakes_are_found_before_submitting(shell, args, said):
  done, calls = shell("slurm.sh", *args)
  assert done.returncode == 64 and said in done.stderr and calls == []


@pytest.mark.parametrize("code, requeued", [(0, False), (75, True), (70, False)])
def test_the_slurm_job_requeues_itself_after_a_saved_stop_only(shell, code, requeued):
  done, calls = shell("slurm.sbatch", *COMMAND, env=dict(SLURM_JOB_ID="17", SLURM_SUBMIT_DIR=str(ROOT)), srun=[code])
  assert done.returncode == (0 if requeued else code)
  assert calls[0][0] == "srun" and calls[0][-3:] == COMMAND
  assert (["scontrol", "requeue", "17"] in calls) == requeued


def test_the_slurm_job_asks_for_a_warning_and_for_requeueing():
  text = (ROOT / "launch" / "slurm.sbatch").read_text()
  assert "#SBATCH --signal=TERM@300" in text and "#SBATCH --requeue" in text and "#SBATCH --open-mode=append" in text


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sh"])
def test_help_lists_the_options(shell, script):
  done, _ = shell(script, "--help")
  assert done.returncode == 0 and "--run" in done.stdout and "set -" not in done.stdout


def test_scripts_pass_shellcheck():
  scripts = [str(path) for pattern in ("launch/*.sh", "launch/*.sbatch", ".ci/run", ".ci/python") for path in ROOT.glob(pattern)]
  assert len(scripts) == 5
  beside = Path(sys.executable).with_name("shellcheck")
  tool = str(beside) if beside.exists() else shutil.which("shellcheck")
  if tool:
    done = subprocess.run([tool, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
  else:
    print("shellcheck is not installed; the scripts were only parsed, with bash -n")
    for script in scripts:
      subprocess.run(["bash", "-n", script], check=True)
