"""What made a result: the code, the versions, the machine, the time. Imports no JAX."""
import datetime
import functools
import hashlib
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import mmdiff
from mmdiff.core.files import parse_json, versions

# Settings of the environment that change what is computed, or how.
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_")
MOST_PATCH = 2**20           # bytes of a patch that is kept whole


def _git(*words: str) -> str | None:
  """What git says of the checkout that this code runs from; None without one."""
  root = Path(mmdiff.__file__).parent.parent
  if not (root / ".git").exists():
    return None
  try:
    made = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=10, check=True, env=os.environ | {
      "GIT_OPTIONAL_LOCKS": "0", "GIT_EXTERNAL_DIFF": ""})
  except (OSError, subprocess.SubprocessError):
    return None
  return made.stdout.decode("utf-8", "replace").strip()


@functools.cache
def patch() -> str:
  """How the tracked files of the checkout differ from its commit; "" where they don't, or where there is no checkout."""
  return _git("diff", "--no-ext-diff", "--no-color", "HEAD") or ""


@functools.cache
def code() -> dict[str, Any]:
  """`commit`, and `patch`, the sha256 of what was changed since. Of an installed package that pip took from a commit, that commit; {} where
  neither is known and the version says all."""
  commit = _git("rev-parse", "HEAD")
  if commit:
    return dict(commit=commit, patch=hashlib.sha256(patch().encode()).hexdigest() if patch() else "")
  try:
    told = parse_json(metadata.distribution("mmdiff").read_text("direct_url.json") or "{}")
  except (metadata.PackageNotFoundError, OSError, ValueError):
    return {}
  commit = told.get("vcs_info", {}).get("commit_id") if isinstance(told, dict) else None
  return dict(commit=commit, patch="") if commit else {}


def now() -> str:
  """2026-01-31T12:00:00+00:00."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def made_by() -> dict[str, Any]:
  """The entries `versions`, `code`, `machine` and `at` of a result."""
  flags = {name: value for name, value in sorted(os.environ.items()) if name.startswith(FLAGS)}
  return dict(versions=versions(), code=code(), machine=dict(host=socket.gethostname(), system=platform.platform(), flags=flags), at=now())
