"""Flags, config files and overrides: right ones are read by type, wrong ones are all named at once."""
import importlib
import json
import textwrap

import pytest

from mmdiff.__main__ import COMMANDS, main
from mmdiff.commands import flags
from mmdiff.core.errors import ConfigError
from mmdiff.data.decode import MAX_PIXELS

FLAGS = {
  "workdir": dict(type="str", required=True, help="run directory"),
  "steps": dict(type="int", default=20, help="steps"),
  "guidance": dict(type="float", help="scale"),
  "grid": dict(type="bool", default=True, help="one picture"),
  "seeds": dict(type="int,", default=(), help="seeds"),
  "sampler": dict(choices=("euler", "heun"), default="euler", help="solver"),
}
CLIP = "--config=configs/clip.py:tiny"


def lines(argv, table=None):
  with pytest.raises(ConfigError) as error:
    flags.parse(argv, {"config": dict(required=True)} if table is None else table)
  return str(error.value).splitlines()


def config(*argv):
  return flags.load_config([CLIP, *argv])


def test_flags_in_every_form():
  given = flags.parse(["--workdir", "a b", "--steps=3", "--nogrid", "--seeds=1,2", "--sampler=heun", "--guidance", "-1.5"], FLAGS)
  assert given == dict(workdir="a b", steps=3, guidance=-1.5, grid=False, seeds=(1, 2), sampler="heun")
  assert flags.parse(["--workdir=x", "--steps=1", "--steps=2", "--grid=false"], FLAGS)["steps"] == 2
  assert flags.parse(["--workdir=x"], FLAGS) == dict(workdir="x", steps=20, guidance=None, grid=True, seeds=(), sampler="euler")


def test_words_without_dashes():
  assert flags.parse(["build", "emoji", "--workdir=x"], FLAGS, positional=("action", "what"))["what"] == "emoji"
  assert flags.parse(["build", "--workdir=x"], FLAGS, positional=("action", "what"))["what"] is None
  for words in ((), ("a",), ("a", "b", "c")):
    assert flags.parse([*words, "--workdir=x"], FLAGS, positional=("runs,",))["runs"] == words
  assert lines(["build", "--workdir=x"], FLAGS) == ["'build': unexpected; flags are --name=value"]


def test_required_flags_come_first_without_names():
  table = FLAGS | {"config": dict(required=True)}
  given = flags.parse(["run", "configs/clip.py:tiny", "--steps=3", "--config.steps=9"], table)
  assert given["workdir"] == "run" and given["config"]["steps"] == 9 and given["steps"] == 3
  assert lines(["a", "b", "c", "--steps=3"], FLAGS) == [f"{word!r}: unexpected; flags are --name=value" for word in "bc"]
  # Behind a flag they are what the shell made of a text without quotes.
  assert lines(["--sampler=heun", "red", "circle"], FLAGS)[0] == "'red': unexpected; flags are --name=value"


def test_wrong_flags_are_all_named():
  assert lines(["--wrkdir=x", "--steps=1.5", "--sampler=huen", "--grid=perhaps", "--seeds=1,b", "--guidance"], FLAGS) == [
    "--wrkdir: unknown flag; did you mean --workdir?",
    "--workdir: required; run directory",
    "--steps: expected int, found '1.5'",
    "--guidance: needs a value",
    "--grid: expected bool, found 'perhaps'",
    "--seeds: expected tuple of int, found '1,b'",
    "--sampler: expected one of 'euler', 'heun', found 'huen'; did you mean 'heun'?",
  ]
  assert lines(["--workdir=x", "--config.steps=2"], FLAGS) == ["--config.steps: this command takes no --config"]


def test_overrides_are_typed():
  made = config("--config.steps=7", "--config.optim.default.lr=1", "--config.data.augment.flip", "--config.data.augment.crop=0.5,1",
                "--config.mesh.fsdp", "2", "--config.freeze=image/.*", "--config.objective.loss=sigmoid", "--config.data.sidecar=a=b.jsonl")
  assert made["steps"] == 7
  assert made["optim"]["default"]["lr"] == 1.0 and isinstance(made["optim"]["default"]["lr"], float)
  assert made["data"]["augment"] == dict(crop=(0.5, 1.0), flip=True, sentences=False, position="centre")
  assert made["mesh"]["fsdp"] == 2 and made["freeze"] == ("image/.*",) and made["data"]["sidecar"] == "a=b.jsonl"
  assert config("--noconfig.data.augment.flip")["data"]["augment"]["flip"] is False
  assert config("--config.data.augment=none")["data"]["augment"] is None
  assert config("--config.data.augment=none", "--config.data.augment.flip=true")["data"]["augment"]["flip"] is True
  assert config("--config.data.augment.crop=0.5,1", "--config.data.augment.crop[0]=0.25")["data"]["augment"]["crop"] == (0.25, 1.0)
  assert config("--config.freeze=('image/a{1,2}',)")["freeze"] == ("image/a{1,2}",)


def test_defaults_are_filled_in_where_the_file_is_silent():
  made = config()
  assert made["max_bad_steps"] == 20 and made["data"]["max_pixels"] == MAX_PIXELS and made["optim"]["default"]["mu_dtype"] == "float32"
  assert config("--config.max_bad_steps=3")["max_bad_steps"] == 3


def test_free_mappings_gain_lose_and_replace_entries():
  assert config("--config.data.captions.long=0.5", "--config.data.captions.short=0.45")["data"]["captions"] == \
    dict(long=0.5, original=0.05, short=0.45)
  assert config("--config.data.captions.original=none", "--config.data.captions.long=1")["data"]["captions"] == dict(long=1.0)
  assert config('--config.data.captions={"short": 1}')["data"]["captions"] == dict(short=1.0)
  assert config("--config.ema.eval=0.99")["ema"] == dict(eval=0.99)
  assert config("--config.ema.eval=0.99", "--config.ema.eval2=0.9")["ema"] == dict(eval=0.99, eval2=0.9)
  assert config("--config.evals.retrieval=none")["evals"] == {}
  extra = config("--config.optim.image.lr=1e-4", "--config.optim.image.name=lion")["optim"]["image"]
  assert extra["name"] == "lion" and extra["lr"] == 1e-4


def test_a_new_name_drops_the_keys_of_the_old_one():
  group = config("--config.optim.default.lr=2e-4", "--config.optim.default.name=lion")["optim"]["default"]
  assert group["lr"] == 2e-4 and "eps" not in group
  assert lines([CLIP, "--config.data.source.name=folder"]) == ["--config.data.source.path: missing; expected str"]


def test_wrong_overrides_are_all_named():
  found = lines([CLIP, "--config.optim.default.lrr=1", "--config.stes=2", "--config.lr=3", "--config.steps=abc",
                 "--config.objective.los=softmax", "--config.objective.loss=softmx", "--config.data=3", "--config.mesh",
                 "--config.evals.retrieva.every_steps=2", "--config.seed.x=1", "--config.optim.default.name=adam"])
  assert [line for line in found if ": unknown key" in line] == [
    "--config.optim.default.lrr: unknown key; did you mean --config.optim.default.lr?",
    "--config.stes: unknown key; did you mean --config.steps?",
    "--config.lr: unknown key; did you mean --config.optim.default.lr?",
    "--config.objective.los: unknown key; did you mean --config.objective.loss?",
    "--config.evals.retrieva.every_steps: unknown key; did you mean --config.evals.retrieval.every_steps?",
    "--config.seed.x: unknown key; did you mean --config.seed?",
  ]
  assert "--config.steps: expected int, found 'abc'" in found
  assert "--config.objective.loss: expected one of 'softmax', 'sigmoid', found 'softmx'; did you mean 'softmax'?" in found
  assert any(line.startswith("--config.data: a block of keys, found '3'; set --config.data.source") for line in found)
  assert any(line.startswith("--config.mesh: a block of keys") for line in found)
  assert any(line.startswith("--config.optim.default.name: expected one of 'adamw'") and "did you mean 'adamw'" in line for line in found)


def test_a_misspelt_caption_kind_is_not_a_new_one():
  assert lines([CLIP, "--config.data.captions.lon=0.95"]) == [
    "--config.data.captions.lon: unknown key; did you mean --config.data.captions.long?"]


def test_flags_overrides_and_file_are_reported_together(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(textwrap.dedent("""
    from configs import clip
    def get_config(arg=""):
      config = clip.get_config("tiny")
      config.stepz = 3
      config.optim.default.lr = "fast"
      return config
  """))
  found = lines([f"--config={file}", "--config.seeed=1", "--workdri=x"], FLAGS | {"config": dict(required=True)})
  assert found == [
    "--workdri: unknown flag; did you mean --workdir?",
    "--workdir: required; run directory",
    "--config.seeed: unknown key; did you mean --config.seed?",
    f"{file}: config.optim.default.lr: expected float, found str 'fast'",
    f"{file}: config.stepz: unknown key; did you mean config.steps?",
  ]


@pytest.mark.parametrize("text,message", [
  ("def get_config(:\n", "mine.py:1: invalid syntax"),
  ("def get_config():\n  return 1 / 0\n", "mine.py:2: ZeroDivisionError: division by zero"),
  ("def get_config():\n  return 3\n", "expected a config (a mapping), found int"),
  ("x = 3\n", "has no function get_config"),
  ("import nothing_like_it\n", "mine.py:1: ModuleNotFoundError"),
])
def test_config_files_that_do_not_run(tmp_path, text, message):
  (tmp_path / "mine.py").write_text(text)
  found = lines([f"--config={tmp_path / 'mine.py'}"])
  assert len(found) == 1 and message in found[0]


def test_an_ablations_config_says_which_command_takes_it():
  line, = lines(["--config=configs/ablations/caption_mix.py:demo"])
  assert "an ablation's config, of several experiments; run it with `mmdiff ablate --config=configs/ablations/caption_mix.py:demo" in line


def test_missing_file_lists_those_there_are(tmp_path, monkeypatch):
  for typed in ("configs/clp.py", "clip", "clip.py:tiny", "config/clip.py"):
    found = lines([f"--config={typed}"])
    assert len(found) == 1 and "did you mean configs/clip.py?" in found[0] and "configs/siglip.py" in found[0]
  monkeypatch.chdir(tmp_path)            # configs are found from anywhere
  assert config()["steps"] == 300


def test_arguments_of_a_config():
  assert "unknown config argument 'tinny'" in lines(["--config=configs/clip.py:tinny"])[0]
  assert flags.load_config(["--config=configs/clip.py:variant=ViT-L/14@336"])["data"]["image_size"] == 336


def test_placeholders_are_missing_until_set(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(textwrap.dedent("""
    from configs import clip
    from ml_collections import config_dict
    def get_config():
      config = clip.get_config("tiny")
      config.steps = config_dict.required_placeholder(int)
      config.data.sidecar = config_dict.placeholder(str)
      return config
  """))
  assert lines([f"--config={file}"]) == [f"{file}: config.data.sidecar: expected str, found None",
                                         f"{file}: config.steps: missing; expected int"]
  made = flags.load_config([f"--config={file}", "--config.steps=4", "--config.data.sidecar=x"])
  assert made["steps"] == 4 and made["data"]["sidecar"] == "x"


@pytest.mark.parametrize("name", ["clip.py:tiny", "siglip.py:tiny", "t2i_pixels.py", "clip.py", "clip.py:emoji", "siglip.py",
                                  "t2i_pixels.py:tier=T64"])
def test_a_saved_config_reads_back_as_itself(tmp_path, name):
  made = flags.load_config([f"--config=configs/{name}"])
  (tmp_path / "config.json").write_text(json.dumps(made))
  assert flags.saved_config(tmp_path / "config.json") == made
  assert flags.load_config([f"--config={tmp_path}"]) == made
  assert flags.load_config([f"--config={tmp_path / 'config.json'}", "--config.steps=9"])["steps"] == 9
  (tmp_path / "config.json").write_text(json.dumps(made)[:-1])
  with pytest.raises(ConfigError, match="not valid JSON"):
    flags.saved_config(tmp_path / "config.json")


@pytest.mark.parametrize("line,says", [
  ("bench --config=configs/clip.py:tiny --guidance=3", "--guidance: says nothing without --what=sample"),
  ("bench --config=configs/clip.py:tiny --what=data --sampling_steps=3", "--sampling_steps: says nothing without --what=sample"),
  ("doctor --keys", "--keys: says nothing without --config"), ("doctor --nostep", "--step: says nothing without --config"),
  ("doctor --config=configs/clip.py:tiny --keys --workdir=x", "--workdir: says nothing beside --keys"),
  ("doctor --config=configs/clip.py:tiny --keys --json=x", "--json: says nothing beside --keys"),
  ("evaluate --compare=a.json,b.json --task=retrieval", "--task: says nothing beside --compare"),
  ("evaluate --compare=a.json,b.json --task.limit=3", "--task.limit: says nothing beside --compare"),
  ("evaluate --workdir=x --task=loss --table=prompts", "--table: says nothing without --compare"),
  ("ablate --config=configs/ablations/caption_mix.py --workdir=x --plan --arm=long95", "--arm: says nothing beside --plan"),
  ("ablate --config=configs/ablations/caption_mix.py --workdir=x --plan --report", "--report: says nothing beside --plan"),
  ("caption --model=x --data=scenes --out=y --seed=3", "--seed: says nothing without --method=sample"),
  ("sample --model=x --prompts=y --out=z --handover=0.5", "--handover: says nothing without --refiner"),
  ("sample --model=x --prompts=y --out=z --guidance=1 --negative=blurred", "--negative: says nothing with --guidance=1"),
  ("data build emoji --out=x --tier=T16", "--tier: says nothing without --what=scenes"),
  ("data build scenes --out=x --font=y", "--font: says nothing without --what=emoji"),
  ("data shard scenes --out=x --dataset_name=y", "--dataset_name: says nothing without --format=array_record"),
  ("data shard scenes --out=x --format=array_record --per_shard=9", "--per_shard: says nothing without --format=webdataset"),
])
def test_a_flag_that_would_change_nothing_is_refused(line, says, capsys):
  assert main(line.split()) == 64
  assert says in capsys.readouterr().err


NUMBERLESS = {"train", "demo", "doctor", "get", "list", "report", "runs", "completion"}


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NUMBERLESS))
def test_numbers_beyond_any_use_are_refused(command):
  """Every number of every command: a line for each, at once, before anything is read."""
  table = importlib.import_module(f"mmdiff.commands.{command}").FLAGS
  numbers = [name for name, flag in table.items() if flag.get("type", "str").rstrip(",") in ("int", "float")]
  for text in ("nan", "inf", "1e308", str(10 ** 18), "9" * 5_000):
    words = [f"--{name}={text}" for name in numbers]
    with pytest.raises(ConfigError) as error:
      flags.parse(words, {name: {key: value for key, value in table[name].items() if key not in ("needs", "apart")} for name in numbers})
    said = str(error.value).splitlines()
    assert len(said) == len(numbers) and all(len(line) < 300 for line in said)


@pytest.mark.parametrize("line, says", [
  ("train --config=configs/clip.py:tiny --workdir=w --batch_size=16", "--batch_size: unknown flag; did you mean --config.batch_size?"),
  ("train --config=configs/clip.py:tiny --workdir=w --steps=9", "--steps: unknown flag; did you mean --config.steps?"),
  ("train --config=configs/clip.py:tiny --workdir=w --lr=1", "--lr: unknown flag; did you mean --config.optim.default.lr?"),
  ("train --lr=1", "--lr: unknown flag; did you mean --config.optim.default.lr?"),
  ("train --learning-rate=1", "--learning_rate: unknown flag; did you mean --config.optim.default.lr?"),
  ("train --wrkdir=w", "--wrkdir: unknown flag; did you mean --workdir?"),
  ("bench --config=configs/clip.py:tiny --batchsize=2", "did you mean --batch_size?"),
  ("train --config=configs/clip.py:tny --workdir=w", "unknown config argument 'tny'; known: variant, tiny, emoji; did you mean "
   "configs/clip.py:tiny?"),
  ("train --config=configs/clip.py:tiny,emoji --workdir=w", "--config=configs/clip.py:tiny,emoji: config arguments tiny and emoji don't"),
  ("ablate --config=configs/clip.py:tiny --workdir=w", "an experiment's config, not an ablation's, which has a base and arms; train it "
   "with `mmdiff train --config=configs/clip.py:tiny --workdir=DIR`"),
])
def test_hints_at_what_was_meant(line, says, capsys):
  assert main(line.split()) == 64
  assert says in capsys.readouterr().err


def test_a_slip_within_a_block_is_a_key_of_it():
  assert lines([CLIP, "--config.objective.model.widht=3"])[0].endswith("did you mean --config.objective.model.text_width?")
  assert lines([CLIP, "--config.checkpoint.qqqqqqqqq=3"]) == [
    "--config.checkpoint.qqqqqqqqq: unknown key; the keys of checkpoint are every_steps, keep"]
