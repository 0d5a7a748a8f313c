"""The text of `mmdiff COMMAND --help`, from a command's docstring and flags. Imports nothing of the project."""
import textwrap
from collections.abc import Mapping


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
