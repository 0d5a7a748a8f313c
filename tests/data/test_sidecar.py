import json
import pickle
import threading

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data.loader import dataset
from mmdiff.data.sidecar import Sidecar, join
from tests.data.worlds import World, tokenizer


def write(path, lines):
  path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  return str(path)


def test_joins_by_key_and_adds_kinds(tmp_path):
  path = write(tmp_path / "c.jsonl", [{"key": f"k{i}", "dense": f"dense {i} – ü", "long": f"better {i}"} for i in range(0, 40, 2)])
  source = join(World(40), path)
  assert source[4]["captions"] == {"long": "better 4", "original": "original caption of picture 4", "dense": "dense 4 – ü"}
  assert sorted(source[5]["captions"]) == ["long", "original"]
  assert len(source) == 40 and source.fingerprint() != World(40).fingerprint()
  assert World(40)[4]["captions"]["long"] == "long caption of picture 4"       # the source itself is as it was


def test_counts_of_a_half_captioned_set(tmp_path):
  path = write(tmp_path / "c.jsonl", [{"key": f"k{i}", "dense": f"dense {i}"} for i in range(50)])
  ds = dataset(World(100), tokenizer(), captions={"dense": 1.0}, image_size=8, text_len=16, sidecar=path, on_missing="original")
  counts = dict(zip(ds.count_names, ds.batch_at(0, batch_size=100)["counts"].sum(0).tolist()))
  assert counts["caption/dense"] == counts["caption/original"] == counts["missing/dense"] == 50


def test_kinds_of_several_lines_come_together(tmp_path, caplog):
  for name, kind in (("1.jsonl", "long"), ("2.jsonl", "short"), ("3.jsonl", "long")):
    write(tmp_path / name, [{"key": "k0", kind: f"{kind} of {name}"}])
  joined = join(World(4), str(tmp_path))
  assert joined[0]["captions"] == {"long": "long of 3.jsonl", "short": "short of 2.jsonl", "original": "original caption of picture 0"}
  assert joined.skipped == {"sidecar_line_replaced": 2}
  assert [record.getMessage().partition(": ")[2].partition(": ")[2] for record in caplog.records] == [
    "2 lines have the key of a later one, whose kinds replace theirs"]


def test_a_sidecar_of_other_keys_is_said(tmp_path, caplog):
  join(World(40), write(tmp_path / "a.jsonl", [{"key": "k39", "dense": "x"}, {"key": "k0", "dense": "x"}]))
  assert not caplog.records
  join(World(40), write(tmp_path / "b.jsonl", [{"key": f"images/k{i}.png", "dense": "x"} for i in range(40)]))
  assert "has no captions for any of the 8 records looked at, such as 'k0'; its keys are such as 'images/k0.png'" in caplog.text


def test_a_line_too_deep_or_too_long_a_number_names_itself(tmp_path):
  for line in ("[" * 100_000, '{"key": "a", "long": ' + "9" * 5000 + "}"):
    with pytest.raises(DataError, match="c.jsonl, line 2: not a JSON object"):
      Sidecar(write(tmp_path / "c.jsonl", [{"key": "b", "long": "x"}, line]))


def test_the_last_of_several_lines_wins_and_they_are_counted(tmp_path):
  lines = [{"key": "a", "long": "first"}, {"key": "b", "long": ["x", "y"]}, "\n", {"key": "a", "long": "second"}]
  path = write(tmp_path / "c.jsonl", lines)
  sidecar = Sidecar(path)
  assert sidecar.get("a") == {"long": "second"} and sidecar.get("b") == {"long": ["x", "y"]} and sidecar.get("c") == {}
  assert (sidecar.duplicates, len(sidecar), sidecar.kinds) == (1, 2, {"long": 3})


@pytest.mark.parametrize("line, said", [
  ('{"key": "a", "long": "x"\n', "line 2: not a JSON object"),
  ('["a"]\n', "line 2: expected"),
  ('{"long": "x"}\n', "line 2: expected"),
  ('{"key": 3, "long": "x"}\n', "line 2: expected"),
  ('{"key": "a", "long": 3}\n', "line 2: caption 'long' of record 'a' must be text"),
  ('{"key": "a", "long": []}\n', "line 2: caption 'long'"),
])
def test_a_malformed_line_is_named(tmp_path, line, said):
  path = write(tmp_path / "c.jsonl", [{"key": "z", "long": "fine"}, line])
  with pytest.raises(DataError) as error:
    Sidecar(path)
  assert said in str(error.value) and path in str(error.value)


def test_missing_and_empty_files_are_named(tmp_path):
  for path in (tmp_path / "none.jsonl", tmp_path):
    with pytest.raises(DataError, match="no file"):
      Sidecar(path)
  with pytest.raises(DataError, match="holds no captions"):
    Sidecar(write(tmp_path / "c.jsonl", ["\n"]))


def test_threads_and_copies_read_alike(tmp_path):
  path = write(tmp_path / "c.jsonl", [{"key": f"k{i}", "long": f"text {i}" * (i % 7 + 1)} for i in range(300)])
  sidecar, wrong = Sidecar(path), []
  sidecar.get("k1")
  copy = pickle.loads(pickle.dumps(sidecar))       # noqa: S301 (our own object)

  def read(which):
    wrong.extend(i for i in range(300) if which.get(f"k{i}") != {"long": f"text {i}" * (i % 7 + 1)})
  threads = [threading.Thread(target=read, args=(which,)) for which in (sidecar, sidecar, copy)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_a_folder_of_files_and_several_side_cars(tmp_path):
  folder = tmp_path / "dense"
  folder.mkdir()
  write(folder / "0.jsonl", [{"key": "k0", "dense": "first"}, {"key": "k1", "dense": "one"}])
  write(folder / "1.jsonl", [{"key": "k0", "dense": "second"}])
  short = write(tmp_path / "short.jsonl", [{"key": "k0", "short": "s", "long": "other"}])
  sidecar = Sidecar(folder)
  assert sidecar.get("k0") == {"dense": "second"} and (sidecar.duplicates, len(sidecar)) == (1, 2)
  assert list(sidecar.keys()) == ["k0", "k1", "k0"]
  source = join(World(2), f"{folder},{short}")
  assert source[0]["captions"] == {"original": "original caption of picture 0", "long": "other", "short": "s", "dense": "second"}
  assert source[1]["captions"]["dense"] == "one" and source.fingerprint() != join(World(2), str(folder)).fingerprint()


def test_a_large_one_is_indexed_once(tmp_path, monkeypatch):
  path = write(tmp_path / "c.jsonl", [{"key": f"k{i}", "long": f"text {i}"} for i in range(10_001)])
  first = Sidecar(path)
  assert (tmp_path / "c.jsonl.mmdiff-index").exists()
  monkeypatch.setattr(Sidecar, "_make", None)
  again = Sidecar(path)
  assert again.get("k77") == {"long": "text 77"} and again.fingerprint() == first.fingerprint() and again.kinds == {"long": 10_001}
  assert len(pickle.dumps(again)) < 2_000


def test_what_else_a_source_says_is_still_said(tmp_path):
  source = join(World(3), write(tmp_path / "c.jsonl", [{"key": "k0", "long": "x"}]))
  assert source.size == 8 and not hasattr(source, "shard_rows")
