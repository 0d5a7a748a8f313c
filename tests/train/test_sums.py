"""`SHA256SUMS` of a run directory."""
import subprocess

import pytest

from mmdiff.core.errors import DataError
from mmdiff.train import sums


def test_what_is_written_is_vouched_for_in_the_form_of_sha256sum(tmp_path):
  sums.write_json(tmp_path, "config.json", dict(a=1))
  sums.write(tmp_path, "samples/x_00000001.png", b"png")
  (tmp_path / "tokenizer.json").write_text("{}")
  assert sums.inspect(tmp_path) == ([], ["tokenizer.json: has no line in SHA256SUMS"])
  sums.vouch(tmp_path, "tokenizer.json")
  assert sums.inspect(tmp_path) == ([], [])
  subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
  sums.check(tmp_path, "config.json", "tokenizer.json", "eval/none.json")
  (tmp_path / "tokenizer.json").write_text("[]")
  sums.vouch(tmp_path, "tokenizer.json")                                   # a line that is there stays
  with pytest.raises(DataError, match="tokenizer.json is not the file that was written"):
    sums.check(tmp_path, "config.json", "tokenizer.json")
  (tmp_path / "samples" / "x_00000001.png").unlink()
  assert sums.inspect(tmp_path)[0] == ["samples/x_00000001.png: missing", "tokenizer.json: differs from its line in SHA256SUMS"]
  sums.forget(tmp_path, ["samples/x_00000001.png"])
  assert sums.inspect(tmp_path)[0] == ["tokenizer.json: differs from its line in SHA256SUMS"]


def test_a_kill_at_any_moment_of_a_write_leaves_a_file_that_passes(tmp_path, monkeypatch):
  sums.write(tmp_path, "config.json", b"old")
  write, calls = sums.write_atomically, []

  def killed_after(count):
    def once(path, fill):
      if len(calls) == count:
        raise KeyboardInterrupt
      calls.append(path.name)
      write(path, fill)
    return once
  for count in (0, 1, 2):
    calls.clear()
    monkeypatch.setattr(sums, "write_atomically", killed_after(count))
    with pytest.raises(KeyboardInterrupt):
      sums.write(tmp_path, "config.json", f"new {count}".encode())
    sums.check(tmp_path, "config.json")
  monkeypatch.setattr(sums, "write_atomically", write)
  sums.write(tmp_path, "config.json", b"newest")
  assert sums.read(tmp_path)[0] == {"config.json": {sums.digest(tmp_path / "config.json")}}


def test_a_damaged_table_is_named_by_line(tmp_path):
  assert sums.inspect(tmp_path)[1] == ["SHA256SUMS is missing or empty: nothing vouches for config.json, run.json, code-*.patch, "
                                       "tokenizer.json, eval/*.json, samples/*.png"]
  sums.write(tmp_path, "config.json", b"{}")
  line = (tmp_path / "SHA256SUMS").read_text()
  (tmp_path / "SHA256SUMS").write_text(line + "g" + line[1:] + line[:30])
  assert sums.inspect(tmp_path)[0] == ["SHA256SUMS: line 2 is damaged", "SHA256SUMS: line 3 is damaged", "SHA256SUMS: cut short"]


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x1b[2J" * 50 + b"\n\n\n"])
def test_a_table_that_vouches_for_nothing_is_told_of_where_its_files_are_read(tmp_path, capsys, content):
  sums.write(tmp_path, "config.json", b"{}")
  sums.check(tmp_path, "config.json")
  (tmp_path / "SHA256SUMS").write_bytes(content)
  for _ in range(2):
    sums.check(tmp_path, "config.json", "tokenizer.json")
  said = capsys.readouterr().err
  assert "SHA256SUMS: " in said and "nothing vouches for config.json. Put SHA256SUMS back" in said and said.count("\n") == 1
