"""Whole pipelines: their parts by parameter group, whatever they are kept in."""
import json

import numpy as np
import pytest

from mmdiff.convert import pipelines, public
from mmdiff.core.errors import DataError
from tests.convert import test_ldm_formats as ldm


def test_parts_go_by_the_groups_of_a_diffusion_run():
  assert pipelines.groups(["unet", "vae", "text"]) == {"unet": "denoiser", "vae": "autoencoder", "text": "text"}
  assert pipelines.groups(["unet", "text", "text_2"]) == {"unet": "denoiser", "text": "text/first", "text_2": "text/second"}
  assert pipelines.groups(["unet", "text_2"]) == {"unet": "denoiser", "text_2": "text"}


def test_a_single_file_and_a_folder_of_the_same_parts(tmp_path):
  """The autoencoder and the text encoder of a file, saved as folders of diffusers and transformers, are the same again."""
  file = tmp_path / "v1.safetensors"
  ldm.file(file, ldm.SD1, ldm.BUFFERS)
  assert pipelines.is_pipeline(file)
  found = pipelines.load(file, quiet=True)
  assert set(found) == {"denoiser", "autoencoder", "text"}
  folder = tmp_path / "sd"
  for part, name, format in (("autoencoder", "vae", "diffusers-vae"), ("text", "text_encoder", "hf-clip-text")):
    loaded = found[part]
    public.save(folder / name, format=format, module=loaded.module, config=loaded.config, params=loaded.params)
  (folder / "model_index.json").write_text(json.dumps(dict(_class_name="StableDiffusionPipeline")))
  assert pipelines.is_pipeline(folder) and not pipelines.is_pipeline(folder / "vae")
  again = pipelines.load(folder, quiet=True)
  assert set(again) == {"autoencoder", "text"}
  for part, loaded in again.items():
    before, after = public.flatten(found[part].params), public.flatten(loaded.params)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before), part


def test_what_is_none(tmp_path):
  assert not pipelines.is_pipeline(tmp_path / "nothing") and not pipelines.is_pipeline(tmp_path)
  (tmp_path / "model_index.json").write_text("{}")
  with pytest.raises(DataError, match="none of the folders unet, vae, text_encoder"):
    pipelines.load(tmp_path)
