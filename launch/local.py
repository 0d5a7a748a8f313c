"""Several real `jax.distributed` processes on one box: how multi-host runs are tried and tested without a cluster.

  python -m launch.local --processes=2 --devices=4 -- train --config=configs/clip.py:tiny --workdir=runs/two_hosts

Every process gets `--devices` virtual CPU devices (or, with --platform=cuda, that many of the box's GPUs). Output lines are prefixed
with the number of their process. The first process that fails ends the others, and its exit code is the launcher's. SIGTERM, SIGINT and
SIGHUP reach every process as SIGTERM, which training takes as "save and stop"; a second one ends them at once.
"""
import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

POLL_SECONDS = 0.05


def free_port() -> int:
  """A TCP port that nothing listens on now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def environment(process: int, *, processes: int, devices: int, port: int, platform: str) -> dict[str, str]:
  """The variables by which process number `process` finds the others and its devices."""
  env = dict(os.environ, MMDIFF_COORDINATOR=f"127.0.0.1:{port}", MMDIFF_PROCESSES=str(processes), MMDIFF_PROCESS_ID=str(process),
             JAX_PLATFORMS=platform, PYTHONUNBUFFERED="1")
  if platform == "cpu":
    env["JAX_NUM_CPU_DEVICES"] = str(devices)
    # Virtual devices on few cores: independent collectives of one program must run one after another, or they wait for each other for ever.
    env["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false " + env.get("XLA_FLAGS", "")
  else:
    env["CUDA_VISIBLE_DEVICES"] = ",".join(str(process * devices + i) for i in range(devices))
  return env


def forward(pipe, out, prefix: str) -> threading.Thread:
  """Copies lines from a process to `out` as they come."""
  def work():
    for line in pipe:
      out.write(prefix + line.rstrip("\n") + "\n")
      out.flush()
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  return thread


def exit_code(returncode: int) -> int:
  """What a shell would report: 128 + the signal for a process that a signal ended."""
  return 128 - returncode if returncode < 0 else returncode


def run(command: list[str], *, processes: int, devices: int, platform: str = "cpu", grace_seconds: float = 10.0) -> int:
  """Runs `command` in every process and returns 0, or the exit code of the first that failed.

  After a failure the others get `grace_seconds` to end by themselves: at once on SIGTERM if the failure was a crash; undisturbed if it
  was 75 (all stop together after saving). Then they are killed, since a process that waits for a dead peer hears no signal.
  """
  port, children, threads, asked = free_port(), [], [], []

  def on_signal(number, frame):
    asked.append(number)
    for child in children:
      if child.poll() is None:
        child.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

  previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
              if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}           # as nohup asks
  try:
    for i in range(processes):
      # A session of its own, so that the terminal's Ctrl-C arrives once, through the launcher.
      child = subprocess.Popen(command, env=environment(i, processes=processes, devices=devices, port=port, platform=platform), text=True,
                               errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
      children.append(child)
      threads += [forward(child.stdout, sys.stdout, f"[{i}] "), forward(child.stderr, sys.stderr, f"[{i}] ")]
    failed = None
    while failed is None and any(child.poll() is None for child in children):
      failed = next((i for i, child in enumerate(children) if child.poll()), None)
      time.sleep(POLL_SECONDS)
    if failed is None:
      failed = next((i for i, child in enumerate(children) if child.returncode), None)
    if failed is not None:
      end(children, politely=exit_code(children[failed].returncode) == 75, grace_seconds=grace_seconds)
      print(f"launch.local: process {failed} ended with exit code {exit_code(children[failed].returncode)}", file=sys.stderr, flush=True)
  finally:
    for child in children:
      if child.poll() is None:
        child.kill()
        child.wait()
    for thread in threads:
      thread.join(timeout=5)
    for number, handler in previous.items():
      signal.signal(number, handler)
  return 0 if failed is None else exit_code(children[failed].returncode)


def end(children, *, politely: bool, grace_seconds: float) -> None:
  """Waits up to `grace_seconds` for the processes still running, after SIGTERM unless `politely`."""
  for child in children:
    if child.poll() is None and not politely:
      child.terminate()
  deadline = time.monotonic() + grace_seconds
  while time.monotonic() < deadline and any(child.poll() is None for child in children):
    time.sleep(POLL_SECONDS)


class Parser(argparse.ArgumentParser):
  """Bad flags exit with 64, as in every command of the project."""

  def error(self, message):
    self.exit(64, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
  argv = sys.argv[1:] if argv is None else argv
  at = argv.index("--") if "--" in argv else len(argv)
  command = argv[at + 1:]
  parser = Parser(prog="python -m launch.local", description="Runs an mmdiff command as several processes on this box.",
                  usage="%(prog)s [options] -- COMMAND, e.g. -- train --config=configs/clip.py:tiny --workdir=runs/two_hosts")
  parser.add_argument("--processes", type=int, default=2, help="how many processes (hosts)")
  parser.add_argument("--devices", type=int, default=4, help="devices per process")
  parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument("--module", default="mmdiff", help="the Python module that every process runs")
  parser.add_argument("--grace-seconds", type=float, default=10.0, help="between the first failure and the end of the others")
  options = parser.parse_args(argv[:at])
  if options.processes < 1 or options.devices < 1:
    parser.error(f"--processes and --devices are at least 1, found {options.processes} and {options.devices}")
  if not command:
    parser.error("no command; write what follows `mmdiff` after --, e.g. -- train --config=configs/clip.py:tiny --workdir=runs/two_hosts")
  return run([sys.executable, "-m", options.module, *command], processes=options.processes, devices=options.devices,
             platform=options.platform, grace_seconds=options.grace_seconds)


if __name__ == "__main__":
  sys.exit(main())
