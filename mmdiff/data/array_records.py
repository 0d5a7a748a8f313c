"""Any source as a TFDS dataset of ArrayRecord files, written without TensorFlow; the source `tfds` (and TFDS itself) reads it back.

Features: `key` and `extras` (a JSON object: facts, scene, label, …) texts, `image` a PNG, JPEG, … as bytes, `captions` a mapping of kind
to a list of texts, empty where a record lacks the kind.
"""
import collections
import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.core.files import read_object, write_json
from mmdiff.core.spelling import shown
from mmdiff.data import records, shards, verdict
from mmdiff.data.digests import Digests
from mmdiff.data.quarantine import BadRecord, Offence
from mmdiff.data.verdict import LIMITS, Limits

NAME, NOTE = r"[A-Za-z]\w*", "mmdiff.json"


def write(splits: Mapping[str, Any], out: str, *, name: str, description: str = "", version: str = "1.0.0", limits: Limits = LIMITS,
          threads: int = 4, tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
  """Writes `out`/NAME/VERSION with one split per source; a finished one of the same sources is kept.

  Bad records, as `verdict` finds them, are left out and counted. Returns {"count", "splits": {name: n}, "bad": {kind: n}, "offenders":
  {split: [{key, kind, detail}]}, "path", "kept", "fingerprint"}.
  Raises DataError when something else is there, or what was written is gone or changed, and when a split has no good record; ConfigError
  for a name that `wrong_name` refuses.
  """
  import tensorflow_datasets

  if wrong := wrong_name(name):
    raise ConfigError(f"name: {wrong}")
  target = Path(out) / name / version
  identity = records.fingerprint(*[item for split, source in splits.items() for item in (split, source.fingerprint())], *limits)
  note = target / NOTE
  if note.exists():
    done = read_object(note)
    if done.get("fingerprint") == identity:
      return _intact(target, done) | {"path": str(target), "kept": True}
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
      if not seen:
        raise shards.nothing_good(len(source), bad[split])

  Written.name = name
  try:
    Path(out).mkdir(parents=True, exist_ok=True)
    builder = Written(data_dir=out)
    tensorflow_datasets.disable_progress_bar()
    with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):      # it announces a download that is not
      builder.download_and_prepare(download_dir=nothing, file_format="array_record")
  except (OSError, RuntimeError) as error:
    if not isinstance(error, OSError) and not re.search(r"\b(open|write|close|fsync|ftruncate)\(\) failed", str(error)):
      raise                                                               # not what ArrayRecord makes of the system's error
    raise CannotWrite(f"can't write {target}: {error}") from error
  finally:
    with contextlib.suppress(OSError):
      target.parent.rmdir()                                               # if nothing came of it
  counts = {split: builder.info.splits[split].num_examples for split in splits}
  kinds_of = collections.Counter(offence.kind for offences in bad.values() for offence in offences)
  done = {"count": sum(counts.values()), "splits": counts, "bad": dict(kinds_of),
          "offenders": {split: [offence._asdict() for offence in offences] for split, offences in bad.items()},
          "path": str(target), "kept": False, "fingerprint": identity}
  names = sorted(path.name for path in target.iterdir())
  write_json(note, done | {"files": Digests(target).of(names)})
  return done


def wrong_name(name: str) -> str | None:
  """Why a set can't be called so, or None: its name is that of a folder and of files."""
  return None if re.fullmatch(NAME, name) else f"expected letters, digits and underscores, a letter first, found {shown(name)}"


def _intact(target: Path, done: dict[str, Any]) -> dict[str, Any]:
  """What the note of a finished set says, if its files are those that were written; else DataError."""
  files = done.pop("files", None)
  if not isinstance(files, dict) or not {"count", "splits", "bad", "offenders", "path"} <= {*done}:
    raise DataError(f"{target / NOTE} does not say what was written; remove {target}, or choose another folder")
  for name, found in Digests(target).of(list(files)).items():
    if found != files[name]:
      raise DataError(f"{target / name} is {'gone' if found is None else 'not as it was written'}; remove {target}, and run this again")
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
          "extras": records.as_json(records.extras_of(record), key=record["key"])}


def _captions(source: Any, i: int) -> list[str]:
  """The kinds of a record's captions; of one that has none in order, none."""
  try:
    return [kind for kind in records.without_image(source, i)["captions"] if isinstance(kind, str)]
  except (BadRecord, KeyError, TypeError):
    return []


def _texts(record: Mapping, kind: str) -> list[str]:
  value = record["captions"].get(kind, [])
  return [value] if isinstance(value, str) else list(value)
