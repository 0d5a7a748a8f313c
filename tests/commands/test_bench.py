import json
import time

import numpy as np
import pytest

from mmdiff.commands import bench, flags
from mmdiff.core.errors import ConfigError
from mmdiff.core.objective import Aux, Objective, Variables

TINY = ["--config=configs/clip.py:tiny", "--config.evals={}", "--config.objective.model.image_depth=1",
        "--config.objective.model.text_depth=1"]


def test_measure_repeats_after_warming_up_and_counts_cpu_time():
  calls = []
  times = bench.measure(lambda: calls.append(time.sleep(0.02)), warmup=2, repeats=5)
  assert len(calls) == 7 and len(times.wall) == len(times.cpu) == 5
  assert min(times.wall) >= 0.019 and max(times.cpu) < 0.019                # who sleeps takes time, but no processor's


def test_rates_are_of_the_median_step_and_the_cheapest_cpu_time():
  found = bench.rates(bench.Times([1.0, 2.0, 30.0], [4.0, 0.5, 1.0]), 10)
  assert found["images_per_second"] == 5.0 and found["ms_per_step"] == 2000.0
  assert found["images_per_cpu_second"] == 20.0 and found["ms_quartiles"] == [1500.0, 16000.0]


def test_a_random_batch_has_the_schema_of_the_loader():
  config = flags.load_config(TINY) | dict(batch_size=3)
  batch = bench.random_batch(config)
  assert {name: (rows.dtype.name, rows.shape) for name, rows in batch.items()} == {
    "image": ("uint8", (3, 32, 32, 3)), "tokens": ("int32", (3, 64)), "mask": ("bool", (3, 64)), "id": ("uint32", (3,)),
    "counts": ("int32", (3, 1))}
  assert batch["tokens"].max() < 512


@pytest.mark.long
def test_bench_train_writes_what_it_prints(tmp_path, capsys):
  file = tmp_path / "bench.json"
  assert bench.main([*TINY, "--batch_size=8", "--steps=2", "--warmup=0", f"--json={file}"]) == 0
  result, printed = json.loads(file.read_text()), capsys.readouterr().out
  assert result["batch_size"] == 8 and result["what"] == "train" and result["argv"][0] == "bench"
  assert result["images_per_second"] == pytest.approx(8_000 / result["ms_per_step"], rel=0.01) and result["compile_seconds"] > 0.1
  assert 1e5 < result["parameters"] < 1e7
  assert "images_per_second" in printed and result["versions"]["jax"]
  if result.get("flops_per_step"):
    assert 0 < result["share_of_matmul_rate"] and result["matmul_flops_per_second"] > 1e8


@pytest.mark.long
def test_each_step_trains_from_the_given_parameters():
  import jax
  config = flags.load_config([*TINY, "--config.batch_size=8", "--config.optim.default.warmup_steps=0"])
  fresh = bench.train_case(config)
  losses = [fresh.step() for _ in range(3)]
  assert losses[2] < losses[0]
  params = jax.tree.map(np.asarray, bench.train_case(config).setup.state.params)
  again = bench.train_case(config, params=params)
  assert again.step() == losses[0]


def test_the_flops_come_from_the_objective(monkeypatch):
  import jax.numpy as jnp

  from mmdiff.core import precision
  made = Objective(lambda key, batch: Variables({"w": jnp.ones(())}), lambda params, context, batch: (params["w"] ** 2, Aux({})),
                   {"flops": lambda batch_size, text_len: 7 * batch_size})
  monkeypatch.setattr(precision, "build", lambda table, *args: made)
  config = dict(batch_size=8, seed=0, steps=4, accumulate=1, sharding="auto", freeze=(), ema={}, ema_warmup=True,
                objective=dict(name="toy"),
                mesh=dict(data=-1, fsdp=1, tensor=1), data=dict(image_size=4, text_len=3), optim={})
  from mmdiff import optim
  monkeypatch.setattr(optim, "make", lambda *args: (__import__("optax").sgd(0.1), {}))
  case = bench.train_case(config)
  assert case.flops == 56
  assert case.step() == 1.0 and abs(case.step() - 0.64) < 1e-6


def test_bench_data_counts_images(capsys):
  assert bench.main([*TINY, "--what=data", "--batch_size=8", "--steps=2", "--warmup=1"]) == 0
  assert "images_per_second" in capsys.readouterr().out


def test_bench_sample_draws(capsys):
  argv = ["--config=configs/t2i_pixels.py:tiny", "--config.evals={}", "--what=sample", "--batch_size=2", "--steps=1", "--warmup=0",
          "--sampling_steps=2"]
  assert bench.main(argv) == 0
  assert "first_call_seconds" in capsys.readouterr().out


def test_what_an_objective_cannot_do_is_said():
  with pytest.raises(ConfigError, match="makes no pictures"):
    bench.main([*TINY, "--what=sample", "--batch_size=2"])


def test_numbers_out_of_range_are_all_said():
  with pytest.raises(ConfigError, match="steps.*\n.*batch_size"):
    bench.main([*TINY, "--steps=0", "--batch_size=-1"])


def test_a_matmul_has_a_rate():
  found = bench.matmul_rates("float32")
  assert found["matmul_flops_per_second"] > 1e8 and found["matmul_flops_per_cpu_second"] > 1e8


@pytest.mark.parametrize("value, text", [
  (1234567, "1,234,567"), (0.5, "0.5"), (12345.678, "12,345.7"), (3.2e12, "3.200e+12"), (None, "not known"), ([1.0, 2.0], "1, 2"),
  (True, "True")])
def test_readable(value, text):
  assert bench.readable(value) == text
