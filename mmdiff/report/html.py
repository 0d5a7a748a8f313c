"""The parts of an HTML page that needs nothing but itself: no request, no script but its own, every text escaped."""
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core.errors import ConfigError
from mmdiff.core.files import write_text
from mmdiff.report.charts import interval
from mmdiff.report.numbers import between, said, written
from mmdiff.report.style import POLICY, SCRIPT, STYLE

MARK = '<meta name="generator" content="mmdiff">'        # of pages that may be written anew
LONG = 24                    # letters from which on a text's column keeps some width

text = html.escape


class Markup(str):
  """Text that is HTML already."""


def page(title: str, body: str) -> str:
  """The whole document; the script comes with charts only."""
  script = f"<script>{SCRIPT}</script>" if "data-lines=" in body else ""
  return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">'
          f'<meta name="viewport" content="width=device-width, initial-scale=1">{MARK}<title>{text(title)}</title>'
          f"<style>{STYLE}</style></head><body><main>{body}</main>{script}</body></html>\n")


def write_page(out: Path, title: str, body: str) -> Path:
  """Writes the page, whole or not at all; its path. Raises CannotWrite."""
  write_text(out, page(title, body))
  return out


def check_free(out: Path) -> None:
  """Raises ConfigError for a file that is there and is no page of ours."""
  if out.is_dir():
    raise ConfigError(f"--out={out}: is a folder; name a file in it, as in --out={out / 'report.html'}")
  if out.exists() and MARK.encode() not in out.read_bytes()[:4_096]:
    raise ConfigError(f"--out={out}: is there, and no page that mmdiff wrote; choose another name")


def heading(level: int, title: str, note: str = "") -> str:
  """With a quiet remark behind it."""
  return f"<h{level}>{text(title)}{f' <small>{text(note)}</small>' if note else ''}</h{level}>"


def folded(title: str, body: str) -> str:
  return f"<details><summary>{text(title)}</summary>{body}</details>" if body else ""


def link(where: str, title: str) -> Markup:
  return Markup(f'<a href="{text(where)}">{text(title)}</a>')


def whole(words: str) -> Markup:
  """On one line."""
  return Markup(f'<span class="w">{text(words)}</span>')


def tiles(shown: Mapping[str, Any]) -> str:
  """Numbers over their names; None and "" are left out."""
  return '<div class="tiles">' + "".join(f'<div class="tile"><b>{text(written(name, value))}</b><span>{text(name)}</span></div>'
                                         for name, value in shown.items() if value is not None and value != "") + "</div>"


def table(rows: Sequence[Mapping]) -> str:
  """Rows of one table; `low` and `high` become the interval of the number before them, shares per cent and a bar."""
  if not rows:
    return ""
  keys = list(dict.fromkeys(key for row in rows for key in row))
  bounded = [row for row in rows if "low" in row and "high" in row]
  value_key = next((key for key in keys if bounded and all(_inside(row, key) for row in bounded)), None)
  keys = [key for key in keys if value_key is None or key not in ("low", "high")]
  numeric = {key for key in keys if all(_is_number(row[key]) for row in rows if row.get(key, "") != "")}
  heads = {key: f'<th{" class=n" if key in numeric else ""}>{text(said(str(key)))}</th>' for key in keys}
  head = "".join(made + ("<th>95 % interval</th>" if key == value_key else "") for key, made in heads.items())
  lines = []
  for row in rows:
    cells = []
    for key in keys:
      value = row.get(key, "")
      cells.append(f'<td class="{_kind(value)}">{cell(value, str(key))}</td>')
      if key == value_key:
        cells.append(f'<td class="w">{_whisker(row, key)}</td>')
    lines.append(f"<tr>{''.join(cells)}</tr>")
  return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _whisker(row: Mapping, key: str) -> str:
  if not _inside(row, key):
    return ""
  bar = interval(row[key], row["low"], row["high"]) if 0 <= row["low"] and row["high"] <= 1 else ""
  return f"{bar} {between(key, row['low'], row['high'])}"


def _inside(row: Mapping, key: str) -> bool:
  numbers: list[Any] = [row.get("low"), row.get(key), row.get("high")]
  real = all(_is_number(n) and math.isfinite(n) for n in numbers)
  return real and numbers[0] - 1e-9 <= numbers[1] <= numbers[2] + 1e-9


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
  """The class of a cell: numbers don't wrap, long texts keep some width."""
  return "n" if _is_number(value) else "l" if isinstance(value, str) and not isinstance(value, Markup) and len(value) > LONG else "t"


def cell(value: Any, name: str = "") -> str:
  """`name` says whether a number is a share."""
  if isinstance(value, Markup):
    return value
  if isinstance(value, bool):
    return '<span class="yes">✓</span>' if value else '<span class="no">✗</span>'
  return text(written(name, value)) if isinstance(value, (int, float, str)) else text(json.dumps(value))
