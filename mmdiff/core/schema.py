"""What a config may say, read from the code it configures, without importing that code.

Every block of a config names a factory in a literal table (`name="clip"`), and the factory's keyword-only parameters *are* the block's
keys: their annotations are the types, their defaults the defaults. `signatures` reads them with `ast`, so that a wrong config is
refused within a second and before JAX is imported, and so that a new objective, model, source or evaluator needs no second
description anywhere.

Annotations understood: int, float, str, bool, `X | Y`, None, `Literal[…]`, `tuple[X, ...]`, `Mapping[str, X]`, a class of annotated
fields (a nested block), `Built["module:TABLE"]` (a nested block built by name), `OneOf["module:TABLE"]` (a key of a literal dict), and
names for any of these defined in or imported into the module.
"""
import ast
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmdiff.core.signatures import COMPUTED, REQUIRED, SCALARS, Field, Syntax, definition, fields, literal, table
from mmdiff.core.spelling import children, nearest, nearest_path, shown


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing wrong with a config."""
  path: str                 # dotted, e.g. "optim.default.lrr"
  message: str
  meant: str | None = None  # the dotted path that was probably meant

  def text(self, prefix: str = "") -> str:
    return f"{prefix}{self.path}: {self.message}" + (f"; did you mean {prefix}{self.meant}?" if self.meant else "")

  __str__ = text


class Block(NamedTuple):
  """How the keys under one mapping are known."""
  spec: str | None = None          # "module:factory", fixed keys
  table: str | None = None         # "module:TABLE", keys depend on `name`
  values: Syntax = None            # any key, each value of this annotation
  module: str = ""


MOST_ITEMS = 65_536          # of a tuple
EXPERIMENT = Block(spec="mmdiff.core.experiment:Experiment")
UNKNOWN = "unknown key"


# Annotations

def _expand(annotation: Syntax, module: str) -> tuple[Syntax, str]:
  """A quoted annotation or a name for one -> the annotation itself."""
  if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
    return _expand(ast.parse(annotation.value, mode="eval").body, module)
  if isinstance(annotation, ast.Name) and annotation.id not in SCALARS and (found := definition(annotation.id, module)):
    return _expand(*found) if isinstance(found[0], ast.expr) else (annotation, found[1])
  return annotation, module


def _generic(annotation: Syntax) -> str | None:
  return annotation.value.id if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) else None


def _inner(annotation: Syntax) -> list[Syntax]:
  return annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]


def _choices(annotation: Syntax, module: str) -> list:
  """The values that `Literal[…]` or `OneOf[…]` allows."""
  if _generic(annotation) == "Literal":
    return [literal(element) for element in _inner(annotation)]
  spec = literal(annotation.slice)
  return list(table(spec if ":" in spec else f"{module}:{spec}"))


def block_of(field: Field) -> Block | None:
  """The block that a field holds, or None for a leaf."""
  annotation, module = _expand(field.annotation, field.module)
  if isinstance(annotation, ast.BinOp):                                   # X | None
    return block_of(field._replace(annotation=annotation.left, module=module)) or \
      block_of(field._replace(annotation=annotation.right, module=module))
  if _generic(annotation) == "Built":
    return Block(table=literal(annotation.slice))
  if _generic(annotation) in ("Mapping", "dict"):
    return Block(values=_inner(annotation)[1], module=module)
  if isinstance(annotation, ast.Name) and (found := definition(annotation.id, module)) and isinstance(found[0], ast.ClassDef):
    return Block(spec=f"{found[1]}:{found[0].name}")
  return None


def optional(field: Field) -> bool:
  """Whether a field may be None."""
  annotation, module = _expand(field.annotation, field.module)
  if isinstance(annotation, ast.BinOp):
    return any(optional(field._replace(annotation=side, module=module)) for side in (annotation.left, annotation.right))
  return isinstance(annotation, ast.Constant) and annotation.value is None


def describe(annotation: Syntax, module: str) -> str:
  """An annotation in words: "float", "tuple of int", "one of 'softmax', 'sigmoid'", "float or None"."""
  annotation, module = _expand(annotation, module)
  if isinstance(annotation, ast.BinOp):
    return f"{describe(annotation.left, module)} or {describe(annotation.right, module)}"
  if _generic(annotation) in ("Literal", "OneOf"):
    return "one of " + ", ".join(map(repr, _choices(annotation, module)))
  if _generic(annotation) in ("tuple", "Sequence", "list"):
    return f"tuple of {describe(_inner(annotation)[0], module)}"
  if _generic(annotation) in ("Mapping", "dict"):
    return f"mapping of names to {describe(_inner(annotation)[1], module)}"
  if _generic(annotation) == "Built":
    return "block named " + ", ".join(map(repr, table(literal(annotation.slice))))
  return ast.unparse(annotation)


def understood(annotation: Syntax, module: str) -> bool:
  """Whether values of this annotation can be checked."""
  annotation, module = _expand(annotation, module)
  if isinstance(annotation, ast.BinOp):
    return understood(annotation.left, module) and understood(annotation.right, module)
  if _generic(annotation) in ("tuple", "Sequence", "list"):
    return understood(_inner(annotation)[0], module)
  if _generic(annotation) in ("Mapping", "dict"):
    return understood(_inner(annotation)[1], module)
  return _generic(annotation) in ("Literal", "OneOf", "Built") or isinstance(annotation, ast.Constant) and annotation.value is None or \
    isinstance(annotation, ast.Name) and (annotation.id in SCALARS or block_of(Field(annotation, None, module)) is not None)


def _wrong(annotation: Syntax, value: Any, module: str) -> str | None:
  """Why a leaf value does not fit its annotation, or None."""
  annotation, module = _expand(annotation, module)
  found = f"found {type(value).__name__} {shown(value)}" if value is not None else "found None"
  if isinstance(annotation, ast.BinOp):
    left, right = _wrong(annotation.left, value, module), _wrong(annotation.right, value, module)
    if left is None or right is None:
      return None
    return left if right.startswith("expected None") else right if left.startswith("expected None") else \
      f"expected {describe(annotation, module)}, {found}"
  if _generic(annotation) in ("Literal", "OneOf"):
    known = _choices(annotation, module)
    if any(value == k and isinstance(value, bool) == isinstance(k, bool) for k in known):
      return None
    guess = nearest(value, [k for k in known if isinstance(k, str)]) if isinstance(value, str) else None
    return f"expected {describe(annotation, module)}, found {shown(value)}" + (f"; did you mean {guess!r}?" if guess else "")
  if _generic(annotation) in ("tuple", "Sequence", "list"):
    if not isinstance(value, (tuple, list)):
      return f"expected {describe(annotation, module)}, {found}"
    if len(value) > MOST_ITEMS:
      return f"expected at most {MOST_ITEMS:,} items, found {len(value):,}"
    return next((f"{problem} in {shown(value)}" for item in value if (problem := _wrong(_inner(annotation)[0], item, module))), None)
  if isinstance(annotation, ast.Constant) and annotation.value is None:
    return None if value is None else f"expected None, {found}"
  kind = annotation.id if isinstance(annotation, ast.Name) else ""
  fits = {"int": isinstance(value, int) and not isinstance(value, bool), "bool": isinstance(value, bool), "str": isinstance(value, str),
          "float": isinstance(value, (int, float)) and not isinstance(value, bool)}
  return None if fits.get(kind, True) else f"expected {kind}, {found}"


def parse_text(field: Field, text: str) -> Any:
  """The value that `text` stands for on a command line. Raises ValueError("expected …, found …")."""
  return _parse(field.annotation, text, field.module)


def _greed(annotation: Syntax, text: str) -> int:
  """The order in which the sides of a union try to read a text: a str takes anything, a tuple anything but what its brackets exclude."""
  if isinstance(annotation, ast.BinOp):
    return max(_greed(annotation.left, text), _greed(annotation.right, text))
  if _generic(annotation) in ("tuple", "Sequence", "list"):
    return 0 if text.strip()[:1] in ("(", "[") else 3
  return 2 if isinstance(annotation, ast.Name) and annotation.id == "str" else 0


def _parse(annotation: Syntax, text: str, module: str) -> Any:
  annotation, module = _expand(annotation, module)
  said = ValueError(f"expected {describe(annotation, module)}, found {shown(text)}")
  if isinstance(annotation, ast.BinOp):
    for side in sorted((annotation.left, annotation.right), key=lambda side: _greed(side, text)):
      try:
        return _parse(side, text, module)
      except ValueError:
        continue
    raise said
  if isinstance(annotation, ast.Constant) and annotation.value is None:
    if text.lower() not in ("none", "null"):
      raise said
    return None
  if _generic(annotation) in ("Literal", "OneOf"):
    known = _choices(annotation, module)
    match = [value for value in known if str(value) == text]
    if not match:
      raise ValueError(_wrong(annotation, text, module))
    return match[0]
  if _generic(annotation) in ("tuple", "Sequence", "list"):
    inner, bare = _inner(annotation)[0], text.strip()
    if bare[:1] in ("(", "["):
      value = literal(bare)
      value = value if isinstance(value, (tuple, list)) else (value,) if value is not None else None
      if value is None or _wrong(annotation, value, module):
        raise said
      return tuple(value)
    try:
      return tuple(_parse(inner, part.strip(), module) for part in bare.split(",")) if bare else ()
    except ValueError:
      raise said from None
  if isinstance(annotation, ast.Name) and annotation.id == "bool":
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
      raise said
    return text.lower() in ("true", "t", "1")
  try:
    return SCALARS.get(getattr(annotation, "id", ""), str)(text)
  except ValueError:
    raise said from None


# Configs

def keys_of(block: Block, config: Mapping) -> dict[str, Field]:
  """The keys that a block allows, given what it says already (its `name`)."""
  if block.spec:
    return fields(block.spec)
  if block.table:
    known, name = table(block.table), config.get("name")
    name_field = Field(ast.parse(f"OneOf[{block.table!r}]", mode="eval").body, REQUIRED, "")
    return {"name": name_field} | (fields(known[name]) if isinstance(name, str) and name in known else {})
  return {key: Field(block.values, REQUIRED, block.module) for key in config}


def check(config: Mapping, block: Block = EXPERIMENT) -> list[Problem]:
  """Everything that is wrong with `config` under `block`: unknown and missing keys, types, names, in one pass."""
  known = dotted_keys(config, block)
  problems = list(_check(config, block, ""))
  told = {p: unknown(p.path, known) for p in problems if p.message == UNKNOWN}
  meant = {p.meant for p in told.values()}
  # A misspelt required key is one mistake, not two.
  return [told.get(p, p) for p in problems if not (p.message.startswith("missing") and p.path in meant)]


def unknown(path: str, known: Sequence[str]) -> Problem:
  """The problem of a key that there is not, with the one of `known` that was probably meant, or those of its block."""
  meant, block = nearest_path(path, known), path.rpartition(".")[0]
  there = children(block, known) if block and not meant else []
  return Problem(path, UNKNOWN + (f"; the keys of {block} are {', '.join(there)}" if there else ""), meant)


def _check(config: Mapping, block: Block, path: str) -> Iterator[Problem]:
  known = keys_of(block, config)
  dotted = lambda key: f"{path}.{key}" if path else str(key)
  unnamed = _wrong(known["name"].annotation, config.get("name"), "") if block.table else None
  if unnamed:
    yield Problem(dotted("name"), unnamed if "name" in config else "missing; " + unnamed.split(", found")[0])
  for key, value in config.items():
    if key not in known:
      if not unnamed:                        # without the name nobody knows the keys
        yield Problem(dotted(key), UNKNOWN)
      continue
    inner = block_of(known[key])
    if inner is None:
      wrong = _wrong(known[key].annotation, value, known[key].module)
      if wrong and not (unnamed and key == "name"):
        yield Problem(dotted(key), wrong)
    elif isinstance(value, Mapping):
      yield from _check(value, inner, dotted(key))
    elif value is not None or not optional(known[key]):
      yield Problem(dotted(key), f"expected a block of keys, found {type(value).__name__} {shown(value)}")
  if not block.values and not unnamed:
    for key, field in known.items():
      if field.default is REQUIRED and key not in config:
        yield Problem(dotted(key), f"missing; expected {describe(field.annotation, field.module)}")


def complete(config: Mapping, block: Block = EXPERIMENT) -> dict:
  """A checked config as nested dicts with every literal default filled in, tuples as tuples and floats as floats, in the schema's order."""
  made = {}
  for key, field in keys_of(block, config).items():
    inner, value = block_of(field), config.get(key, field.default)
    if inner and isinstance(value, Mapping):
      made[key] = complete(value, inner)
    elif value is not COMPUTED and value is not REQUIRED:
      made[key] = _canonical(field.annotation, value, field.module)
  return made


def _canonical(annotation: Syntax, value: Any, module: str) -> Any:
  annotation, module = _expand(annotation, module)
  if isinstance(annotation, ast.BinOp):
    fitting = annotation.left if _wrong(annotation.left, value, module) is None else annotation.right
    return _canonical(fitting, value, module)
  if isinstance(value, (tuple, list)):
    inner = _inner(annotation)[0] if _generic(annotation) in ("tuple", "Sequence", "list") else None
    return tuple(_canonical(inner, item, module) if inner else item for item in value)
  if isinstance(annotation, ast.Name) and annotation.id == "float" and isinstance(value, int):
    return float(value) if abs(value) < 10 ** 308 else math.inf          # what no float holds is out of every range
  return value


def walk(config: Mapping, block: Block = EXPERIMENT, path: str = "") -> Iterator[tuple[str, Field, Any]]:
  """(dotted path, field, value) of every key that may be set, blocks included; the value is the default, or REQUIRED, where not given."""
  for key, field in keys_of(block, config).items():
    name, inner, value = f"{path}.{key}" if path else key, block_of(field), config.get(key, field.default)
    yield name, field, value
    if inner and (isinstance(value, Mapping) or not inner.values):
      yield from walk(value if isinstance(value, Mapping) else {}, inner, name)


def dotted_keys(config: Mapping, block: Block = EXPERIMENT) -> list[str]:
  """Every dotted path that may be set, blocks included."""
  return [path for path, *_ in walk(config, block)]
