"""The commands, and the text of `mmdiff COMMAND --help` from what a command declares, read without importing it."""
import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMANDS = {
  "train": "train an objective from a config",
  "evaluate": "score a run or a model",
  "sample": "make pictures from prompts",
  "edit": "make pictures from pictures and prompts",
  "caption": "caption a data set, in units that any number of processes share",
  "search": "find pictures by words or pictures, and sort them into classes",
  "report": "put runs on a page: scores, curves, where they differ",
  "ablate": "train the arms of an ablation and compare them",
  "convert": "turn weights into a public format",
  "info": "say what a checkpoint is",
  "runs": "the runs below a folder: state, step, score, differences",
  "list": "list configs, models, samplers, evaluators, formats, …",
  "get": "fetch a model from the Hugging Face hub",
  "completion": "let the shell complete commands, flags, keys and values",
  "data": "build, inspect and validate data sets",
  "bench": "measure speed, memory and MFU",
  "doctor": "check a machine, a config and a run directory",
  "demo": "train CLIP and text-to-image on the built-in world, with a report",
}



def text(doc: str, flags: Mapping[str, Mapping]) -> str:
  """A command's help: its docstring and its flags."""
  lines = [doc.strip(), ""] + (["Flags:"] if flags else [])
  for name, flag in flags.items():
    kind, default = flag.get("type", "str"), flag.get("default")
    value = "|".join(flag["choices"]) if "choices" in flag else "FILE.py[:args]" if name == "config" else kind.rstrip(",").upper()
    form = f"--[no]{name}" if kind == "bool" else f"--{name}={value}" + (",…" if kind.endswith(",") else "")
    said = " (required)" if flag.get("required") else f" [{default}]" if default not in (None, "", (), False) else ""
    note = flag.get("help", "") + said
    wrapped = textwrap.fill(note, 128, initial_indent=" " * 36, subsequent_indent=" " * 36)
    lines.append(f"  {form:<34}" + (wrapped[36:] if len(form) < 34 else "\n" + wrapped))
  if "config" in flags:
    lines.append(f"  {'--config.KEY=VALUE':<34}replaces one value of the config; `mmdiff doctor --config=… --keys` lists them")
  return "\n".join(lines) + "\n"


def _parsed(command: str) -> ast.Module:
  return ast.parse((Path(__file__).parent / f"{command}.py").read_text(encoding="utf-8"))


def docstring(command: str) -> str:
  return ast.get_docstring(_parsed(command)) or ""


def declared(command: str, name: str) -> dict[str, Any]:
  """A table of a command, FLAGS or TAKES, without importing it; {} where there is none. What is computed in it is left empty."""
  table = next((node.value for node in _parsed(command).body
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and getattr(_target(node), "id", "") == name), None)
  if not isinstance(table, (ast.Dict, ast.Call)):
    return {}
  try:
    return _literal(table)
  except ValueError:
    return {ast.literal_eval(key): () for key in table.keys} if isinstance(table, ast.Dict) else {}


def _target(node: ast.Assign | ast.AnnAssign) -> ast.expr:
  return node.target if isinstance(node, ast.AnnAssign) else node.targets[0]


def _literal(node: ast.expr):
  """The value of a literal in which `dict(a=1)` is one too."""
  if isinstance(node, ast.Call):
    return {word.arg: _literal(word.value) for word in node.keywords}
  if isinstance(node, ast.Dict):
    return {ast.literal_eval(key): _literal(value) for key, value in zip(node.keys, node.values)}
  return ast.literal_eval(node)
