"""Build, look at and prepare data sets.

  mmdiff data build emoji --out=DIR                     draw the system's emoji font: shards and a TFDS set, with captions of three kinds
  mmdiff data build scenes --out=DIR --tier=T32         the built-in world as files
  mmdiff data inspect SOURCE [--out=DIR]                element spec, caption kinds, examples; a contact sheet (PNG and HTML) in DIR
  mmdiff data validate SOURCE [--out=FILE.json]         read everything, count and name bad records; exit 65 beyond --max_bad_fraction.
                                                        Of a folder of `precompute` or `mmdiff caption`: hold every file to its sha256
  mmdiff data shard SOURCE --out=DIR                    what validate finds good as webdataset tars (or a TFDS set), resumable
  mmdiff data index SOURCE                              make the index files of tar shards and TFRecords ahead of a run
  mmdiff data tokenizer SOURCE --out=tokenizer.json     train a byte-level BPE on the captions
  mmdiff data precompute --config=FILE --out=DIR        latents and text states of a config's frozen encoders; --config.data.features=DIR
                                                        trains on them. Any number of processes, as for `mmdiff caption`

SOURCE, or --data=SOURCE, is a folder of pictures, a table of captions, a pattern or folder of tars ('/data/{00000..00041}.tar'), parquet
files, a folder of Hugging Face's datasets or of TFDS [:split], COCO's JSON, tfds:NAME[:split], scenes:TIER[:split], or the name of a
source; --data.KEY=VALUE sets its keys. Or give --config, to take its data.source.
Every command that writes results writes argv, resolved source, versions and fingerprints as JSON beside them.
"""
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.commands import flags
from mmdiff.core import schema
from mmdiff.core.build import build, resolve
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import versions, write_atomically, write_json, write_text
from mmdiff.core.progress import Progress
from mmdiff.core.spelling import nearest
from mmdiff.core.terminal import escaped, one_line, printable, tell

FLAGS = {
  "data": dict(type="source", help="a SOURCE as above, or the name of one with --data.KEY=VALUE (all but build)"),
  "config": dict(help="take data.source of this config instead (all but build)"),
  "out": dict(help="where results go: a folder, or a file for validate and tokenizer"),
  "format": dict(type="str,", help="webdataset, array_record or both; by default both of emoji, else webdataset (build, shard)"),
  "per_shard": dict(type="int", default=10_000, help="records per tar (build, shard)"),
  "dataset_name": dict(default="", help="name of the TFDS set; by default that of the source (build, shard)"),
  "splits": dict(type="str,", default=(), help="which splits; by default all (build)"),
  "tier": dict(default="T32", needs=dict(what=("scenes",)), help="T16, T32 or T64 (build scenes)"),
  "count": dict(type="int", default=0, needs=dict(what=("scenes",)), help="records per split; 0 is the tier's own number (build scenes)"),
  "size": dict(type="int", default=0, needs=dict(what=("emoji",)),
               help="side of the square picture; 0 is the font's own 136x128 (build emoji)"),
  "font": dict(default="", needs=dict(what=("emoji",)), help="path of NotoColorEmoji.ttf if it is not in its usual place (build emoji)"),
  "table": dict(default="", needs=dict(what=("emoji",)), help="path of Unicode's emoji-test.txt, likewise (build emoji)"),
  "examples": dict(type="int", default=24, help="pictures on the contact sheet (inspect)"),
  "limit": dict(type="int", default=0, help="only the first records; 0 is all (validate)"),
  "threads": dict(type="int", default=4, help="reading threads (validate, shard)"),
  "max_bad_fraction": dict(type="float", default=0.1, help="exit 65 beyond it (validate)"),
  "max_pixels": dict(type="int", default=89_478_485, help="a larger picture is bad (validate, shard)"),
  "max_decode_bytes": dict(type="int", default=1_073_741_824, help="a picture that takes more memory to decode is bad (validate, shard)"),
  "vocab": dict(type="int", default=512, help="tokens (tokenizer)"),
  "sample": dict(type="int", default=100_000, help="records whose captions are read, spread over the source (tokenizer)"),
  "parts": dict(type="str,", default=(), help="latents, texts or both; by default those whose encoder the config freezes (precompute)"),
  "dtype": dict(choices=("float32", "float16"), default="float32", help="of what is stored; float16 is half as large (precompute)"),
  "batch_size": dict(type="int", default=64, help="pictures or texts encoded at a time (precompute)"),
  "per_unit": dict(type="int", default=1_000, help="records of a unit where the source has no shards (precompute)"),
}
TAKES = {
  "build": ("out", "format", "per_shard", "dataset_name", "splits", "tier", "count", "size", "font", "table"),
  "inspect": ("data", "config", "out", "examples"),
  "validate": ("data", "config", "out", "limit", "threads", "max_bad_fraction", "max_pixels", "max_decode_bytes"),
  "shard": ("data", "config", "out", "format", "per_shard", "dataset_name", "threads", "max_pixels", "max_decode_bytes"),
  "index": ("data", "config"),
  "tokenizer": ("data", "config", "out", "vocab", "sample"),
  "precompute": ("config", "data", "out", "parts", "dtype", "batch_size", "per_unit", "threads"),
}
POSITIONAL = {"build": ("what",), "precompute": ()} | dict.fromkeys(("inspect", "validate", "shard", "index", "tokenizer"), ("data",))
BAD = "bad_records.jsonl"                                                  # beside shards: the records that are not in them
FILES = ("validate", "tokenizer")                                          # whose --out is a file
NEEDS_OUT = ("build", "shard", "tokenizer", "precompute")
BUILDS = {"scenes": ("train", "val_iid", "val_comp", "val_rel", "val_count", "val_len"), "emoji": ("train", "val", "val_comp")}
FORMATS = ("webdataset", "array_record")
BLOCK = schema.Block(table="mmdiff.data:SOURCES")


def main(argv: list[str]) -> int:
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  command, rest = flags.chosen(argv, TAKES), list(argv[1:])
  rest = rest if command in ("build", "precompute") else _as_data(rest)
  table = {name: FLAGS[name] | (dict(required=True) if name == "out" and command in NEEDS_OUT else {}) for name in TAKES[command]}
  if command == "build":
    given = flags.parse(rest, table, positional=POSITIONAL[command])
    return _build(given, argv)
  if command == "precompute":
    table["data"] = table["data"] | dict(sets="data.source")
    return _precompute(flags.parse(rest, table | {"config": dict(required=True)}, also=_bad_numbers), argv)
  given = flags.parse(rest, table, positional=POSITIONAL[command], also=lambda given: _bad_numbers(given) + _bad_formats(given))
  problems = []
  if command in FILES and given["out"] and os.path.isdir(given["out"]):
    problems.append(f"--out: {given['out']} is a folder; give a file, such as {os.path.join(given['out'], command)}.json")
  if (given["data"] is None) == (given["config"] is None):
    problems.append("give the source once: a path or another word for it, --data=…, or --config=…"
                    + ("; found --data and --config" if given["data"] else ""))
  config = given["data"] or (given["config"] or {}).get("data", {}).get("source", {})
  if command == "validate" and os.path.isfile(os.path.join(os.path.expanduser(folder := str(config.get("path", ""))), "job.json")):
    return _validate_job(os.path.expanduser(folder), given, problems, {"argv": ["data", *argv], "versions": versions()})
  if problems:
    raise ConfigError("\n".join(problems))
  source = build(resolve("mmdiff.data:SOURCES"), config)
  return RUN[command](source, given, {"argv": ["data", *argv], "source": config, "versions": versions()})


def _as_data(words: Sequence[str]) -> list[str]:
  """The words with the source as --data, also as it was once called, --source; of a --config it is a part."""
  words = [re.sub(r"^--source(?=[.=]|$)", "--data", word) for word in words]
  of_config = any(word.startswith("--config=") or word == "--config" for word in words)
  return [re.sub(r"^--data\.", "--config.data.source.", word) for word in words] if of_config else words


def _bad_numbers(given: Mapping[str, Any]) -> list[str]:
  least = {"per_shard": 1, "per_unit": 1, "batch_size": 1,
           "examples": 1, "threads": 1, "limit": 0, "count": 0, "size": 0, "vocab": 1, "sample": 1, "max_pixels": 1,
           "max_decode_bytes": 1}
  found = [f"--{name}: expected at least {low}, found {given[name]}" for name, low in least.items() if name in given and given[name] < low]
  fraction = given.get("max_bad_fraction", 0)
  return found + ([] if 0 <= fraction <= 1 else [f"--max_bad_fraction: expected a value from 0 to 1, found {fraction:g}"])


def _bad_formats(given: Mapping[str, Any]) -> list[str]:
  from mmdiff.data import array_records
  name = given.get("dataset_name")
  named = [f"--dataset_name: {wrong}"] if name and (wrong := array_records.wrong_name(name)) else []
  known = lambda name: nearest(name, FORMATS) or " or ".join(FORMATS)
  return named + [f"--format: unknown format {name!r}; did you mean {known(name)}?" for name in given.get("format") or ()
                  if name not in FORMATS]


def _build(given: dict[str, Any], argv: list[str]) -> int:
  what = given["what"]
  problems = _bad_numbers(given) + _bad_formats(given)
  if what not in BUILDS:
    guess = nearest(what or "", BUILDS)
    problems.append(f"build {what or ''}: expected {' or '.join(BUILDS)}" + (f"; did you mean {guess}?" if what and guess else ""))
    raise ConfigError("\n".join(problems))
  splits = given["splits"] or BUILDS[what]
  problems += [f"--splits: unknown split {name!r}; known: {', '.join(BUILDS[what])}" for name in splits if name not in BUILDS[what]]
  if what == "scenes":
    configs = {split: {"name": "scenes", "tier": given["tier"], "split": split, "size": given["count"]} for split in splits}
    problems += [] if problems else sorted({p.text("--") for config in configs.values() for p in schema.check(config, BLOCK)})
  if problems:
    raise ConfigError("\n".join(problems))
  if what == "scenes":
    sources = {split: build(resolve("mmdiff.data:SOURCES"), config) for split, config in configs.items()}
  else:
    from mmdiff.data.emoji import emoji
    configs = {split: {"split": split, "size": given["size"], "font": given["font"], "table": given["table"]} for split in splits}
    sources = {split: emoji(**config) for split, config in configs.items()}
  given = given | dict(format=given["format"] or (FORMATS if what == "emoji" else ()))
  name = given["dataset_name"] or (what if what == "emoji" else f"scenes_{given['tier'].lower()}")
  about = {"argv": ["data", *argv], "source": configs, "versions": versions()}
  return _write(sources, given, name, about, folders=True)


def _shard(source: Any, given: dict[str, Any], about: dict[str, Any]) -> int:
  return _write({"train": source}, given, given["dataset_name"] or about["source"]["name"], about, folders=False, **_judged(given))


def _judged(given: Mapping[str, Any]) -> dict[str, Any]:
  """How records are judged, as `verdict.each` takes it."""
  from mmdiff.data.verdict import Limits
  return dict(limits=Limits(given["max_pixels"], given["max_decode_bytes"]), threads=given["threads"])


def _write(sources: Mapping[str, Any], given: Mapping[str, Any], name: str, about: dict[str, Any], *, folders: bool,
           **judged: Any) -> int:
  """Writes the formats asked for; with `folders`, each split's shards go to a folder of its name."""
  from mmdiff.data import array_records, shards
  results: dict[str, Any] = {}
  bad: dict[str, list[dict[str, str]]] = {split: [] for split in sources}
  formats = given["format"] or FORMATS[:1]
  idle = [f"--{flag}: says nothing without --format={name}" for flag, usual, name in (
    ("dataset_name", "", "array_record"), ("per_shard", FLAGS["per_shard"]["default"], "webdataset"))
    if given[flag] != usual and name not in formats]
  if idle:
    raise ConfigError("\n".join(idle))
  if "webdataset" in formats:
    for split, source in sources.items():
      progress = Progress(split, "records")
      out = os.path.join(given["out"], split) if folders else given["out"]
      results.setdefault("webdataset", {})[split] = done = shards.write(source, out, per_shard=given["per_shard"], tell=progress.at,
                                                                                **judged)
      progress.close()
      bad[split] = done.pop("offenders")
      if done["escaped"]:
        such = ", ".join(f"{key!r} as {name!r}" for key, name in done["escaped_such_as"].items())
        tell(f"{out}: {done['escaped']:,} keys hold what the names in a tar may not, and are escaped there, such as {such}; each record's "
             "JSON has its key as it was")
      print(f"{out}: {done['count']:,} records in {done['shards']} shards ({done['kept_shards']} were there), bad {done['bad'] or 'none'}")
  if "array_record" in formats:
    progress = Progress("array_record", "records")
    results["array_record"] = done = array_records.write(sources, given["out"], name=name, tell=progress.at, **judged)
    progress.close()
    for split, offenders in done.pop("offenders").items():
      bad[split] = list({tuple(one.items()): one for one in bad[split] + offenders}.values())
    print(f"{done['path']}: {done['splits']}, bad {done['bad'] or 'none'}{', was there' if done['kept'] else ''}")
  named = [({"split": split} if folders else {}) | one for split, offenders in bad.items() for one in offenders]
  _name_the_bad(named, Path(given["out"]) / BAD)
  inputs = {split: source.fingerprint() for split, source in sources.items()}
  write_json(Path(given["out"]) / "meta.json", about | {"inputs": inputs, "results": results})
  return 0


def _name_the_bad(offenders: Sequence[Mapping[str, str]], file: Path) -> None:
  """Writes a line for every bad record, and shows a few; without any there is no such file."""
  from mmdiff.data import survey
  if not offenders:
    file.unlink(missing_ok=True)
    return
  write_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in offenders))
  print(f"{survey.worst(offenders)}\nall of them: {file}")


def _inspect(source: Any, given: dict[str, Any], about: dict[str, Any]) -> int:
  from mmdiff.data import survey
  cards = survey.sample(source, given["examples"])
  if not cards:
    raise DataError("no readable record among those looked at; `mmdiff data validate` counts what is wrong with them")
  first = next(record for i in range(len(source)) if (record := _readable(source, i)) is not None)
  kinds = {kind: sum(kind in card.captions for card in cards) for card in cards for kind in card.captions}
  print(f"{about['source']['name']}: {len(source):,} records, fingerprint {source.fingerprint()}")
  print(escaped(json.dumps(survey.spec(first), indent=1, ensure_ascii=False)))
  print(printable("caption kinds: " + ", ".join(f"{kind} {count}/{len(cards)}" for kind, count in kinds.items())))
  if skipped := getattr(source, "skipped", {}):
    print(printable(f"members left out: {skipped}"))
  for card in cards[:4]:
    print(f"\n{one_line(card.key)}  {card.size[0]}x{card.size[1]}")
    for kind, text in survey.lines(card):
      print(one_line(f"  {kind}: {text[:200]}"))
  if given["out"]:
    import io

    from PIL import Image

    from mmdiff.report import gallery
    from mmdiff.report.html import write_page
    out, buffer = Path(given["out"]), io.BytesIO()
    Image.fromarray(survey.sheet(cards)).save(buffer, "PNG")
    write_atomically(out / "sheet.png", lambda file: file.write(buffer.getvalue()))
    where = about["source"].get("path") or about["source"].get("urls") or ""
    told = ["\n".join(f"{kind}: {text}" for kind, text in survey.lines(card)) for card in cards]
    shots = [gallery.Shot([("", gallery.thumbnail(card.image))], card.key, lines) for card, lines in zip(cards, told)]
    title = f"{about['source']['name']}{f' {where}' if where else ''}: {len(source):,} records"
    write_page(out / "sheet.html", title, gallery.body(title, [("", shots)]))
    write_json(out / "inspect.json", about | {"records": len(source), "fingerprint": source.fingerprint(), "spec": survey.spec(first),
                                               "kinds": kinds, "examples": [[card.key, dict(card.captions)] for card in cards]})
    print(f"\n{out / 'sheet.png'}\n{out / 'sheet.html'}")
  return 0


def _readable(source: Any, i: int) -> Mapping[str, Any] | None:
  from mmdiff.data.quarantine import BadRecord
  try:
    return source[i]
  except BadRecord:
    return None


def _validate(source: Any, given: dict[str, Any], about: dict[str, Any]) -> int:
  from mmdiff.data import survey
  progress = Progress("validate", "records")
  start = time.monotonic()
  found = survey.validate(source, limit=given["limit"], tell=progress.at, **_judged(given))
  progress.close()
  found |= {"records_per_second": round(found["records"] / max(time.monotonic() - start, 1e-9), 1)}
  if given["out"]:
    write_json(Path(given["out"]), about | found)
  print(f"{about['source']['name']}: {survey.told(found)}")
  if found["bad_fraction"] > given["max_bad_fraction"]:
    raise DataError(f"{found['records'] - found['good']:,} of {found['records']:,} records are bad {found['bad']}, more than "
                    f"--max_bad_fraction={given['max_bad_fraction']:g} allows; mend or remove them ("
                    + (f"{given['out']} names them all)" if given["out"] else "--out=FILE.json names them all)"))
  return 0


def _validate_job(folder: str, given: Mapping[str, Any], problems: list[str], about: dict[str, Any]) -> int:
  """What there is to validate of the folder of a finished job: its files."""
  from mmdiff.data import outputs
  problems += [f"--{name}: says nothing of {folder}, the folder of a job, whose files are compared with their manifests"
               for name in TAKES["validate"] if name not in ("data", "out") and given[name] != FLAGS[name].get("default")]
  if problems:
    raise ConfigError("\n".join(problems))
  found = outputs.verify(folder)
  if given["out"]:
    write_json(Path(given["out"]), about | found)
  print(f"{folder}: {found['task']}, {found['units']:,} units, {found['files']:,} files, {found['bytes']:,} bytes, "
        f"{found['entries']:,} entries, {len(found['damaged'])} damaged")
  if found["damaged"]:
    raise DataError("\n".join(found["damaged"]))
  return 0


def _index(source: Any, given: dict[str, Any], about: dict[str, Any]) -> int:
  print(f"{about['source']['name']}: {len(source):,} records, indexed, fingerprint {source.fingerprint()}")
  return 0


def _tokenizer(source: Any, given: dict[str, Any], about: dict[str, Any]) -> int:
  from mmdiff.data import tokenizers
  made = tokenizers.ensure_trained(tokenizers.bpe(vocab=given["vocab"], sample=given["sample"]), source)
  out = Path(given["out"])
  made.save(out)
  results = {"inputs": source.fingerprint(), "vocab": made.vocab_size, "sample": given["sample"]}
  write_json(out.with_name(out.stem + ".meta.json"), about | results)
  for notice in made.notices:
    tell(notice)
  print(f"{out}: {made.vocab_size} tokens")
  return 0


def _precompute(given: dict[str, Any], argv: list[str]) -> int:
  from mmdiff.commands import precompute
  made = precompute.run(given["config"], given, {"argv": ["data", *argv]})
  print(f"{given['out']}: {made['latents']:,} latents, {made['texts']:,} texts, {made['bytes']:,} bytes, "
        f"bad records {made['bad'] or 'none'}")
  print(f"train on them with --config.data.features={given['out']}", file=sys.stderr)
  return 0


RUN = {"inspect": _inspect, "validate": _validate, "shard": _shard, "index": _index, "tokenizer": _tokenizer}
