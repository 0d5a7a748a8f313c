"""Tables of records: CSV, TSV, JSON lines and JSON lists, of which no row is merged, cut or lost in silence.

CSV is RFC 4180's: a cell with a comma, a quotation mark or a line break stands in quotation marks, and those within it are doubled. TSV is
IANA's text/tab-separated-values: it has no quoting, a quotation mark is a character like any other; cells that a CSV writer quoted all the
same are undone where that shows. A row whose cells don't fit the header is a bad record of its own.
"""
import contextlib
import csv
import hashlib
import io
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core.errors import DataError
from mmdiff.core.files import parse_json
from mmdiff.data import records
from mmdiff.data.quarantine import BadRecord

BOUND = threading.Lock()
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
LINE_END = re.compile(r"\r\n|\n|\r")
QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read(path: str) -> tuple[list[dict[str, Any] | BadRecord], str]:
  """The rows of a file and a digest of its bytes. Raises DataError for one that is no table, that names the line.

  A line that can't be read becomes BadRecord("unreadable"); bytes that are not UTF-8 survive as lone surrogates, so that only the
  field that holds them is faulty. Empty cells of CSV and TSV are None.
  """
  data = Path(path).read_bytes()
  if Path(path).suffix.lower() == ".parquet":
    from mmdiff.data import parquet
    return parquet.rows(path), hashlib.blake2b(data, digest_size=16).hexdigest()
  content, digest = data.decode("utf-8-sig", "surrogateescape"), hashlib.blake2b(data, digest_size=16).hexdigest()
  suffix = Path(path).suffix.lower()
  if suffix not in SUFFIXES:
    raise DataError(f"{path}: unknown kind of table {suffix!r}; expected {', '.join(SUFFIXES)}")
  rows = list(_cells(path, _lines_of_cells(path, content, suffix)) if suffix in (".csv", ".tsv") else _objects(path, content, suffix))
  if not rows:
    raise DataError(f"{path}: no rows; expected a header and one line per picture")
  return rows, digest


def parsed(path: str, content: str) -> Any:
  """A JSON file's value. Raises DataError."""
  try:
    return parse_json(content, nan=True)
  except ValueError as error:
    raise DataError(f"{path}: not JSON ({error}); write it anew") from None


def _objects(path: str, content: str, suffix: str) -> Iterator[dict[str, Any] | BadRecord]:
  items = content.split("\n") if suffix == ".jsonl" else parsed(path, content)
  if not isinstance(items, list):
    raise DataError(f"{path}: found a JSON {type(items).__name__}, expected a list of objects with a picture and a caption "
                    "(for COCO annotation files use the source `coco`)")
  for number, item in enumerate(items, 1):
    if isinstance(item, str) and suffix == ".jsonl":
      if not item.strip():
        continue
      try:
        item = parse_json(item, nan=True)
      except ValueError as error:
        yield BadRecord("unreadable", f"{path} line {number}: {error}")
        continue
    yield item if isinstance(item, dict) else BadRecord("unreadable", f"{path} item {number}: not an object")


def _cells(path: str, rows: Iterator[tuple[int, Sequence[str]]]) -> Iterator[dict[str, Any] | BadRecord]:
  _, header = next(rows, (0, ()))
  twice = sorted({name for name in header if name and list(header).count(name) > 1})
  if twice:
    raise DataError(f"{path}: the header has {', '.join(map(repr, twice))} twice, so that one column would hide the other; rename one")
  for line, cells in rows:
    if len(cells) < len(header) or any(cells[len(header):]):
      yield BadRecord("unreadable", f"{path} line {line}: {len(cells)} cells, the header has {len(header)}")
    else:
      yield {name: cell or None for name, cell in zip(header, cells) if name}


def _lines_of_cells(path: str, content: str, suffix: str) -> Iterator[tuple[int, Sequence[str]]]:
  """(number of its first line, cells) of every row, the header first; blank lines are none."""
  if suffix == ".csv":
    yield from _csv(path, content, ",")
    return
  lines = LINE_END.split(content)
  if all(QUOTED.fullmatch(cell) for cell in lines[0].split("\t")):        # a CSV writer told to quote everything, with tabs for commas
    yield from _csv(path, content, "\t")
    return
  for number, line in enumerate(lines, 1):
    if line.strip(" \0"):
      yield number, [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
  """A cell that a CSV writer quoted because it holds quotation marks, which are doubled then, without; any other as it is."""
  quoted = QUOTED.fullmatch(cell)
  return quoted[1].replace('""', '"') if quoted and '""' in quoted[1] else cell


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
  """Cells of CSV as long as a text may be. Python has one bound for the whole process, so that it is ours only while a table is read."""
  with BOUND:
    before = csv.field_size_limit(records.MAX_TEXT_BYTES)
    try:
      yield
    finally:
      csv.field_size_limit(before)


def _csv(path: str, content: str, delimiter: str) -> Iterator[tuple[int, Sequence[str]]]:
  lines = list(io.StringIO(content, newline=""))
  reader, width, first = csv.reader(lines, delimiter=delimiter, strict=True), 0, 1
  found = []
  try:
    with _long_cells():
      for cells in reader:
        for at in range(first, reader.line_num):       # further lines of a row: a quotation mark was open
          if width > 1 and _is_row(lines[at], delimiter, width, cells):
            raise DataError(f"{path}: line {first}: a quotation mark that opens there closes in line {reader.line_num}, and takes in line "
                            f"{at + 1}, which is a row by itself; close it, or write it twice where it is part of the text")
        width = width or len(cells)
        found += [(first, cells)] if cells else []
        first = reader.line_num + 1
  except csv.Error as error:
    raise DataError(f"{path}: line {first}{'' if reader.line_num <= first else f' to {reader.line_num}'}: {error}; expected a CSV with a "
                    "header row, whose quotation marks come in pairs") from None
  yield from found


def _is_row(line: str, delimiter: str, width: int, row: Sequence[str]) -> bool:
  """Whether a line alone has as many cells as the header, one of them a picture's name or shaped as its neighbour in `row`, which took the
  line in: "0018.avif" as "0017.avif", "row-31" as "row-30"."""
  cells = [cell.strip('" \r\n').lower() for cell in line.split(delimiter)]
  return len(cells) >= width and (any(cell.rpartition(".")[2] in records.PICTURES and "." in cell for cell in cells)
                                  or any(_shape(cell) == _shape(own.lower()) != "" for cell, own in zip(cells, row)))


def _shape(cell: str) -> str:
  """A numbered name with its digits as 0; "" for what is none, or a number of less than four digits, as texts have them."""
  return re.sub("[0-9]", "0", cell) if re.fullmatch(r"\S*[0-9]\S*[0-9]\S*", cell) and not re.fullmatch("[0-9]{1,3}", cell) else ""
