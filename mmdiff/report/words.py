"""What a run is for and what a score is of, in words, from configs and results."""
import ast
from collections.abc import Mapping
from typing import Any

GOALS = {"contrastive": "Find the text that belongs to a picture, and the picture that belongs to a text",
         "diffusion": "Draw pictures", "coca": "Write captions of pictures, and match pictures with texts",
         "autoencoder": "Compress pictures to latents, and draw them again from those"}
COUNTS = ("images", "records", "texts", "prompts")         # scalars that count what was scored


def source_name(source: Mapping) -> str:
  """scenes(tier=T32), folder(path=…): a source's name and what sets it apart."""
  if source.get("name") == "held_out":
    return f"{source['share']:.3g} of {source_name(source['of'])}, held out"
  shown = ", ".join(f"{key}={source[key]}" for key in ("tier", "path", "urls", "dataset", "builder", "split") if source.get(key))
  return f"{source['name']}({shown})" if shown else str(source.get("name", "none"))


def goal(config: Mapping) -> str:
  """What the objective is after: one sentence."""
  objective = config.get("objective") or {}
  said = GOALS.get(objective.get("name", ""), f"Objective {objective.get('name', 'unknown')}")
  if objective.get("name") == "diffusion" and objective.get("condition"):
    said += " from texts"
  parts = [f"{key} {block.get('variant') or block.get('name')}" for key, block in objective.items() if isinstance(block, Mapping) and
           (block.get("variant") or block.get("name"))]
  return said + (f" ({', '.join(parts)})" if parts else "")


def reads(config: Mapping, records: int | None = None) -> str:
  """What training reads: source, captions, sizes."""
  data = config.get("data") or {}
  if not data.get("source"):
    return ""
  parts = [f"{records:,} records of {source_name(data['source'])}" if records else source_name(data["source"])]
  captions = data.get("captions") or {}
  if captions:
    parts.append("captions " + ", ".join(f"{100 * share:g} % {kind}" for kind, share in captions.items()))
  if data.get("image_size"):
    parts.append(f"pictures of {data['image_size']} px")
  if config.get("batch_size"):
    parts.append(f"{config['batch_size']:,} a step")
  return "Trained on " + "; ".join(parts)


def source_of(options: Mapping) -> Mapping | None:
  """The source that an evaluator's options name: its own, or the built-in world's by its tier."""
  return options.get("source") or (dict(name="scenes", tier=options["tier"]) | ({"split": options["split"]} if options.get("split") else {})
                                   if "tier" in options else None)


def scored_on(result: Mapping[str, Any], options: Mapping) -> str:
  """Of which records, and how many, a result's scores are."""
  scalars = result.get("scalars", {})
  unit = next((name for name in COUNTS if isinstance(scalars.get(name), (int, float))), "prompts")
  count = int(scalars.get(unit) or options.get("prompts") or options.get("count") or 0)
  sources, total = read_from(result)
  named = " and ".join(map(source_name, sources)) or source_name(source_of(options) or {"name": ""})
  parts = [f"{count:,} {unit}" if count else "", f"{total:,} records" if total not in (0, count) else "", named]
  return ", ".join(filter(None, [" of ".join(filter(None, parts)), f"{options['caption']} captions" if options.get("caption") else ""]))


def read_from(result: Mapping[str, Any]) -> tuple[list[Mapping], int]:
  """(sources, number of records in them) that a result says it read (`evaluators.likeness.recording`)."""
  sources, total = [], 0
  for source, records in (result.get("records") or {}).items():
    try:
      found = ast.literal_eval(source)
      count = int(str(records).partition(" ")[0])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      continue
    if isinstance(found, Mapping) and "name" in found:
      sources.append(found)
      total += count
  return sources, total


def elsewhere(config: Mapping, options: Mapping) -> bool:
  """Whether an evaluator scores other data than those that are trained on."""
  own, source = (config.get("data") or {}).get("source"), source_of(options)
  return bool(own and source and source.get("of", source)["name"] != own["name"])
