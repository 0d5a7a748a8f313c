"""A result says which code made it, also code that nobody has committed."""
import hashlib
import subprocess

import pytest

import mmdiff
from mmdiff.core import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A package in a repository of its own; what was asked before is forgotten."""
  (tmp_path / "mmdiff").mkdir()
  (tmp_path / "mmdiff" / "__init__.py").write_text("a = 1\n")
  monkeypatch.setattr(mmdiff, "__file__", str(tmp_path / "mmdiff" / "__init__.py"))
  for cached in (provenance.code, provenance.patch):
    cached.cache_clear()
  yield tmp_path
  for cached in (provenance.code, provenance.patch):
    cached.cache_clear()


def git(root, *words):
  settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
  return subprocess.run(["git", "-C", str(root), *settings, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_what_was_changed_since(checkout):
  git(checkout, "init", "-q")
  git(checkout, "add", "-A")
  git(checkout, "commit", "-qm", "first")
  assert provenance.code() == dict(commit=git(checkout, "rev-parse", "HEAD"), patch="")
  for cached in (provenance.code, provenance.patch):
    cached.cache_clear()
  (checkout / "mmdiff" / "__init__.py").write_text("a = 2\n")
  assert "+a = 2" in provenance.patch()
  assert provenance.code()["patch"] == hashlib.sha256(provenance.patch().encode()).hexdigest()


def test_without_a_checkout_the_version_says_all(checkout, monkeypatch):
  assert provenance.patch() == "" and "patch" not in provenance.code() or provenance.code()["patch"] == ""
  monkeypatch.setattr(provenance.metadata, "distribution", lambda name: type("Of", (), {
    "read_text": lambda self, file: '{"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'})())
  provenance.code.cache_clear()
  assert provenance.code() == dict(commit="abc", patch="")


def test_what_made_it(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
  made = provenance.made_by()
  assert made["machine"]["flags"]["XLA_FLAGS"] == "--xla_dump_to=x" and made["machine"]["host"] and made["versions"]["jax"]
  assert made["at"].endswith("+00:00")
