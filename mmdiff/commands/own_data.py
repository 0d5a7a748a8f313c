"""What else of a config follows when its data are named on the command line (--data=PATH): captions, the share held out, evaluators.

A config is written for its own data: the built-in scenes, for most of the small ones. On other data it asks for kinds of caption that there
are not, and scores what was never trained on. What the command line says itself stays as it is said.
"""
import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mmdiff.commands import sources
from mmdiff.core import schema, signatures
from mmdiff.core.build import build
from mmdiff.core.errors import ConfigError
from mmdiff.core.terminal import tell
from mmdiff.data import SOURCES, held_out, records
from mmdiff.data.quarantine import BadRecord

EVALUATORS = "mmdiff.evaluators:EVALUATORS"
LOOKED_AT = 64                           # records, spread over the source
SHARE, FEWEST, LARGEST, MOST = 0.05, 48, 0.2, 5_000       # held out: a share, or so many records up to that share; at most so many
UNSCORED = ("samples",)                  # evaluators that give no score


class Seen(NamedTuple):
  """What a source has. kinds: of captions, the most frequent first. labels: whether its records have classes."""
  records: int
  kinds: tuple[str, ...]
  labels: bool
  classes: tuple[str, ...]


def look(source: Any) -> Seen:
  """Of a few records."""
  kinds: collections.Counter[str] = collections.Counter()
  labels, count = False, min(LOOKED_AT, len(source))
  for n in range(count):
    try:
      record = records.without_image(source, n * len(source) // count)
      kinds.update(dict(record["captions"]).keys())
      labels = labels or record.get("label") is not None
    except (BadRecord, KeyError, TypeError, ValueError):
      continue
  return Seen(len(source), tuple(kind for kind, _ in kinds.most_common()), labels, tuple(getattr(source, "labels", ())))


def follow(config: Mapping, said: Collection[str]) -> dict:
  """The config with what follows from its `data.source`, and lines on the screen that say it. said: the dotted keys that the command line
  sets. Raises DataError for a source that can't be read."""
  is_said = lambda path: any(f"{key}.".startswith(f"{path}.") for key in said)
  data = dict(config["data"], source=schema.complete(config["data"]["source"], sources.BLOCK))
  opened = build(SOURCES, data["source"])
  seen = look(opened)
  if not is_said("data.captions") and seen.kinds:
    data["captions"] = shares(data.get("captions", {}), seen.kinds)
  if data["source"]["name"] == "scenes":                 # which have splits of their own
    rest, said_of = dict(name="scenes", tier=data["source"]["tier"], split="val_iid"), "split val_iid"
  else:
    if not is_said("data.held_out"):
      data["held_out"] = share_of(opened)
    share = data.get("held_out", 0.0)
    count = held_out.count(opened, share)
    rest = dict(name="held_out", of=data["source"], share=share) if count else data["source"]
    said_of = f"{count:,} held out by key (data.held_out {share:g})" if count else "the records that are trained on: none are held out"
  evals, left = evaluators(config, rest, seen, is_said)
  tell(f"data: {seen.records:,} records of {data['source']['name']}; captions "
       + ", ".join(f"{kind} {share:g}" for kind, share in data["captions"].items())
       + (f" (others there: {', '.join(others)})" if (others := [kind for kind in seen.kinds if kind not in data["captions"]]) else "")
       + (f"; {', '.join(evals)}: of {said_of}" if evals else ""))
  for name, why in left.items():
    tell(f"data: without the evaluator {name}, which {why}")
  return dict(config, data=data, evals=evals)


def shares(wanted: Mapping[str, float], kinds: Sequence[str]) -> dict[str, float]:
  """What a config wants of the kinds of caption that there are; all of them alike where it wants none of those."""
  found = {kind: share for kind, share in wanted.items() if kind in kinds} or dict.fromkeys(kinds, 1.0)
  return {kind: share / sum(found.values()) for kind, share in found.items()}


def share_of(source: Any) -> float:
  """The share to hold out unless it is said: 5 %, of small sets more, of large ones less; 0 where not even one record would be."""
  share = max(SHARE, min(LARGEST, FEWEST / max(len(source), 1)))
  share = float(f"{min(share, MOST / max(len(source), 1)):.3g}")
  return share if 0 < held_out.count(source, share) < len(source) else 0.0


def evaluators(config: Mapping, rest: Mapping, seen: Seen, is_said: Any) -> tuple[dict[str, Any], dict[str, str]]:
  """(those of the config that can be asked of these data, pointed at `rest`, {name: why not} of the others)."""
  table, kept, left = signatures.table(EVALUATORS), {}, {}
  for name, options in config.get("evals", {}).items():
    keys = signatures.fields(table[options["name"]]) if options.get("name") in table else {}
    if is_said(f"evals.{name}") and ("source" not in keys or is_said(f"evals.{name}.source")):
      kept[name] = options
    elif "source" not in keys:
      if "tier" in keys and rest["name"] == "scenes":
        kept[name] = dict(options, tier=rest["tier"])
      else:
        left[name] = "asks about the built-in scenes"
    elif options["name"] == "zeroshot" and not (seen.labels and (seen.classes or options.get("classes") or options.get("class_file"))):
      left[name] = "needs classes, which these records lack"
    else:
      kept[name] = asked(dict(options, source=rest), seen, keep=lambda key, name=name: is_said(f"evals.{name}.{key}"))
  if all(options.get("name") in UNSCORED for options in kept.values()):
    every = min((options["every_steps"] for options in config.get("evals", {}).values() if options.get("every_steps")), default=None)
    kept["loss"] = dict(name="loss", source=rest, every_steps=every or max(config.get("steps", 1) // 2, 1))
  return kept, left


def asked(options: Mapping[str, Any], seen: Seen, *, keep: Any = lambda key: False) -> dict[str, Any]:
  """An evaluator's options without the kinds of caption and the classes that these data have not."""
  made = dict(options)
  if made.get("caption") and made["caption"] not in seen.kinds and not keep("caption"):
    made["caption"] = ""
  if "captions" in made and not isinstance(made["captions"], str) and not keep("captions"):
    made["captions"] = tuple(kind for kind in made["captions"] if kind in seen.kinds) or seen.kinds
  if made["name"] == "zeroshot" and seen.classes and not keep("classes"):
    made |= dict(classes=(), class_file="")
  return made


def asked_of(source: Mapping[str, Any], options: Mapping[str, Any], config: Mapping[str, Any], *, said: Collection[str]) -> dict[str, Any]:
  """The options of an evaluator for a source: of the data that a run of this config was trained on, the share that was held out."""
  table = signatures.table(EVALUATORS)
  if options["name"] in table and "source" not in signatures.fields(table[options["name"]]):
    raise ConfigError(f"--data: {options['name']} reads no source: it asks about the built-in scenes; leave it out")
  own = config.get("data") or {}
  rest, share = dict(source), own.get("held_out", 0.0)
  if share and schema.complete(own["source"], sources.BLOCK) == source:
    rest = dict(name="held_out", of=rest, share=share)
    tell(f"--data: the run was trained on these; scored are those that it never saw, {share:g} by key (--task.source=… takes all)")
  if options["name"] == "reconstruction" and rest["name"] != "held_out":
    rest = source = sources.pictures_of(rest)
  return asked(dict(options, source=rest), look(build(SOURCES, source)), keep=lambda key: key in said)
