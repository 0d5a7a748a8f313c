"""`mmdiff get` and names of models, against a stand-in of the hub on loopback."""
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from mmdiff.commands import flags

FIXTURES = Path(__file__).parent.parent / "convert" / "fixtures"
COMMIT = "c0ffee" + "0" * 34


@contextlib.contextmanager
def stand_in(models):
  """(address, [paths asked for]) of a server that answers as the hub does; models: {ORG/NAME: {file: bytes}}."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
      self.answer()

    def do_GET(self):
      self.answer()

    def answer(self):
      parts = self.path.partition("?")[0].strip("/").split("/")
      repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
      files, revision = models.get(repo, {}), "/".join(parts[5:]) or "main" if parts[0] == "api" else parts[3]
      if not files or revision not in ("main", COMMIT):
        return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound" if files else "RepoNotFound"})
      if parts[0] == "api":
        told = dict(id=repo, sha=COMMIT, siblings=[dict(rfilename=name) for name in files])
        return self.reply(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
      name = "/".join(parts[4:])
      asked.append(name)
      return self.reply(200, files[name], {"ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def reply(self, code, body, headers):
      self.send_response(code)
      for key, value in {**headers, "Content-Length": str(len(body))}.items():
        self.send_header(key, value)
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(body)

    def log_message(self, *_):
      pass
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}", asked
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def mmdiff(*words, address, home, cwd):
  """The command in a process of its own: the hub's library reads its variables when it is imported."""
  env = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
  env |= dict(HF_ENDPOINT=address, HF_HOME=str(home), PYTHONPATH=str(flags.ROOT), HF_HUB_DISABLE_TELEMETRY="1")
  return subprocess.run([sys.executable, "-m", "mmdiff", *words], capture_output=True, text=True, cwd=cwd, env=env)


def test_a_model_is_fetched_and_found(tmp_path):
  files = {file.name: file.read_bytes() for file in (FIXTURES / "hf_clip").iterdir()} | {
    "pytorch_model.bin": b"never fetched", "README.md": b"", "run_me.py": b"", "onnx/model.safetensors": b""}
  with stand_in({"toy/clip": files}) as (address, asked):
    run = lambda *words: mmdiff(*words, address=address, home=tmp_path / "home", cwd=tmp_path)
    done = run("get", "toy/clip")
    assert done.returncode == 0, done.stderr
    where = Path(done.stdout.strip())
    assert where == tmp_path / "home" / "hub" / "models--toy--clip" / "snapshots" / COMMIT
    assert "model.safetensors" in asked and not {"pytorch_model.bin", "run_me.py", "README.md", "onnx/model.safetensors"} & set(asked)
    assert sorted(os.listdir(where)) == sorted(set(asked))
    wrong = run("get", "toy/clap")
    assert wrong.returncode == 65 and "the hub has no such model, or a private one" in wrong.stderr
    wrong = run("get", "toy/clip@v9")
    assert wrong.returncode == 65 and "the hub has no revision v9" in wrong.stderr
    done = run("get", "toy/clip", "--out=here")
    assert done.returncode == 0 and (tmp_path / "here" / "model.safetensors").read_bytes() == files["model.safetensors"]
  # And without a network: by its id, by the explicit name with a line that says so, and nothing that is not there.
  done = run("info", "toy/clip")
  assert done.returncode == 0 and "hf-clip" in done.stdout, done.stderr
  done = run("get", "hf://toy/clip")
  assert done.stdout.strip() == str(where) and "the hub cannot be reached" in done.stderr
  done = run("info", "hf://toy/other")
  assert done.returncode == 65 and "cannot be fetched" in done.stderr and "Traceback" not in done.stderr
