#!/usr/bin/env python3
"""Writes requirements.txt: the newest versions that the project allows, for Python 3.11 and for 3.12 and later, in one file.

  .ci/lock.py python3.11 python3.12

Each interpreter gets a fresh environment with the project's `dev` and `fast` extras; what pip resolved there is pinned. Packages whose
newest version differs between the two (JAX has newer releases for 3.12) get one line for each, told apart by an environment marker.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKERS = ('python_version < "3.12"', 'python_version >= "3.12"')


def resolve(python: str) -> dict[str, str]:
  """{package: version} of a fresh installation."""
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [f"{folder}/bin/python", "-m", "pip"]
    subprocess.run([*pip, "install", "-q", f"{ROOT}[dev,fast]"], check=True)
    listed = json.loads(subprocess.run([*pip, "list", "--format=json"], check=True, capture_output=True, text=True).stdout)
  return {item["name"].lower().replace("_", "-"): item["version"] for item in listed if item["name"] not in ("pip", "mmdiff")}


def merge(older: dict[str, str], newer: dict[str, str]) -> list[str]:
  """One line per package, or one per interpreter where they differ."""
  lines = []
  for name in sorted(older.keys() | newer.keys()):
    if older.get(name) == newer.get(name):
      lines.append(f"{name}=={older[name]}")
    else:
      lines += [f"{name}=={found[name]} ; {marker}" for found, marker in zip((older, newer), MARKERS) if name in found]
  return lines


if __name__ == "__main__":
  older, newer = (resolve(python) for python in sys.argv[1:])
  text = "# What CI runs, for Python 3.11 to 3.13. Written by `.ci/lock.py python3.11 python3.12`; see CONTRIBUTING.md.\n"
  (ROOT / "requirements.txt").write_text(text + "\n".join(merge(older, newer)) + "\n")
