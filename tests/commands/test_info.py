import json
import shutil
from pathlib import Path

import numpy as np

from mmdiff.__main__ import main
from mmdiff.convert import safetensors_file as st
from mmdiff.convert import tensors
from mmdiff.core.tree import count
from mmdiff.train.checkpoint import restore_params
from tests import toy_pipelines, toy_runs

FIXTURES = Path(__file__).parent.parent / "convert" / "fixtures"


def test_a_public_checkpoint_is_described(tmp_path, capsys):
  assert main(["info", f"--model={FIXTURES / 'open_clip_rn'}", f"--json={tmp_path / 'info.json'}"]) == 0
  said = capsys.readouterr().out
  assert "open_clip's folder" in said and "float16" in said
  facts = json.loads((tmp_path / "info.json").read_text())
  assert facts["family"] == "clip" and facts["missing"] == facts["unexpected"] == facts["misshapen"] == [] and facts["tokenizer"] == "none"
  assert facts["parameters"] == sum(facts["groups"].values()) and facts["tensors"] == facts["matched"] + len(facts["ignored"])


def test_what_texts_go_through_is_described(tmp_path):
  assert main(["info", f"--model={FIXTURES / 'open_clip_own' / 'resnet'}", f"--json={tmp_path / 'info.json'}"]) == 0
  texts = json.loads((tmp_path / "info.json").read_text())["texts"]
  assert texts["clean"] == ["fix", "underscores", "punctuation", "lower", "spaces"] and (texts["pad"], texts["end"]) == ("[PAD]", "[SEP]")


def test_a_run_is_described(tmp_path, capsys):
  workdir = toy_runs.make(tmp_path / "run", toy_runs.clip(), steps=(2, 4))
  assert main(["info", f"--model={workdir}", f"--json={tmp_path / 'info.json'}"]) == 0
  facts = json.loads((tmp_path / "info.json").read_text())
  assert facts["objective"] == "contrastive" and facts["step"] == 4 and facts["averages"] == ["eval"]
  params, _, _ = restore_params(workdir)
  assert facts["groups"] == {name: count(group) for name, group in params.items()}


def test_nothing_to_describe(tmp_path, capsys):
  assert main(["info", f"--model={tmp_path}"]) == 65
  assert "no model, but an empty folder" in capsys.readouterr().err


def test_a_pipeline_is_described(tmp_path, capsys):
  folder = toy_pipelines.folder(tmp_path / "sd")
  assert main(["info", f"--model={folder}", f"--json={tmp_path / 'info.json'}"]) == 0
  said = capsys.readouterr().out
  assert "DDIMScheduler" in said and "diffusers-unet, " in said and "hf-clip-text, " in said
  facts = json.loads((tmp_path / "info.json").read_text())
  assert facts["wrong"] == {} and facts["parameters"] == sum(part["parameters"] for part in facts["parts"].values())
  assert main(["info", str(folder), "--part=vae"]) == 0
  assert "diffusers' AutoencoderKL" in capsys.readouterr().out


def test_a_single_file_is_described_whole_and_by_part(tmp_path, capsys):
  single = toy_pipelines.file(tmp_path / "file", xl=True)
  named, _ = st.read(single)
  st.write(single, named | {name: tensors.of(np.zeros((0,), np.float32)) for name in ("v_pred", "ztsnr")})       # as others write it
  assert main(["info", str(single), f"--json={tmp_path / 'info.json'}"]) == 0
  facts = json.loads((tmp_path / "info.json").read_text())
  assert set(facts["parts"]) == {"denoiser", "autoencoder", "text/first", "text/second"} and facts["format"] == "ldm"
  assert (facts["scheduler"], facts["prediction"], facts["zero_terminal_snr"]) == ("EulerDiscreteScheduler", "v_prediction", True)
  assert facts["parameters"] == sum(part["parameters"] for part in facts["parts"].values()) and facts["wrong"] == {}
  capsys.readouterr()
  assert main(["info", f"--model={single}", "--part=vae"]) == 0
  said = capsys.readouterr().out
  assert "a single file of Stable Diffusion" in said and "text/first" not in said


def test_what_sampling_and_loading_would_refuse_is_told(tmp_path, capsys):
  folder = toy_pipelines.folder(tmp_path / "x4", enlarges=True)
  change = lambda name, **keys: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | keys))
  change("scheduler/scheduler_config.json", thresholding=True)
  change("low_res_scheduler/scheduler_config.json", beta_end=7)
  shutil.rmtree(folder / "vae")
  name = next((folder / "text_encoder").glob("*.safetensors"))
  named, _ = st.read(name)
  turned = next(tensor for tensor in named if tensor.endswith("fc1.weight"))
  st.write(name, named | {turned: tensors.of(np.asarray(named[turned].read()).T)})
  assert main(["info", str(folder), f"--json={tmp_path / 'info.json'}"]) == 0
  wrong = json.loads((tmp_path / "info.json").read_text())["wrong"]
  assert "scheduler_config.json (DDIMScheduler): thresholding: True is a variant that" in wrong["scheduler"]["refused"]
  assert "low_res_scheduler (DDPMScheduler): beta_end: expected a number from 0 to 1, found 7" in wrong["low_res_scheduler"]["refused"]
  assert wrong["autoencoder"] == dict(missing=["all of it"]) and wrong["text"] == dict(misshapen=[f"{turned} [12, 16], expected [16, 12]"])
  (folder / "scheduler" / "scheduler_config.json").unlink()
  capsys.readouterr()
  assert main(["info", str(folder)]) == 0
  assert "no scheduler/scheduler_config.json: took Stable Diffusion's levels" in capsys.readouterr().out


def test_one_path_is_given_once(capsys):
  assert main(["info"]) == 64 and main(["info", "a", "--model=b"]) == 64
  assert "give one path, `mmdiff info PATH` or --model=PATH; found 2" in capsys.readouterr().err


def test_names_that_would_move_the_terminal_are_shown_as_escapes_and_cut(tmp_path, capsys):
  evil, long = "\x1b[2J\x1b]0;owned\x07\nfine: all", "a" * 70_000
  st.write(tmp_path / "evil.safetensors", {name: tensors.of(np.zeros((2,), np.float32)) for name in (evil, long)})
  assert main(["info", str(tmp_path / "evil.safetensors")]) == 65
  said = capsys.readouterr().err
  assert "\x1b" not in said and "\\u001b[2J" in said and said.count("\n") == 1 and "(70,000 letters)" in said and len(said) < 2_000
  shutil.copytree(FIXTURES / "open_clip_rn", tmp_path / "rn")
  weights = next((tmp_path / "rn").glob("*.safetensors"))
  st.write(weights, st.read(weights)[0] | {evil: tensors.of(np.zeros((2,), np.float32))})
  assert main(["info", str(tmp_path / "rn")]) == 0
  said = capsys.readouterr().out
  assert "\x1b" not in said and "\\u001b[2J" in said and "\nfine" not in said
