"""The nearest known name, for a key, a flag or a file that does not exist."""
import functools
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 100          # letters of a word that may be a slip of the finger


def shown(value: Any, most: int = 80) -> str:
  """A value in a message: `repr`, cut where it is long. An int of thousands of digits, which Python will not print, says so."""
  try:
    text = repr(value)
  except (ValueError, RecursionError) as error:        # nested without end, or beyond sys.get_int_max_str_digits
    return f"<{type(value).__name__}: {error}>"[:most]
  return text if len(text) <= most else f"{text[:most - 25]}… ({len(text):,} letters)"


def brief(text: str, most: int = 600) -> str:
  """A message that quotes what others wrote, cut where it is long."""
  return text if len(text) <= most else f"{text[:most]}… ({len(text):,} letters)"


@functools.lru_cache(maxsize=100_000)
def edits(a: str, b: str) -> int:
  """Damerau–Levenshtein distance (optimal string alignment): insert, delete, replace, swap neighbours."""
  rows = [list(range(len(b) + 1))]
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      row.append(min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (x != y)))
      if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
        row[j] = min(row[j], rows[i - 2][j - 2] + 1)
    rows.append(row)
  return rows[-1][-1]


def _rank(word: str, known: str) -> tuple[int, bool, int, int]:
  """Fewest edits first; among equals the same first letter, as many letters in common, the same length: what a slip usually keeps."""
  return edits(word, known), word[:1] != known[:1], -len(set(word) & set(known)), abs(len(word) - len(known))


def nearest(word: str, known: Iterable[str]) -> str | None:
  """The known word with the fewest edits, or None if even that one is far."""
  if len(word) > LONGEST:
    return None
  best = min(known, key=lambda k: _rank(word.lower(), k.lower()), default=None)
  return best if best is not None and edits(word.lower(), best.lower()) <= max(2, len(word) // 2) else None


def _path_rank(typed: Sequence[str], known: Sequence[str]) -> tuple[int, ...] | None:
  """Cost of reading the dotted path `typed` as `known`: edits within parts, 2 for a level left out, 3 for one too many; None if far."""
  far: tuple[int, ...] = (10 ** 6,) * 4
  add = lambda *costs: tuple(map(sum, zip(*costs)))
  same = (0, 0, 0, 0)
  rows: list[list[tuple[int, ...]]] = [[(2 * j, 0, 0, 0) for j in range(len(known) + 1)]]
  for i, a in enumerate(typed, 1):
    extra = (3 + (i == len(typed)), 0, 0, 0)           # the last part is the key itself
    row = [add(rows[i - 1][0], extra)]
    for j, b in enumerate(known, 1):
      close = edits(a, b) <= max(2, len(a) // 2)
      read = add(rows[i - 1][j - 1], (same if a == b else tuple(map(int, _rank(a, b)))) if close else far)
      # A level left out at the very end would read a key as the block that holds it.
      skip = far if j == len(known) else (2, 0, 0, 0)
      row.append(min(read, add(row[j - 1], skip), add(rows[i - 1][j], extra)))
    rows.append(row)
  best = rows[-1][-1]
  return best if best[0] <= max(6, 2 * len(typed)) else None


def children(block: str, known: Iterable[str]) -> list[str]:
  """The keys of a block among known dotted paths, in their order; "" is the whole."""
  return [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == block]


def _inside(word: str, keys: Sequence[str]) -> str | None:
  """The key of a block that a word means, whole or in a part between underscores: "widht" is meant as "image_width"."""
  cost = lambda key: min(edits(word, key), *(1 + edits(word, part) for part in key.split("_")))
  best = min(keys, key=lambda key: (cost(key), _rank(word, key)), default=None)
  return best if best is not None and cost(best) <= max(2, len(word) // 2) else None


def nearest_path(path: str, known: Iterable[str]) -> str | None:
  """The known dotted path that `path` most likely means: parts misspelt, a level forgotten ("lr" for
  "optim.default.lr") or one too many. What begins with a block that is there is a key of it, and never the block itself."""
  typed, known = path.split("."), list(known)
  if len(path) > LONGEST or len(typed) > LONGEST // 4:
    return None
  block, _, last = path.rpartition(".")
  if block and (keys := children(block, known)):
    if guess := _inside(last, keys):
      return f"{block}.{guess}"
    known = [name for name in known if not f"{block}.".startswith(f"{name}.")]
  ranked = [(rank, name) for name in known if (rank := _path_rank(typed, name.split("."))) is not None]
  return min(ranked)[1] if ranked else None
