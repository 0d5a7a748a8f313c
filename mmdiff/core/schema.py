"""What a config may say, read from the code it configures, without importing that code.

Every block of a config names a factory in a literal table (`name="clip"`), and the factory's keyword-only parameters *are* the block's
keys: their annotations are the types, their defaults the defaults. This module reads those signatures with `ast`, so that a
wrong config is refused within a second and before JAX is imported, and so that a new objective, model, source or evaluator needs no
second description anywhere.

Annotations understood: int, float, str, bool, `X | None`, `Literal[…]`, `tuple[X, ...]`, `Mapping[str, X]`, a class of the same
file (a nested block), `Built["module:TABLE"]` (a nested block built by name) and `OneOf["module:TABLE"]` (a key of a literal dict).
"""
import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED = object()


class Field(NamedTuple):
  """One key of a block: its annotation as syntax and the module that it was read in."""
  annotation: ast.expr
  default: Any              # a literal, or REQUIRED
  module: str


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing wrong with a config."""
  path: str                 # dotted, e.g. "optim.default.lr"
  message: str

  def __str__(self):
    return f"{self.path}: {self.message}"


@functools.cache
def _module_tree(module: str) -> ast.Module:
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(f"no module {module!r}")
  return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def table(spec: str) -> dict[str, Any]:
  """The literal dict at "module:NAME"; values that are no literals come back as None."""
  module, name = spec.split(":")
  for node in _module_tree(module).body:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(node.value, ast.Dict):
      return {_literal(key): _literal(value) for key, value in zip(node.value.keys, node.value.values)}
  raise KeyError(f"{module} has no literal dict {name}")


def _literal(node) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError):
    return None


@functools.cache
def fields(spec: str) -> dict[str, Field]:
  """The keys of the block at "module:name": keyword-only parameters of a function, or the annotated fields of a class."""
  module, name = spec.split(":")
  for node in _module_tree(module).body:
    if isinstance(node, ast.FunctionDef) and node.name == name:
      args = zip(node.args.kwonlyargs, node.args.kw_defaults)
      return {arg.arg: Field(arg.annotation, REQUIRED if default is None else _literal(default), module)
              for arg, default in args if arg.annotation is not None}
    if isinstance(node, ast.ClassDef) and node.name == name:
      return {item.target.id: Field(item.annotation, REQUIRED if item.value is None else _literal(item.value), module)
              for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
  raise KeyError(f"{module} has no function or class {name}")


class Block(NamedTuple):
  """How the keys under one mapping are known."""
  spec: str | None = None        # "module:factory", fixed keys
  table: str | None = None       # "module:TABLE", keys depend on `name`
  values: ast.expr | None = None   # any key, each value of this annotation
  module: str = ""


def _block(annotation: ast.expr, module: str) -> Block | None:
  """The block that an annotation describes, or None for a leaf."""
  if isinstance(annotation, ast.BinOp):                                   # X | None
    return _block(annotation.left, module) or _block(annotation.right, module)
  if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
    kind = annotation.value.id
    if kind == "Built":
      return Block(table=_literal(annotation.slice))
    if kind in ("Mapping", "dict"):
      return Block(values=annotation.slice.elts[1], module=module) if isinstance(annotation.slice, ast.Tuple) else None
  if isinstance(annotation, ast.Name):
    for node in _module_tree(module).body:
      if isinstance(node, ast.ClassDef) and node.name == annotation.id:
        return Block(spec=f"{module}:{annotation.id}")
  return None


def keys_of(block: Block, config: Mapping) -> dict[str, Field]:
  """The keys that a block allows, given what it says already (its `name`)."""
  if block.spec:
    return fields(block.spec)
  if block.table:
    known = table(block.table)
    name_field = Field(ast.parse(f"OneOf[{block.table!r}]", mode="eval").body, REQUIRED, "")
    target = known.get(config.get("name"))
    return {"name": name_field} | (fields(target) if target else {})
  return {key: Field(block.values, REQUIRED, block.module) for key in config}


def nearest(word: str, known: Sequence[str]) -> str | None:
  """The known word with the fewest edits (insert, delete, replace, swap neighbours), if there are few; ties by order."""
  if not known:
    return None
  best = min(known, key=lambda k: (edits(word, k), abs(len(word) - len(k))))
  return best if edits(word, best) <= max(2, len(word) // 2) else None


def edits(a: str, b: str) -> int:
  """Damerau–Levenshtein distance (optimal string alignment)."""
  rows = [list(range(len(b) + 1))]
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      row.append(min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (x != y)))
      if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
        row[j] = min(row[j], rows[i - 2][j - 2] + 1)
    rows.append(row)
  return rows[-1][-1]


def _suggest(word: str, known: Sequence[str]) -> str:
  guess = nearest(word, known)
  return f"; did you mean {guess!r}?" if guess else f"; known: {', '.join(map(str, known)) or 'none'}"


def _wrong(annotation: ast.expr, value: Any, module: str) -> str | None:
  """Why a leaf value does not fit its annotation, or None."""
  if isinstance(annotation, ast.BinOp):
    left, right = _wrong(annotation.left, value, module), _wrong(annotation.right, value, module)
    return left and right and (left if right == "expected None" else right)
  if isinstance(annotation, ast.Constant) and annotation.value is None:
    return None if value is None else "expected None"
  if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
    kind = annotation.value.id
    if kind in ("Literal", "OneOf"):
      if kind == "Literal":
        elements = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        known = [_literal(e) for e in elements]
      else:
        spec = _literal(annotation.slice)
        known = list(table(spec if ":" in spec else f"{module}:{spec}"))
      if value in known:
        return None
      return f"unknown value {value!r}{_suggest(str(value), [str(k) for k in known])}"
    if kind in ("tuple", "Sequence", "list"):
      if not isinstance(value, (tuple, list)):
        return f"expected a tuple, found {type(value).__name__} {value!r}"
      inner = annotation.slice.elts[0] if isinstance(annotation.slice, ast.Tuple) else annotation.slice
      return next((problem for item in value if (problem := _wrong(inner, item, module))), None)
  if isinstance(annotation, ast.Name):
    kind = annotation.id
    ok = {"int": isinstance(value, int) and not isinstance(value, bool), "bool": isinstance(value, bool), "str": isinstance(value, str),
          "float": isinstance(value, (int, float)) and not isinstance(value, bool)}.get(kind, True)
    if not ok:
      return f"expected {kind}, found {type(value).__name__} {value!r}"
  return None


def check(config: Mapping, block: Block, path: str = "") -> list[Problem]:
  """Everything that is wrong with `config` under `block`: unknown and missing keys, types, names, in one pass."""
  problems = []
  known = keys_of(block, config)
  dotted = lambda key: f"{path}.{key}" if path else str(key)
  if block.table and config.get("name") not in table(block.table):
    found = "missing" if "name" not in config else f"unknown value {config['name']!r}"
    return [Problem(dotted("name"), found + _suggest(str(config.get("name", "")), list(table(block.table))))]
  for key, value in config.items():
    if key not in known:
      problems.append(Problem(dotted(key), "unknown key" + _suggest(str(key), list(known))))
      continue
    annotation, module = known[key].annotation, known[key].module
    inner = _block(annotation, module)
    if inner is None:
      wrong = _wrong(annotation, value, module)
      if wrong:
        problems.append(Problem(dotted(key), wrong))
    elif isinstance(value, Mapping):
      problems += check(value, inner, dotted(key))
    elif value is not None or not isinstance(annotation, ast.BinOp):
      problems.append(Problem(dotted(key), f"expected a block of keys, found {type(value).__name__} {value!r}"))
  if not block.values:
    problems += [Problem(dotted(key), "missing") for key, field in known.items() if field.default is REQUIRED and key not in config]
  return problems


def leaf(path: str, config: Mapping, block: Block) -> Field | None:
  """The field at a dotted path, or None when a part of the path is unknown. A mapping of free keys accepts any key."""
  head, _, rest = path.partition(".")
  known = keys_of(block, config)
  field = known.get(head) or (Field(block.values, REQUIRED, block.module) if block.values else None)
  if field is None or not rest:
    return field
  inner, value = _block(field.annotation, field.module), config.get(head)
  return leaf(rest, value if isinstance(value, Mapping) else {}, inner) if inner else None


def dotted_keys(config: Mapping, block: Block, path: str = "") -> list[str]:
  """Every dotted path that may be set, including those with defaults that the config leaves out."""
  found = []
  for key, field in keys_of(block, config).items():
    name = f"{path}.{key}" if path else key
    inner, value = _block(field.annotation, field.module), config.get(key)
    if inner is None:
      found.append(name)
    elif isinstance(value, Mapping):
      found += dotted_keys(value, inner, name)
    elif inner.spec or (inner.table and not inner.values):
      found += dotted_keys({}, inner, name)
  return found
