"""Zero-shot classification by class names (Radford et al. 2021, https://arxiv.org/abs/2103.00020 §3.1).

The weight of a class is the normalised mean of the normalised embeddings of its name in every template; a picture gets the class whose
weight has the largest cosine with its embedding.
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmdiff.core.build import Built
from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import parse_json
from mmdiff.core.spelling import nearest
from mmdiff.data.pipelines import NO_CAPTION
from mmdiff.evaluators import NEEDS
from mmdiff.evaluators.base import Evaluator, Result, Services, embed_images, embed_texts, left_out, records, require
from mmdiff.evaluators.retrieval import ranks

# The 80 of the paper's ImageNet ensemble are 38 phrases with either article and four of their own (openai/CLIP, data/prompts.md).
_EITHER_ARTICLE = (
  "a photo of @ {}.", "a bad photo of @ {}.", "a good photo of @ {}.", "a bright photo of @ {}.", "a dark photo of @ {}.",
  "a blurry photo of @ {}.", "a cropped photo of @ {}.", "a close-up photo of @ {}.", "a pixelated photo of @ {}.",
  "a low resolution photo of @ {}.", "a jpeg corrupted photo of @ {}.", "a black and white photo of @ {}.", "a photo of @ clean {}.",
  "a photo of @ dirty {}.", "a photo of @ cool {}.", "a photo of @ nice {}.", "a photo of @ weird {}.", "a photo of @ large {}.",
  "a photo of @ small {}.", "a photo of @ hard to see {}.", "a sculpture of @ {}.", "a rendering of @ {}.", "a rendition of @ {}.",
  "a drawing of @ {}.", "a painting of @ {}.", "a sketch of @ {}.", "a doodle of @ {}.", "a tattoo of @ {}.", "graffiti of @ {}.",
  "art of @ {}.", "itap of @ {}.", "@ {} in a video game.", "@ embroidered {}.", "@ plastic {}.", "@ origami {}.", "@ toy {}.",
  "@ cartoon {}.", "@ plushie {}.",
)
TEMPLATES = {
  "bare": ("{}",),
  "plain": ("a photo of a {}.",),
  # The seven that a greedy search picked (openai/CLIP, Prompt_Engineering_for_ImageNet.ipynb), better than the 80 for small models.
  "openai-7": ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
               "art of the {}.", "a photo of the small {}."),
  "openai-80": (*(phrase.replace("@", article) for phrase in _EITHER_ARTICLE for article in ("a", "the")),
                "a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."),
}


def zeroshot(services: Services, *, source: Built["mmdiff.data:SOURCES"], every_steps: int, params: str = "", limit: int | None = None,
             templates: tuple[str, ...] = ("plain",), classes: tuple[str, ...] = (), class_file: str = "") -> Evaluator:
  """Top-1, top-5 and the mean over classes of top-1; ties count against the model.

  Args:
    source: records with `label`, an index into the classes or a class's name.
    limit: records, from the source's first; many sources are ordered by class.
    templates: names of `TEMPLATES` or texts with `{}` where the class name goes, all averaged.
    classes: names in label order; () takes those of class_file, else the source's `labels`.
    class_file: one name a line, or a JSON list.
  """
  require(services, "zeroshot", *NEEDS["zeroshot"])
  phrases = expand(templates)
  dataset = services.dataset(source)
  names = class_names(classes, class_file, getattr(dataset.source, "labels", ()))

  def run(params, step, extra=()):
    weights = class_weights(lambda texts: embed_texts(services, params, *dataset.tokenize(texts), extra=extra), names, phrases)
    images, labels = [], []
    batches = dataset.eval_batches(batch_size=services.batch_size, limit=limit, caption_kind=NO_CAPTION)
    for batch, made in embed_images(services, params, batches, extra=extra, total=records(dataset, limit)):
      images.append(made)
      labels += [label_of(record, names) for record in batch["records"]]
    if not images:
      raise DataError("zeroshot: the source gave no records")
    found = score(np.concatenate(images), weights, np.asarray(labels), names)
    return found._replace(scalars=found.scalars | left_out(dataset, limit, len(labels)))

  return Evaluator(every_steps, params, run)


def expand(templates: Sequence[str]) -> tuple[str, ...]:
  """Names of `TEMPLATES` and texts with `{}` as texts. Raises ConfigError for anything else."""
  for name in templates:
    if name not in TEMPLATES and "{}" not in name:
      guess = nearest(name, TEMPLATES)
      raise ConfigError(f"templates: {name!r} is neither a text with {{}} for the class name nor one of {', '.join(TEMPLATES)}"
                        + (f"; did you mean {guess!r}?" if guess else ""))
  if not templates:
    raise ConfigError(f"templates: expected at least one of {', '.join(TEMPLATES)} or a text with {{}}")
  return tuple(phrase for name in templates for phrase in TEMPLATES.get(name, (name,)))


def class_names(classes: Sequence[str], class_file: str, labels: Sequence[str]) -> tuple[str, ...]:
  """The first that is given. Raises ConfigError if none is or two classes share a name, DataError for a file that can't be read."""
  names = tuple(classes)
  if not names and class_file:
    try:
      text = Path(class_file).read_text(encoding="utf-8-sig")
      listed = parse_json(text) if text.lstrip().startswith("[") else [line.strip() for line in text.split("\n")]
      if odd := [name for name in listed if not isinstance(name, str)]:
        raise ValueError(f"expected names, found {odd[0]!r:.40}")
      names = tuple(filter(None, listed))
    except (OSError, ValueError) as error:
      raise DataError(f"class_file: cannot read {class_file}: {error}") from None
  names = names or tuple(labels)
  if not names:
    raise ConfigError("zeroshot: the source names no classes; set classes or class_file")
  twice = [name for name, count in Counter(names).items() if count > 1]
  if twice:
    raise ConfigError(f"zeroshot: more than one class is called {', '.join(map(repr, twice[:3]))}; no text can tell them apart, so give "
                      "them names of their own in class_file")
  return names


def class_weights(embed, names: Sequence[str], phrases: Sequence[str]) -> np.ndarray:
  """float32 [C D], unit norm; embed: list of texts -> [n D], unit norm."""
  texts = [phrase.replace("{}", name) for name in names for phrase in phrases]
  mean = embed(texts).reshape(len(names), len(phrases), -1).mean(1)
  return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def label_of(record: Mapping, names: Sequence[str]) -> int:
  """The record's class index. Raises DataError without one that the classes know.

  A text is a class's name, and else an index: tables of cells have no numbers.
  """
  label = record.get("label")
  if isinstance(label, str) and label in names:
    return names.index(label)
  if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < 10:
    label = int(label)
  if isinstance(label, (int, np.integer)) and not isinstance(label, bool) and 0 <= label < len(names):
    return int(label)
  raise DataError(f"record {record.get('key')!r} has label {label!r}; expected one of the {len(names)} classes, by index or name")


def score(image: np.ndarray, weights: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Result:
  """The result for embeddings image [N D], weights [C D] and labels int [N]."""
  rank = ranks(image, weights, labels, np.arange(len(names)))
  per_class = [dict(label=name, records=int(here.sum()), top_1=float(np.mean(rank[here] == 1)))
               for i, name in enumerate(names) if (here := labels == i).any()]
  scalars = dict(top_1=float(np.mean(rank == 1)), top_5=float(np.mean(rank <= 5)),
                 mean_per_class=float(np.mean([row["top_1"] for row in per_class])), classes=float(len(names)), records=float(len(labels)))
  return Result(scalars, {"classes": per_class})
