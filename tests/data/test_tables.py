"""Tables: no row is merged with its neighbour, cut or lost, whatever stands in its cells."""
import csv
import io
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import DataError
from mmdiff.data import tables
from mmdiff.data.quarantine import BadRecord

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def read(tmp_path, name, content):
  (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  return tables.read(str(tmp_path / name))[0]


def test_a_tsv_has_no_quoting(tmp_path):
  rows = read(tmp_path, "a.tsv", 'image\tcaption\na.png\t"Hello\nb.png\t5" nail\r\n\nc.png\t"quoted"\nd.png\tthe\u2028end')
  assert [(row["image"], row["caption"]) for row in rows] == [
    ("a.png", '"Hello'), ("b.png", '5" nail'), ("c.png", '"quoted"'), ("d.png", "the\u2028end")]


def test_a_tsv_that_a_csv_writer_made_reads_as_it_was_meant(tmp_path):
  texts = ['He said "hi"', '"', "plain", '""', 'end"']
  for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t", quoting=quoting)
    writer.writerows([["image", "caption"], *([f"{i}.png", text] for i, text in enumerate(texts))])
    assert [row["caption"] for row in read(tmp_path, "a.tsv", buffer.getvalue())] == texts


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_a_csv_writer_wrote_comes_back(tmp_path_factory, rows):
  buffer = io.StringIO(newline="")
  csv.writer(buffer).writerows([("image", "caption"), *rows])
  found = read(tmp_path_factory.mktemp("csv"), "a.csv", buffer.getvalue())
  assert found == [{"image": a or None, "caption": b or None} for a, b in rows]


@pytest.mark.parametrize("name, content", [
  ("a.csv", "image,caption\na.png,one, two\nb.png\nc.png,three,\nd.png,four"),              # too many, too few, none too many
  ("a.tsv", "image\tcaption\na.png\tone\ttwo\nb.png\nc.png\tthree\t\nd.png\tfour")])
def test_rows_that_do_not_fit_the_header_are_bad_records_with_their_line(tmp_path, name, content):
  rows = read(tmp_path, name, content)
  assert [row if isinstance(row, dict) else row.kind for row in rows] == [
    "unreadable", "unreadable", {"image": "c.png", "caption": "three"}, {"image": "d.png", "caption": "four"}]
  assert "line 2: 3 cells, the header has 2" in rows[0].detail and "line 3: 1 cells" in rows[1].detail


@pytest.mark.parametrize("content, said", [
  ('image,caption\na.png,x\nb.png,"open\nc.png,y\n', "line 3.*takes in line 4|line 3 to 4: unexpected end of data"),
  ('image,caption\na.png,"open\nb.png,5"\nc.png,y\n', "line 2: a quotation mark that opens there closes in line 3, and takes in line 3"),
  ('image,caption\n0017.avif,"open\n0018.avif,5"\n0019.avif,y\n', "line 2: .*takes in line 3"),
  ('id,caption\nrow-30,"open\nrow-31,5"\nrow-32,y\n', "line 2: .*takes in line 3"),
  ('image,caption\na.png,"open\nb.png,"closed"\n', "line 2 to 3: .*expected"),
  ('image,caption\na.png,"open', "line 2: unexpected end of data"),
  ("image,caption,caption\na.png,x,y\n", "'caption' twice")])
def test_quotation_marks_without_a_partner_are_refused_by_line(tmp_path, content, said):
  with pytest.raises(DataError, match=said):
    read(tmp_path, "a.csv", content)


def test_line_breaks_within_a_cell_stay(tmp_path):
  rows = read(tmp_path, "a.csv", 'image,caption\na.png,"one,\ntwo, three.\nfour"\n')
  assert rows == [{"image": "a.png", "caption": "one,\ntwo, three.\nfour"}]
  rows = read(tmp_path, "b.csv", 'id,caption\n17,"1, 2,\n12, 13\n14,15"\n')
  assert rows == [{"id": "17", "caption": "1, 2,\n12, 13\n14,15"}]


@pytest.mark.parametrize("name, content", [("a.csv", "image,caption\r\na.png,x"), ("a.tsv", "image\tcaption\r\na.png\tx"),
                                           ("a.jsonl", '{"image": "a.png", "caption": "x"}\r\n\r\n'),
                                           ("a.json", '[{"image": "a.png", "caption": "x"}]')])
def test_byte_order_marks_and_ends_of_lines(tmp_path, name, content):
  assert read(tmp_path, name, b"\xef\xbb\xbf" + content.encode()) == [{"image": "a.png", "caption": "x"}]


def test_a_json_line_that_was_cut_short_is_a_bad_record(tmp_path):
  rows = read(tmp_path, "a.jsonl", '{"image": "a.png"}\n{"image": "b.p')
  assert rows[0] == {"image": "a.png"} and isinstance(rows[1], BadRecord) and "line 2" in rows[1].detail
  assert isinstance(read(tmp_path, "a.jsonl", '{"n": ' + "9" * 5000 + "}\n" + '{"image": "a.png"}')[0], BadRecord)


def test_python_s_own_bound_of_a_cell_is_as_it_was(tmp_path, monkeypatch):
  """Though two tables are read at a time, of which the first begun ends first."""
  for name in "ab":
    (tmp_path / f"{name}.csv").write_text('image,caption\nx.png,"two\nlines"\n')
  before, begun, joined, done, is_row = csv.field_size_limit(), *(threading.Event() for _ in range(3)), tables._is_row

  def slow(*args):
    if threading.current_thread().name == "a":
      begun.set()
      joined.wait(0.1)                                 # for b to begin, if it may
    else:
      joined.set()
      done.wait(5)
    return is_row(*args)

  def work(name):
    tables.read(str(tmp_path / f"{name}.csv"))
    done.set()
  monkeypatch.setattr(tables, "_is_row", slow)
  threads = [threading.Thread(target=work, args=(name,), name=name) for name in "ab"]
  for thread in threads:
    thread.start()
    assert begun.wait(5)
  for thread in threads:
    thread.join()
  assert csv.field_size_limit() == before
