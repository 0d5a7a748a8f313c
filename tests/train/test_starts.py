"""run.json keeps every start, with its end where there was one."""
import json

from mmdiff.core import provenance
from mmdiff.train import starts, sums


def test_every_start_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance, "code", lambda: dict(commit="abc", patch="d" * 64))
  monkeypatch.setattr(provenance, "patch", lambda: "+a = 2")
  times = iter(("10:00", "11:00", "12:00"))
  monkeypatch.setattr(provenance, "now", lambda: next(times))
  began = starts.begin(tmp_path, dict(argv=["train", "--a b"]))
  starts.end(tmp_path, began, 12.34)
  starts.begin(tmp_path, dict(argv=["train", "again"]))
  for refused in ("", "09:00"):                       # a start that never began ends no other one
    starts.end(tmp_path, refused, 99.0)
  found = json.loads((tmp_path / "run.json").read_text())
  assert [start["argv"][1] for start in found["starts"]] == ["--a b", "again"] and found["argv"] == ["train", "again"]
  assert found["starts"][0]["seconds"] == 12.3 and "ended" in found["starts"][0] and "ended" not in found["starts"][1]
  assert found["code"]["commit"] == "abc" and (tmp_path / f"code-{'d' * 12}.patch").read_text() == "+a = 2\n"
  assert set(sums.read(tmp_path)[0]) == {"run.json", f"code-{'d' * 12}.patch"}


def test_a_damaged_note_is_no_reason_not_to_go_on(tmp_path):
  (tmp_path / "run.json").write_text('{"starts": 3')
  starts.end(tmp_path, "10:00", 1.0)
  starts.begin(tmp_path, dict(argv=["train"]))
  assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1
