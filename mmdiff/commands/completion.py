"""Let a shell complete commands, flags, keys of configs and their values.

  mmdiff completion bash       goes at the end of ~/.bashrc
  mmdiff completion zsh        at the end of ~/.zshrc
  mmdiff completion fish       into ~/.config/fish/completions/mmdiff.fish

The script that is printed asks `mmdiff completion words LINE` at every press of the key, so that it knows what this version knows; where
nothing of that fits, the shell completes files. `mmdiff COMMAND --help` says what the flags do.
"""
import ast
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdiff.core.errors import ConfigError

POSITIONAL = ("shell", "line")
FLAGS: dict = {}
FUNCTION = r"""_mmdiff() {
  local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
  local word="${line##*[ ]}"
  local before="${word%"${word##*[=:]}"}"
  local found=($(mmdiff completion words "$line" 2>/dev/null))
  COMPREPLY=("${found[@]#"$before"}")
}
complete -o default -o nospace -F _mmdiff mmdiff
"""
SCRIPTS = {
  "bash": FUNCTION,
  "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + FUNCTION,
  "fish": "complete -c mmdiff -k -a '(mmdiff completion words (commandline -cp) | string trim)'\n",
}


def main(argv: list[str]) -> int:
  if argv[:1] == ["words"] and len(argv) == 2:
    with contextlib.suppress(Exception):            # half a line is rarely right, and an error would land in it
      print("\n".join(words(argv[1])))
    return 0
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS, positional=POSITIONAL)
  if given["shell"] not in SCRIPTS or given["line"]:
    raise ConfigError(f"which shell? `mmdiff completion {'|'.join(SCRIPTS)}`")
  sys.stdout.write(SCRIPTS[given["shell"]])
  return 0


def words(line: str) -> list[str]:
  """What the last word of a line may become, with a blank behind it where it is complete then."""
  typed = line.split(" ")
  done, word = [part for part in typed[:-1] if part][1:], typed[-1]
  return [found for found in candidates(done, word) if found.startswith(word) and found.strip() != word]


def candidates(done: list[str], word: str) -> Iterator[str]:
  from mmdiff.commands.help import COMMANDS
  if not done:
    yield from (f"{name} " for name in COMMANDS)
    return
  command, *rest = done
  if command not in COMMANDS:
    return
  table, takes = tables(command)
  chosen = next((part for part in rest if part in takes), None)
  if takes and not chosen and not word.startswith("-"):
    yield from (f"{name} " for name in takes)
  if command == "list" and not rest:
    from mmdiff.commands.list import LISTS
    yield from (f"{name} " for name in LISTS)
  if not word.startswith("-"):
    return
  known = {name: flag for name, flag in table.items() if not chosen or not takes[chosen] or name in takes[chosen]}
  name, equals, value = word.removeprefix("--").partition("=")
  if name.startswith("config."):
    yield from keys(next((part.partition("=")[2] for part in rest if part.startswith("--config=")), ""), name if equals else "")
  elif equals and name == "config":
    yield from (f"--config={file} " for file in configs(value))
  elif equals:
    choices = known.get(name, {}).get("choices", ("true", "false") if known.get(name, {}).get("type") == "bool" else ())
    yield from (f"--{name}={choice} " for choice in choices)
  else:
    yield from (f"--{name}=" for name in known)
    if "config" in known:
      yield "--config."


def tables(command: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """(the flags of a command, and of a command of commands what each takes), read without importing it."""
  from mmdiff.commands.help import declared
  return declared(command, "FLAGS"), declared(command, "TAKES")


def configs(typed: str) -> list[str]:
  """Config files by their usual names, and those with :tiny that a typed file has."""
  from mmdiff.commands.flags import ROOT
  here = Path("configs") if Path("configs").is_dir() else ROOT / "configs"
  files = [file for file in sorted([*here.glob("*.py"), *here.glob("ablations/*.py")]) if file.name not in ("__init__.py", "common.py")]
  names = [f"configs/{file.relative_to(here)}" for file in files]
  small = [f"{name}:tiny" for name, file in zip(names, files) if typed.startswith(name) and ":tiny" in file.read_text(encoding="utf-8")]
  return [*names, *small]


def keys(config: str, named: str) -> Iterator[str]:
  """The keys of a config, or the values that one of them may have."""
  from mmdiff.commands import flags
  from mmdiff.core import schema
  if not config:
    return
  made, _ = flags.read_config(config, [])
  for path, field, _ in schema.walk(made):
    block = schema.block_of(field)
    if not named:
      yield f"--config.{path}" + ("." if block else "=")
    elif f"config.{path}" == named and not block:
      options = schema.describe(field.annotation, field.module)
      values = ast.literal_eval(f"[{options.removeprefix('one of ')}]") if options.startswith("one of ") else []
      yield from (f"--config.{path}={value} " for value in ([*values] if values else ["True", "False"] if options == "bool" else []))
