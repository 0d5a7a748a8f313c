"""Measure a config's train step, sampler or data path on this machine.

  mmdiff bench --config=configs/clip.py:variant=ViT-B/32 --batch_size=32 --config.objective.model.dtype=float32
  mmdiff bench --config=configs/t2i_pixels.py:tiny --what=sample --json=FILE
  mmdiff bench --config=configs/clip.py:tiny --what=data

The step and the sampler are fed random inputs from device memory, so that no data are needed; --what=data times reading, decoding and
batching alone. A time is the median of the timed steps after warm-up, each ended by reading a number that depends on the updated
parameters. On a machine that others use too, wall time says little: CPU seconds of this process are reported beside it, the least of the
timed steps.
"""
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmdiff.core.errors import ConfigError
from mmdiff.core.files import write_json
from mmdiff.core.provenance import made_by

FLAGS = {
  "config": dict(required=True, help="a config file, with :arguments"),
  "what": dict(choices=("train", "sample", "data"), default="train", help="the train step, the sampler, or the data path"),
  "batch_size": dict(type="int", help="instead of the config's"),
  "steps": dict(type="int", default=10, help="timed steps (train, data) or calls (sample)"),
  "warmup": dict(type="int", default=3, help="steps before them"),
  "sampling_steps": dict(type="int", default=20, needs=dict(what=("sample",)), help="denoising steps (sample)"),
  "guidance": dict(type="float", default=2.0, needs=dict(what=("sample",)), help="guidance scale (sample)"),
  "json": dict(type="file", help="also write the result to this file"),
}
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
PROBE_SIZES = {"cpu": 2_048, "gpu": 8_192, "tpu": 8_192}


class Times(NamedTuple):
  """Seconds of each timed repeat: by the clock, and CPU time of all threads of this process."""
  wall: list[float]
  cpu: list[float]


class Case(NamedTuple):
  """A compiled train step on random inputs."""
  step: Callable[[], float]       # trains on the batch once more and waits; the loss
  setup: Any                      # train.setup.Setup as it was before the first step
  flops: int | None               # analytic, of one step; None where the objective does not count them
  compile_seconds: float


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS)
  config = given["config"]
  if given["batch_size"] is not None:
    config = dict(config, batch_size=given["batch_size"])
  wrong = [f"--{name}: expected at least {least}, found {given[name]}"
           for name, least in (("steps", 1), ("warmup", 0), ("batch_size", 1), ("sampling_steps", 1))
           if given[name] is not None and given[name] < least]
  if wrong:
    raise ConfigError("\n".join(wrong))
  run = {"train": bench_train, "sample": bench_sample, "data": bench_data}[given["what"]]
  result = dict(what=given["what"], batch_size=config["batch_size"], **run(config, given))
  for name, value in result.items():
    print(f"{name:<28}{readable(value)}")
  if given["json"]:
    write_json(Path(given["json"]), dict(result, argv=["bench", *argv], config=config, **made_by()))
  return 0


def measure(fn: Callable[[], Any], *, warmup: int, repeats: int) -> Times:
  """Times `fn`, which must wait for its own result."""
  for _ in range(warmup):
    fn()
  times = Times([], [])
  for _ in range(repeats):
    wall, cpu = time.perf_counter(), time.process_time()
    fn()
    times.wall.append(time.perf_counter() - wall)
    times.cpu.append(time.process_time() - cpu)
  return times


def rates(times: Times, images: int) -> dict[str, Any]:
  """Throughput of `images` per repeat."""
  median = float(np.median(times.wall))
  return dict(images_per_second=images / median, ms_per_step=1e3 * median,
              ms_quartiles=[1e3 * float(q) for q in np.quantile(times.wall, (0.25, 0.75))],
              cpu_seconds_per_step=min(times.cpu), images_per_cpu_second=images / max(min(times.cpu), 1e-9))


def matmul_rates(dtype: str) -> dict[str, float]:
  """What this machine reaches on one large square product in `dtype` with float32 sums, per device: FLOP/s, and FLOP per CPU second."""
  import jax
  import jax.numpy as jnp
  size = PROBE_SIZES.get(jax.default_backend(), 2_048)
  k_a, k_b = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), dtype) for key in (k_a, k_b))
  product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
  times = measure(lambda: product(a, b).block_until_ready(), warmup=2, repeats=8)
  flops = 2 * size ** 3
  return dict(matmul_flops_per_second=flops / min(times.wall), matmul_flops_per_cpu_second=flops / max(min(times.cpu), 1e-9))


def random_batch(config: Mapping) -> dict[str, np.ndarray]:
  """A batch as the loader would make it, of noise and of texts as long as they may be."""
  data, size, rng = config["data"], config["batch_size"], np.random.default_rng(config["seed"])
  shape = (size, data["image_size"], data["image_size"], 3)
  return dict(image=rng.integers(0, 256, shape, np.uint8), tokens=rng.integers(1, 256, (size, data["text_len"]), np.int32),
              mask=np.ones((size, data["text_len"]), bool), id=np.arange(size, dtype=np.uint32), counts=np.zeros((size, 1), np.int32))


def train_case(config: Mapping, *, params: Any = None, batch: Mapping[str, np.ndarray] | None = None) -> Case:
  """The train step of a config, compiled, with its state on the mesh.

  params: instead of fresh parameters, of the same shapes. batch: instead of a random one.
  """
  import jax

  from mmdiff.core.precision import objective_of
  from mmdiff.objectives import OBJECTIVES
  from mmdiff.train.setup import set_up
  compiling: list[float] = []
  listener = lambda event, seconds, **_: compiling.append(seconds) if event == COMPILE_EVENT else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  objective, batch = objective_of(OBJECTIVES, config), batch or random_batch(config)
  setup = set_up(config, objective, {name: rows[0] for name, rows in batch.items()})
  compile_seconds, count = sum(compiling), objective.predict.get("flops")
  state = setup.state
  if params is not None:
    placed = jax.tree.map(lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding), params, state.params)
    state = state.replace(params=placed)
  rows = setup.put({name: values[setup.rows] for name, values in batch.items()})
  held = [state]

  def step() -> float:
    with jax.set_mesh(setup.mesh):
      held[0], metrics = setup.step(held[0], rows)
    float(metrics["param_norm"])          # of the updated parameters: nothing of the step can be outstanding once it is here
    return float(metrics["loss"])

  return Case(step, setup, int(count(config["batch_size"], config["data"]["text_len"])) if count else None, compile_seconds)


def compute_dtype(config: Mapping) -> str:
  """The precision that a config computes in."""
  blocks = [block for block in config["objective"].values() if isinstance(block, Mapping)]
  return next((block["dtype"] for block in blocks if "dtype" in block), "float32")


def bench_train(config: Mapping, given: Mapping) -> dict[str, Any]:
  import jax

  from mmdiff.core import tree
  from mmdiff.train.progress import PEAK_FLOPS
  started = time.perf_counter()
  case = train_case(config)
  ready = time.perf_counter() - started
  times = measure(case.step, warmup=given["warmup"], repeats=given["steps"])
  device, dtype = jax.devices()[0], compute_dtype(config)
  result = dict(parameters=tree.count(case.setup.state.params) + tree.count(case.setup.state.frozen), dtype=dtype,
                devices=f"{jax.device_count()} x {device.device_kind}", **rates(times, config["batch_size"]))
  if case.flops:
    probe = matmul_rates(dtype)
    flops_per_second = case.flops / float(np.median(times.wall))
    result |= dict(flops_per_step=case.flops, flops_per_second=flops_per_second, **probe,
                   share_of_matmul_rate=flops_per_second / (probe["matmul_flops_per_second"] * machines()))
    if device.platform == "cpu":
      result["share_of_matmul_cpu_rate"] = case.flops / min(times.cpu) / probe["matmul_flops_per_cpu_second"]
    peak = next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)
    if peak:
      result["share_of_data_sheet"] = flops_per_second / (peak * jax.device_count())
  used, program = device.memory_stats() or {}, next(iter(case.setup.step.compiled.values())).memory_analysis()
  return result | dict(
    peak_bytes=used.get("peak_bytes_in_use"), temporary_bytes=program.temp_size_in_bytes if program else None,
    compile_seconds=case.compile_seconds, ready_seconds=ready)


def machines() -> int:
  """How many times the matmul probe's machine is there: virtual CPU devices share one."""
  import jax
  return jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()


def bench_sample(config: Mapping, given: Mapping) -> dict[str, Any]:
  import jax

  from mmdiff.core.precision import objective_of
  from mmdiff.objectives import OBJECTIVES
  objective, batch = objective_of(OBJECTIVES, config), random_batch(config)
  if "sample" not in objective.predict:
    raise ConfigError(f"--what=sample: {config['objective']['name']} makes no pictures; it has {', '.join(objective.predict)}")
  plan = objective.predict["plan"](steps=given["sampling_steps"], guidance=given["guidance"])
  params = jax.jit(lambda key: objective.init(key, batch).params)(jax.random.key(config["seed"]))
  sample = jax.jit(objective.predict["sample"])
  call = lambda: np.asarray(sample(params, batch["tokens"], batch["mask"], batch["id"], plan))
  started = time.perf_counter()
  call()
  first = time.perf_counter() - started
  times = measure(call, warmup=given["warmup"], repeats=given["steps"])
  return dict(sampling_steps=given["sampling_steps"], guidance=given["guidance"], dtype=compute_dtype(config),
              devices=f"1 x {jax.devices()[0].device_kind}", **rates(times, config["batch_size"]), first_call_seconds=first)


def bench_data(config: Mapping, given: Mapping) -> dict[str, Any]:
  from mmdiff.commands.train import make_dataset
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    dataset = make_dataset(config, Path(folder))
    batches = dataset.train_batches(batch_size=config["batch_size"], start_step=0)
    batch = next(batches)
    ready = time.perf_counter() - started
    times = measure(lambda: next(batches), warmup=given["warmup"], repeats=given["steps"])
    # The loader works ahead, so a single batch may cost nothing: only the sum over all of them means something.
    wall, cpu, images = sum(times.wall), sum(times.cpu), config["batch_size"] * given["steps"]
    batches.close() if hasattr(batches, "close") else None
    return dict(records=len(dataset), image_shape=list(batch["image"].shape[1:]), threads=config["data"]["threads"],
                workers=config["data"]["workers"], images_per_second=images / wall, images_per_cpu_second=images / max(cpu, 1e-9),
                ready_seconds=ready)


def readable(value: Any) -> str:
  """12345.678 -> "12,345.7"; lists item by item."""
  if isinstance(value, list):
    return ", ".join(readable(item) for item in value)
  if isinstance(value, float):
    return f"{value:.3e}" if abs(value) >= 1e7 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
  if value is None:
    return "not known"
  return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
