import json
from pathlib import Path

from mmdiff.__main__ import main
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
  assert "no run directory" in capsys.readouterr().err


def test_a_pipeline_is_described(tmp_path, capsys):
  folder = toy_pipelines.folder(tmp_path / "sd")
  assert main(["info", f"--model={folder}", f"--json={tmp_path / 'info.json'}"]) == 0
  said = capsys.readouterr().out
  assert "DDIMScheduler" in said and "diffusers-unet, " in said and "hf-clip-text, " in said
  facts = json.loads((tmp_path / "info.json").read_text())
  assert facts["wrong"] == {} and facts["parameters"] == sum(part["parameters"] for part in facts["parts"].values())
  single = toy_pipelines.file(tmp_path / "file")
  assert main(["info", f"--model={single}", "--part=vae"]) == 0
  assert "a single file of Stable Diffusion" in capsys.readouterr().out
