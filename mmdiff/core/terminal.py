"""What people read on a terminal, and in errors, of texts that strangers wrote: names of tensors, values of configs, captions.

Such a text may move the cursor, recolour the screen or reorder what stands beside it, and may be a megabyte long: every error of
`core.errors`, every notice and every table passes here, so that what quotes a text need not think of it.
"""
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Control characters but the line break and the tab, separators that count as line breaks, what turns the direction of letters, and half
# letters, which no terminal's encoding has.
MOVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
WORD, LINE = 500, 4_000                  # letters of a word without spaces, and of a line, beyond which it is cut
HEAD, TAIL = 0.6, 0.2                    # of these that stay


def escaped(text: str) -> str:
  """A text with what moves a terminal as JSON would write it (u001b after a backslash)."""
  return MOVING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable(text: str) -> str:
  """The same, with words and lines beyond `WORD` and `LINE` cut in their middle."""
  words = re.sub(rf"\S{{{WORD + 1},}}", lambda found: _cut(found[0], WORD), escaped(text))
  return re.sub(rf".{{{LINE + 1},}}", lambda found: _cut(found[0], LINE), words)


def one_line(text: str) -> str:
  """A printable text without line breaks, for what stands among other things on one: a name in a list, a cell of a table."""
  return printable(text).replace("\n", "\\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of the same keys as aligned columns; numbers to the right, with four decimals."""
  if not rows:
    return ""
  cell_of = lambda value: f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else one_line(str(value))
  shown = [[cell_of(value) for value in row.values()] for row in rows]
  names = list(rows[0])
  widths = [max(len(name), *(len(line[i]) for line in shown)) for i, name in enumerate(names)]
  left = [any(isinstance(row[name], str) for row in rows) for name in names]
  lay = lambda line: "  ".join(cell.ljust(w) if is_left else cell.rjust(w) for cell, w, is_left in zip(line, widths, left)).rstrip()
  return "\n".join([lay(names), *map(lay, shown)])


def tell(text: str) -> None:
  """A notice on stderr."""
  print(printable(text), file=sys.stderr, flush=True)


def _cut(text: str, most: int) -> str:
  return f"{text[:int(HEAD * most)]}… ({len(text):,} letters) …{text[-int(TAIL * most):]}"
