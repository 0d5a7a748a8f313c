"""Every command answers every signal with one line and exit code 75, from its first moment on and whatever it is doing."""
import os
import signal
import subprocess
import sys
import threading

import pytest

from mmdiff.__main__ import COMMANDS
from mmdiff.core import signals
from tests.test_layering import ROOT

# A suite in the background may have been told to ignore the keyboard.
HEARD = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
# The real command line around commands that sleep.
SLEEPING = HEARD + """
import sys, time, types
from mmdiff import __main__ as cli
def main(argv):
  print("ready", flush=True)
  time.sleep(60)
for name in cli.COMMANDS:
  sys.modules[f"mmdiff.commands.{name}"] = types.SimpleNamespace(main=main)
sys.exit(cli.main())
"""
# The main thread in C code that never returns, as in a compilation: no Python handler runs. It waits for a lock that it holds.
STUCK = HEARD + """
import ctypes, threading
from mmdiff.core import signals
signals.PATIENCE_SECONDS = 0.1
signals.LISTENER.listen("mmdiff train")
threading.Timer(1.0, lambda: print("ready", flush=True)).start()
lock = ctypes.create_string_buffer(64)
while True:
  ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
# Training that saves: the first signal is its own affair, the second ends it.
PATIENT = STUCK.replace("threading.Timer", "signals.LISTENER.patient = True\nthreading.Timer")
HELD = """
import os, signal
from mmdiff.core import signals
signals.hold()
os.kill(os.getpid(), signal.SIGTERM)
try:
  signals.LISTENER.listen("mmdiff train")
except signals.Stopped as stopped:
  print("ready", stopped, flush=True)
"""


def start(tmp_path, source, *argv, shell=""):
  script = tmp_path / "script.py"
  script.write_text(source)
  command = [sys.executable, str(script), *argv]
  command = ["sh", "-c", f'{shell} exec "$@"', "sh", *command] if shell else command
  return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=os.environ | dict(PYTHONPATH=str(ROOT)))


def ends(process, number, *numbers):
  """(exit code, stderr) after the signals."""
  try:
    assert process.stdout.readline().startswith("ready")
    for one in (number, *numbers):
      process.send_signal(one)
      try:
        process.wait(timeout=1.0 if numbers else 30)
      except subprocess.TimeoutExpired:
        pass
    _, err = process.communicate(timeout=30)
    return process.returncode, err
  finally:
    process.kill()


@pytest.mark.parametrize("name", [*COMMANDS][::3])        # of one command line, whatever the command
def test_every_command_ends_with_one_line(tmp_path, name):
  number = signals.SIGNALS[list(COMMANDS).index(name) % 3]
  assert ends(start(tmp_path, SLEEPING, name), number) == (75, f"mmdiff {name}: {signals.said(number)}\n")


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_compilation_does_not_keep_it_waiting(tmp_path, number):
  assert ends(start(tmp_path, STUCK), number) == (75, f"mmdiff train: {signals.said(number)}\n")


def test_the_first_signal_waits_for_training_to_save_and_the_second_does_not(tmp_path):
  assert ends(start(tmp_path, PATIENT), signal.SIGTERM, signal.SIGHUP) == (
    75, f"mmdiff train: SIGTERM: {signals.STOPPING}\nmmdiff train: {signals.said(signal.SIGHUP)}\n")


def test_an_import_can_not_take_it_for_its_own_fault(tmp_path):
  (tmp_path / "slow.py").write_text('print("ready", flush=True)\nimport time\ntry:\n  time.sleep(60)\n'
                                    'except BaseException as error:\n  raise ImportError("wrapped") from error\n')
  process = start(tmp_path, HEARD + "from mmdiff.core import signals\nsignals.LISTENER.listen('mmdiff train')\nimport slow\n")
  assert ends(process, signal.SIGTERM) == (75, f"mmdiff train: {signals.said(signal.SIGTERM)}\n")


def test_signals_wait_for_the_process_to_listen(tmp_path):
  process = start(tmp_path, HELD)
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out, err) == (0, f"ready {signals.said(signal.SIGTERM)}\n", "")


def test_what_nohup_ignores_stays_ignored(tmp_path):
  process = start(tmp_path, SLEEPING, "train", shell="trap '' HUP;")
  assert ends(process, signal.SIGHUP, signal.SIGTERM) == (75, f"mmdiff train: {signals.said(signal.SIGTERM)}\n")


def test_an_answer_in_time_is_enough(monkeypatch):
  left, listener = [], signals.Listener(leave=lambda code: left.append(code))
  ear, mouth = os.pipe()
  monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.05)
  thread = threading.Thread(target=listener.watch, args=(ear,))
  thread.start()
  with pytest.raises(signals.Stopped, match="stopped by SIGTERM"):
    listener.stop(signal.SIGTERM, None)
  os.write(mouth, bytes([signal.SIGTERM, signal.SIGUSR1]))
  os.close(mouth)
  thread.join()
  assert left == []
  ear, mouth = os.pipe()
  os.write(mouth, bytes([signal.SIGTERM]))
  os.close(mouth)
  listener.watch(ear)
  assert left == [75]


# A signal that comes while Python runs what it lets nobody raise from: it drops `Stopped` there.
DROPPED = """
import gc, os, signal, sys, time, types
from mmdiff import __main__ as cli
def callback(phase, info):
  if phase == "start":
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
def main(argv):
  print("ready", flush=True)
  gc.callbacks.append(callback)
  gc.collect()
  time.sleep(60)
sys.modules["mmdiff.commands.train"] = types.SimpleNamespace(main=main)
sys.exit(cli.main())
"""


def test_a_signal_in_a_callback_of_the_garbage_collector_is_heard(tmp_path):
  process = start(tmp_path, DROPPED, "train")
  try:
    assert process.communicate(timeout=30) == ("ready\n", f"mmdiff train: {signals.said(signal.SIGTERM)}\n") and process.returncode == 75
  finally:
    process.kill()
