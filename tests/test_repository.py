"""What is written about the repository is so: commands in the documents, paths, the set-up, and that CI and people run the same things."""
import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from launch import check
from mmdiff.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))


def blocks(path: Path, language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def lines(path: Path) -> list[list[str]]:
  """The words of every command in a document's shell blocks, without comments and leading VARIABLE=value."""
  found = []
  for block in blocks(path, "bash"):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
      if words:
        found.append(words)
  return found


SCRIPTS = ("tests.peers.clip_step", "tests.peers.decode_speed", "tests.peers.pipeline_speed", "tests.full_size")
COMMAND_LINES = [pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}") for path in DOCUMENTS for words in lines(path)]


def check_mmdiff(argv: list[str]) -> None:
  """Raises ConfigError for a line that mmdiff would refuse."""
  assert argv[0] in COMMANDS
  check.check(argv)


def header_lines(path: Path) -> list[list[str]]:
  """The command lines in the docstring of a config or a command: indented, with what they do behind two spaces or on the next lines.
  Brackets around what may be left out are taken off, and an ellipsis stands for more of the kind."""
  doc = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or "").replace("\\\n", " ")
  found = []
  for line in re.findall(r"^ {2}(mmdiff .*)$", doc, re.M):
    line = re.split(r" {2,}", re.sub(r" +(?=--)", " ", line))[0]
    found.append([word for word in shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", line)) if word != "…"])
  return found


HEADERS = [*sorted((ROOT / "configs").rglob("*.py")), *sorted((ROOT / "mmdiff" / "commands").glob("*.py"))]


def test_the_files_that_head_with_commands_are_found():
  heads = {path.name for path in HEADERS if header_lines(path)}
  assert {path.name for path in (ROOT / "configs").rglob("*.py")} - heads == {"__init__.py", "common.py"}
  assert {f"{name}.py" for name in COMMANDS} <= heads


@pytest.mark.parametrize("path", [path for path in HEADERS if header_lines(path)], ids=lambda path: path.name)
def test_commands_in_headers_are_valid(path):
  for words in header_lines(path):
    check_mmdiff([word.replace("--config=FILE", "--config=configs/t2i_latent.py:tiny") for word in words[1:]])


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_commands_in_the_documents_are_valid(words):
  program, rest = words[0], words[1:]
  if program == "mmdiff":
    check_mmdiff(rest)
  elif program == "make":
    goals = [word for word in rest if "=" not in word]
    assert goals and set(goals) <= TARGETS
    subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
  elif program.startswith("launch/"):
    env = dict(os.environ, MMDIFF_PYTHON=sys.executable)
    done = subprocess.run([str(ROOT / program), *rest], cwd=ROOT, env=env, capture_output=True, text=True)       # dry run
    assert done.returncode == 0 and "dry run" in done.stdout, done.stderr
  elif rest[:2] == ["-m", "launch.local"]:
    check_mmdiff(rest[rest.index("--") + 1:])
  elif rest[:1] == ["-m"] and rest[1] in SCRIPTS:
    parse = f"from {rest[1]} import arguments; arguments({rest[2:]!r})"
    subprocess.run([sys.executable, "-c", parse], cwd=ROOT, check=True)
  else:
    raise AssertionError(f"no test knows how to check {' '.join(words)}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_blocks_parse(path):
  for block in blocks(path, "bash"):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
  for block in blocks(path, "python"):
    ast.parse(block)
  fences = re.findall(r"^```(\w*)$", path.read_text(encoding="utf-8"), re.M)
  assert set(fences) <= {"bash", "python", ""} and len(fences) % 2 == 0


def test_cheap_commands_of_the_readme_run():
  argv = next(words for words in lines(ROOT / "README.md") if words[:2] == ["mmdiff", "doctor"] and "--keys" in words)
  done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and "batch_size" in done.stdout, done.stderr
  done = subprocess.run([sys.executable, "-m", "mmdiff", "--help"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_paths_in_the_documents_exist(path):
  text = path.read_text(encoding="utf-8")
  links = [target for target in re.findall(r"\]\(([^)#:]+)\)", text)]
  quoted = re.findall(r"`((?:mmdiff|configs|launch|tests|docs|\.ci|\.github)/[\w./-]*|[\w.-]+\.(?:md|txt|toml|yaml))`", text)
  absent = [target for target in links if not (path.parent / target).exists()]
  absent += [target for target in quoted if not (ROOT / target).exists() and "MODULE" not in target]
  assert not absent


def test_ci_and_pre_commit_call_make_targets():
  workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
  runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
  hooks = [hook["entry"] for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
  assert "make test" in runs and ".ci/run" in runs
  for command in runs + hooks:
    assert command == ".ci/run" or command.split()[0] == "make" and set(command.split()[1:]) <= TARGETS
  steps = re.findall(r"^step make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.M)
  assert steps == ["setup", "test", "test-long", "test-peers", "demo-short"] and set(steps) <= TARGETS
  assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_every_target_is_phony_and_explained():
  phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split())
  assert TARGETS == phony
  done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
  assert phony - {"help", "lock"} <= set(done.stdout.split())


def test_requirements_pin_every_dependency_and_nothing_else_than_versions():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  name = lambda line: re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-")
  wanted = {name(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]}
  pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
  assert wanted <= {name(line) for line in pinned}
  assert all(re.fullmatch(r'[a-z0-9.-]+==[\w.+]+( ; python_version (<|>=) "3\.12")?', line) for line in pinned)


def test_no_file_names_a_package_registry():
  files = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("requirements*.txt"), *(ROOT / ".ci").iterdir(),
           *(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", *(ROOT / "launch").glob("*.*")]
  for path in files:
    assert not re.search(r"https?://|--(extra-)?index-url|find-links", path.read_text(encoding="utf-8")), path


def test_the_interpreter_is_chosen_by_trying(tmp_path):
  shim = tmp_path / "python3"
  shim.write_text("#!/bin/sh\necho 'no such version' >&2\nexit 127\n")
  shim.chmod(0o755)
  real = tmp_path / "python3.12"
  real.symlink_to(sys.executable)
  env = dict(os.environ, PATH=f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin", PYTHON="")
  found = subprocess.run(["/bin/sh", str(ROOT / ".ci" / "python")], env=env, capture_output=True, text=True, check=True).stdout.strip()
  assert found != str(shim)
  named = subprocess.run(["/bin/sh", str(ROOT / ".ci" / "python")], env=env | dict(PYTHON=str(shim)), capture_output=True, text=True)
  assert named.returncode == 1 and "PYTHON=" in named.stderr


def test_the_licence_is_apache():
  text = (ROOT / "LICENSE").read_text()
  assert "Apache License" in text and "Version 2.0" in text and len(text) > 10_000
