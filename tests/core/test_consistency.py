"""Values that have the right type and still cannot work are named by the key to change."""
import pytest

from mmdiff.commands import flags
from mmdiff.core.errors import ConfigError


def said(*argv, config="configs/clip.py:tiny"):
  with pytest.raises(ConfigError) as error:
    flags.load_config([f"--config={config}", *argv])
  return str(error.value).splitlines()


@pytest.mark.parametrize("override,message", [
  ("steps=0", "expected at least 1, found 0"),
  ("batch_size=-4", "expected at least 1, found -4"),
  ("seed=-1", "expected at least 0, found -1"),
  ("checkpoint.keep=0", "expected at least 1"),
  ("log_every_steps=0", "expected at least 1"),
  ("evals.retrieval.every_steps=0", "expected at least 1"),
  ("optim.default.lr=-1", "expected at least 0"),
  ("optim.default.b2=1", "expected at least 0, below 1, found 1.0"),
  ("data.max_bad_fraction=2", "expected a value from 0 to 1, found 2"),
  ("ema.eval=1.5", "expected a value from 0 to 1"),
  ("accumulate=3", "batch_size 128 does not divide into 3 equal microbatches"),
  ("mesh.data=0", "expected a positive size or -1"),
  ("mesh.fsdp=-1", "only one size may be -1"),
  ("mesh.fsdp=3", "128 does not divide over mesh.fsdp 3"),
  ("data.augment.crop=0.5", "expected (min area, max area)"),
  ("data.augment.crop=0.9,0.5", "expected (min area, max area)"),
  ("evals.retrieval.params=evl", "no average is called 'evl'"),
  ("data.tokenizer.vocab=9999", "512 entries for the 9999 tokens of data.tokenizer.vocab"),
  ("data.text_len=65", "64 is shorter than the captions of data.text_len 65"),
  ("data.image_size=64", "32, but the pictures of data.image_size are 64"),
  ("objective.model.patch=5", "image_size 32 does not divide into patches of 5"),
  ("init.map={'image': 'visual'}", "says nothing without init.path"),
  ("init.params=eval", "says nothing without init.path"),
  ("freeze=image/(", "is no pattern"),
])
def test_out_of_range(override, message):
  found = said("--config." + override)
  assert len(found) == 1 and message in found[0], found


def test_caption_shares_sum_to_one():
  assert said("--config.data.captions.long=0.9") == [
    "configs/clip.py: config.data.captions: shares must sum to 1, found 0.95 (long 0.9, original 0.05)"]
  assert said("--config.data.captions.long=none", "--config.data.captions.original=none") == [
    "configs/clip.py: config.data.captions: shares must sum to 1, found 0 (none)"]


def test_both_mesh_axes_count():
  assert "128 does not divide over mesh.data × mesh.fsdp = 1024" in said("--config.mesh.data=32", "--config.mesh.fsdp=32")[0]


@pytest.mark.parametrize("config", [
  "clip.py:tiny,variant=RN50", "clip.py:tiny,emoji", "coca.py:tier=T16", "coca_long.py:variant=Base,limit=9", "t2i_latent.py:tiny,size=512",
  "siglip.py:variant=ViT-B/32", "clip.py:tiny,tiny", "kl_f8.py:variant=tiny", "ablations/caption_mix.py:part=scorer,demo"])
def test_arguments_that_would_be_ignored_are_refused(config):
  assert "config argument" in said(config=f"configs/{config}")[0]


def test_a_difference_is_from_something():
  found = said("--config.init.differs=('activation',)", config="configs/clip.py:tiny")
  assert "init.differs: says nothing without init.path or init.parts" in found[0]


def test_an_average_is_named():
  found = said("--config.evals.samples.params=evel", config="configs/t2i_pixels.py:tiny")
  assert found == ["--config.evals.samples.params: no average is called 'evel'; did you mean 'eval'? "
                   "(\"\" is the raw parameters, the averages of config.ema are eval)"]
