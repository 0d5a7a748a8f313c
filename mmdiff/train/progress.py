"""How a run is going: one status line, rates, and the share of the machine's peak that it reaches."""
import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from mmdiff.core.compilation import CACHE_HIT
from mmdiff.core.progress import duration

# Dense bfloat16 matmul peak, FLOP/s per device, from the makers' data sheets.
PEAK_FLOPS = {
  "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
  "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA B200": 2_250e12,
}


@functools.cache
def measured_matmul_flops(dtype: str = "float32", size: int = 1_024, repeats: int = 5) -> float:
  """FLOP/s of a square matmul on all local devices of one host, the best of a few repeats: the practical peak of a machine without a
  data sheet, such as a CPU."""
  a = jnp.ones((size, size), dtype) / size
  matmul = jax.jit(lambda x: x @ a)
  matmul(a).block_until_ready()
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    matmul(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size ** 3 / best


def peak_flops() -> float:
  """FLOP/s that all devices of the run could do: from the data sheet by device kind, else measured."""
  device = jax.devices()[0]
  for kind, flops in PEAK_FLOPS.items():
    if device.device_kind.startswith(kind):
      return flops * jax.device_count()
  return measured_matmul_flops() * jax.process_count()     # virtual CPU devices share one machine


class Clock:
  """Wall time since the last report, split into waiting for data and the rest; compile and evaluation time is left out of the rate."""

  def __init__(self, start: float | None = None):
    """start: when the command began, of `time.perf_counter`; now by default."""
    self.start = time.perf_counter() if start is None else start
    self.reset()

  def reset(self) -> None:
    self.since, self.waited, self.paused = time.perf_counter(), 0.0, 0.0

  def timed_next(self, iterator):
    start = time.perf_counter()
    item = next(iterator)
    self.waited += time.perf_counter() - start
    return item

  def pause(self, seconds: float) -> None:
    self.paused += seconds

  def rates(self, steps: int, batch_size: int, flops_per_step: float | None) -> dict[str, float]:
    """images_per_second, data_wait (share of the time) and, where the model counts its FLOPs, mfu."""
    elapsed = max(time.perf_counter() - self.since - self.paused, 1e-9)
    rates = dict(images_per_second=steps * batch_size / elapsed, data_wait=min(self.waited / elapsed, 1.0),
                 seconds=time.perf_counter() - self.start)
    if flops_per_step:
      rates["mfu"] = steps * flops_per_step / elapsed / peak_flops()
    self.reset()
    return rates


def status_line(step: int, total: int, metrics: Mapping[str, float], seconds_per_step: float) -> str:
  """One line a person can follow: step, share, loss, rate, MFU, data wait, time left, trouble if any."""
  parts = [f"step {step}/{total} {100 * step / total:.0f} %", f"loss {metrics['loss']:.4f}",
           f"{metrics['images_per_second']:,.0f} images/s"]
  if "mfu" in metrics:
    parts.append(f"MFU {100 * metrics['mfu']:.0f} %")
  parts.append(f"data wait {100 * metrics['data_wait']:.0f} %")
  if metrics.get("skipped"):
    parts.append(f"{int(metrics['skipped'])} steps skipped")
  parts.append(f"{duration((total - step) * seconds_per_step)} left")
  return " · ".join(parts)


@contextlib.contextmanager
def compiling(what: str, *, active: bool = True) -> Iterator[None]:
  """Says that `what` is compiled within, how long that took, and whether it came from the cache of compiled programs."""
  hits: list[str] = []
  count = lambda event, **_: hits.append(event) if event == CACHE_HIT else None
  where = jax.config.values["jax_compilation_cache_dir"]
  say(f"compiling {what}" + (f" (seconds to minutes; then kept in {where})" if where else ""), active=active)
  started = time.perf_counter()
  jax.monitoring.register_event_listener(count)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_listener(count)
  say(f"  {'found in the cache' if hits else 'compiled'} in {time.perf_counter() - started:.1f} s", active=active)


def say(line: str, *, active: bool = True) -> None:
  if active:
    print(line, file=sys.stderr, flush=True)
