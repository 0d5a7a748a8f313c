"""Caption a data set with a trained captioner: a job that any number of processes work on and that goes on where it stopped.

  mmdiff caption --model=runs/coca_long --data=scenes:T32 --out=captions/long --kind=long
  mmdiff caption --model=runs/coca_long --data='/data/{00000..00331}.tar' --out=/shared/long --method=beam --batch_size=256
  mmdiff caption --model=runs/coca_long --data=name=folder,path=pictures --out=captions/long

Start the same command as often as you like, at once or later, on one host or on several that share --out: each process takes a unit (a
tar, or --per_unit records of another source), and what a killed one had begun is taken again. --data names a source as everywhere
(docs/data.md), or is a config whose data.source it is; --data.KEY=VALUE changes a key. Every caption depends on its picture, its
key, --seed and the settings alone. The folder is a side-car: train on it with --config.data.sidecar=OUT and a share for the kind in
config.data.captions. Each unit has a manifest with bad records and signs of degeneration; manifest.json sums them up.
"""
import collections
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmdiff.core import compilation
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import versions
from mmdiff.core.progress import Progress

FLAGS = {
  "model": dict(type="model", required=True, help="run directory of a captioner; DIR@STEP for one of its steps"),
  "data": dict(type="source", required=True, help="folder, table, tars, parquet, … as in docs/data.md; name=scenes,tier=T32 lists keys"),
  "out": dict(type="dir", required=True, help="folder of the job, shared by all that work on it"),
  "kind": dict(type="str", default="long", help="the kind of caption that these are, for config.data.captions"),
  "method": dict(choices=("greedy", "sample", "beam"), help="greedy unless said otherwise"),
  "max_len": dict(type="int", help="most tokens; by default those of the training captions"),
  "min_len": dict(type="int", help="fewest tokens"),
  "beams": dict(type="int", help="hypotheses (beam)"),
  "temperature": dict(type="float", help="logits are divided by it (sample)"),
  "top_k": dict(type="int", help="only the k best tokens; 0 is off (sample)"),
  "top_p": dict(type="float", help="only the smallest set of tokens with this probability; 1 is off (sample)"),
  "repetition_penalty": dict(type="float", help="of tokens already written; 1 is off"),
  "no_repeat_ngram": dict(type="int", help="no such number of tokens in a row comes twice; 0 is off"),
  "length_penalty": dict(type="float", help="exponent of a hypothesis' length (beam)"),
  "seed": dict(type="int", default=0, needs=dict(method=("sample",)), help="of sampled captions, together with each record's key"),
  "batch_size": dict(type="int", default=64, help="pictures captioned at a time"),
  "per_unit": dict(type="int", default=1_000, help="records of a unit where the source has no shards"),
  "limit": dict(type="int", default=0, help="only the first records; 0 is all"),
  "threads": dict(type="int", default=4, help="reading threads"),
  "params": dict(type="str", help="raw, or an average of config.ema; by default eval where there is one"),
  "fsdp": dict(type="int", default=1, help="devices that the parameters are spread over"),
}
DECODING = ("method", "max_len", "min_len", "beams", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram",
            "length_penalty")
RESERVED = ("key", "captions")
AHEAD = 4                            # batches of pictures read ahead


class Captioner(NamedTuple):
  """What captions pictures. `start(images uint8 [B S S 3], seeds uint32 [B])` begins, `finish(what start gave)` waits for the texts."""
  start: Callable[[Any, Any], Any]
  finish: Callable[[Any], tuple[Sequence[str], Sequence[bool]]]     # texts, and which of them were cut off at the greatest length


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags, sources
  given = flags.parse(argv, FLAGS)
  problems = [f"--{name}: expected at least {least}, found {given[name]}" for name, least in
              (("seed", 0), ("batch_size", 1), ("per_unit", 1), ("limit", 0), ("threads", 1), ("fsdp", 1)) if given[name] < least]
  if given["kind"] in RESERVED or not given["kind"].isidentifier():
    problems.append(f"--kind: expected a name such as long or short, found {given['kind']!r}")
  if problems:
    raise ConfigError("\n".join(problems))
  run(flags.located(given, FLAGS), sources.pictures_of(given["data"]), argv=["caption", *argv])
  return 0


def run(given: Mapping, config: Mapping, *, argv: list[str]) -> None:
  """Works on the job until it is finished."""
  from mmdiff.commands import results
  from mmdiff.core.build import build
  from mmdiff.data import SOURCES, jobs
  source = build(SOURCES, config)
  if not len(source):
    raise DataError(f"--data: {config['name']} holds no records")
  import mmdiff.model
  compilation.prepare()
  model = mmdiff.model.load(given["model"], params=given["params"], mesh=dict(fsdp=given["fsdp"]))
  captioner, decoding, size = serve(model, given)
  about = results.model_facts(model)
  identity = dict(task="caption", kind=given["kind"], seed=given["seed"], decoding=decoding, source=source.fingerprint(),
                  model={name: about[name] for name in ("checkpoint", "tokenizer", "step", "params")},
                  picture={name: model.config["data"][name] for name in ("image_size", "resize", "interpolation", "max_pixels")})
  units = cut(jobs.units_of(source, per_unit=given["per_unit"]), given["limit"])
  job = jobs.Job(given["out"], units, identity, about=dict(argv=argv, source=config, model=about, versions=versions()),
                 check=lambda folder, entry: summary([entry]))
  try:
    work(job, source, captioner, recipe=identity["picture"], kind=given["kind"], seed=given["seed"], size=size, threads=given["threads"],
         progress=Progress("caption", "records"))
    made = job.complete(summary)
  finally:
    job.close()
  from mmdiff.data.sidecar import Sidecar
  Sidecar(given["out"])                                  # checks every line, and leaves the index of a large one beside it
  signs = made["degeneration"]
  print(f"{given['out']}: {made['captions']:,} captions of kind {given['kind']} in {len(units)} units, bad records {made['bad'] or 'none'}")
  print(" · ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in signs.items()))
  print(f"train on them with --config.data.sidecar={given['out']}", file=sys.stderr)


def serve(model, given: Mapping) -> tuple[Captioner, dict[str, Any], int]:
  """(the captioner of a loaded model, all of its decoding settings, rows of a batch). Raises ConfigError."""
  import inspect

  import jax

  from mmdiff import decode
  from mmdiff.evaluators import base
  if "caption" not in model.services.predict:
    raise ConfigError(f"--model: no captioner: {model.without('caption')}")
  chosen = {name: given[name] for name in DECODING if given[name] is not None}
  settings = base.caption_settings(model.tokenizer, model.config["data"]["text_len"], **chosen)
  defaults = {name: parameter.default for name, parameter in inspect.signature(decode.settings).parameters.items() if name in DECODING}
  write, ways = jax.jit(model.services.predict["caption"]), model.mesh.shape["data"] * model.mesh.shape["fsdp"]
  end = model.tokenizer.end

  def start(images, seeds):
    with jax.set_mesh(model.mesh):
      batch = model.services.put(dict(image=images, seeds=seeds))
      return write(model.params, batch["image"], batch["seeds"], settings, extra=model.extra)

  def finish(pending):
    tokens, lengths = model.services.fetch(pending.tokens), model.services.fetch(pending.lengths)
    rows = [row[:length] for row, length in zip(tokens, lengths)]
    return [model.tokenizer.decode(row) for row in rows], [not len(row) or row[-1] != end for row in rows]

  return Captioner(start, finish), defaults | dict(max_len=settings.max_len) | chosen, -(-given["batch_size"] // ways) * ways


def cut(units: Sequence, limit: int) -> list:
  """The units of the first `limit` records; 0 is all."""
  if not limit:
    return list(units)
  return [unit._replace(rows=range(unit.rows.start, min(unit.rows.stop, limit))) for unit in units if unit.rows.start < limit]


def work(job, source, captioner: Captioner, *, recipe: Mapping, kind: str, seed: int, size: int, threads: int,
         progress: Callable[..., None] = lambda count, total=None: None) -> None:
  """Captions units until all are finished, by this process or by others."""
  from mmdiff.data.pipelines import Recipe, key_of, picture
  recipe = Recipe(None, **recipe)
  told = job.done()
  progress(told, job.total)

  def prepare(record):
    key = key_of({"captions": {}} | dict(record))
    return key, picture(record, recipe, key=key, seed=0, epoch=0)

  for unit in job.todo():
    mine = caption_unit(job, unit, source, captioner, prepare=prepare, kind=kind, seed=seed, size=size, threads=threads,
                        progress=lambda count: progress(count, job.total))
    told += mine
    if (done := job.done()) > told:                      # others have finished units meanwhile
      progress(done - told, job.total)
      told = done


def caption_unit(job, unit, source, captioner: Captioner, *, prepare: Callable, kind: str, seed: int, size: int, threads: int,
                 progress: Callable[[int], None]) -> int:
  """Makes and commits one unit; the number of its records. Batches are full to `size` rows, so that one compiled program serves all,
  and the next is on its way to the device before one is awaited."""
  import numpy as np

  from mmdiff.data import draws, jobs
  from mmdiff.evaluators.captions import degeneration
  bad: list = []
  texts: list[str] = []
  cut_off: list[bool] = []
  waiting, output = None, job.output(unit)
  items = jobs.prepared(source, unit.rows, prepare, threads=threads, ahead=AHEAD * size, bad=bad)
  with output.open("jsonl") as file:
    def finish(keys, pending):
      found, cut = captioner.finish(pending)
      for key, text in zip(keys, found):
        file.write((json.dumps({"key": key, kind: text}, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
      texts.extend(found[:len(keys)])
      cut_off.extend(cut[:len(keys)])

    for batch in jobs.batches(items, size):
      rows = batch + batch[-1:] * (size - len(batch))
      seeds = np.array([draws.digest("decode", seed, key) % 2 ** 32 for key, _ in rows], np.uint32)
      pending = captioner.start(np.stack([image for _, image in rows]), seeds)
      if waiting:
        finish(*waiting)
      waiting = ([key for key, _ in batch], pending)
      progress(len(batch))
    if waiting:
      finish(*waiting)
  signs = {name: round(value, 6) for name, value in degeneration(texts, cut_off).items()}
  job.commit(unit, output, dict(captions=len(texts), degeneration=signs, **jobs.faults(bad)))
  if bad:
    progress(len(bad))
  return len(unit.rows)


def summary(entries: Sequence[Mapping]) -> dict[str, Any]:
  """The sums over units; signs of degeneration as means, weighted by captions."""
  captions = sum(entry["captions"] for entry in entries)
  bad: collections.Counter = collections.Counter()
  for entry in entries:
    bad.update(entry["bad"])
  names = dict.fromkeys(name for entry in entries for name in entry["degeneration"])       # a unit without a caption has none
  mean = lambda name: round(sum(entry["captions"] * entry["degeneration"].get(name, 0.0) for entry in entries) / max(captions, 1), 6)
  return dict(captions=captions, bad=dict(sorted(bad.items())), degeneration={name: mean(name) for name in names})
