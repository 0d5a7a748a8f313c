"""Overrides of a config; tests/commands/test_flags.py has what they share with flags."""
import pytest

from mmdiff.commands import flags, overrides
from mmdiff.core.errors import ConfigError


def problems(*argv):
  with pytest.raises(ConfigError) as caught:
    flags.load_config(["--config=configs/clip.py:tiny", *argv])
  return str(caught.value).splitlines()


@pytest.mark.parametrize("key, said", [
  ("path", "scenes has no path; folder, parquet have; did you mean --config.data.source.name=folder beside it?"),
  ("urls", "scenes has no urls; webdataset has; did you mean --config.data.source.name=webdataset beside it?"),
  ("teir", "unknown key; did you mean --config.data.source.tier?")])
def test_a_key_of_another_source(key, said):
  assert problems(f"--config.data.source.{key}=x") == [f"--config.data.source.{key}: {said}"]


def test_own_shares_of_captions_that_are_all():
  config = flags.load_config(["--config=configs/clip.py:tiny", "--config.data.captions.original=1"])
  assert config["data"]["captions"] == {"original": 1.0}
  assert any("shares must sum to 1, found 1.45" in line for line in problems("--config.data.captions.original=0.5"))


def test_a_source_in_one_word():
  block = flags.schema.Block(spec="mmdiff.evaluators.loss:loss")
  before = dict(source=dict(name="scenes", tier="T32", size=3))
  config, wrong = overrides.override(before, [("source.split", "val_iid"), ("source", "scenes:T16")], block)
  assert config["source"] == dict(name="scenes", tier="T16", split="val_iid") and not wrong
  config, wrong = overrides.override({}, [("source", "name=scenes,teir=T16")], block)
  assert "teir: unknown key" in str(wrong[0])
