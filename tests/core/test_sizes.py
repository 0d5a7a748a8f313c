"""Sizes that must move together are named together with the preset's, which is read and not built."""
import pytest

from mmdiff.commands import flags
from mmdiff.core import sizes
from mmdiff.core.errors import ConfigError
from mmdiff.core.signatures import table
from mmdiff.models import autoencoder
from mmdiff.models import clip as clips
from mmdiff.models import coca as cocas


def test_sizes_read_from_the_tables_are_the_models():
  """The static reading of a preset agrees with the module that is built."""
  for name in clips.PRESETS:
    row, module = sizes.preset("mmdiff.models.clip:clip", name), clips.clip(variant=name)
    assert (row["image_size"], row["text_len"], row["vocab"]) == (module.image_size, module.text.length, module.text.vocab), name
  for name in cocas.PRESETS:
    row, module = sizes.preset("mmdiff.models.coca:coca", name), cocas.coca(variant=name)
    assert (row["image_size"], row["text_len"], row["vocab"]) == (module.image_size, module.text.length, module.text.vocab), name
  for name in table("mmdiff.models.autoencoder:VARIANTS"):
    assert sizes.factor(sizes.preset("mmdiff.models.autoencoder:kl", name)) == autoencoder.kl(variant=name).factor, name


@pytest.mark.parametrize("config,overrides,where,message", [
  ("siglip.py:variant=SigLIP-L/16", ["data.image_size=224"], "objective.model.image_size",
   "256, but the pictures of data.image_size are 224"),
  ("siglip.py:variant=SigLIP-So400m/14", ["data.text_len=64"], "objective.model.text_len", "16 is shorter than the captions"),
  ("t2i_latent.py:tiny", ["data.image_size=128"], "objective.denoiser.image_size", "8, but the latents of data.image_size 128 are 16"),
  ("t2i_latent.py:tiny", ["data.image_size=60"], "data.image_size", "60 does not divide by 8"),
  ("t2i_latent.py:model=sdxl,size=512", ["objective.condition.second.text_len=64"], "objective.condition.second.text_len", "64 is shorter"),
  ("t2i_latent.py:tiny", ["objective.min_snr_gamma=3"], "objective.min_snr_gamma", "says nothing without objective.weighting 'min_snr'"),
  ("t2i_latent.py", ["objective.time_std=1"], "objective.time_std", "says nothing without times"),
  ("kl_f8.py:tiny", ["objective.discriminator_start=1"], "objective.discriminator_start", "says nothing without objective.discriminator"),
  ("kl_f8.py:tiny", ["objective.perceptual_weight=2"], "objective.perceptual_weight", "says nothing without objective.perceptual"),
])
def test_what_goes_together_is_named_with_its_preset(config, overrides, where, message):
  with pytest.raises(ConfigError) as error:
    flags.load_config([f"--config=configs/{config}", *(f"--config.{override}" for override in overrides)])
  assert f"config.{where}: {message}" in str(error.value)
