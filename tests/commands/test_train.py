"""The train command: what it leaves behind, and which changes of mind it accepts."""
import json

import numpy as np
import pytest

from mmdiff.__main__ import main
from mmdiff.commands import doctor, train
from mmdiff.core import schema
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_runs

EVALS = dict(loss=dict(name="loss", source=toy_runs.SCENES, every_steps=2, limit=8))


def test_a_run_leaves_what_it_promises_and_goes_on(tmp_path, capsys, monkeypatch):
  written, write = [], train.write_page
  monkeypatch.setattr(train, "write_page", lambda workdir: (write(workdir), written.append((workdir / "report.html").read_text())))
  config = toy_runs.clip() | dict(steps=2, mesh=dict(data=-1, fsdp=1, tensor=1))
  train.run(config, tmp_path, argv=["train", "--config=…"])
  for name in ("config.json", "run.json", "metrics.jsonl", "tokenizer.json", "report.html", "checkpoints/2/manifest.json"):
    assert (tmp_path / name).is_file(), name
  assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(config))

  state = train.run(config | dict(steps=3, evals=EVALS), tmp_path, argv=["train"])
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3] and int(state.step) == 3
  losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
  assert all(float(str(np.float32(loss))) == loss for loss in losses.values())         # float32, to the last bit
  result = json.loads((tmp_path / "eval" / "loss_00000003.json").read_text())
  assert result["step"] == 3 and 0.5 < result["scalars"]["loss"] < 20 and result["config"]["steps"] == 3 and result["versions"]["jax"]
  assert all(next(iter(row)) == "step" for row in rows)
  # The page: at the end of the first start, after each evaluation (the first makes up for step 2), and at the end.
  assert len(written) == 4 and ["step 3 of 3" in page for page in written] == [False, False, True, True]
  assert ["loss · loss" in page for page in written] == [False, True, True, True] and "running, step 2 of 3" in written[1]
  starts = json.loads((tmp_path / "run.json").read_text())["starts"]
  assert [start["step"] for start in starts] == [0, 2] and starts[0]["records"] == 40

  again = train.check_drift(config | dict(init=dict(path="elsewhere")), tmp_path)            # a run that goes on takes nothing over
  assert again.get("init") is None and "choose another --workdir to start from there" in capsys.readouterr().err
  with pytest.raises(ConfigError, match=r"--config.batch_size: the run began with 8, now 16"):
    train.run(config | dict(batch_size=16), tmp_path, argv=["train"])
  with pytest.raises((ConfigError, DataError)):
    train.run(config | dict(data=config["data"] | dict(source=toy_runs.SCENES | dict(size=41))), tmp_path, argv=["train"])


def test_training_goes_on_without_its_page(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("mmdiff.report.run.write_report", lambda workdir: 1 / 0)
  train.write_page(tmp_path)
  assert "report.html: not written: ZeroDivisionError" in capsys.readouterr().err


def test_a_run_that_is_refused_leaves_nothing(tmp_path, monkeypatch):
  config = toy_runs.clip() | dict(steps=2, mesh=dict(data=-1, fsdp=1, tensor=1))
  missing = config["data"] | dict(source=dict(name="folder", path=str(tmp_path / "none")))
  for wrong in (dict(data=missing), dict(freeze=("imge/.*",)), dict(freeze=(".*",))):
    with pytest.raises((ConfigError, DataError)):
      train.run(schema.complete(config) | wrong, tmp_path / "new" / "run", argv=["train"])
    assert not list(tmp_path.iterdir())

  def refuse(*_):
    raise ConfigError("at the last moment")
  monkeypatch.setattr(train, "check_vocabulary", refuse)
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(ConfigError, match="at the last moment"):
    train.run(config, tmp_path, argv=["train"])
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_table_smaller_than_the_tokenizer_is_refused(tmp_path):
  class Tokenizer:
    vocab_size = 500

  config = schema.complete(toy_runs.clip())
  with pytest.raises(ConfigError, match="the tokenizer has 500 tokens .* text/embed/embedding has 320 rows; add --config.objective.model."
                                        "vocab=500$"):
    train.check_vocabulary({"text": {"embed": {"embedding": np.zeros((320, 4))}}}, Tokenizer, config)


def test_a_key_that_came_later_is_no_change(tmp_path):
  config = schema.complete(toy_runs.clip())
  older = json.loads(json.dumps(config))
  del older["objective"]["chunk"]
  (tmp_path / "config.json").write_text(json.dumps(older))
  train.check_drift(config, tmp_path)
  with pytest.raises(ConfigError, match="objective.chunk: the run began with 0, now 8"):
    train.check_drift(config | dict(objective=config["objective"] | dict(chunk=8)), tmp_path)


def test_what_a_run_that_is_there_decides(tmp_path, capsys):
  line = ["train", "configs/clip.py:tiny", str(tmp_path / "run")]
  assert main([*line, "--resume"]) == 64 and "holds no run to go on with" in capsys.readouterr().err
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text("{}")
  assert main([*line, "--noresume"]) == 64 and "choose another --workdir" in capsys.readouterr().err


def test_a_dry_run_is_the_doctor_and_writes_nothing(tmp_path, monkeypatch, capsys):
  seen = []
  monkeypatch.setattr(doctor, "examine", lambda config, workdir, step: seen.append((config["steps"], workdir, step)) or [
    doctor.Found("model", "too large", 70)])
  assert main(["train", "configs/clip.py:tiny", str(tmp_path / "run"), "--dry-run", "--config.steps=7"]) == 70
  assert seen == [(7, tmp_path / "run", False)] and "1 of 1 checks found a problem" in capsys.readouterr().out
  assert not (tmp_path / "run").exists()


def test_another_source_is_one_difference(tmp_path):
  config = schema.complete(toy_runs.clip())
  (tmp_path / "config.json").write_text(json.dumps(config))
  other = dict(config, batch_size=16, data=config["data"] | dict(source=dict(name="folder", path="mine", table="")))
  with pytest.raises(ConfigError) as error:
    train.check_drift(other, tmp_path)
  assert str(error.value).splitlines()[1:] == [
    "--config.batch_size: the run began with 8, now 16",
    "--config.data.source: the run began with scenes(tier=T16, split=train), now folder(path=mine)"]


def test_what_may_change_between_two_starts(tmp_path):
  config = toy_runs.clip()
  (tmp_path / "config.json").write_text(json.dumps(config))
  train.check_drift(config | dict(steps=99, evals=EVALS, mesh=dict(data=2), accumulate=2), tmp_path)
  with pytest.raises(ConfigError, match="optim.default.lr: the run began with 0.001, now 0.5"):
    train.check_drift(config | dict(optim=dict(default=toy_runs.ADAMW | dict(lr=0.5))), tmp_path)
