"""What doctor finds, says and exits with."""
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mmdiff.commands import doctor, flags
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Objective, Variables

TINY = "--config=configs/clip.py:tiny"


def findings(*argv, **options):
  config = flags.load_config([TINY, *argv])
  return {one.check: one for one in doctor.examine(config, options.pop("workdir", None), step=False)}


def test_a_healthy_config_passes_and_leaves_no_trace(tmp_path, capsys):
  run = tmp_path / "runs" / "a"
  assert doctor.main([TINY, f"--workdir={run}", "--nostep", f"--json={tmp_path / 'found.json'}"]) == 0
  out = capsys.readouterr().out
  assert "all 13 checks passed" in out and "PROBLEM" not in out and not run.exists()
  for part in ("8 × cpu", "50,000 records", "image/stack", "parameters trained", "images/s read and prepared", "3 checkpoints",
               "every 150 steps"):
    assert part in out, part
  saved = json.loads((tmp_path / "found.json").read_text())
  assert [check["ok"] for check in saved["checks"]] == [True] * 13 and saved["config"]["steps"] == 300


def test_split_parameters_are_listed():
  found = findings("--config.mesh.fsdp=4", "--config.mesh.tensor=2", "--config.evals.retrieval=none")
  assert "'fsdp': 4" in found["mesh"].text and ", 0 of" not in found["sharding"].text
  assert any("fsdp" in row["layout"] for row in found["sharding"].details)


@pytest.mark.parametrize("override,check,code,said", [
  ("mesh.tensor=3", "mesh", 64, "does not fit 8 devices"),
  ("data.tokenizer.path=/nowhere.json", "data", 65, "/nowhere.json"),
  ("freeze=imag/.*", "model", 64, "top-level groups"),
  ("optim.imag.name=lion", "model", 64, "optim.imag"),
])
def test_problems_name_their_check_and_exit_code(override, check, code, said):
  extra = ["--config.optim.imag.lr=1e-3"] if "imag.name" in override else []
  found = findings("--config." + override, *extra, "--config.evals.retrieval=none")
  assert found[check].code == code and said in found[check].text, found[check]
  assert not found["parameters"].done and "needs model" in found["parameters"].text
  assert [one.check for one in found.values() if one.code] == [check]


def test_the_run_directory_is_checked(tmp_path):
  (tmp_path / "file").write_text("")
  bad = findings("--config.evals.retrieval=none", "--config.mesh.tensor=3", workdir=tmp_path / "file" / "run")["workdir"]
  assert bad.code == 73 and "cannot write" in bad.text
  (tmp_path / "config.json").write_text(json.dumps(flags.load_config([TINY])))
  drift = findings("--config.seed=5", "--config.mesh.tensor=3", workdir=tmp_path)["workdir"]
  assert drift.code == 64 and "seed" in drift.text


def linear(scale):
  """An objective that costs nothing to compile."""
  def loss(params, context, batch):
    return jnp.mean((batch["image"].astype(jnp.float32) * params["a"]["kernel"]) ** 2) * scale, Aux({})
  return Objective(lambda key, batch: Variables({"a": {"kernel": jnp.ones(())}}), loss, {})


@pytest.mark.parametrize("scale,good", [(1.0, True), (float("nan"), False)])
def test_one_step_is_taken(scale, good):
  config = flags.load_config([TINY, "--config.accumulate=2"])
  batch = dict(image=np.full((3, 2, 2, 3), 7, np.uint8), tokens=np.zeros((3, 4), np.int32), mask=np.ones((3, 4), bool),
               id=np.arange(3, dtype=np.uint32), counts=np.ones((3, 2), np.int32))
  made = {"mesh": doctor.check_mesh(config)[1], "throughput": batch, "model": doctor.Plan(linear(scale), None, None)}
  if good:
    assert doctor.check_step(config, made)[0].startswith("loss 49.0000 on 16 records")
  else:
    with pytest.raises(ConfigError, match="was skipped"):
      doctor.check_step(config, made)


def test_a_check_that_breaks_is_a_finding(monkeypatch):
  def broken(made):
    raise ZeroDivisionError("the device is on fire")
  monkeypatch.setattr(doctor, "check_compile", broken)
  found = {one.check: one for one in doctor.examine(None, None)}
  assert found["compile"].code == 70 and found["compile"].text == "ZeroDivisionError: the device is on fire" and not found["memory"].code


def test_keys_lists_every_key_without_jax(capsys):
  code = "import sys; from mmdiff.__main__ import main; rc = main(sys.argv[1:]); assert 'jax' not in sys.modules; sys.exit(rc)"
  done = subprocess.run([sys.executable, "-c", code, "doctor", "--keys", TINY], capture_output=True, text=True, cwd=flags.ROOT)
  assert done.returncode == 0, done.stderr
  lines: dict[str, str] = {}
  key = ""
  for line in done.stdout.splitlines():
    assert len(line) <= 140 and line.startswith(("--config.", "    "))
    key = line.partition("=")[0] if line.startswith("--") else key
    lines[key] = lines.get(key, "") + line
  assert len(lines) > 50 and "=3" in lines["--config.checkpoint.keep"]
  assert "newest checkpoints kept" in lines["--config.checkpoint.keep"] and "int" in lines["--config.checkpoint.keep"]
  assert "required" in lines["--config.seed"] and "'adamw', 'adafactor', 'lion'" in lines["--config.optim.default.name"]
  assert doctor.main(["--keys", TINY, "--match=WARMUP"]) == 0
  assert capsys.readouterr().out.split("=")[0] == "--config.optim.default.warmup_steps"
  with pytest.raises(ConfigError, match="--match=qqq: no key"):
    doctor.main(["--keys", TINY, "--match=qqq"])
  with pytest.raises(ConfigError, match="--keys: says nothing without --config"):
    doctor.main(["--keys"])


@pytest.mark.parametrize("count,said", [(0, "0 B"), (5_000_000, "4.8 MiB"), (3 * 2 ** 40, "3.0 TiB"), (float("inf"), "inf TiB")])
def test_sizes_in_words(count, said):
  assert doctor.size(count) == said
