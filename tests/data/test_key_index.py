import pickle

import numpy as np

from mmdiff.data import key_index


def fill(builder):
  builder.extend(np.array([5, 3, 5, 2 ** 64 - 1], np.uint64), np.arange(4), np.arange(4) * 10)
  builder.add(3, 4, 40)
  return {"note": "x"}


def test_the_last_of_equal_keys_comes_first(tmp_path):
  table = key_index.cached(tmp_path / "index", [], fill)
  assert list(table.find(5)) == [(2, 20), (0, 0)] and list(table.find(3)) == [(4, 40), (1, 10)] and list(table.find(4)) == []
  assert list(table.find(2 ** 64 - 1)) == [(3, 30)] and table.facts == {"note": "x", "distinct": 3} and len(table) == 5
  assert not list(tmp_path.iterdir())                     # so small a table is not worth a file


def test_a_large_one_is_kept_and_mapped(tmp_path, monkeypatch):
  monkeypatch.setattr(key_index, "WORTH_KEEPING", 3)
  path, made = tmp_path / "index", []

  def once(builder):
    made.append(1)
    return fill(builder)
  for stamp in (["a"], ["a"], ["b"], ["b"]):
    table = key_index.cached(path, stamp, once)
    assert list(table.find(5)) == [(2, 20), (0, 0)] and isinstance(table.rows.base, np.memmap)
  assert len(made) == 2
  data = pickle.dumps(table)
  assert len(data) < 1000 and list(pickle.loads(data).find(3)) == [(4, 40), (1, 10)]       # noqa: S301 (our own object)
  path.write_bytes(path.read_bytes()[:-3])
  assert key_index.load(path, ["b"]) is None and list(key_index.cached(path, ["b"], once).find(3)) == [(4, 40), (1, 10)]


def test_where_it_can_not_be_kept_it_lives_in_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(key_index, "WORTH_KEEPING", 3)
  (tmp_path / "file").write_text("")
  table = key_index.cached(tmp_path / "file" / "index", [], fill)
  assert table.path is None and list(table.find(5)) == [(2, 20), (0, 0)]


def test_no_entries():
  assert list(key_index.Table(key_index.Builder().rows(), {}).find(1)) == []
