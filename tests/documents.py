"""The commands and the Python that the documents show: of README, CONTRIBUTING, docs, and the docstrings that configs, commands and
launchers begin with."""
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADERS = [*sorted((ROOT / "configs").rglob("*.py")), *sorted((ROOT / "mmdiff" / "commands").glob("*.py")),
           *sorted((ROOT / "launch").glob("*.py")), ROOT / "mmdiff" / "model.py"]


class Line(NamedTuple):
  """A command line: its words, and the NAME=value that stand before them."""
  file: str
  words: tuple[str, ...]
  variables: tuple[str, ...] = ()

  @property
  def text(self) -> str:
    return " ".join((*self.variables, *self.words))


def blocks(path: Path, language: str) -> list[str]:
  """The fenced blocks of a document."""
  return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def lines(path: Path) -> list[Line]:
  """Every command in a document's shell blocks, without comments."""
  found = []
  for block in blocks(path, "bash"):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      start = next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word)), len(words))
      if words:
        found.append(Line(path.name, tuple(words[start:]), tuple(words[:start])))
  return found


def docstring(path: Path) -> str:
  return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or "").replace("\\\n", " ")


def header_lines(path: Path) -> list[Line]:
  """The command lines in the docstring of a module: indented, with what they do behind two spaces or on the next lines. Brackets around
  what may be left out are taken off, and an ellipsis stands for more of the kind."""
  found = []
  for line in re.findall(r"^ {2}((?:mmdiff|python -m) .*)$", docstring(path), re.M):
    line = re.split(r" {2,}", re.sub(r" +(?=--)", " ", line))[0]
    found.append(Line(path.name, tuple(word for word in shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", line)) if word != "…")))
  return found


def header_python(path: Path) -> list[str]:
  """The Python in the docstring of a module: indented lines that are no commands, a blank line apart from what stands around them."""
  return [block for block in re.findall(r"(?:^ {2}\w.*\n)+", docstring(path), re.M) if "mmdiff.load(" in block]


def every_line() -> Iterator[Line]:
  """All of them; of those that differ in nothing but the run directory of a training, the first."""
  seen = set()
  for line in [line for path in DOCUMENTS for line in lines(path)] + [line for path in HEADERS for line in header_lines(path)]:
    training = line.words[1:2] == ("train",)
    what = (line.variables, tuple(word for word in line.words if not (training and word.startswith("--workdir="))))
    if what not in seen:
      seen.add(what)
      yield line
