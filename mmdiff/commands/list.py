"""What there is to choose from, a line each: read from the tables and docstrings of the code, nothing is imported.

  mmdiff list                         what can be listed
  mmdiff list configs
  mmdiff list samplers dpm            those with a word in their name

WHAT is one of configs, models, objectives, samplers, evaluators, formats, sources, tokenizers. The flags of a command are listed by
`mmdiff COMMAND --help`, the keys of a config by `mmdiff doctor --config=FILE --keys`.
"""
import ast
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mmdiff.core import signatures
from mmdiff.core.errors import ConfigError
from mmdiff.core.spelling import nearest

POSITIONAL = ("what", "word")
FLAGS: dict = {}
ROLES = {"MODELS": "CLIP", "CAPTIONERS": "captioner", "DENOISERS": "denoiser", "TEXT_ENCODERS": "text encoder",
         "AUTOENCODERS": "autoencoder", "FEATURES": "perceptual distance", "DISCRIMINATORS": "discriminator"}
SAMPLERS = "mmdiff.diffusion.plans"
Row = tuple[str, str]


def main(argv: list[str]) -> int:
  from mmdiff.commands import flags
  given = flags.parse(argv, FLAGS, positional=POSITIONAL)
  if not given["what"]:
    print("\n".join(f"mmdiff list {name}" for name in LISTS))
    return 0
  if given["what"] not in LISTS:
    guess = nearest(given["what"], LISTS)
    hint = f"; did you mean {guess}?" if guess else ""
    raise ConfigError(f"nothing is called {given['what']!r}{hint} (known: {', '.join(LISTS)})")
  rows = [row for row in LISTS[given["what"]]() if not given["word"] or given["word"].lower() in row[0].lower()]
  if not rows:
    raise ConfigError(f"no {given['what']} with {given['word']!r} in their names")
  print("\n".join(lines(rows, shutil.get_terminal_size((140, 24)).columns)))
  return 0


def lines(rows: list[Row], width: int) -> Iterator[str]:
  """Two columns, cut to the width of the terminal."""
  first = min(max(len(name) for name, _ in rows), 48)
  for name, about in rows:
    line = f"{name:<{first}}  {about}"
    yield line if len(line) <= width else line[:width - 1] + "…"


def sentence(doc: str | None) -> str:
  """The first sentence of a docstring."""
  text = " ".join((doc or "").split("\n\n")[0].split())
  return re.split(r"(?<=[^A-Z]\w[.)])\s+(?=[A-Z`])", text)[0]


def of_table(spec: str) -> Callable[[], Iterator[Row]]:
  """The rows of a table {name: "module:factory"}, with the docstring of the module where it has one factory, else of the factory."""
  def rows() -> Iterator[Row]:
    places = [where.partition(":")[0] for where in signatures.table(spec).values()]
    for name, where in signatures.table(spec).items():
      module, _, factory = where.partition(":")
      found = signatures.definition(factory, module)
      yield name, sentence(signatures.about(module) if places.count(module) == 1 else ast.get_docstring(found[0]) if found else "")
  return rows


def models() -> Iterator[Row]:
  for table, role in ROLES.items():
    for name, about in of_table(f"mmdiff.models:{table}")():
      yield name, f"{role}: {about}"


def formats() -> Iterator[Row]:
  """Each is `Format(name, family, about, fits, read, write, …)`, with no write where it is only read."""
  for name, where in signatures.table("mmdiff.convert:FORMATS").items():
    module, _, constant = where.partition(":")
    found = signatures.definition(constant, module)
    if found:
      _, _, about, _, _, write, *_ = found[0].args
      yield name, f"{signatures.literal(about)}, {'only read' if isinstance(write, ast.Constant) else 'read and written'}"


def samplers() -> Iterator[Row]:
  found = signatures.definition("SAMPLERS", SAMPLERS)
  for key, value in zip(found[0].keys, found[0].values) if found else ():
    yield signatures.literal(key), signatures.beside(value, SAMPLERS)
  for name, same in signatures.table(f"{SAMPLERS}:ALIASES").items():
    yield name, f"the same as {same}"


def configs() -> Iterator[Row]:
  """The files with a `get_config` here and in the project, with the names of the arguments that they take."""
  from mmdiff.commands import flags
  for name in flags.config_files():
    base = next(base for base in (Path.cwd(), flags.ROOT) if (base / name).is_file())
    tree = ast.parse((base / name).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "common.parse"]
    takes = dict.fromkeys(word.arg for node in calls for word in node.keywords if word.arg not in ("apart", "within"))
    yield name + (f"[:{','.join(filter(None, takes))}]" if takes else ""), sentence(ast.get_docstring(tree))


LISTS: Mapping[str, Callable[[], Iterator[Row]]] = {
  "configs": configs, "models": models, "objectives": of_table("mmdiff.objectives:OBJECTIVES"), "samplers": samplers,
  "evaluators": of_table("mmdiff.evaluators:EVALUATORS"), "formats": formats, "sources": of_table("mmdiff.data:SOURCES"),
  "tokenizers": of_table("mmdiff.data:TOKENIZERS"),
}
