"""Overrides of a config, `--config.a.b=value`: values read by the type of their key. See `flags`."""
import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmdiff.core import schema, signatures
from mmdiff.core.spelling import edits
from mmdiff.data import named

SOURCES = "mmdiff.data:SOURCES"


def plain(value: Any) -> Any:
  """ConfigDicts and references as plain dicts and values. A required placeholder that has no value is left out, hence missing."""
  if isinstance(value, Mapping) or hasattr(value, "to_dict") and hasattr(value, "keys"):
    made = {}
    for key in value.keys():
      try:
        made[str(key)] = plain(value[key])
      except Exception as error:          # ml_collections need not be imported to know its exception
        if type(error).__name__ != "RequiredValueError":
          raise
    return made
  return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else value


def override(config: Mapping, overrides: Sequence[tuple[str, str | None]], block: schema.Block = schema.EXPERIMENT) -> tuple[dict, list]:
  """(a copy of `config` with the overrides applied, schema problems). Names first, since they decide which keys there are."""
  config, problems = plain(config), []
  if block == schema.EXPERIMENT and any(path == "init.path" and text for path, text in overrides) and isinstance(config.get("init"), dict):
    config["init"] = config["init"] | dict(parts={})       # what the line names takes the place of what the file starts its parts from
  names = [item for item in overrides if item[0].split(".")[-1] in ("name", "source")]       # `source=PATH` says its name, too
  new_blocks = {path.rpartition(".")[0] for path, _ in names if path.endswith("name")}
  for path, text in sorted(names, key=lambda item: item[0].count(".")) + [item for item in overrides if item not in names]:
    message = _set(config, path.split("."), text, block, path, new_blocks)
    if message == schema.UNKNOWN and (elsewhere := _elsewhere(config, path, block)):
      problems.append(elsewhere)
    elif message == schema.UNKNOWN:
      problems.append(schema.unknown(path, schema.dotted_keys(config, block)))
    elif message:
      problems.append(schema.Problem(path, message))
  return _without_other_shares(config, [path for path, _ in overrides]) if block == schema.EXPERIMENT else config, problems


def _without_other_shares(config: dict, said: Sequence[str]) -> dict:
  """Where the command line's own shares of the kinds of caption sum to 1, those that the file has beside them go."""
  shares = (config.get("data") or {}).get("captions") if isinstance(config.get("data"), Mapping) else None
  own = {kind: shares[kind] for kind in shares if f"data.captions.{kind}" in said} if isinstance(shares, Mapping) else {}
  if own and all(isinstance(share, (int, float)) for share in own.values()) and abs(sum(own.values()) - 1) <= 1e-6:
    return dict(config, data=dict(config["data"], captions=own))
  return config


def _elsewhere(config: Mapping, path: str, block: schema.Block) -> schema.Problem | None:
  """For a key that blocks of other names have: which."""
  node, *parts = config, *path.split(".")
  for part in parts[:-1]:
    field = schema.keys_of(block, node).get(part) if isinstance(node, Mapping) else None
    block, node = (schema.block_of(field) if field else None), node.get(part)
    if block is None or not isinstance(node, Mapping):
      return None
  known = signatures.table(block.table) if block.table else {}
  others = [name for name, spec in known.items() if parts[-1] in signatures.fields(spec)]
  if not others or node.get("name") not in known:
    return None
  where = ".".join([*parts[:-1], "name"])
  return schema.Problem(path, f"{node['name']} has no {parts[-1]}; {', '.join(others)} {'has' if len(others) == 1 else 'have'}",
                        f"{where}={others[0]} beside it")


def _set(node: dict, parts: list[str], text: str | None, block: schema.Block, path: str, new_blocks: set[str]) -> str | None:
  """Sets one value in place; what is wrong, or None."""
  key, *rest = parts
  key, index = (re.fullmatch(r"(.*?)(?:\[(\d+)\])?", key).groups())
  field = schema.keys_of(block, node).get(key)
  if field is None and block.values is not None and not _slip(key, node):
    field = schema.Field(block.values, schema.REQUIRED, block.module)
    done = path.split(".")[:path.count(".") + 1 - len(rest)]
    if schema.block_of(field) and ".".join(done) not in new_blocks:
      return schema.UNKNOWN
  if field is None:
    return schema.UNKNOWN
  inner = schema.block_of(field)
  if rest:
    if inner is None or index:
      return schema.UNKNOWN
    child = node.get(key)
    child = dict(child) if isinstance(child, Mapping) else {}
    message = _set(child, rest, text, inner, path, new_blocks)
    if message is None:
      node[key] = child
    return message
  if text is not None and text.lower() == "none" and block.values is not None:
    node.pop(key, None)
    return None
  if inner is not None:
    return _set_block(node, key, text, field, inner, path)
  if text is None and schema.describe(field.annotation, field.module) != "bool":
    return f"needs a value; expected {schema.describe(field.annotation, field.module)}"
  try:
    value = schema.parse_text(field if not index else _item(field), "true" if text is None else text)
  except ValueError as error:
    return str(error)
  if index:
    old = node.get(key, field.default)
    if not isinstance(old, (tuple, list)) or int(index) >= len(old):
      return f"no item {index} in {old!r}"
    value = (*old[:int(index)], value, *old[int(index) + 1:])
  if key == "name" and block.table and value != node.get("name"):
    gone = schema.keys_of(block, node).keys() - schema.keys_of(block, {"name": value}).keys()
    for name in gone & node.keys():
      del node[name]
  node[key] = value
  return None


def _set_block(node: dict, key: str, text: str | None, field: schema.Field, inner: schema.Block, path: str) -> str | None:
  if text is not None and text.lower() == "none" and schema.optional(field):
    node[key] = None
    return None
  if inner.table == SOURCES and text:
    node[key], pairs = named.source(text)
    found = ((name, _set(node[key], name.split("."), value, inner, path, set())) for name, value in pairs)
    return next((f"{name}: {message}" for name, message in found if message), None)
  try:
    value = ast.literal_eval(text or "")
  except (ValueError, SyntaxError):
    value = None
  if inner.values is not None and isinstance(value, Mapping):
    node[key] = dict(value)
    return None
  current = node.get(key)
  known = list(schema.keys_of(inner, current if isinstance(current, Mapping) else {}))
  return f"a block of keys, found {text!r}; set " + (", ".join(f"--config.{path}.{k}" for k in known[:6]) or f"--config.{path}.NAME")


def _item(field: schema.Field) -> schema.Field:
  """The field of one item of a tuple."""
  annotation = field.annotation
  return field._replace(annotation=annotation.slice.elts[0]) if isinstance(getattr(annotation, "slice", None), ast.Tuple) else field


def _slip(key: str, known: Mapping) -> bool:
  """Whether a new entry of a free mapping looks like a misspelt one; names that differ by a number are meant."""
  letters = lambda word: word.rstrip("0123456789")
  close = lambda word: edits(key, word) <= 2 and 2 * edits(key, word) <= max(len(word), 3) and letters(key) != letters(word)
  return key not in known and any(map(close, known))
