"""Two processes of four devices train exactly as one process of eight."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

SMALL = ["--config=configs/clip.py:tiny", "--config.steps=4", "--config.batch_size=32", "--config.log_every_steps=1",
         "--config.objective.model.image_width=48", "--config.objective.model.text_width=48", "--config.objective.model.text_heads=3",
         "--config.evals.retrieval.limit=40", "--config.evals.retrieval.every_steps=4"]
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"      # see `launch.local`


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_two_by_four_is_one_by_eight(tmp_path):
  env = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  subprocess.run([sys.executable, "-m", "launch.local", "--processes", "2", "--devices", "4", "--", "train", *SMALL,
                  f"--workdir={tmp_path / 'two'}"], check=True, env=env, timeout=900)
  subprocess.run([sys.executable, "-m", "mmdiff", "train", *SMALL, f"--workdir={tmp_path / 'one'}"], check=True, timeout=900,
                 env=env | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8", XLA_FLAGS=IN_ORDER))
  two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
  losses = [[row["loss"] for row in found if "loss" in row] for found in (two, one)]
  assert len(losses[0]) == 4
  np.testing.assert_allclose(*losses, rtol=1e-5)
  counts = [{key: value for key, value in found[3].items() if key.startswith("count/")} for found in (two, one)]
  assert counts[0] == counts[1] and sum(value for key, value in counts[0].items() if key.startswith("count/caption/")) == 4 * 32
  assert two[-1]["retrieval/recall_at_10"] == one[-1]["retrieval/recall_at_10"]
