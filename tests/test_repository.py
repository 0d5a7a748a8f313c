"""What is written about the repository is so: commands in the documents, paths, the set-up, and that CI and people run the same things."""
import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from launch import check
from mmdiff.__main__ import COMMANDS
from tests import documents
from tests.documents import DOCUMENTS, ROOT, blocks

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))


SCRIPTS = ("tests.peers.clip_step", "tests.peers.decode_speed", "tests.peers.pipeline_speed", "tests.full_size")

def check_mmdiff(argv: list[str]) -> None:
  """Raises ConfigError for a line that mmdiff would refuse."""
  assert argv[0] in COMMANDS
  check.check(argv)


def test_the_files_that_head_with_commands_are_found():
  heads = {path.name for path in documents.HEADERS if documents.header_lines(path)}
  assert {path.name for path in (ROOT / "configs").rglob("*.py")} - heads == {"__init__.py", "common.py"}
  assert {f"{name}.py" for name in COMMANDS} <= heads


@pytest.mark.parametrize("line", list(documents.every_line()), ids=lambda line: f"{line.file}: {line.text[:60]}")
def test_commands_in_the_documents_are_valid(line):
  """At once, and without the toys that `test_documents_run.py` runs them on."""
  program, rest = line.words[0], list(line.words[1:])
  if program == "mmdiff":
    check_mmdiff([word.replace("--config=FILE", "--config=configs/t2i_latent.py:tiny") for word in rest])
  elif program == "make":
    goals = [word for word in rest if "=" not in word]
    assert goals and set(goals) <= TARGETS
    subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
  elif program.startswith("launch/"):
    assert os.access(ROOT / program, os.X_OK)
    check_mmdiff(rest[rest.index("--") + 1:])
  elif rest[:2] == ["-m", "launch.check"]:
    check_mmdiff(rest[2:])
  elif rest[:2] == ["-m", "launch.local"]:
    check_mmdiff(rest[rest.index("--") + 1:])
  elif rest[:1] == ["-m"] and rest[1] in SCRIPTS:
    parse = f"from {rest[1]} import arguments; arguments({rest[2:]!r})"
    subprocess.run([sys.executable, "-c", parse], cwd=ROOT, check=True)
  else:
    raise AssertionError(f"no test knows how to check {line.text}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_blocks_parse(path):
  for block in blocks(path, "bash"):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
  for block in blocks(path, "python"):
    ast.parse(block)
  fences = re.findall(r"^```(\w*)$", path.read_text(encoding="utf-8"), re.M)
  assert set(fences) <= {"bash", "python", ""} and len(fences) % 2 == 0


def test_cheap_commands_of_the_readme_run():
  known = [line.words for line in documents.lines(ROOT / "README.md")]
  argv = next(words for words in known if words[:2] == ("mmdiff", "doctor") and "--keys" in words)
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
