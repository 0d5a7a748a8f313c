"""How numbers and names are written on a page: few digits, shares in per cent, thousands apart."""
import math
from collections.abc import Mapping
from typing import Any

from mmdiff.train.headlines import is_share

DASH = "–"


def number(value: Any) -> str:
  """Few digits, whatever the size, for axes and keys: 1234567 -> "1.23M", 0.000012 -> "1.2e-05"."""
  if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
    return str(value)
  for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= limit:
      return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
  if isinstance(value, int) or value == int(value):
    return f"{int(value)}"
  return f"{value:.1e}" if abs(value) < 1e-4 else f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"


def percent(value: float) -> str:
  """0.535 -> "53.5 %"; two digits more where little is left of it."""
  return f"{100 * value:.1f} %" if value == 0 or abs(value) >= 1e-3 else f"{100 * value:.2g} %"


def written(name: str, value: Any) -> str:
  """A value of a table: `name` says whether it is a share. Whole numbers are whole, with their thousands apart."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    return str(value)
  if is_share(name) and isinstance(value, float) and 0 <= value <= 1:
    return percent(value)
  return f"{value:,.0f}" if value == int(value) or abs(value) >= 1e3 else number(float(value))


def said(name: str) -> str:
  """A scalar's name in words: "image_to_text/recall_at_1" -> "image to text · recall at 1"."""
  return name.replace("/", " · ").replace("_", " ")


def between(name: str, low: float, high: float) -> str:
  return f"{written(name, low)} {DASH} {written(name, high)}"


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
  """{"optim.default.lr": 1e-3, …} of nested mappings."""
  found: dict[str, Any] = {}
  for key, value in config.items():
    found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
  return found
