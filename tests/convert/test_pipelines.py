"""Whole pipelines: their parts by parameter group, whatever they are kept in."""
import json

import numpy as np
import pytest

from mmdiff.convert import containers, ldm_formats, marks, pipelines, public, tensors
from mmdiff.convert import safetensors_file as st
from mmdiff.core.errors import ConfigError, DataError
from tests import toy_pipelines
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
  found = pipelines.load(file, quiet=True).parts
  assert set(found) == {"denoiser", "autoencoder", "text"}
  folder = tmp_path / "sd"
  for part, name, format in (("autoencoder", "vae", "diffusers-vae"), ("text", "text_encoder", "hf-clip-text")):
    loaded = found[part]
    public.save(folder / name, format=format, module=loaded.module, config=loaded.config, params=loaded.params)
  (folder / "model_index.json").write_text(json.dumps(dict(_class_name="StableDiffusionPipeline")))
  assert pipelines.is_pipeline(folder) and not pipelines.is_pipeline(folder / "vae")
  again = pipelines.load(folder, quiet=True).parts
  assert set(again) == {"autoencoder", "text"}
  for part, loaded in again.items():
    before, after = public.flatten(found[part].params), public.flatten(loaded.params)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before), part


def same(a, b):
  a, b = public.flatten(a), public.flatten(b)
  assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [
  pytest.param({}, id="sd"), pytest.param(dict(xl=True), id="xl"),
  pytest.param(dict(inpaints=True), marks=pytest.mark.long, id="inpainting"),
  pytest.param(dict(enlarges=True), marks=pytest.mark.long, id="x4")])
def test_written_and_read_again(tmp_path, options, capsys):
  """A folder of diffusers, from it a single file, and from that a folder: parameters, scheduler and null text stay."""
  folder = toy_pipelines.folder(tmp_path / "a", **options)
  first = pipelines.load(folder, quiet=True)
  assert first.zeros == bool(options.get("xl")) and first.tokenizer == folder / "tokenizer"
  pipelines.save(tmp_path / "b", first, format="ldm")
  said = capsys.readouterr().err
  assert "vae: scale 0.3" in said and "heads 2" in said and "other programs do not read" in said
  single = tmp_path / "b" / "model.safetensors"
  second = pipelines.load(single, quiet=True)
  assert second.small == first.small and bool(second.small) == bool(options.get("enlarges"))
  assert second.scheduler == first.scheduler and second.zeros == first.zeros
  for group, part in first.parts.items():
    assert not marks.unsaid(part.module, second.parts[group].module), group
  named, metadata = st.read(single)
  st.write(single, named)                       # as others would write it
  assert marks.OWN in metadata
  assumed = public.read(single, part="vae")[2].module.scale
  assert assumed == {"xl": 0.13025, "enlarges": 0.08333}.get(next(iter(options), ""), 0.18215)
  capsys.readouterr()
  pipelines.save(tmp_path / "c", second._replace(tokenizer=first.tokenizer))
  assert "does not say which layer" not in capsys.readouterr().err           # the pipeline does
  third = pipelines.load(tmp_path / "c", quiet=True)
  assert third.scheduler == first.scheduler and third.zeros == first.zeros
  for group in first.parts:
    same(first.parts[group].params, second.parts[group].params)
    same(first.parts[group].params, third.parts[group].params)


def test_a_file_keeps_what_nobody_reads_but_its_averages(tmp_path):
  file = tmp_path / "v1.safetensors"
  ldm.file(file, ldm.SD1, ldm.BUFFERS)
  pipelines.save(tmp_path / "again", pipelines.load(file, quiet=True), format="ldm")
  before, after = (containers.read(path).tensors for path in (file, tmp_path / "again" / "model.safetensors"))
  assert set(before) - set(after) == {"model_ema.decay"} and not set(after) - set(before)
  for name, tensor in after.items():
    np.testing.assert_array_equal(tensor.read(), before[name].read(), err_msg=name)
    assert tensor.dtype == before[name].dtype


@pytest.mark.long
def test_averages_of_a_file(tmp_path):
  """LitEma's names: without dots. They replace the UNet's own weights when asked for, all or none."""
  file = tmp_path / "v1.safetensors"
  named = ldm.values_of(ldm.SD1["unet"], 0)[1]
  averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): value + 1 for name, value in named.items()}
  ldm.file(file, ldm.SD1, averages)
  raw, mean = (pipelines.load(file, quiet=True, ema=ema).parts for ema in (None, True))
  plus = {name: value + 1 for name, value in public.flatten(raw["denoiser"].params).items()}
  same(mean["denoiser"].params, public.nest(plus))
  same(mean["text"].params, raw["text"].params)
  del averages[next(iter(averages))]
  ldm.file(tmp_path / "v2.safetensors", ldm.SD1, averages)
  with pytest.raises(DataError, match="1 of .* averages are missing, model_ema.diffusion_model"):
    pipelines.load(tmp_path / "v2.safetensors", quiet=True, ema=True)


@pytest.mark.long
def test_stable_diffusion_2_of_a_file_and_of_a_folder(tmp_path):
  """A file has a layer more than is read, and a projection; the folder of diffusers ends where the reading does."""
  file = tmp_path / "v2.safetensors"
  parts = dict(ldm.SD1, text=ldm.text(ldm_formats.OPEN_TEXT, act="gelu", embed_dim=24, depth=24, width=8, mlp_dim=8))
  ldm.file(file, parts)
  found = pipelines.load(file, quiet=True)
  assert any('prediction="v"' in notice for notice in found.notices)
  assert pipelines.load(file, quiet=True, prediction="v").scheduler["prediction_type"] == "v_prediction"
  pipelines.save(tmp_path / "folder", found)
  again = pipelines.load(tmp_path / "folder", quiet=True)
  a, b = found.parts["text"], again.parts["text"]
  assert (a.module.depth, a.module.skip, b.module.depth, b.module.skip) == (24, 1, 23, 0)
  tokens, mask = np.asarray([[58, 3, 4, 59] + [0] * 8], np.int32), np.arange(12)[None] < 4
  one, other = (part.module.clone(pad=0).apply({"params": part.params}, tokens, mask)["tokens"] for part in (a, b))
  np.testing.assert_allclose(one, other, atol=1e-5)


def test_each_encoder_pads_with_the_token_of_its_own_tokenizer(tmp_path):
  """SDXL's two are of one class, whose usual padding is the end token, and the second pads with "!": which its config.json does not say."""
  folder = toy_pipelines.folder(tmp_path / "xl", xl=True)
  pads = lambda: {group: part.module.pad for group, part in pipelines.load(folder, quiet=True).parts.items() if group.startswith("text")}
  assert pads() == {"text/first": len(toy_pipelines.WORDS) - 1, "text/second": 0}
  (folder / "tokenizer_2" / "vocab.json").unlink()
  assert pads()["text/second"] == 0


def test_variants_of_a_folder(tmp_path):
  """Parts that lack a variant are named; a variant that none has is refused."""
  folder = toy_pipelines.folder(tmp_path / "sd")
  unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
  half = {name: tensors.of(np.asarray(tensor.read() * 0.5, np.float16)) for name, tensor in containers.read(unet).tensors.items()}
  st.write(unet.with_name("diffusion_pytorch_model.fp16.safetensors"), half)
  whole, chosen = pipelines.load(folder, quiet=True), pipelines.load(folder, quiet=True, variant="fp16")
  kernel = lambda pipeline: pipeline.parts["denoiser"].params["conv_in"]["kernel"]
  np.testing.assert_allclose(kernel(chosen), 0.5 * kernel(whole), rtol=1e-3)
  assert chosen.notices == ("no weights of variant 'fp16' in vae, text_encoder: took those without one",) and not whole.notices
  with pytest.raises(DataError, match="sd: no weights of variant 'bf16'; the variants there are fp16"):
    pipelines.load(folder, quiet=True, variant="bf16")
  assert pipelines.place_of(folder, "unet", variant="fp16") == (folder / "unet", dict(variant="fp16"))
  with pytest.raises(ConfigError, match="holds unet, vae, text; expected part to be one of them, found 'text_2'"):
    pipelines.place_of(folder, "text_2")


def test_what_is_none(tmp_path):
  assert not pipelines.is_pipeline(tmp_path / "nothing") and not pipelines.is_pipeline(tmp_path)
  (tmp_path / "model_index.json").write_text("{}")
  with pytest.raises(DataError, match="none of the folders unet, vae, text_encoder"):
    pipelines.load(tmp_path)


@pytest.mark.parametrize("options, name", [({}, "StableDiffusionPipeline"), (dict(inpaints=True), "StableDiffusionInpaintPipeline"),
                                           (dict(xl=True), "StableDiffusionXLPipeline"),
                                           (dict(enlarges=True), "StableDiffusionUpscalePipeline")])
def test_a_folder_names_the_class_that_draws_with_it(tmp_path, options, name):
  made = toy_pipelines.make(tmp_path, **options)
  assert pipelines.class_of(made) == name
  if options.get("xl"):
    alone = made._replace(parts={"denoiser": made.parts["denoiser"], "text": made.parts["text/second"]})
    assert pipelines.class_of(alone) == "StableDiffusionXLImg2ImgPipeline"
