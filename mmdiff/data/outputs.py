"""The folder of a finished job, read to the last byte: what `mmdiff data validate` says of precomputed features and of captions."""
import os
from pathlib import Path
from typing import Any

from mmdiff.core.errors import DataError
from mmdiff.data import jobs, latents, sidecar


def verify(folder: str | os.PathLike) -> dict[str, Any]:
  """{"task", "units", "files", "bytes", "entries", "damaged": a line for each file that is not what its unit's manifest says}.

  Every file is read, whatever is known of it, and its sha256 compared. Raises DataError for what is not the folder of a finished job.
  """
  folder = Path(folder)
  task = jobs.manifest_of(folder)["identity"].get("task")
  entries, damaged = [], list[str]()
  for name in jobs.names_of(folder):
    try:
      entries.append(jobs.entry_of(folder, name))
    except DataError as error:
      damaged.append(str(error))
  damaged += jobs.damage(folder, entries, again=True)
  count = 0
  if not damaged:
    try:
      count = len(latents.Features(folder) if task == "precompute" else sidecar.Sidecar(folder))
    except DataError as error:
      damaged.append(str(error))
  files = [facts for entry in entries for facts in entry["files"].values()]
  return {"task": task, "units": len(jobs.names_of(folder)), "files": len(files), "bytes": sum(facts["bytes"] for facts in files),
          "entries": count, "damaged": damaged}
