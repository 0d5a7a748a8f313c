"""What the comparisons' command lines share: the cores that a process may use, and where the result goes."""
import json
import os
from collections.abc import Callable, Mapping, Sequence


def run(options, compare: Callable[..., Mapping], lines: Callable[[Mapping], Sequence[str]]) -> int:
  """Compares on `options.cores` cores, prints the result as JSON and in words, and writes it to `options.json` if there is one."""
  if options.cores < len(os.sched_getaffinity(0)):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.cores])          # before JAX counts the cores
  os.environ["OMP_NUM_THREADS"] = str(options.cores)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["HF_HUB_OFFLINE"] = "1"
  result = compare(options)
  print(json.dumps(result, indent=1))
  print("\n".join(lines(result)))
  if options.json:
    with open(options.json, "w") as file:
      json.dump(result, file, indent=1)
  return 0
