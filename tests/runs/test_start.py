import inspect

import pytest
from ml_collections import ConfigDict

import mmdiff
from mmdiff.core.errors import ConfigError
from mmdiff.runs import start
from tests import toy_runs


@pytest.fixture
def told(monkeypatch, tmp_path):
  """What the command was given; the run directory has a config."""
  found = {}

  def run(config, workdir, *, argv):
    found.update(config=config, workdir=workdir, argv=argv)
    toy_runs.sums.write_json(workdir, "config.json", config)
  monkeypatch.setattr(start.command, "run", run)
  return found


def test_python_trains_what_the_command_trains(told, tmp_path):
  run = mmdiff.train("configs/clip.py:tiny", tmp_path, steps=20, **{"optim.default.lr": 1e-4, "data.captions": {"long": 1.0}})
  assert isinstance(run, mmdiff.Run) and run.path == told["workdir"] == tmp_path
  assert told["config"]["steps"] == 20 and told["config"]["optim"]["default"]["lr"] == 1e-4 and told["config"]["data"]["captions"] == {
    "long": 1.0}
  assert told["argv"] == ["train", "--config=configs/clip.py:tiny", f"--workdir={tmp_path}", "--config.steps=20",
                          "--config.optim.default.lr=0.0001", "--config.data.captions={'long': 1.0}"]


@pytest.mark.parametrize("kind", [dict, ConfigDict, "run"])
def test_a_config_may_be_a_dict_or_another_runs(told, tmp_path, kind):
  config = toy_runs.clip()
  if kind == "run":
    mmdiff.train(config, tmp_path / "before")
  mmdiff.train(str(tmp_path / "before") if kind == "run" else kind(config), tmp_path / "run", seed=3)
  assert told["config"] == config | dict(seed=3)


def test_mistakes_are_named_all_at_once(tmp_path):
  with pytest.raises(ConfigError) as error:
    mmdiff.train("configs/clip.py:tiny", tmp_path, stepz=20, **{"optim.default.lr": "x"})
  assert "--config.stepz: unknown key; did you mean --config.steps?" in str(error.value) and "--config.optim.default.lr" in str(error.value)
  assert not list(tmp_path.iterdir())


def test_values_are_spelt_as_on_the_command_line():
  spelt = {None: "none", True: "true", 3: "3", 1e-3: "0.001", "a b": "a b", (1, 2): "1,2"}
  assert [start.as_text(value) for value in spelt] == list(spelt.values()) and start.as_text([True, None]) == "true,none"


def test_the_package_is_what_is_called():
  """`mmdiff.train` is a package of the house and a function of Python."""
  assert callable(mmdiff.train) and mmdiff.train.__name__ == "mmdiff.train"
  assert list(inspect.signature(mmdiff.train).parameters) == list(inspect.signature(start.train).parameters)
