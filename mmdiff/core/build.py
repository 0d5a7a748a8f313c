"""Builds what a config names: `build(OBJECTIVES, dict(name="contrastive", …))` calls the factory that the literal table gives.

Tables map names to "module:factory" strings, so that reading a table imports nothing. A factory's keyword-only parameters are its
config keys (see `schema`); what the program itself provides comes as positional arguments.
"""
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, get_args

from mmdiff.core import schema


class _Anything(type):
  """A parameter's value is whatever its table makes: checks of annotations at run time let it pass."""

  def __instancecheck__(cls, value: Any) -> bool:
    return True


class _Marker(metaclass=_Anything):
  """`Built["module:TABLE"]` and `OneOf["module:TABLE"]`, annotations that `schema` reads."""

  def __class_getitem__(cls, spec: str):
    return _Anything(cls.__name__, (), {"spec": spec})


class Built(_Marker):
  """A parameter that `build` makes from a nested block, by the table named."""


class OneOf(_Marker):
  """A parameter that is a key of the literal dict named."""


def resolve(spec: str) -> Any:
  """The object at "module:name"."""
  module, name = spec.split(":")
  return getattr(importlib.import_module(module), name)


def lookup(table: Mapping[str, str], name: str, what: str = "name") -> Any:
  """The object that a table names. Raises KeyError that lists the known names."""
  if name not in table:
    guess = schema.nearest(str(name), list(table))
    raise KeyError(f"unknown {what} {name!r}" + (f", did you mean {guess!r}?" if guess else "") + f" (known: {', '.join(table)})")
  return resolve(table[name])


def build(table: Mapping[str, str], config: Mapping, *args, **given) -> Any:
  """Calls the factory of `config["name"]` with the other keys, nested `Built` blocks first; `args` and `given` come from the program."""
  options = {key: value for key, value in config.items() if key != "name"}
  factory = lookup(table, config["name"])
  for key, parameter in inspect.signature(factory).parameters.items():
    kinds = (parameter.annotation, *get_args(parameter.annotation))                  # Built[…], or Built[…] | None
    spec = next((kind.spec for kind in kinds if hasattr(kind, "spec")), None)
    if spec and isinstance(options.get(key), Mapping):
      options[key] = build(resolve(spec), options[key])
  return factory(*args, **options, **given)
