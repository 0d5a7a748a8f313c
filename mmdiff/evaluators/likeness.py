"""Whether two results may be set side by side: what a score depends on besides the model that is scored.

A result file keeps its evaluator's options, the fingerprints of the records that it read, how the pictures were prepared, and its
protocol. `unlike` names what differs between two of them; steps, averages and weights are what is compared, and may.
"""
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:                              # a report reads results without JAX
  from mmdiff.evaluators.base import Services

MODEL = ("name", "every_steps", "params", "step")          # of options and protocols: the model's, not the question's
PREPARED = ("image_size", "resize", "interpolation")       # of config.data: the pictures that a model sees or draws
COUNTS = ("records", "images", "texts", "classes")         # scalars
ABSENT = "not recorded"


def recording(services: "Services") -> tuple["Services", dict[str, str], dict[str, str]]:
  """(services that note what is opened through them, {source: fingerprint of its data set}, {source: its records, of any tokenizer})."""
  data: dict[str, str] = {}
  records: dict[str, str] = {}

  def dataset(source):
    made = services.dataset(source)
    data[str(dict(source))] = made.fingerprint()
    records[str(dict(source))] = f"{len(made.source)} of {made.source.fingerprint()}"
    return made
  return services._replace(dataset=dataset), data, records


def facts(result: Mapping[str, Any]) -> dict[str, Any]:
  """{name: value} of what a result file says that its scores depend on."""
  options, tables = result.get("evaluator") or {}, result.get("tables") or {}
  protocol = next(iter(tables.get("protocol", ())), {})
  found = {"task": options["name"]} if options else {}
  found |= {name: value for name, value in {**options, **protocol}.items() if name not in MODEL}
  found |= {name: value for name, value in ((result.get("config") or {}).get("data") or {}).items() if name in PREPARED}
  found |= {f"number of {name}": result["scalars"][name] for name in COUNTS if name in result.get("scalars", {})}
  if options.get("name") == "clipscore":                   # the pictures are what is compared, the model is the scorer
    found.pop("source", None)
    found["scorer's checkpoint"] = (result.get("model") or {}).get("checkpoint")
    found["captions"] = digest(sorted(row["caption"] for row in tables.get("pictures", ())))
  elif result.get("records"):
    found.pop("source", None)                              # the same records may lie in another folder
    found["records"] = sorted(result["records"].values())
  return json.loads(json.dumps(found))                     # tuples and lists alike


def unlike(first: Mapping[str, Any], second: Mapping[str, Any], *, allowed: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
  """{name: (first's, second's)} of the `facts` that differ and are not `allowed` to."""
  return {name: (first.get(name, ABSENT), second.get(name, ABSENT)) for name in dict.fromkeys([*first, *second])
          if name not in allowed and first.get(name, ABSENT) != second.get(name, ABSENT)}


def said(differences: Mapping[str, tuple[Any, Any]], *, longest: int = 60) -> str:
  """The differences in a line, and how to allow them."""
  short = lambda value: text if len(text := str(value)) <= longest else text[:longest - 1] + "…"
  listed = "; ".join(f"{name} ({short(a)}, {short(b)})" for name, (a, b) in differences.items())
  names = ",".join(name if " " not in name else f"'{name}'" for name in differences)
  return f"{listed}. Evaluate both alike; or, if that is meant, name what may differ: --unlike={names}"


def digest(texts: Sequence[str]) -> str:
  """Of texts in their order."""
  return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
