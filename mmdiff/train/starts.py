"""`run.json`: what made a run, start by start; the entries of the newest stand at the top."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.core import provenance
from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object
from mmdiff.train import sums

FILE = "run.json"


def earlier(workdir: Path) -> list[dict[str, Any]]:
  """The starts so far; of a file that can't be read none: it is a note, and no reason not to go on."""
  try:
    found = read_object(workdir / FILE).get("starts", []) if (workdir / FILE).exists() else []
  except DataError:
    return []
  return [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []


def begin(workdir: Path, facts: Mapping[str, Any]) -> str:
  """Notes a start; what was changed since the commit lies beside it as code-SHA256.patch. When it began, for `end`. Raises CannotWrite."""
  about = dict(facts) | provenance.made_by()
  patch, digest = provenance.patch(), about["code"].get("patch", "")
  if digest and len(patch) <= provenance.MOST_PATCH:
    sums.write(workdir, f"code-{digest[:12]}.patch", (patch + "\n").encode())
  sums.write_json(workdir, FILE, about | dict(starts=[*earlier(workdir), about]))
  return about["at"]


def end(workdir: Path, began: str, seconds: float) -> None:
  """Notes when the start that began then ended, and how long it took in all; a start that was refused before `begin` changes nothing.
  Raises CannotWrite."""
  *before, last = earlier(workdir) or [{}]
  if began and last.get("at") == began:
    last |= dict(ended=provenance.now(), seconds=round(seconds, 1))
    sums.write_json(workdir, FILE, last | dict(starts=[*before, last]))
