"""Find pictures by words or by pictures, and sort them into classes: an index of a CLIP model's embeddings.

  mmdiff search build --model=CLIP-ViT-B-32 --data=pictures --out=index
  mmdiff search query --index=index --texts="a red circle" --count=20 --out=found
  mmdiff search query --index=index --images=photo.jpg --out=found
  mmdiff search classify --index=index --labels="a cat,a dog" --template="a photo of {}." --out=classes

build: --data names a source as everywhere (docs/data.md), a folder of pictures or tars for instance; stopped half-way, the same
command goes on. Bad pictures are counted and left out. query: --texts is one text or a .txt with one on each line, --images a picture or a
folder of them; every picture of the index is compared. --out gets results.json and index.html with the pictures found. classify gives
every picture the label that is nearest, and its probability.
"""
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.convert import names
from mmdiff.core import compilation
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import parse_json, read_object, write_atomically, write_json
from mmdiff.core.progress import Progress
from mmdiff.core.provenance import made_by
from mmdiff.core.terminal import one_line
from mmdiff.data import picture_notes

FLAGS = {
  "model": dict(type="model", help="build: run or public checkpoint of a model that embeds pictures; else where that is now"),
  "data": dict(type="source", help="build: folder of pictures, tars, parquet, … as in docs/data.md; name=folder,path=pictures lists keys"),
  "index": dict(type="dir", help="query and classify: folder of an index"),
  "out": dict(type="dir", required=True, help="folder to write"),
  "texts": dict(type="str", help="query: a text, or a .txt file of them"),
  "images": dict(type="path", help="query: a picture, or a folder of them"),
  "labels": dict(type="str", help="classify: labels with commas between, or a .txt file with one on each line"),
  "template": dict(type="str", default="a photo of {}.", help="classify: sentence around a label"),
  "count": dict(type="int", default=12, help="query: pictures found for each text or picture; classify: shown for each label"),
  "limit": dict(type="int", default=0, help="build: only the first records; 0 is all"),
  "batch_size": dict(type="int", default=64, help="build: pictures embedded at a time"),
  "params": dict(type="str", help="raw, or an average of config.ema; by default eval where there is one"),
}
TAKES = {
  "build": ("model", "data", "out", "limit", "batch_size", "params"),
  "query": ("index", "model", "texts", "images", "count", "out", "params"),
  "classify": ("index", "model", "labels", "template", "count", "out", "params"),
}
REQUIRED = {"build": ("model", "data"), "query": ("index",), "classify": ("index", "labels")}
PATHS = ("path", "urls", "images", "annotations", "index_dir", "data_dir")           # keys of sources that name files
PART = 4_096                   # records that are embedded before they are kept
META, EMBEDDINGS, KEYS = "index.json", "embeddings.npy", "keys.json"


class Index(NamedTuple):
  """embeddings: float32 [N D], unit norm, mapped. keys: of their records. rows: their places in the source."""
  meta: dict[str, Any]
  embeddings: Any
  keys: list[str]
  rows: list[int]


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags, sources
  action = flags.chosen(argv, TAKES)
  given = flags.parse(argv[1:], {name: FLAGS[name] | (dict(required=True) if name in REQUIRED[action] else {}) for name in TAKES[action]})
  problems = [f"--{name}: expected at least {least}, found {given[name]}" for name, least in (
    ("count", 1), ("limit", 0), ("batch_size", 1)) if given.get(name, least) < least]
  if action == "query" and bool(given["texts"]) == bool(given["images"]):
    problems.append("--texts or --images: expected one of the two")
  if problems:
    raise ConfigError("\n".join(problems))
  given = flags.located(given, FLAGS)
  if action == "build":
    build(given, sources.pictures_of(given["data"]), argv=["search", *argv])
  elif action == "query":
    query(given, argv=["search", *argv])
  else:
    classify(given, argv=["search", *argv])
  return 0


def open_model(path: str, params: str | None):
  """Raises DataError for a model that does not embed pictures."""
  import mmdiff.model
  from mmdiff.commands.sample import ability
  compilation.prepare()
  model = mmdiff.model.load(path, params=params)
  ability(model, "embed_image")
  return model


def open_indexed(given: Mapping, index: "Index"):
  """The model that an index was made with, from where it is now. Raises DataError for another one."""
  from mmdiff.commands import results
  try:
    path = names.find(given["model"] or index.meta["model"])
  except DataError as error:
    raise DataError(f"the model of the index: {error}. If it was moved, say where it is: --model=PATH") from None
  model = open_model(path, given["params"] or index.meta["params"])
  made, found = index.meta["identity"]["checkpoint"], results.model_facts(model)["checkpoint"]
  if made != found:
    raise DataError(f"{path}: another model than the index was made with: its checkpoint is {found}, the index has {made}")
  return model


def build(given: Mapping, config: Mapping, *, argv: list[str]) -> None:
  """Embeds every picture of the source, `PART` at a time, and joins the parts."""
  from mmdiff.commands import results
  from mmdiff.core.build import build as built
  from mmdiff.data import SOURCES
  from mmdiff.data.survey import worst
  source, out = built(SOURCES, config), Path(given["out"])
  total = min(len(source), given["limit"] or len(source))
  if not total:
    raise DataError(f"--data: {config['name']} holds no records")
  model = open_model(given["model"], given["params"])
  about = results.model_facts(model)
  identity = dict(source=source.fingerprint(), checkpoint=about["checkpoint"], step=about["step"], params=about["params"], total=total)
  where = os.path.abspath(given["model"])          # of a run this step, which others follow
  where += f"@{about['step']}" if model.origin is None and os.path.exists(where) else ""
  meta = dict(argv=argv, model=where, params=given["params"], data=anywhere(config), identity=identity, **made_by())
  before = read_object(out / META) if (out / META).is_file() else None
  if before and before.get("identity") != identity:
    raise ConfigError(f"--out={out} holds an index of another model or of other data; choose another folder")
  if not (before and before.get("complete") and (out / EMBEDDINGS).is_file()):
    write_json(out / META, meta | dict(complete=False))
    progress = Progress("search build", "pictures")
    for start in range(0, total, PART):
      file = out / f"part_{start:09}.npz"
      stop = min(start + PART, total)
      if not file.is_file():
        write_part(file, *embedded(model, source, range(start, stop), given["batch_size"], lambda n: progress(n, total)))
      else:
        progress(stop - start, total)
    join(out, meta)
  found = read_object(out / META)
  print(f"{out}: {found['pictures']:,} pictures, bad records {found['bad'] or 'none'}")
  if offenders := found.get("offenders"):
    print(f"{worst(offenders)}\nall of them: `offenders` in {out / META}")


def anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
  """A source's config with its paths as they are found from any folder."""
  absolute = lambda value: tuple(map(absolute, value)) if isinstance(value, (tuple, list)) else os.path.abspath(value)
  return {key: absolute(value) if key in PATHS and value else value for key, value in config.items()}


def embedded(model, source, places: Sequence[int], size: int, progress):
  """(places, keys, float32 [n D]) of the good records, and the bad ones."""
  import numpy as np

  from mmdiff.data import decode
  from mmdiff.data.quarantine import BadRecord
  from mmdiff.data.verdict import offence
  rows, keys, vectors, bad, waiting = [], [], [], [], []

  def flush() -> None:
    if waiting:
      vectors.append(model.embed_image(waiting, progress=False))
      waiting.clear()
  for place in places:
    key = f"#{place}"
    try:
      record = source[place]
      key = str(record["key"])
      waiting.append(decode.pixels(record["image"]))
      rows.append(place)
      keys.append(key)
    except BadRecord as fault:
      bad.append(offence(fault, key)._asdict())
    if len(waiting) == size:
      flush()
      progress(size)
  progress(len(waiting))
  flush()
  return np.asarray(rows, np.int64), keys, np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32), bad


def write_part(file: Path, rows, keys: Sequence[str], vectors, bad: Sequence[Mapping[str, str]]) -> None:
  import numpy as np
  arrays = dict(rows=rows, keys=np.asarray(keys, str), vectors=vectors, bad=np.asarray(json.dumps(bad)))
  write_atomically(file, lambda opened: np.savez(opened, **arrays))


def join(out: Path, meta: Mapping) -> None:
  """The parts as one array and one list; they are removed when it is whole."""
  import numpy as np
  files = sorted(out.glob("part_*.npz"))
  parts = [np.load(file) for file in files]
  good = [part["vectors"] for part in parts if len(part["rows"])]
  if not good:
    raise DataError(f"{out}: none of the records has a picture that can be read")
  offenders = [one for part in parts for one in parse_json(str(part["bad"]))]
  bad = dict(Counter(one["kind"] for one in offenders))
  vectors = np.concatenate(good)
  write_json(out / KEYS, dict(keys=[str(key) for part in parts for key in part["keys"]],
                              rows=[int(row) for part in parts for row in part["rows"]]))
  write_atomically(out / EMBEDDINGS, lambda opened: np.save(opened, vectors))
  write_json(out / META, dict(meta) | dict(complete=True, pictures=len(vectors), width=vectors.shape[1], bad=bad, offenders=offenders))
  for part, file in zip(parts, files):
    part.close()
    file.unlink()


def read_index(path: str) -> Index:
  """Raises DataError for what is no whole index."""
  import numpy as np
  folder = Path(path)
  try:
    meta, listed = read_object(folder / META), read_object(folder / KEYS)
    embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
    keys, rows = list(listed["keys"]), list(listed["rows"])
    if lacking := {"model", "params", "identity"} - meta.keys():
      raise ValueError(f"{META} lacks {', '.join(sorted(lacking))}")
  except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
    raise DataError(f"--index={path}: no whole index ({error}); make one with mmdiff search build") from None
  if not len(embeddings) == len(keys) == len(rows):
    raise DataError(f"--index={path}: {len(embeddings)} embeddings for {len(keys)} keys and {len(rows)} rows; build it anew")
  return Index(meta, embeddings, keys, rows)


def nearest(queries, embeddings, count: int, rows: int = 65_536):
  """Cosines: ([Q count] places in the index, best first, [Q count] values) of float32 [Q D], unit norm."""
  import numpy as np
  count = min(count, len(embeddings))
  best, values = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
  for start in range(0, len(embeddings), rows):
    found = queries @ np.asarray(embeddings[start:start + rows]).T
    places = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
    values, best = np.concatenate([values, found], 1), np.concatenate([best, places], 1)
    order = np.argsort(-values, 1, kind="stable")[:, :count]
    values, best = np.take_along_axis(values, order, 1), np.take_along_axis(best, order, 1)
  return best, values


def query(given: Mapping, *, argv: list[str]) -> None:
  from mmdiff.commands.edit import pictures
  index = read_index(given["index"])
  model = open_indexed(given, index)
  if given["texts"]:
    asked = lines_of(given["texts"])
    vectors = embed_texts(model, asked)
  else:
    asked = pictures(given["images"], "images")
    vectors = model.embed_image(asked)
  places, values = nearest(vectors, index.embeddings, given["count"])
  found = [dict(query=text, found=[dict(key=index.keys[place], row=index.rows[place], cosine=float(value))
                                   for place, value in zip(row, cosines)]) for text, row, cosines in zip(asked, places, values)]
  facts = dict(argv=argv, index=index.meta["identity"], **made_by(), results=found)
  shown = [(f"{each['query']}", [(item["row"], f"{item['key']} · {item['cosine']:.3f}") for item in each["found"]]) for each in found]
  finish(Path(given["out"]), facts, index, shown)
  print(f"{len(asked)} queries over {len(index.keys):,} pictures; look at {Path(given['out']) / 'index.html'}")


def classify(given: Mapping, *, argv: list[str]) -> None:
  import numpy as np
  index = read_index(given["index"])
  if "{}" not in given["template"]:
    raise ConfigError(f"--template: expected a sentence with {{}} where the label goes, found {given['template']!r}")
  labels = lines_of(given["labels"], ",")
  if twice := sorted({label for label in labels if labels.count(label) > 1}):
    raise ConfigError(f"--labels: {', '.join(map(repr, twice[:3]))} is in it twice, and no text can tell them apart; name each class once")
  model = open_indexed(given, index)
  scale = model.logit_scale if hasattr(model, "logit_scale") else 100.0
  logits = scale * (np.asarray(index.embeddings) @ embed_texts(model, [given["template"].replace("{}", label) for label in labels]).T)
  odds = np.exp(logits - logits.max(1, keepdims=True))
  odds /= odds.sum(1, keepdims=True)
  best = odds.argmax(1)
  rows = [dict(key=key, label=labels[place], probability=float(row[place])) for key, place, row in zip(index.keys, best, odds)]
  counts = {label: int((best == i).sum()) for i, label in enumerate(labels)}
  surest = lambda i: [n for n in np.argsort(-odds[:, i], kind="stable") if best[n] == i][:given["count"]]
  shown = [(f"{label}: {counts[label]:,}", [(index.rows[n], f"{index.keys[n]} · {odds[n, i]:.2f}") for n in surest(i)])
           for i, label in enumerate(labels)]
  finish(Path(given["out"]), dict(argv=argv, index=index.meta["identity"], **made_by(), counts=counts, results=rows), index, shown)
  print("\n".join(one_line(f"{label}: {count:,}") for label, count in counts.items()))


def lines_of(text: str, separator: str = "\n") -> list[str]:
  """A text, or the lines of a .txt; of a text also the parts between separators. Raises DataError for nothing."""
  if text.endswith(".txt"):
    try:
      text, separator = Path(text).read_text(encoding="utf-8-sig"), "\n"
    except (OSError, ValueError) as error:
      raise DataError(f"{text}: cannot be read: {error}") from None
  found = [part.strip() for part in text.split(separator) if part.strip()]
  if not found:
    raise DataError("no text to look for")
  return found


def embed_texts(model, texts: Sequence[str]):
  from mmdiff.commands.sample import ability
  return ability(model, "embed_text")(texts)


def finish(out: Path, facts: Mapping, index: Index, shown: Sequence[tuple[str, Sequence[tuple[int, str]]]]) -> None:
  """results.json, and index.html with the pictures of (heading, [(row of the source, caption)])."""
  from mmdiff.report import gallery
  from mmdiff.report.html import write_page
  write_json(out / "results.json", facts)
  settings = dict(pictures=len(index.keys), model=index.meta["model"])
  sections = [(heading, [gallery.Shot([("", made)], caption) for made, caption in thumbnails(index, items)]) for heading, items in shown]
  write_page(out / "index.html", out.name, gallery.body(out.name, sections, settings=settings,
                                                        command=picture_notes.command(list(facts["argv"]), {})))


def thumbnails(index: Index, items: Sequence[tuple[int, str]]) -> Iterator[tuple[str, str]]:
  """(an <img>, its caption) of rows of the index."""
  from PIL import Image

  from mmdiff.core.build import build as built
  from mmdiff.data import SOURCES, decode
  from mmdiff.data.quarantine import BadRecord
  from mmdiff.report import gallery
  source = built(SOURCES, index.meta["data"])
  for row, caption in items:
    try:
      made = gallery.thumbnail(Image.fromarray(decode.pixels(source[row]["image"])))
    except BadRecord:
      made = "<small>the picture is gone</small>"
    yield made, caption
