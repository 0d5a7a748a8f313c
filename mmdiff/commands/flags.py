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

A flag of type "source" names data as `mmdiff.data.named` reads it, and --NAME.KEY=VALUE changes a key: its value is the checked config of
that source. With `sets="data.source"` it is the same as --config.data.source=… of the config instead, and its value stays None.

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
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.commands.overrides import override, plain
from mmdiff.core import consistency, ranges, schema
from mmdiff.core.errors import ConfigError, DataError
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


def parse(argv: Sequence[str], flags: Mapping[str, Mapping], *, positional: Sequence[str] = (),
          also: Callable[[Mapping[str, Any]], list[str]] = lambda values: []) -> dict[str, Any]:
  """{flag: value} for every flag of the table. positional: names of the words that may come without `--`, of flags or not; None when not
  given. also: what else is wrong with the values that could be read.

  Raises ConfigError with one line for every mistake, and DataError for a source that is not there when all else is well.
  """
  given, words, overrides, nested, unknown = _split(argv, flags, positional)
  if len(words) > len(positional):              # required flags without their names, in the table's order, before all that have one
    leading = sum(1 for _ in itertools.takewhile(lambda word: not word.startswith("-"), argv))
    left = [name for name, flag in flags.items() if flag.get("required") and name not in given]
    taken = dict(zip(left, words[len(positional):leading]))
    given, words = {**given, **taken}, [*words[:len(positional)], *words[len(positional) + len(taken):]]
  keys = _keys(given.get("config"), flags) if unknown else []
  problems = [f"--{name}: unknown flag" + _meant(name, flags, keys) for name in unknown]
  values: dict[str, Any] = dict.fromkeys(positional) | dict(zip(positional, words))
  placed = {name: word for name, word in zip(positional, words) if name in flags}
  problems += [f"--{name}: given twice, {word!r} and {given[name]!r}; leave one out" for name, word in placed.items() if name in given]
  given, absent = given | placed, None
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
    elif flag.get("type") == "source":
      from mmdiff.commands import sources
      try:
        values[name], found = sources.read(given[name], nested[name], f"--{name}.")
        problems += found
      except DataError as error:
        absent = error
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
  problems += [f"--{name}.{key}: needs --{name}=SOURCE" for name, pairs in nested.items() if name not in given for key, _ in pairs]
  problems += [problem for name in given if name in flags for problem in _idle(name, flags[name], values, given)]
  if overrides and "config" not in given:
    why = "needs --config=FILE" if "config" in flags else "this command takes no --config"
    problems += [f"--config.{path}: {why}" for path, _ in overrides]
  problems += also(values)
  if problems:
    raise ConfigError("\n".join(problems))
  if absent:
    raise absent
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
  """({flag: text, or None where a value is missing}, bare words, [(config path, text or None)], {flag: [(key of its source, text)]},
  names that are no flags)."""
  given: dict[str, str | None] = {}
  nested: dict[str, list[tuple[str, str | None]]] = {name: [] for name, flag in flags.items() if flag.get("type") == "source"}
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
    head, _, key = name.partition(".")
    if head in nested:
      value = text if equals else take()
      if path := flags[head].get("sets"):
        overrides.append((f"{path}.{key}" if key else path, value))
      elif key:
        nested[head].append((key, value))
      else:
        given[head] = value
    elif name.startswith("config."):
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
  return given, words, overrides, nested, unknown


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
    config, source = (_run(source), source) if isinstance(source, str) else (plain(source), "<of Python>")
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
  file = source.partition(".py:")[0] + (".py" if ".py:" in source else "")
  from_flag = lambda path: any(path == t or path.startswith(t + ".") for t in touched)
  touched = {path for path, _ in overrides} | {path.removesuffix(".name") for path, _ in overrides if path.endswith(".name")}
  problems = [p.text("--config.") for p in wrong]
  if block == schema.EXPERIMENT and not wrong and any(path == "data.source" and text for path, text in overrides) and \
      not schema.check(config["data"]["source"], schema.Block(table="mmdiff.data:SOURCES")):
    from mmdiff.commands import own_data
    config = own_data.follow(config, touched)
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
  config = plain(config)
  if not isinstance(config, dict):
    raise ConfigError(f"--config={name}: expected a config (a mapping), found {type(config).__name__}")
  return config
