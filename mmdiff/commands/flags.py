"""Flags of the commands, in absl's forms, and the config file with its overrides in ml_collections' forms. Imports no JAX.

A command declares its flags as a literal dict, so that help can be read without importing the command:

  FLAGS = {
    "config": dict(required=True, help="config file, configs/NAME.py[:args]"),
    "workdir": dict(type="dir", required=True, help="run directory"),       # paths, as texts: file, dir, path (either), model (`located`)
    "steps": dict(type="int", default=20, help="sampling steps"),           # types: str int float bool; "str,", "int,", … are tuples
    "sampler": dict(choices=("euler", "heun"), default="euler", help="…"),
  }
  given = parse(argv, FLAGS)       # given["workdir"], …; given["config"] is the checked config as nested dicts

Required flags may come first without their names, in the order of the table: `mmdiff train CONFIG WORKDIR --config.steps=9`.
Words that may come without `--` are named once, `POSITIONAL = ("path",)` beside FLAGS (a command of commands: {command: names}), for
`parse` and for `launch.check`; a last name with a comma behind it, as in ("runs,",), takes all that are left, as a tuple.

`needs=dict(what=("sample",))` says that a flag means something only beside those values of another (True: any, ("",): not given), and
`apart=("plan",)` that it means nothing beside others: given all the same it is an error, never ignored.

A flag `config` with a `schema` ("module:class") reads a config of those keys instead of an experiment's.

Forms: `--name=value`, `--name value`, `--flag`, `--noflag`. A flag given twice takes the last value. A flag without a default is None when
not given. `parse` names everything that is wrong in one ConfigError: flags, overrides, and the contents of the config.

Config: `--config=FILE.py[:args]` (its `get_config(args)` is called) or a run's `config.json`; `--config.a.b=value` replaces one value.
Values are read by the type of the key: `3,4,5` for tuples, `true`/`false` (or `--config.a.flip`, `--noconfig.a.flip`), `none` where
allowed, `key[1]=value` for one item of a tuple. Free mappings take new entries (`--config.data.captions.long=0.9`), lose one with `none`,
or are replaced by a literal `{"long": 1.0}`. Setting a block's `name` drops the keys that only the old name knew.
"""
import ast
import itertools
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.core import consistency, ranges, schema
from mmdiff.core.errors import ConfigError
from mmdiff.core.files import parse_json
from mmdiff.core.spelling import edits, nearest

ROOT = Path(__file__).resolve().parents[2]      # of the repository, or of site-packages: where `configs` lives
SCALARS = ("int", "float", "bool", "str")
HABITS = {"learning_rate": "optim.default.lr", "max_steps": "steps", "num_steps": "steps", "max_train_steps": "steps",
          "batch": "batch_size", "bs": "batch_size", "train_batch_size": "batch_size", "gradient_accumulation_steps": "accumulate",
          "wd": "optim.default.weight_decay"}             # what other tools call a key
TYPICAL = {"optim": {"default": {"name": "adamw"}}}             # of a config that is not known yet
PATHS = ("file", "dir", "path", "model")          # texts that name something on disk


def chosen(argv: Sequence[str], takes: Mapping[str, Sequence[str]]) -> str:
  """The first word, which a command of commands begins with. Raises ConfigError with the nearest of `takes`, {command: its flags}."""
  given = argv[0] if argv else ""
  if given in takes:
    return given
  guess = nearest(given, takes) if given else None
  raise ConfigError((f"unknown command {given!r}" + (f"; did you mean {guess}?" if guess else "") if given else "which command?")
                    + f" (known: {', '.join(takes)})")


def parse(argv: Sequence[str], flags: Mapping[str, Mapping], *, positional: Sequence[str] = ()) -> dict[str, Any]:
  """{flag: value} for every flag of the table. positional: names of the words that may come without `--`; None when not given.

  Raises ConfigError with one line for every mistake.
  """
  given, words, overrides, unknown = _split(argv, flags, positional)
  if len(words) > len(positional):              # required flags without their names, in the table's order, before all that have one
    leading = sum(1 for _ in itertools.takewhile(lambda word: not word.startswith("-"), argv))
    left = [name for name, flag in flags.items() if flag.get("required") and name not in given]
    taken = dict(zip(left, words[len(positional):leading]))
    given, words = {**given, **taken}, [*words[:len(positional)], *words[len(positional) + len(taken):]]
  keys = _keys(given.get("config"), flags) if unknown else []
  problems = [f"--{name}: unknown flag" + _meant(name, flags, keys) for name in unknown]
  values: dict[str, Any] = dict.fromkeys(positional) | dict(zip(positional, words))
  if positional and positional[-1].endswith(","):
    del values[positional[-1]]
    values[positional[-1].rstrip(",")] = tuple(words[len(positional) - 1:])
  else:
    problems += [f"{word!r}: unexpected; flags are --name=value" for word in words[len(positional):]]
  for name, flag in flags.items():
    values[name] = flag.get("default")
    if name not in given:
      if flag.get("required"):
        problems.append(f"--{name}: required" + (f"; {flag['help']}" if flag.get("help") else ""))
    elif given[name] is None:
      problems.append(f"--{name}: needs a value")
    elif name == "config":
      values[name], found = read_config(given[name], overrides, schema.Block(spec=flag.get("schema", schema.EXPERIMENT.spec)))
      problems += found
    else:
      try:
        values[name] = schema.parse_text(_field(flag), given[name])
        if wrong := ranges.wrong_flag(name, values[name]):
          raise ValueError(wrong)
      except ValueError as error:
        problems.append(f"--{name}: {error}")
  problems += [problem for name in given if name in flags for problem in _idle(name, flags[name], values, given)]
  if overrides and "config" not in given:
    why = "needs --config=FILE" if "config" in flags else "this command takes no --config"
    problems += [f"--config.{path}: {why}" for path, _ in overrides]
  if problems:
    raise ConfigError("\n".join(problems))
  return values


def located(given: Mapping[str, Any], flags: Mapping[str, Mapping]) -> dict[str, Any]:
  """What `parse` gave with the models that it names as paths (`convert.names.find`), before JAX is imported. Raises DataError."""
  from mmdiff.convert import names
  named = {name: given[name] for name, flag in flags.items() if flag.get("type") == "model" and given.get(name)}
  return {**given, **{name: names.find(value) for name, value in named.items()}}


def _idle(name: str, flag: Mapping, values: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
  """Why a flag that was given would change nothing."""
  for other, wanted in flag.get("needs", {}).items():
    value = values.get(other)
    if not value if wanted is True else not set(value if isinstance(value, tuple) else (value,)) & set(wanted):
      yield f"--{name}: says nothing without --{other}" + ("" if wanted is True else f"={' or '.join(wanted)}")
  for other in flag.get("apart", ()):
    if other in given and values.get(other):
      yield f"--{name}: says nothing beside --{other}; leave one of them out"


def load_config(argv: Sequence[str]) -> dict:
  """The checked config of `--config=… --config.key=value …`, as nested dicts with every default filled in. Raises ConfigError."""
  return parse(argv, {"config": dict(required=True, help="config file, configs/NAME.py[:args], or a run's config.json")})["config"]


def saved_config(path: Path) -> dict:
  """The config that a run directory keeps, through the same check. Raises ConfigError."""
  config, problems = read_config(str(path), ())
  if problems:
    raise ConfigError("\n".join(problems))
  return config


def _field(flag: Mapping) -> schema.Field:
  """A flag's type as a schema field."""
  kind = flag.get("type", "str")
  plain = "str" if kind.rstrip(",") in PATHS else kind.rstrip(",")
  item = f"Literal[{', '.join(map(repr, flag['choices']))}]" if "choices" in flag else plain
  return schema.Field(ast.parse(f"tuple[{item}, ...]" if kind.endswith(",") else item, mode="eval").body, None, __name__)


def _split(argv: Sequence[str], flags: Mapping[str, Mapping], positional: Sequence[str]):
  """({flag: text, or None where a value is missing}, bare words, [(config path, text or None)], names that are no flags)."""
  given: dict[str, str | None] = {}
  words, overrides, unknown, rest = [], [], [], list(argv)
  is_bool = lambda name: flags.get(name, {}).get("type") == "bool"
  take = lambda: rest.pop(0) if rest and not rest[0].startswith("--") else None
  while rest:
    arg = rest.pop(0)
    if not arg.startswith("-") or arg == "-":
      words.append(arg)
      continue
    name, equals, text = arg.lstrip("-").partition("=")
    name = name if "." in name or name in flags else name.replace("-", "_")
    if name.startswith("config."):
      overrides.append((name.removeprefix("config."), text if equals else take()))
    elif name.startswith("noconfig."):
      overrides.append((name.removeprefix("noconfig."), "false"))
    elif is_bool(name):
      given[name] = text if equals else "true"
    elif name.startswith("no") and is_bool(name[2:]):
      given[name[2:]] = "false"
    elif name in flags:
      given[name] = text if equals else take()
    else:
      if not equals and not positional:
        take()
      unknown.append(name)
  return given, words, overrides, unknown


def _meant(name: str, flags: Mapping, keys: Sequence[str]) -> str:
  head, dot, tail = name.partition(".")
  if dot and "config" in flags and edits(head, "config") <= 2:
    return f"; did you mean --config.{tail}?"
  key = _key(name, keys)
  guess = key if key and key.split(".")[-1] == name else nearest(name, flags) or key
  return f"; did you mean --{'config.' if guess == key else ''}{guess}?" if guess else \
    f"; known: {', '.join('--' + flag for flag in flags) or 'none'}"


def _key(name: str, keys: Sequence[str]) -> str | None:
  """The key of a config that a flag of its last part means, the one least deep; or what another tool calls so."""
  ending = [key for key in keys if f".{key}".endswith(f".{name}")]
  return min(ending, key=lambda key: key.count("."), default=None) or (HABITS.get(name) if HABITS.get(name) in keys else None)


def _keys(source: str | None, flags: Mapping[str, Mapping]) -> list[str]:
  """The keys of a command's config, as far as its file says them."""
  if "config" not in flags:
    return []
  block = schema.Block(spec=flags["config"].get("schema", schema.EXPERIMENT.spec))
  try:
    config = _run(source) if source else TYPICAL
  except ConfigError:
    config = TYPICAL
  return schema.dotted_keys(config, block)


# The config file

def read_config(source: str | Mapping, overrides: Sequence[tuple[str, str | None]],
                block: schema.Block = schema.EXPERIMENT) -> tuple[dict | None, list[str]]:
  """(config with every default filled in, or None; what is wrong) for `FILE.py[:args]` or `config.json`, or what such a file says,
  and `(dotted path, text)` pairs."""
  try:
    config, source = (_run(source), source) if isinstance(source, str) else (_plain(source), "<of Python>")
  except ConfigError as error:
    return None, [str(error)]
  except RecursionError:
    return None, [f"--config={source}: nested too deeply"]
  if block == schema.EXPERIMENT and {"base", "arms"} <= set(config):
    return None, [f"--config={source}: an ablation's config, of several experiments; run it with `mmdiff ablate --config={source} "
                  "--workdir=DIR`, or show what it would do with --plan"]
  if block != schema.EXPERIMENT and "objective" in config:
    return None, [f"--config={source}: an experiment's config, not an ablation's, which has a base and arms; train it with `mmdiff train "
                  f"--config={source} --workdir=DIR`"]
  config, wrong = override(config, overrides, block)
  touched = {path for path, _ in overrides} | {path.removesuffix(".name") for path, _ in overrides if path.endswith(".name")}
  file = source.partition(".py:")[0] + (".py" if ".py:" in source else "")
  from_flag = lambda path: any(path == t or path.startswith(t + ".") for t in touched)
  problems = [p.text("--config.") for p in wrong]
  found = [p for p in schema.check(config, block) if not any(p.path == w.path for w in wrong)]
  if not found:
    config = schema.complete(config, block)
    experiment = block == schema.EXPERIMENT
    found = [p for p in consistency.check(config) if not any(w.path.startswith(p.path) for w in wrong)] if experiment else []
  problems += [p.text("--config.") if from_flag(p.path) else f"{file}: {p.text('config.')}" for p in found]
  return (None, problems) if problems else (config, [])


def config_files() -> list[str]:
  """The config files under the working directory and under the project's root."""
  return sorted({f"configs/{file.relative_to(base / 'configs').as_posix()}" for base in (Path.cwd(), ROOT)
                 for file in (base / "configs").rglob("*.py") if "get_config" in file.read_text(encoding="utf-8")})


def find_file(name: str) -> Path:
  """The config file of that name under the working directory, else under the project's root. Raises ConfigError with the nearest."""
  for base in (Path.cwd(), ROOT):
    if (base / name).is_file():
      return base / name
  if (Path(name) / "config.json").is_file():
    return Path(name) / "config.json"
  known = config_files()
  guess = nearest(name, known) or nearest(Path(name).stem, [Path(k).stem for k in known])
  guess = guess if guess in known else next((k for k in known if guess and Path(k).stem == guess), None)
  hint = f"; did you mean {guess}?" if guess else ""
  raise ConfigError(f"--config={name}: no such file{hint} (there are {', '.join(known) or 'none'})")


def _run(source: str) -> dict:
  """What the config file says, as nested dicts. Running a config file is running code; `config.json` is only read."""
  name, python, arg = source.partition(".py:")
  name += ".py" if python else ""
  file = find_file(name)
  if file.suffix == ".json":
    try:
      config = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise ConfigError(f"--config={name}: not valid JSON: {error}") from None
  else:
    if str(ROOT) not in sys.path:
      sys.path.append(str(ROOT))             # configs import `configs.common`
    scope = {"__name__": "config_file", "__file__": str(file)}
    try:
      exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), scope)      # noqa: S102
      if "get_config" not in scope:
        raise ConfigError(f"--config={name}: the file has no function get_config")
      takes = scope["get_config"].__code__.co_argcount
      if arg and not takes:
        raise ConfigError(f"--config={source}: its get_config takes no arguments")
      config = scope["get_config"](arg) if takes and (arg or not scope["get_config"].__defaults__) else scope["get_config"]()
    except ConfigError:
      raise
    except SyntaxError as error:
      raise ConfigError(f"{error.filename or name}:{error.lineno}: {error.msg}: {(error.text or '').strip()}") from None
    except Exception as error:
      if type(error).__name__ == "WrongArgument":            # of configs.common, which need not be imported to know it
        guess = nearest(error.name, error.known) if error.name else None
        raise ConfigError(f"--config={source}: {error}" + (f"; did you mean {name}:{guess}?" if guess else "")) from None
      lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
      raise ConfigError(f"--config={source}: {name}:{lines[-1] if lines else 1}: {type(error).__name__}: {error}") from None
  config = _plain(config)
  if not isinstance(config, dict):
    raise ConfigError(f"--config={name}: expected a config (a mapping), found {type(config).__name__}")
  return config


def _plain(value: Any) -> Any:
  """ConfigDicts and references as plain dicts and values. A required placeholder that has no value is left out, hence missing."""
  if isinstance(value, Mapping) or hasattr(value, "to_dict") and hasattr(value, "keys"):
    made = {}
    for key in value.keys():
      try:
        made[str(key)] = _plain(value[key])
      except Exception as error:          # ml_collections need not be imported to know its exception
        if type(error).__name__ != "RequiredValueError":
          raise
    return made
  return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


# Overrides

def override(config: Mapping, overrides: Sequence[tuple[str, str | None]], block: schema.Block = schema.EXPERIMENT) -> tuple[dict, list]:
  """(a copy of `config` with the overrides applied, schema problems). Names first, since they decide which keys there are."""
  config, problems = _plain(config), []
  if block == schema.EXPERIMENT and any(path == "init.path" and text for path, text in overrides) and isinstance(config.get("init"), dict):
    config["init"] = config["init"] | dict(parts={})       # what the line names takes the place of what the file starts its parts from
  names = [item for item in overrides if item[0].split(".")[-1] == "name"]
  new_blocks = {path.rpartition(".")[0] for path, _ in names}
  for path, text in sorted(names, key=lambda item: item[0].count(".")) + [item for item in overrides if item not in names]:
    message = _set(config, path.split("."), text, block, path, new_blocks)
    if message == schema.UNKNOWN:
      problems.append(schema.unknown(path, schema.dotted_keys(config, block)))
    elif message:
      problems.append(schema.Problem(path, message))
  return config, problems


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
