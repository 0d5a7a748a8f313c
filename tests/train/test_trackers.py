"""Trackers are told what the log is told, are imported only when named, and never end a run."""
import sys
import types

import numpy as np
import pytest

from mmdiff.core.errors import ConfigError
from mmdiff.train import trackers
from mmdiff.train.writer import Writer


@pytest.fixture
def calls(monkeypatch):
  """A stand-in for each package that notes its calls; the interfaces are those of wandb 0.31, trackio 0.43 and mlflow 3.17."""
  made = []
  note = lambda name: lambda *args, **words: made.append((name, args, words)) or types.SimpleNamespace(
    log=note(f"{name}.log"), finish=note(f"{name}.finish"), info=types.SimpleNamespace(run_id="abc"))
  for package, names in (("wandb", ("init", "Image")), ("trackio", ("init", "log", "Image", "finish")), ("mlflow", (
      "set_tracking_uri", "set_experiment", "start_run", "log_dict", "log_metrics", "log_image", "log_text", "end_run"))):
    module = types.ModuleType(package)
    module.__spec__ = types.SimpleNamespace(name=package)
    for name in names:
      setattr(module, name, note(f"{package}.{name}"))
    monkeypatch.setitem(sys.modules, package, module)
  return made


def test_all_are_told_what_the_log_is_told(tmp_path, calls):
  names = ("tensorboard", "wandb", "mlflow", "trackio")
  trackers.check(names)
  for start in range(2):
    writer = Writer(tmp_path, resume_step=start, trackers=trackers.Trackers(names, tmp_path, dict(seed=0)))
    writer.write_scalars(start + 1, {"loss": np.float32(0.5), "odd é/x": 2, "none": float("nan")})
    writer.write_images(start + 1, {"samples": np.zeros((4, 4, 3), np.uint8)}, "a red circle")
    writer.close()
  told = {name: (args, words) for name, args, words in calls}
  assert told["wandb.init.log"][1] == dict(step=2) and told["wandb.Image"][1] == dict(caption="a red circle")
  assert {"loss": 0.5, "odd é/x": 2.0} in [args[0] for name, args, _ in calls if name in ("wandb.init.log", "trackio.log")]
  assert told["mlflow.log_metrics"] == (({"loss": 0.5, "odd é/x": 2.0},), dict(step=2))
  assert told["mlflow.log_text"][0] == ("a red circle", "samples_00000002.txt")
  assert {"wandb.init.finish", "mlflow.end_run", "trackio.finish"} <= set(told)
  ids = [words["id"] for name, _, words in calls if name == "wandb.init"]
  assert ids[0] == ids[1] and [words["run_id"] for name, _, words in calls if name == "mlflow.start_run"] == [None, "abc"]


def test_what_raises_is_left_out_and_told(tmp_path, calls, capsys, monkeypatch):
  def broken(*_, **__):
    raise ConnectionError("no network\x1b[2J")
  monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", broken)
  monkeypatch.setattr(sys.modules["trackio"], "init", broken)
  made = trackers.Trackers(("mlflow", "trackio", "wandb"), tmp_path, {})
  for step in (1, 2):
    made.scalars(step, dict(loss=1.0))
  assert list(made.on) == ["wandb"]
  err = capsys.readouterr().err
  assert err.count("left out") == 2 and "mlflow is left out from here on: ConnectionError: no network" in err and "\x1b" not in err


def test_a_package_that_is_not_there_is_an_error_at_once(monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
  trackers.check(("tensorboard",))
  with pytest.raises(ConfigError, match="mlflow, wandb not installed here: pip install mlflow wandb"):
    trackers.check(("tensorboard", "mlflow", "wandb"))


def test_without_tensorboard_there_are_no_events(tmp_path):
  with Writer(tmp_path, events=False) as writer:
    writer.write_scalars(1, dict(loss=1.0))
    writer.write_images(1, {"x": np.zeros((4, 4, 3), np.uint8)})
    writer.flush()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "metrics.jsonl", "samples"]


def test_captions_are_the_prompts_of_the_pictures():
  assert trackers.captions({"protocol": [dict(steps=3)], "samples": [dict(prompt="a"), dict(prompt="b")]}) == "a\nb"
  assert trackers.captions({"x": []}) == ""
