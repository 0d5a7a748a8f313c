"""Every test runs on eight virtual CPU devices, with JAX's strict checks on and no network."""
import os
import signal
import socket
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# Virtual devices on few cores: independent collectives of one step must run one after another, or they wait for each other for ever.
# And most of the suite's time is compiling: code that is optimised less is there sooner.
os.environ["XLA_FLAGS"] = ("--xla_cpu_enable_concurrency_optimized_scheduler=false --xla_backend_optimization_level=0 "
                           "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
                           + os.environ.get("XLA_FLAGS", ""))

import jax
import pytest

# A suite under nohup was told to ignore this, and so would be the processes that it starts and signals.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Compiled programs are kept between runs of the suite: the second run skips most of the compile time.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Only loopback and local sockets may be reached."""
  connect = socket.socket.connect

  def guarded(self, address):
    if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
      raise RuntimeError(f"a test tried to reach {address}")
    return connect(self, address)
  monkeypatch.setattr(socket.socket, "connect", guarded)
