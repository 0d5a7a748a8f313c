"""The keyword-only parameters of factories and the literal tables that name them, read with `ast` from source that is not imported."""
import ast
import functools
import importlib.util
import io
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED = object()      # the default of a key that has none
COMPUTED = object()      # a default that is no literal: the factory itself fills it in
Syntax = Any             # an annotation as `ast` nodes
SCALARS = {"int": int, "float": float, "str": str, "bool": bool}


class Field(NamedTuple):
  """One key of a block: its annotation as syntax and the module that it was read in."""
  annotation: Syntax
  default: Any              # a value, REQUIRED or COMPUTED
  module: str
  comment: str = ""         # from the same line of the source, else what the docstring says of "key: …"


@functools.cache
def _source(module: str) -> str:
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(f"no module {module!r}")
  return Path(spec.origin).read_text(encoding="utf-8")


@functools.cache
def _module_tree(module: str) -> ast.Module:
  return ast.parse(_source(module))


@functools.cache
def _comments(module: str) -> dict[int, str]:
  tokens = tokenize.generate_tokens(io.StringIO(_source(module)).readline)
  return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def about(module: str) -> str:
  """The docstring of a module."""
  return ast.get_docstring(_module_tree(module)) or ""


def beside(node: ast.AST, module: str) -> str:
  """The comment on the line where a piece of a module's source ends."""
  return _comments(module).get(getattr(node, "end_lineno", 0), "")


@functools.cache
def definition(name: str, module: str) -> tuple[Any, str] | None:
  """(class, function or assigned expression, module) that a name stands for at module level, through imports of this project."""
  for node in _module_tree(module).body:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
      return node, module
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      if any(isinstance(t, ast.Name) and t.id == name for t in targets):
        return node.value, module
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == module.split(".")[0]:
      for alias in node.names:
        if (alias.asname or alias.name) == name:
          return definition(alias.name, node.module)
  return None


def literal(node) -> Any:
  """The value of a literal, as syntax or as text; `dict(a=1)` is one too. None for what is none."""
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
    return {word.arg: literal(word.value) for word in node.keywords}
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return None


def _default(node: ast.expr | None, module: str) -> Any:
  if node is None:
    return REQUIRED
  if isinstance(node, ast.Name) and (found := definition(node.id, module)) and isinstance(found[0], ast.expr):
    return _default(*found)
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError):
    return COMPUTED


@functools.cache
def table(spec: str) -> Mapping[str, Any]:
  """The literal dict at "module:NAME", to read; values that are no literals come back as None."""
  module, name = spec.split(":")
  found = definition(name, module)
  if found and isinstance(found[0], ast.Call) and isinstance(made := literal(found[0]), dict):
    return made
  if found is None or not isinstance(found[0], ast.Dict):
    raise KeyError(f"{module} has no literal dict {name}")
  return {literal(key): literal(value) for key, value in zip(found[0].keys, found[0].values)}


@functools.cache
def fields(spec: str) -> dict[str, Field]:
  """The keys of the block at "module:name": keyword-only parameters of a function, or the annotated fields of a class."""
  module, name = spec.split(":")
  found = definition(name, module)
  if found is None or not isinstance(found[0], (ast.FunctionDef, ast.ClassDef)):
    raise KeyError(f"{module} has no function or class {name}")
  node, module = found
  if isinstance(node, ast.FunctionDef):
    parts = [(a.arg, a.annotation, d, (d or a).end_lineno) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults) if a.annotation]
  else:
    parts = [(item.target.id, item.annotation, item.value, item.end_lineno)
             for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
  lines = [line for *_, line in parts]
  comments, said = _comments(module), _described(ast.get_docstring(node) or "")
  beside = lambda line: comments.get(line, "") if lines.count(line) == 1 else ""
  return {key: Field(annotation, _default(default, module), module, beside(line) or said.get(key, ""))
          for key, annotation, default, line in parts}


def _described(doc: str) -> dict[str, str]:
  """{key: what "key: text" or "key, other: text" in a docstring says of it}, with the more deeply indented lines that follow."""
  found: dict[str, str] = {}
  for said in re.finditer(r"^( *)([\w`]+(?:, [\w`]+)*): (.+(?:\n\1 +\S.*)*)", doc, re.MULTILINE):
    found |= {key.strip("` "): " ".join(said.group(3).split()) for key in said.group(2).split(",")}
  return found
