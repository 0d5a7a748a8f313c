"""The floors of the package, and what holds in every file."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mmdiff", "configs", "launch", "tests", ".ci")

# Package or module -> floor. Imports point to lower floors; the longest name that fits counts.
FLOORS = {
  "mmdiff.core": 0,
  "mmdiff.losses": 1, "mmdiff.diffusion": 1, "mmdiff.data": 1, "mmdiff.nn": 1, "mmdiff.parallel": 1, "mmdiff.optim": 1, "mmdiff.decode": 1,
  "mmdiff.models": 2,
  "mmdiff.models.clip": 3, "mmdiff.models.coca": 3, "mmdiff.models.flops": 3,
  "mmdiff.objectives": 4, "mmdiff.convert": 4, "mmdiff.evaluators": 4, "mmdiff.train": 4,
  "mmdiff.report": 4,
  "mmdiff.commands": 5, "mmdiff.model": 5, "mmdiff.abilities": 5, "mmdiff.prompted": 5, "mmdiff.asked": 5, "mmdiff.__main__": 5,
  "mmdiff.runs": 5,
}
# Between neighbours on one floor: who may import whom, and why.
NEIGHBOURS = {
  ("mmdiff.models.flops", "mmdiff.models.clip"): "counts the FLOPs of the composite",
  ("mmdiff.models.flops", "mmdiff.models.coca"): "counts the FLOPs of the composite",
  ("mmdiff.train", "mmdiff.convert"): "a run may start from a public checkpoint",
  ("mmdiff.report", "mmdiff.train"): "a page reads what a run wrote, with the words of its log",
  ("mmdiff.report", "mmdiff.evaluators"): "and says which results are not alike",
  ("mmdiff.model", "mmdiff.abilities"): "what a loaded model can be asked",
  ("mmdiff.model", "mmdiff.prompted"): "what a loaded model that draws can be asked",
  ("mmdiff.model", "mmdiff.asked"): "what a call was given",
  ("mmdiff.abilities", "mmdiff.asked"): "what a call was given",
  ("mmdiff.prompted", "mmdiff.asked"): "what a call was given",
  ("mmdiff.prompted", "mmdiff.abilities"): "a model that draws is a model",
  ("mmdiff.commands", "mmdiff.prompted"): "a command refuses what a model can't honour before it draws",
  ("mmdiff.commands", "mmdiff.model"): "a command serves a loaded model",
  ("mmdiff.runs", "mmdiff.model"): "a run loads the model that it made",
  ("mmdiff.runs", "mmdiff.commands"): "Python trains what the command trains",
  ("mmdiff.model", "mmdiff.commands"): "a run directory's config goes through the same check as a flag's",
  ("mmdiff.__main__", "mmdiff.commands"): "dispatch",
}
FORBIDDEN = {"torch", "transformers", "diffusers", "tensorflow", "pickle", "dill", "cloudpickle", "joblib"}
CONFIGS_MAY = {"configs", "ml_collections"}
# value_and_grad is the mark of a training step: there is one.
STEP = "mmdiff/train/step.py"
# A loss whose definition contains a gradient would be listed here with its equation.
NESTED_GRADIENTS: dict[str, str] = {
  "mmdiff/losses/adversarial.py": "VQGAN's adaptive weight, a ratio of gradient norms (https://arxiv.org/abs/2012.09841, eq. 7)",
}


def sources(*folders):
  return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, known: set[str]):
  """(line, module) of every import in a file, inside functions too; `from mmdiff import optim` is mmdiff.optim."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: relative import"
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        yield node.lineno, full if full in known else node.module


def package(module: str) -> str:
  """The entry of FLOORS that a module belongs to."""
  fits = [name for name in FLOORS if module == name or module.startswith(name + ".")]
  return max(fits, key=len, default="")


def test_every_module_has_a_floor():
  homeless = [module for path in sources("mmdiff") if (module := module_of(path)) != "mmdiff" and not package(module)]
  assert not homeless, f"give {homeless} a floor in FLOORS and in CONTRIBUTING.md"


def test_imports_point_down():
  known = {module_of(path) for path in sources("mmdiff")}
  wrong = []
  for path in sources("mmdiff"):
    importer = package(module_of(path))
    if not importer:
      continue
    for line, target in imports(path, known):
      imported = package(target)
      if not imported or imported == importer or (importer, imported) in NEIGHBOURS:
        continue
      if FLOORS[imported] >= FLOORS[importer]:
        wrong.append(f"{path.relative_to(ROOT)}:{line}: floor {FLOORS[importer]} imports {target}, floor {FLOORS[imported]}")
  assert not wrong, "\n".join(wrong)


def test_nothing_imports_what_the_project_does_without():
  known = {module_of(path) for path in sources("mmdiff")}
  wrong = [f"{path.relative_to(ROOT)}:{line}: {target}" for path in sources("mmdiff", "configs", "launch")
           for line, target in imports(path, known) if target.split(".")[0] in FORBIDDEN]
  assert not wrong, "\n".join(wrong)


def test_data_and_literal_tables_are_without_jax():
  known = {module_of(path) for path in sources("mmdiff")}
  files = sources("mmdiff/data") + [ROOT / "mmdiff" / "__main__.py"] + list((ROOT / "mmdiff").rglob("__init__.py"))
  wrong = [f"{path.relative_to(ROOT)}:{line}: {target}" for path in files for line, target in imports(path, known)
           if target.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax")]
  assert not wrong, "\n".join(wrong)


def test_init_files_hold_literal_tables_only():
  allowed = (ast.Assign, ast.AnnAssign, ast.Expr)
  for path in (ROOT / "mmdiff").rglob("__init__.py"):
    if path.parent.name == "mmdiff":
      continue
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
      assert isinstance(node, allowed), f"{path.relative_to(ROOT)}:{node.lineno}: more than a docstring and literal tables"
      ast.literal_eval(node.value)


def test_configs_import_ml_collections_and_each_other_only():
  wrong = [f"{path.relative_to(ROOT)}:{line}: {target}" for path in sources("configs") for line, target in imports(path, set())
           if target.split(".")[0] not in CONFIGS_MAY]
  assert not wrong, "\n".join(wrong)
  program = "import importlib, sys\n" + "".join(f"importlib.import_module('{module_of(path)}')\n" for path in sources("configs"))
  subprocess.run([sys.executable, "-c", program + "assert 'jax' not in sys.modules, 'a config imports jax'"], cwd=ROOT, check=True)


def called(path: Path, names: set[str]):
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if (isinstance(node, ast.Attribute) and node.attr in names) or (isinstance(node, ast.Name) and node.id in names):
      yield node.lineno


def test_one_place_takes_gradients_for_training():
  gradients = {"value_and_grad", "grad", "vjp", "linearize", "value_and_grad_from_state"}
  places = {str(path.relative_to(ROOT)) for path in sources("mmdiff") if list(called(path, gradients))}
  assert places - set(NESTED_GRADIENTS) == {STEP}
  assert len([line for line in (ROOT / STEP).read_text().splitlines() if "jax.value_and_grad(" in line]) == 1


def test_nothing_is_unpickled():
  for path in sources("mmdiff", "launch", "configs"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Call):
        for keyword in node.keywords:
          is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
          assert not (keyword.arg == "allow_pickle" and is_true), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_files_are_short_enough_to_read_whole():
  long = [f"{path.relative_to(ROOT)}: {lines}" for path in sources(*FOLDERS)
          if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400]
  assert not long, f"over 400 lines: {long}"


def test_there_is_no_grab_bag():
  assert not [path for path in sources("mmdiff") if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_every_module_has_its_tests():
  """mmdiff/PACKAGE/MODULE.py is tested by tests/PACKAGE/test_MODULE.py (a longer name, test_MODULE_WHAT.py, also counts)."""
  missing = []
  for path in sources("mmdiff"):
    if path.stem == "__init__" or str(path.relative_to(ROOT)) in TESTED_ELSEWHERE:
      continue
    folder = ROOT / "tests" / path.relative_to(ROOT / "mmdiff").parent
    name = path.stem.strip("_")
    if not any(folder.glob(f"test_{name}.py")) and not any(folder.glob(f"test_{name}_*.py")):
      missing.append(str(path.relative_to(ROOT)))
  assert not missing, f"without tests of their own: {missing}"


def test_the_table_of_exceptions_is_current():
  for name, where in TESTED_ELSEWHERE.items():
    assert (ROOT / name).exists() and (ROOT / where).exists(), name
  for pair in NEIGHBOURS:
    assert set(pair) <= set(FLOORS)


# Modules whose tests stand in another file than their own: a description alone, or a part that is tested with its only user.
TESTED_ELSEWHERE = {
  "mmdiff/core/types.py": "tests/core/test_objective.py",
  "mmdiff/core/errors.py": "tests/test_main.py",
  "mmdiff/core/experiment.py": "tests/configs/test_mistakes.py",
  "mmdiff/core/ablation.py": "tests/commands/test_ablate.py",
  "mmdiff/core/signatures.py": "tests/core/test_schema.py",
  "mmdiff/data/scenes/alt_text.py": "tests/data/scenes/test_captions.py",
  "mmdiff/data/scenes/parse.py": "tests/data/scenes/test_captions.py",
  "mmdiff/data/scenes/wording.py": "tests/data/scenes/test_captions.py",
  "mmdiff/data/scenes/render.py": "tests/data/scenes/test_world.py",
  "mmdiff/data/scenes/tiers.py": "tests/data/scenes/test_world.py",
  "mmdiff/data/scenes/tfds_builder/mmdiff_scenes.py": "tests/data/scenes/test_tfds_builder.py",
  "mmdiff/report/reading.py": "tests/report/test_run.py",
  "mmdiff/report/style.py": "tests/report/test_html.py",
  "mmdiff/train/setup.py": "tests/train/test_step.py",
  "mmdiff/train/state.py": "tests/train/test_step.py",
}


@pytest.mark.parametrize("tool", [("ruff", "check", "--no-cache", "."), ("mypy",)], ids=["ruff", "mypy"])
def test_tools_find_nothing(tool):
  done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
