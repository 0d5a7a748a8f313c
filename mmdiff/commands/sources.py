"""The one way from what is typed for a source to its checked config, for every command."""
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmdiff.commands import flags
from mmdiff.core import schema
from mmdiff.data import named

BLOCK = schema.Block(table="mmdiff.data:SOURCES")


def read(text: str, overrides: Sequence[tuple[str, str | None]], flag: str) -> tuple[dict[str, Any], list[str]]:
  """(the checked config of the source that a word names, with defaults, what is wrong). A word is one of `mmdiff.data.named`, or a config
  whose data.source it is; overrides: (key, text) pairs of --data.KEY=VALUE, whose beginning `flag` is. Raises DataError."""
  if os.path.splitext(text.partition(":")[0])[1] == ".py":
    return checked(flags.load_config([f"--config={text}"])["data"]["source"], overrides, flag)
  base, pairs = named.source(text)
  return checked(base, [*pairs, *overrides], flag)


def checked(base: Mapping[str, Any], overrides: Sequence[tuple[str, str | None]], flag: str) -> tuple[dict[str, Any], list[str]]:
  """(the config of a source with its overrides and defaults, what is wrong, each named by `flag` and its key)."""
  config, problems = flags.override(base, overrides, BLOCK)
  wrong = {problem.path for problem in problems}
  problems += [problem for problem in schema.check(config, BLOCK) if problem.path not in wrong]
  return ({}, [problem.text(flag) for problem in problems]) if problems else (schema.complete(config, BLOCK), [])


def pictures_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The same source for what reads nothing but pictures: none needs a caption."""
  return dict(config) | ({"captionless": True} if "captionless" in config else {})
