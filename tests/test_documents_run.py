"""Every command and every block of Python that the documents show runs, on toys of the files that it names (`tests.toy_world`)."""
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import mmdiff
from launch import local
from mmdiff import parallel
from mmdiff.__main__ import main
from mmdiff.commands import flags
from mmdiff.train import distributed, loop, setup
from tests import documents, toy_world
from tests.documents import ROOT, Line

# Lines that can't run here, or run elsewhere, and why.
HUB = "it goes to the network; tests/commands/test_get.py fetches from a stand-in of the hub"
FETCHES = "it installs packages; .ci/run calls it in a clean checkout"
PEERS = "it needs the PyTorch libraries, as `make test-peers` does"
ARM = "it wants all that the paper's ablation reads; tests/commands/test_ablate.py trains an arm of a tiny one, and reports it"
ELSEWHERE = {
  "make demo": "17 minutes; .ci/run walks the same path with `make demo-short`",
  "make test": "it is what runs this test",
  "make setup EXTRAS=cuda": FETCHES,
  "make lock": FETCHES,
  "make clean test": FETCHES,
  "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv-peers/bin/python -m tests.peers.decode_speed --batch_size=4 --cores=1": PEERS,
  "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv-peers/bin/python -m tests.peers.pipeline_speed --cores=1": PEERS,
  ".venv-peers/bin/python -m tests.peers.clip_step --variant=ViT-B/32 --batch_size=32 --rounds=3 --steps=2 --cores=1": PEERS,
  "python -m tests.full_size --folder=/tmp/sd15 --steps=2": "it writes and reads 4 GB and takes 10 GiB of memory",
  "mmdiff demo --workdir=runs/demo": "it is `make demo`",
  "mmdiff demo --workdir=runs/demo --tiny": "it is `make demo-short`, which .ci/run calls",
  "mmdiff ablate --config=configs/ablations/caption_mix.py:demo --workdir=runs/caption_mix":
    "14 minutes; `make demo-short` runs it with `tiny`",
  "mmdiff ablate --config=configs/ablations/caption_mix.py --workdir=DIR --arm=long95 --seed=1": ARM,
  "mmdiff ablate --config=configs/ablations/caption_mix.py --workdir=DIR --report": ARM,
  "mmdiff data build emoji --out=data/emoji": "it needs the system's emoji font; tests/data/test_emoji.py draws it where it is",
  "mmdiff data build emoji --out=DIR": "the same",
  "mmdiff get openai/clip-vit-base-patch32": HUB,
  "mmdiff get stable-diffusion-v1-5/stable-diffusion-v1-5 --variant=fp16 --out=sd15": HUB,
  "mmdiff get stabilityai/sdxl-vae@main --out=vae": HUB,
  "mmdiff get ORG/NAME/vae": HUB,
  "mmdiff info openai/clip-vit-base-patch32": HUB,
  "mmdiff info hf://openai/clip-vit-base-patch32@main": HUB,
}
# Words that stand for something, and what they stand for here.
PLACES = [(r"\bSOURCE$", "data/tars"), (r"=FILE$", "=configs/t2i_latent.py:tiny"), (r"=/(data|shared|mnt)/", r"=\1/"),
          (r"^--batch_size=256$", "--batch_size=8"), (r"^/shared/experiments$", "runs")]
PYTHON = ("README.md", "docs/weights.md", "mmdiff/model.py")          # those with blocks of Python
# Of the lines of `mmdiff train` those of these configs train two steps; the others go up to their first step, which takes up to a minute to
# compile.
TRAINED = {f"--config=configs/{name}" for name in ("clip.py:tiny", "clip.py:variant=ViT-B/32", "coca_long.py:tiny", "coca_clip.py:tiny")}
CHEAP = ("info", "convert", "data", "report")           # commands whose lines take a second or two, but for those that need a large toy
LINES = [line for line in documents.every_line() if line.text not in ELSEWHERE]


def is_cheap(line: Line) -> bool:
  return line.words[1] in CHEAP and not {"precompute", "--src=runs/sd"} & set(line.words)


def test_every_line_runs_here_or_says_where():
  """ELSEWHERE holds lines that are documented, and no line that could run."""
  known = {line.text for line in documents.every_line()}
  assert set(ELSEWHERE) <= known
  assert {str(path.relative_to(ROOT)) for path in documents.DOCUMENTS if documents.blocks(path, "python")} == set(PYTHON[:-1])
  assert len(LINES) > 90 and len(LINES) + len(ELSEWHERE) == len(known)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  make_mesh = parallel.make_mesh

  def small_mesh(*, data=-1, fsdp=1, tensor=1, devices=None):
    """Of as few devices as the config can do with: what is compiled for eight takes twice as long."""
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices or jax.devices()[:fsdp * tensor])

  # Of rbg's random numbers a program compiles in a fraction of the time that threefry's take: initial values are most of a tiny run's.
  with toy_world.small_presets(), jax.default_prng_impl("rbg"), pytest.MonkeyPatch.context() as patch:
    patch.setattr(distributed, "initialize", lambda: None)          # this process used JAX already, which is too late to join others
    patch.setattr(parallel, "make_mesh", small_mesh)
    yield toy_world.World(tmp_path_factory.mktemp("world"))


def placed(line: Line) -> list[str]:
  """The words with what they stand for here, and a range of shards cut to two."""
  words = list(line.words)
  for pattern, value in PLACES:
    words = [re.sub(pattern, value, word) for word in words]
  return [toy_world.RANGE.sub(r"{\1..00001}", word) for word in words]


def config_of(words: list[str]):
  """The config that a line makes, or None."""
  if not any(word.startswith("--config=") for word in words) or words[1] == "demo":
    return None
  table = dict(config=dict(required=True, **(dict(schema="mmdiff.core.ablation:Ablation") if words[1] == "ablate" else {})))
  return flags.parse([word for word in words if word.startswith(("--config=", "--config."))], table)["config"]


def prepared(line: Line, world, folder: Path) -> list[str]:
  """The words to run in a folder that has what they name."""
  words = placed(line)
  words += toy_world.smaller(words, config_of(words))
  made = ("--out=", "--json=") + (("--workdir=",) if words[1] in ("train", "ablate", "doctor") else ())
  world.put(folder, " ".join(re.sub(r"^--[\w.]+=", "", word) for word in words[1:] if not word.startswith(made)))
  world.put(folder, toy_world.said(config_of(words) or {}))
  if words[1] == "runs":                             # which looks below a folder for what was trained, and names no run
    world.put(folder, "runs/clip")
    (folder / "runs" / "clip" / "metrics.jsonl").write_text('{"step": 2000, "loss": 0.5}\n')
  return words


def start(config, workdir, *, objective, dataset, evaluators, initialise, **_) -> None:
  """In place of `loop.train`: all that comes before the first step, without compiling it. The weights that the run starts from, its
  evaluators and their data are there by now."""
  example, *others = dataset.variants()
  mesh = parallel.make_mesh(**config["mesh"])
  made = setup.plan(config, objective, example, mesh=mesh, others=others)
  with jax.set_mesh(mesh):
    jax.eval_shape(made.step, made.state, made.batches[0])
  batch = next(iter(dataset.train_batches(batch_size=config["batch_size"])))
  assert {name: value.shape for name, value in batch.items()} == {name: value.shape for name, value in made.batches[0].items()}


@pytest.mark.parametrize("line", [pytest.param(line, id=f"{line.file}: {line.text}", marks=[] if is_cheap(line) else [pytest.mark.long])
                                  for line in LINES if line.words[0] == "mmdiff" and not line.variables])
def test_a_documented_line_runs(line, world, tmp_path, monkeypatch, capfd):
  words = prepared(line, world, tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))
  if words[1] == "train" and line.words[2] not in TRAINED:
    monkeypatch.setattr(loop, "train", start)
  code = main(words[1:])
  assert code == 0, f"{' '.join(words)}\n{capfd.readouterr().err}"
  made = [word.partition("=")[2] for word in words if word.startswith(("--out=", "--workdir=", "--json=")) and words[1] != "doctor"]
  assert all((tmp_path / name).exists() for name in made if "--plan" not in words)


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0].startswith("launch/")], ids=lambda line: line.text)
def test_a_cluster_script_says_what_it_would_do(line):
  """Without --run a script executes nothing, as the documents say."""
  done = subprocess.run([str(ROOT / line.words[0]), *line.words[1:]], cwd=ROOT, env=dict(os.environ, MMDIFF_PYTHON=sys.executable),
                        capture_output=True, text=True)
  assert done.returncode == 0 and "dry run" in done.stdout, done.stderr


@pytest.mark.parametrize("line", [
  pytest.param(line, id=f"{line.file}: {line.text}", marks=[] if "launch.check" in line.words else [pytest.mark.long])
  for line in LINES if line.words[0] == "python" or line.variables])
def test_a_line_of_processes_of_its_own_runs(line, world, tmp_path):
  words, here = list(line.words), {"python": [sys.executable], "mmdiff": [sys.executable, "-m", "mmdiff"]}
  if "launch.check" not in words:
    mine = ["mmdiff", *words[words.index("train"):]]
    words += toy_world.smaller(mine, config_of(mine))
  variables = dict(word.split("=", 1) for word in line.variables)
  if "MMDIFF_COORDINATOR" in variables:
    variables["MMDIFF_COORDINATOR"] = f"127.0.0.1:{local.free_port()}"
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu") | variables
  environment.pop("XLA_FLAGS")            # the suite's own
  done = subprocess.run([*here[words[0]], *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  made = [tmp_path / word.partition("=")[2] for word in words if word.startswith("--workdir=")]
  assert "launch.check" in words or (made[0] / "report.html").is_file()


@pytest.mark.long
@pytest.mark.parametrize("path", [ROOT / name for name in PYTHON], ids=lambda path: path.name)
def test_documented_python_runs(path, world, tmp_path, monkeypatch):
  """The blocks of a file one after another in one namespace."""
  blocks = documents.blocks(path, "python") or documents.header_python(path)
  rng = np.random.default_rng(0)
  scope = dict(images=list(rng.integers(0, 256, (3, 32, 32, 3), np.uint8)), texts=["a red circle"], mmdiff=mmdiff,
               pictures=list(rng.integers(0, 256, (2, 16, 16, 3), np.uint8)), mask=(mask := np.pad(np.ones((8, 8), bool), 4)))
  world.put(tmp_path, " ".join(re.findall(r'load\("([^"]+)"', "".join(blocks))))
  monkeypatch.chdir(tmp_path)
  assert blocks
  for block in blocks:
    exec(compile(textwrap.dedent(block), str(path), "exec"), scope)          # noqa: S102
  if "scores" in scope:
    assert scope["scores"].shape == (3, 2) and np.isfinite(scope["scores"]).all()
  if "with_ball" in scope:
    assert (np.asarray(scope["with_ball"])[~mask] == np.asarray(scope["picture"])[~mask]).all()
