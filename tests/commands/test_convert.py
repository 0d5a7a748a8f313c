import json
from pathlib import Path

import numpy as np
import pytest

import mmdiff
from mmdiff.__main__ import main
from mmdiff.convert import FORMATS, ldm_formats, marks, pipelines, public, verify
from mmdiff.core.build import resolve
from mmdiff.core.errors import ConfigError
from tests import toy_pipelines, toy_runs

FIXTURES = Path(__file__).parent.parent / "convert" / "fixtures"


def test_a_public_checkpoint_is_converted_and_verified(tmp_path, capsys):
  out = tmp_path / "out"
  assert main(["convert", f"--src={FIXTURES / 'hf_clip'}", "--to=open_clip", f"--out={out}", "--verify", "--dtype=bfloat16"]) == 0
  assert "verified: outputs differ by at most" in capsys.readouterr().out
  facts = json.loads((out / "convert.json").read_text())
  assert set(facts["files"]) == {"open_clip_model.safetensors", "open_clip_config.json"} and len(facts["report"]["loaded"]) == 78
  assert main(["convert", *facts["argv"][1:]]) == 0                       # the same again
  assert main(["convert", f"--src={FIXTURES / 'hf_clip'}", "--to=hf-clip", f"--out={out}"]) == 64
  assert "out holds other files: convert.json, open_clip_config.json, open_clip_model.safetensors; choose" in capsys.readouterr().err
  assert not (out / "model.safetensors").exists()
  assert facts["argv"][0] == "convert" and 0 < facts["difference"] < 5e-2 and len(facts["source"]["digests"]["model.safetensors"]) == 64


def test_a_run_is_exported_and_loads_as_it_was(tmp_path):
  workdir = toy_runs.make(tmp_path / "run", toy_runs.clip())
  assert main(["convert", f"--src={workdir}", "--to=hf-clip", f"--out={tmp_path / 'out'}", "--verify", "--params=raw"]) == 0
  run, exported = mmdiff.load(workdir, params="raw"), mmdiff.load(tmp_path / "out", quiet=True)
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 16, 3), dtype=np.uint8)
  np.testing.assert_allclose(exported.embed_image(images), run.embed_image(images), atol=1e-5)
  np.testing.assert_allclose(exported.embed_text(["a red circle", ""]), run.embed_text(["a red circle", ""]), atol=1e-5)
  assert exported.logit_scale == pytest.approx(run.logit_scale)
  mmdiff.save(run, tmp_path / "again", format="hf-clip")
  assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
  with pytest.raises(mmdiff.core.errors.ConfigError, match="was trained here and has no format of its own"):
    mmdiff.save(run, tmp_path / "x")


@pytest.mark.parametrize("arguments, code, message", [
  (["--src=SRC", "--to=hf-clop", "--out=OUT"], 64, "did you mean 'hf-clip'"), (["--src=SRC", "--to=openai", "--out=OUT"], 64, "only read"),
  (["--src=SRC", "--to=hf-clip", "--out=SRC"], 64, "may not replace its source"),
  (["--src=SRC", "--to=hf-clip", "--out=OUT", "--params=eval"], 64, "has one set of parameters"),
  (["--src=SRC", "--to=hf-clip", "--out=OUT", "--act=gelu"], 64, "takes no act"),
  (["--src=SRC", "--to=diffusers", "--out=OUT"], 64, "hf_clip is transformers' CLIPModel (hf-clip), which goes to hf-clip, "
   "hf-siglip, open_clip"),
  (["--src=OUT", "--to=hf-clip", "--out=OUT2"], 65, "no such file or folder")])
def test_mistakes(tmp_path, capsys, arguments, code, message):
  place = lambda word: word.replace("SRC", str(FIXTURES / "hf_clip")).replace("OUT", str(tmp_path / "out"))
  assert main(["convert", *map(place, arguments)]) == code
  assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_flags_that_would_be_dropped_are_refused_and_a_part_is_taken_from_a_folder(tmp_path, capsys):
  folder, out = toy_pipelines.folder(tmp_path / "sd"), tmp_path / "out"
  for words, message in ((["--to=ldm", "--image_size=32", "--shard_gb=1"], "--image_size: nothing of a whole pipeline takes it"),
                         (["--to=diffusers-unet", "--part=unet", "--prediction=v"], "--prediction: the scheduler"),
                         (["--to=diffusers-unet", "--part=unet", f"--out={folder / 'unet'}"], "or a part of it"),
                         (["--to=ldm", "--allow_missing=("], "--allow_missing: expected a regular expression"),
                         (["--to=hf-clip-text", "--part=text_2"], "holds unet, vae, text; expected part to be one of them")):
    assert main(["convert", f"--src={folder}", *([f"--out={out}"] if "--out" not in str(words) else []), *words]) == 64
    assert message in capsys.readouterr().err and not out.exists()
  assert main(["convert", f"--src={folder}", "--part=vae", "--to=diffusers-vae", f"--out={out}", "--verify"]) == 0
  assert (out / "diffusion_pytorch_model.safetensors").read_bytes() == (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_format_of_another_kind_of_model_is_named(tmp_path):
  """Every format refuses what it has no place for, and says which one has."""
  named = dict(CLIP="hf-clip or hf-siglip or open_clip", Autoencoder="diffusers-vae", UNet="diffusers-unet", ClipStates="hf-clip-text",
               CoCa="open_clip-coca", ViT="hf-clip-image", T5Encoder="hf-t5")
  writable = {name: found for name, found in ((name, resolve(spec)) for name, spec in FORMATS.items()) if found.write and name != "ldm"}
  module_of = {public.kind_of(found).__name__: public.kind_of(found) for found in writable.values()}
  assert named.keys() <= module_of.keys()
  for kind, names in named.items():
    made = object.__new__(module_of[kind])
    for format in writable:
      if format not in names.split(" or "):
        with pytest.raises(ConfigError, match=f"holds no {kind}; that is written as {names}"):
          public.save(tmp_path, format=format, module=made, config={}, params={})


def test_a_whole_pipeline_is_converted(tmp_path, capsys):
  folder = toy_pipelines.folder(tmp_path / "sd")
  assert main(["convert", f"--src={folder}", "--to=ldm", f"--out={tmp_path / 'file'}"]) == 0
  single = tmp_path / "file" / "model.safetensors"
  assert main(["convert", f"--src={single}", "--part=unet", "--to=diffusers-unet", f"--out={tmp_path / 'unet'}"]) == 0
  facts = json.loads((tmp_path / "file" / "convert.json").read_text())
  assert set(facts["report"]) == {"denoiser", "autoencoder", "text"}
  assert "unet/diffusion_pytorch_model.safetensors" in facts["source"]["digests"]
  capsys.readouterr()
  assert main(["convert", f"--src={folder}", "--to=diffusers", f"--out={tmp_path / 'again'}", "--verify"]) == 0
  assert "outputs differ by at most 0 of the largest (denoiser 0, autoencoder 0, text 0)" in capsys.readouterr().out
  assert main(["convert", f"--src={folder}", "--to=hf-clip", f"--out={tmp_path / 'x'}"]) == 64
  assert "holds several models: --to is diffusers or ldm" in capsys.readouterr().err
  assert main(["convert", f"--src={single}", "--part=unet", "--to=diffusers", f"--out={tmp_path / 'x'}"]) == 64


@pytest.mark.parametrize("forgotten", ["scale", "layer", "heads", "scheduler"])
def test_verification_compares_what_a_pipeline_computes(tmp_path, capsys, monkeypatch, forgotten):
  """What no parameter says and a writer might drop: none of these changes a single value of the file."""
  folder, keep, own, of = toy_pipelines.folder(tmp_path / "sd"), marks.unsaid, marks.own, ldm_formats.CLIP_STATES["sd1"]
  if forgotten in ("scale", "heads"):
    other = dict(heads=1, scale=0.18215)[forgotten]
    monkeypatch.setattr(marks, "unsaid", lambda *modules: {name: other if name == forgotten else value
                                                           for name, value in keep(*modules).items()})
  elif forgotten == "layer":
    monkeypatch.setattr(marks, "unsaid", lambda *modules: {name: value for name, value in keep(*modules).items() if name != "skip"})
    monkeypatch.setitem(ldm_formats.CLIP_STATES, "sd1", (*of[:4], 1, *of[5:]))
  else:
    monkeypatch.setattr(marks, "own", lambda container: {**own(container), "scheduler": {}})
    capsys.readouterr()
    made = json.loads((folder / pipelines.SCHEDULER).read_text()) | dict(prediction_type="v_prediction", timestep_spacing="trailing")
    (folder / pipelines.SCHEDULER).write_text(json.dumps(made))
  assert main(["convert", f"--src={folder}", "--to=ldm", f"--out={tmp_path / 'file'}", "--verify"]) == 65
  said = capsys.readouterr().err
  assert "it is not the same: scheduler: {" in said if forgotten == "scheduler" else "its outputs differ by" in said
  record = json.loads((tmp_path / "file" / "convert.json").read_text())
  assert record["complete"] and not record["verified"] and record["fault"] in said and record["files"] and record["differences"]


def test_a_conversion_says_of_itself_what_became_of_it(tmp_path, monkeypatch):
  """Nothing where nothing is written, `complete` only when all of it is there; the same command goes on from what a dead one left."""
  out = tmp_path / "out"
  line = ["convert", f"--src={FIXTURES / 'hf_clip'}", "--to=open_clip", f"--out={out}", "--verify"]
  record = lambda: json.loads((out / "convert.json").read_text())
  save = public.save

  def dies(*args, **given):
    save(*args, **given)
    raise KeyboardInterrupt
  with monkeypatch.context() as patched:
    patched.setattr(public, "save", lambda *args, **given: (_ for _ in ()).throw(ConfigError("no place for it")))
    assert main(line) == 64 and not out.exists()
    patched.setattr(public, "save", dies)
    assert main(line) == 75 and record()["complete"] is False and (out / "open_clip_model.safetensors").exists()
    patched.setattr(public, "save", save)
    patched.setattr(verify, "difference", lambda *_: 0.5)
    assert main(line) == 65 and record()["complete"] and not record()["verified"] and "differ by 0.5" in record()["fault"]
  assert main(line) == 0 and record()["complete"] and record()["verified"] and "fault" not in record()
