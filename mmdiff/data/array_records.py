"""Any source as a TFDS dataset of ArrayRecord files, written without TensorFlow; the source `tfds` (and TFDS itself) reads it back.

Features: `key` and `extras` (a JSON object: facts, scene, label, …) texts, `image` a PNG, JPEG, … as bytes, `captions` a mapping of kind
to a list of texts, empty where a record lacks the kind.
"""
import collections
import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core.errors import CannotWrite, DataError
from mmdiff.core.files import plain, read_object, write_json
from mmdiff.data import records, verdict
from mmdiff.data.quarantine import BadRecord, Offence
from mmdiff.data.verdict import LIMITS, Limits


def write(splits: Mapping[str, Any], out: str, *, name: str, description: str = "", version: str = "1.0.0", limits: Limits = LIMITS,
          threads: int = 4, tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
  """Writes `out`/NAME/VERSION with one split per source; a finished one of the same sources is kept.

  Bad records, as `verdict` finds them, are left out and counted. Returns {"count", "splits": {name: n}, "bad": {kind: n}, "offenders":
  {split: [{key, kind, detail}]}, "path", "kept", "fingerprint"}.
  Raises DataError when something else is there.
  """
  import tensorflow_datasets

  target = Path(out) / name / version
  identity = records.fingerprint(*[item for split, source in splits.items() for item in (split, source.fingerprint())], *limits)
  note = target / "mmdiff.json"
  if note.exists():
    done = read_object(note)
    if done.get("fingerprint") == identity:
      return done | {"kept": True}
    raise DataError(f"{target} holds records of another source or of other limits; choose another folder or version, or remove it")
  if target.exists():
    raise DataError(f"{target} exists and was not finished by this command; remove it or choose another folder")
  kinds = sorted({kind for source in splits.values() for i in range(len(source)) for kind in _captions(source, i)})
  if not kinds:
    raise DataError("no captions in the source; an array_record set needs some")
  total = sum(len(source) for source in splits.values())
  bad: dict[str, list[Offence]] = {split: [] for split in splits}

  class Written(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tensorflow_datasets.core.Version(version)
    code_path = None                                                      # there is no package of checksums to look for

    def _info(self):
      return tensorflow_datasets.core.DatasetInfo(builder=self, description=description or f"Written by mmdiff from {name}.",
                                                  features=features_of(kinds))

    def _split_generators(self, _):
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
      before = sum(len(source) for other, source in splits.items() if list(splits).index(other) < list(splits).index(split))
      seen: set[str] = set()
      source = splits[split]
      for number, one in enumerate(verdict.each(source, range(len(source)), limits=limits, threads=threads, keep=True), 1):
        if one.fault:
          bad[split].append(one.fault)
        elif one.key in seen:
          raise DataError(f"{name}: key {one.key!r} comes twice; the records of a set need different keys")
        else:
          seen.add(one.key)
          try:
            yield one.key, example_of(one.record, kinds)
          except BadRecord as fault:
            bad[split].append(Offence(one.key, fault.kind, fault.detail))
        tell(before + number, total)

  Written.name = name
  try:
    Path(out).mkdir(parents=True, exist_ok=True)
    builder = Written(data_dir=out)
    tensorflow_datasets.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):                       # it announces a download that there is not
      builder.download_and_prepare(file_format="array_record")
  except OSError as error:
    raise CannotWrite(f"can't write {target}: {error}") from error
  shutil.rmtree(os.path.join(out, "downloads"), ignore_errors=True)
  counts = {split: builder.info.splits[split].num_examples for split in splits}
  kinds_of = collections.Counter(offence.kind for offences in bad.values() for offence in offences)
  done = {"count": sum(counts.values()), "splits": counts, "bad": dict(kinds_of),
          "offenders": {split: [offence._asdict() for offence in offences] for split, offences in bad.items()},
          "path": str(target), "kept": False, "fingerprint": identity}
  write_json(note, done)
  return done


def features_of(kinds: Sequence[str]) -> Any:
  """The TFDS features of records with captions of these kinds."""
  from tensorflow_datasets import features
  text = features.Text()
  return features.FeaturesDict({"key": text, "image": features.Image(shape=(None, None, 3)), "extras": text,
                                "captions": {kind: features.Sequence(text) for kind in kinds}})


def example_of(record: Mapping, kinds: Sequence[str]) -> dict[str, Any]:
  """A record as those features take it. BadRecord for a picture of no known format, or a kind that the set has no place for."""
  data, _ = verdict.encoded(record["image"])
  if other := set(record["captions"]) - set(kinds):
    raise BadRecord("bad_type", f"captions of kind {', '.join(sorted(other))}, which the set has no place for", record["key"])
  return {"key": record["key"], "image": data, "captions": {kind: _texts(record, kind) for kind in kinds},
          "extras": json.dumps(plain(records.extras_of(record)))}


def _captions(source: Any, i: int) -> Mapping[str, Any]:
  try:
    return records.without_image(source, i)["captions"]
  except BadRecord:
    return {}


def _texts(record: Mapping, kind: str) -> list[str]:
  value = record["captions"].get(kind, [])
  return [value] if isinstance(value, str) else list(value)
