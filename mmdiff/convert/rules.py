"""Rule tables: one line per kind of tensor says its public name, its path here and how the values are laid out; read for load and for save.

  Rule("vision_model.encoder.layers.{n}.mlp.fc1.weight", "image/stack/mlp/up/kernel[n]", "linear")

`{n}` stands for a number and is the same number on both sides; `[n]` at the end of a path is the index into a scanned stack's leading axis.
A rule whose path a model does not have says nothing, so that one table serves models with and without biases, projections and so on.
"""
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmdiff.convert import resize as sizes
from mmdiff.convert import tensors
from mmdiff.convert.tensors import Tensor
from mmdiff.core.errors import DataError
from mmdiff.core.terminal import one_line

Shape = tuple[int, ...]


class Rule(NamedTuple):
  """`ours` has several paths where a public tensor holds several of ours (PyTorch's fused q, k, v)."""
  theirs: str
  ours: str | tuple[str, ...]
  kind: str = "same"


class Kind(NamedTuple):
  """A layout. `shape`: their shape from ours. `load`: their array and our shapes -> our arrays. `save`: the inverse."""
  shape: Callable[[list[Shape]], Shape]
  load: Callable[[np.ndarray, list[Shape]], list[np.ndarray]]
  save: Callable[[list[np.ndarray]], np.ndarray]


def _one(shape: Callable[[Shape], Shape], load: Callable[[np.ndarray, Shape], np.ndarray],
         save: Callable[[np.ndarray], np.ndarray]) -> Kind:
  return Kind(lambda shapes: shape(shapes[0]), lambda x, shapes: [load(x, shapes[0])], lambda parts: save(parts[0]))


def _patch(shape: Shape) -> Shape:
  """[p·p·3 D] -> [D 3 p p]."""
  side = math.isqrt(shape[0] // 3)
  return shape[1], 3, side, side


def _fused(x: np.ndarray, shapes: list[Shape]) -> list[np.ndarray]:
  return [part.T for part in np.split(x, np.cumsum([shape[1] for shape in shapes])[:-1], axis=0)]


KINDS = {
  "same": _one(lambda s: s, lambda x, s: x, lambda x: x),
  "rows": _one(lambda s: s, lambda x, s: x, lambda x: x),                       # positions of tokens
  "grid": _one(lambda s: s, lambda x, s: x, lambda x: x),                       # positions of patches, perhaps after a class token's
  "vector": _one(lambda s: (1,), lambda x, s: x[0], lambda x: x[None]),         # a scalar as [1]
  "lead": _one(lambda s: (1, *s), lambda x, s: x[0], lambda x: x[None]),
  "linear": _one(lambda s: s[::-1], lambda x, s: x.T, lambda x: x.T),           # [in out] here, [out in] there
  "conv": _one(lambda s: (s[3], s[2], *s[:2]), lambda x, s: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
  "conv1": _one(lambda s: (*s[::-1], 1, 1), lambda x, s: x[..., 0, 0].T, lambda x: x.T[..., None, None]),        # a 1×1 convolution there
  "patch": _one(_patch, lambda x, s: x.transpose(2, 3, 1, 0).reshape(s),
                lambda x: x.reshape(*_patch(x.shape)[2:], 3, -1).transpose(3, 2, 0, 1)),
  "fused": Kind(lambda ss: (sum(s[1] for s in ss), ss[0][0]), _fused, lambda parts: np.concatenate([part.T for part in parts])),
  "fused_bias": Kind(lambda ss: (sum(s[0] for s in ss),), lambda x, ss: np.split(x, np.cumsum([s[0] for s in ss])[:-1]),
                     np.concatenate),
  # big_vision keeps heads apart ([D N Dh], [N Dh], [N Dh D]) and stacks on a leading axis of its own; it is only read.
  "flat": _one(lambda s: s, lambda x, s: x.reshape(s), lambda x: x),
}


class Binding(NamedTuple):
  """One public tensor, its shape, and the parts of our leaves that it holds: (path, index into the leading axis or None)."""
  theirs: str
  shape: Shape
  parts: tuple[tuple[str, int | None], ...]
  kind: str


def bind(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> list[Binding]:
  """A binding for every part of every leaf, in the order of the rules.

  Raises DataError for a leaf that no rule names or that two name: the table does not fit the model.
  """
  bindings, covered = [], dict.fromkeys(shapes, 0)
  for rule in rules:
    paths = (rule.ours,) if isinstance(rule.ours, str) else rule.ours
    first, stacked = _pattern(paths[0])
    for path in shapes:
      found = first.fullmatch(path)
      if not found:
        continue
      for index in range(shapes[path][0]) if stacked else [None]:
        numbers = {name: int(text) for name, text in found.groupdict().items()} | ({} if index is None else {stacked: index})
        parts = tuple((re.sub(r"\[\w+\]$", "", ours).format(**numbers), index) for ours in paths)
        if any(part not in shapes for part, _ in parts):
          continue
        inner = [shapes[part][1:] if stacked else shapes[part] for part, _ in parts]
        bindings.append(Binding(rule.theirs.format(**numbers), KINDS[rule.kind].shape(inner), parts, rule.kind))
        for part, _ in parts:
          covered[part] += 1
  odd = [path for path, count in covered.items() if count not in (1, shapes[path][0] if shapes[path] else 1)]
  names = [binding.theirs for binding in bindings]
  if odd or len(set(names)) < len(names):
    raise DataError(f"the format has no place for {', '.join(sorted(odd)[:5])}" if odd else "the format names a tensor twice")
  return bindings


def _pattern(path: str) -> tuple[re.Pattern, str | None]:
  """The regular expression of a path of ours, and the name of its index."""
  stacked = re.search(r"\[(\w+)\]$", path)
  body = path[:stacked.start()] if stacked else path
  return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(body))), stacked[1] if stacked else None


class Report(NamedTuple):
  """What a load found, by public names. `notices` are sentences for people."""
  loaded: list[str]
  reshaped: list[str]
  missing: list[str]
  unexpected: list[str]
  ignored: list[str]
  notices: list[str]

  def text(self) -> str:
    """One line, and one for each kind of thing that was not simply loaded."""
    counts = {name: len(getattr(self, name)) for name in self._fields[:5]}
    lines = [", ".join(f"{count} {name}" for name, count in counts.items())]
    lines += [f"{name}: {shown(getattr(self, name))}" for name in self._fields[1:5] if getattr(self, name)]
    return "\n".join([*lines, *self.notices])


def shown(names: Sequence[str], most: int = 8) -> str:
  return ", ".join(map(one_line, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def load(found: Mapping[str, Tensor], bindings: Sequence[Binding], shapes: Mapping[str, Shape], *, where: str,
         ignorable: Sequence[str] = (), allow_missing: str | None = None, resize: bool = False,
         initial: Callable[[], Mapping[str, np.ndarray]] | None = None) -> tuple[dict[str, np.ndarray], Report]:
  """Our leaves, float32, from public tensors; one tensor is in memory beside them.

  Args:
    found: tensors by public name.
    where: file or folder, for messages.
    ignorable: regular expressions of names that mean nothing to us.
    allow_missing: regular expression of names that may be missing or unexpected.
    resize: position tables of another length and patches of another size are fitted (`convert.resize`), instead of being errors.
    initial: values of leaves that stay without a tensor; None is zeros.

  Raises:
    DataError: names all that is missing, unexpected or of another shape.
  """
  allowed = lambda name: bool(allow_missing and re.fullmatch(allow_missing, name))
  missing, unexpected, ignored = cover(found, bindings, ignorable)
  faults = dict(missing=[name for name in missing if not allowed(name)], unexpected=[name for name in unexpected if not allowed(name)])
  problems = [f"{len(listed)} tensors are {kind}: {shown(listed)}" for kind, listed in faults.items() if listed]
  reshaped, notices, wrong = [], [], []
  leaves: dict[str, np.ndarray] = {}
  if missing and initial and not problems:
    leaves = {path: np.array(value, np.float32) for path, value in initial().items()}
  for path, shape in shapes.items():
    if path not in leaves:
      leaves[path] = np.zeros(shape, np.float32)
  for binding in bindings:
    tensor = found.get(binding.theirs)
    if tensor is None:
      continue
    same = tensor.shape == binding.shape
    squeezed = not same and fits(tensor, binding)
    inner = [shapes[path] if index is None else shapes[path][1:] for path, index in binding.parts]
    stored = (tensors.size(tensor.shape[1:]), tensor.shape[0]) if binding.kind == "patch" else tensor.shape
    resized = not same and not squeezed and resize and sizes.can_fit(binding.kind, stored, inner[0])
    if not (same or squeezed or resized):
      wrong.append(f"{binding.theirs} {list(tensor.shape)}, expected {list(binding.shape)}")
    if wrong or problems:
      continue
    values = np.asarray(tensor.read(), np.float32)
    if squeezed:
      values = values.reshape(binding.shape)
      reshaped.append(binding.theirs)
    parts = KINDS[binding.kind].load(values, [stored] if resized else inner)
    if resized:
      fit, told = sizes.fitted(binding.kind, parts[0], inner[0])
      parts = [fit]
      notices.append(f"{binding.theirs}: {told}")
    for (path, index), part in zip(binding.parts, parts):
      leaves[path][... if index is None else index] = part
  if wrong:
    problems.append(f"{len(wrong)} tensors have another shape than the config says: {shown(wrong)}")
  if problems:
    raise DataError(f"{where}: " + "; ".join(problems) + ". If that is meant, allow it by a regular expression of names "
                    "(--allow_missing=REGEX, allow_missing=…)" * (not wrong))
  loaded = [binding.theirs for binding in bindings if binding.theirs in found]
  return leaves, Report(loaded, reshaped, missing, unexpected, ignored, notices)


def cover(found: Mapping[str, Tensor], bindings: Sequence[Binding], ignorable: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
  """Names that are (missing, unexpected, ignorable)."""
  names = {binding.theirs for binding in bindings}
  others = [name for name in found if name not in names]
  ignored = {name for name in others if any(re.fullmatch(pattern, name) for pattern in ignorable)}
  return sorted(names - set(found)), [name for name in others if name not in ignored], sorted(ignored)


def fits(tensor: Tensor, binding: Binding) -> bool:
  """Whether a tensor has the shape of its binding, but for sides of one, or for how a flat one is cut."""
  sides = lambda shape: [side for side in shape if side != 1]
  return sides(tensor.shape) == sides(binding.shape) or binding.kind == "flat" and tensors.size(tensor.shape) == tensors.size(binding.shape)


def save(leaves: Mapping[str, Any], bindings: Sequence[Binding], dtype: np.dtype | str = "float32") -> dict[str, Tensor]:
  """Public tensors, made one at a time when they are read."""
  kind = np.dtype(dtype) if dtype != "bfloat16" else tensors.DTYPES["BF16"]

  def reader(binding: Binding) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
      parts = [np.asarray(leaves[path] if index is None else leaves[path][index]) for path, index in binding.parts]
      return np.ascontiguousarray(KINDS[binding.kind].save(parts), kind)
    return read
  return {binding.theirs: Tensor(binding.shape, kind, reader(binding)) for binding in bindings}


def renamed(found: Mapping[str, Tensor], renames: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
  """Tensors under the names of a table, from older or other spellings: every (regular expression, replacement) in turn.

  Raises DataError where two tensors would have one name.
  """
  made: dict[str, Tensor] = {}
  for before, tensor in found.items():
    name = before
    for pattern, replacement in renames:
      name = re.sub(pattern, replacement, name)
    if name in made:
      raise DataError(f"{before} is {name} by another spelling, and both are there: which of the two is meant is not clear")
    made[name] = tensor
  return made


def pair(theirs: str, ours: str, kind: str = "linear", index: str = "") -> tuple[Rule, Rule]:
  """The kernel and the bias of a layer; `index` is "[n]" in a stack."""
  return Rule(f"{theirs}.weight", f"{ours}/kernel{index}", kind), Rule(f"{theirs}.bias", f"{ours}/bias{index}")


def norm(theirs: str, ours: str, index: str = "") -> tuple[Rule, Rule]:
  """The scale and the bias of a normalisation."""
  return Rule(f"{theirs}.weight", f"{ours}/scale{index}"), Rule(f"{theirs}.bias", f"{ours}/bias{index}")
