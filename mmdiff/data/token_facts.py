"""What belongs to a tokenizer beyond its vocabulary: cleaning, padding, the special tokens, the most tokens of a text.

These are facts of the weights that were trained with it: SigLIP reads out the last position, so that another padding token is another
embedding. They are said by the files beside the vocabulary (tokenizer_config.json, special_tokens_map.json), by transformers' class that
these name, and by the model's own config where they name none. What a file says and nothing here honours is an error or a notice.
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.core.errors import DataError
from mmdiff.core.files import read_object
from mmdiff.core.ranges import wrong_text
from mmdiff.data import cleaning

KEY = "mmdiff"                          # what only we write: in our own tokenizer.json, and in a public folder's tokenizer_config.json
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
ENDLESS = 10**6                         # transformers says 1e30 where a tokenizer has no length of its own
MOST_SENTINELS = 10_000
SENTINELS = 100                         # "<extra_id_0>" to "<extra_id_99>" of T5


class Facts(NamedTuple):
  """clean: steps of `cleaning`, before the tokenizer; None is not said. pad, start, end: tokens; None is not said.

  length: the most tokens of a text, padding included; None is not said. side: where padding goes.
  """
  clean: tuple[str, ...] | None = None
  pad: str | None = None
  start: str | None = None
  end: str | None = None
  length: int | None = None
  side: str = "right"

  def said(self) -> dict[str, Any]:
    """What is said, as JSON holds it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items() if value is not None}


class Like(NamedTuple):
  """Whose tokenizer it is, where its own files don't say.

  clean: steps before the tokenizer's own; only: instead of them. end: the id that the model looks for where a text ends; None is any. pad:
  the id that its code pads with, whatever the tokenizer says.
  """
  kind: str = ""
  clean: tuple[str, ...] = ()
  only: bool = False
  end: int | None = None
  pad: int | None = None


UNSAID, NOBODY = Facts(), Like()


class Said(NamedTuple):
  """Of a folder: its facts, and how its vocabulary is read.

  kind: transformers' class. assumed: what no file says, but the class; it holds where the vocabulary has the token. sentinels: tokens
  behind a SentencePiece model's own. adds: whether the start and the end token are put around a text; None is as the vocabulary's file has
  it. bert: lower case, accents stripped, Chinese characters apart; None is not said.
  """
  facts: Facts
  kind: str
  assumed: tuple[str, ...] = ()
  sentinels: int = 0
  adds: tuple[bool | None, bool | None] = (None, None)
  bert: tuple[bool | None, bool | None, bool | None] = (None, None, None)
  notices: tuple[str, ...] = ()


# transformers' classes, without "Fast": what they do where the files say nothing (tokenization_*.py).
CLASSES: Mapping[str, Facts] = {
  "SiglipTokenizer": Facts(clean=cleaning.SIGLIP, pad="</s>", end="</s>"),
  "Siglip2Tokenizer": Facts(clean=("lower",), pad="<pad>", start="<bos>", end="<eos>", side="left"),
  "GemmaTokenizer": Facts(clean=(), pad="<pad>", start="<bos>", end="<eos>", side="left"),
  "T5Tokenizer": Facts(clean=(), pad="<pad>", end="</s>"),
  "XLMRobertaTokenizer": Facts(clean=(), pad="<pad>", start="<s>", end="</s>"),
  "BertTokenizer": Facts(clean=(), pad="[PAD]", start="[CLS]", end="[SEP]"),
  "CLIPTokenizer": Facts(pad="<|endoftext|>", start="<|startoftext|>", end="<|endoftext|>"),
  "big_vision": Facts(clean=cleaning.BIG_VISION, pad="</s>", end="</s>"),       # its SigLIP; no class of transformers
}
MODELS = {"siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer", "t5": "T5Tokenizer", "mt5": "T5Tokenizer", "clip": "CLIPTokenizer",
          "clip_text_model": "CLIPTokenizer", "bert": "BertTokenizer", "blip": "BertTokenizer"}
BERT = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
TOKENS = ("pad_token", "bos_token", "cls_token", "eos_token", "sep_token")


def read(folder: Path, like: Like = NOBODY) -> Said:
  """What the files of a folder say. Raises DataError for what is said and can't be honoured."""
  config, special = (_checked(_json(folder / name), folder / name) for name in (CONFIG, SPECIAL))
  model_type = str(_json(folder / "config.json").get("model_type", ""))
  named = str(config.get("tokenizer_class") or "").removesuffix("Fast")
  kind = named or like.kind or MODELS.get(model_type, "")
  known, notices, where = CLASSES.get(kind, UNSAID), [], folder / CONFIG
  clean, side = known.clean, config.get("padding_side") or known.side
  adds = (config.get("add_bos_token"), config.get("add_eos_token"))
  if kind == "SiglipTokenizer" and config.get("do_lower_case") is False:
    clean = tuple(step for step in cleaning.SIGLIP if step != "lower")
  if kind == "GemmaTokenizer" and like.kind == "big_vision":
    clean, side, adds = cleaning.BIG_VISION, "right", (False, True)        # lower(), tok(bos="no", eos="sticky")
  elif kind == "GemmaTokenizer" and (like.kind or MODELS.get(model_type, "")).startswith("Siglip"):
    clean = ("lower",)
    notices.append("SigLIP 2 was trained on texts in lower case, which its tokenizer's files don't say: texts are lower-cased")
  if kind == "CLIPTokenizer" and config.get("do_lower_case") is False:
    raise DataError(f"{where}: do_lower_case: false, and CLIP's texts are in lower case")
  if config.get("truncation_side", "right") != "right":
    raise DataError(f"{where}: truncation_side: {config['truncation_side']!r:.40}; texts are cut at their end")
  if side not in ("left", "right"):
    raise DataError(f"{where}: padding_side: expected left or right, found {side!r:.40}")
  if side == "left" and not kind.startswith(("Siglip", "Gemma")) and config.get(KEY) is None:
    raise DataError(f"{where}: padding_side: left, and {kind or 'this'} texts are padded at their end")
  masks = kind.startswith("Siglip") and "attention_mask" in (config.get("model_input_names") or ())
  if masks:
    notices.append("model_input_names asks for an attention mask, which SigLIP was trained without: padding is seen")
  token = lambda *names: next((found for name in names for place in (config, special) if (found := _token(place.get(name)))), None)
  mine = own(config.get(KEY), str(where))
  said = dict(pad=token("pad_token"), start=token("bos_token", "cls_token"), end=token("eos_token", "sep_token"))
  assumed = tuple(name for name, value in said.items() if value is None and name not in mine)
  facts = Facts(clean, length=_length(config.get("model_max_length"), where), side=side, **{
    name: value or getattr(known, name) for name, value in said.items()})._replace(**mine)
  if config.get(KEY) is None and (like.clean or like.only):
    facts = facts._replace(clean=like.clean if like.only else (*like.clean, *(facts.clean or ())))
  bert = (config.get(BERT[0]), config.get(BERT[1]), config.get(BERT[2])) if kind == "BertTokenizer" else (None, None, None)
  return Said(facts, kind, assumed, _sentinels(config, kind), adds, bert, tuple(notices))


def _checked(config: dict[str, Any], where: Path) -> dict[str, Any]:
  """A file's object, of which what is read here is of its kind: it comes from strangers. Raises DataError."""
  for keys, right, expected in (
      ((*BERT, "add_bos_token", "add_eos_token"), lambda value: isinstance(value, bool), "true or false"),
      (("extra_ids",), lambda value: type(value) is int and 0 <= value <= MOST_SENTINELS, f"a whole number up to {MOST_SENTINELS:,}"),
      (("model_input_names",), lambda value: isinstance(value, list), "a list of names"),
      (("tokenizer_class",), lambda value: isinstance(value, str), "a name"),
      (TOKENS, lambda value: not (token := _token(value)) or not wrong_text(token), "a token")):
    for key in keys:
      if config.get(key) is not None and not right(config[key]):
        raise DataError(f"{where}: {key}: expected {expected}, found {config[key]!r:.40}")
  return config


def own(said: Any, where: str) -> dict[str, Any]:
  """Facts that we wrote, checked. Raises DataError."""
  if said is None:
    return {}
  if not isinstance(said, Mapping) or (unknown := sorted(set(said) - set(Facts._fields))):
    raise DataError(f"{where}: {KEY}: expected an object of {', '.join(Facts._fields)}, found "
                    f"{unknown if isinstance(said, Mapping) else said!r:.60}")
  made = dict(said)
  for name, right, expected in (("clean", lambda value: type(value) in (list, tuple) and {*map(type, value)} <= {str}, "a list of names"),
                                ("length", lambda value: type(value) is int and value >= 2, "a whole number from 2"),
                                ("side", lambda value: value in ("left", "right"), "left or right"),
                                *((name, lambda value: isinstance(value, str) and not wrong_text(value), "a token")
                                  for name in ("pad", "start", "end"))):
    if made.get(name) is None:
      made.pop(name, None)
    elif not right(made[name]):
      raise DataError(f"{where}: {KEY}.{name}: expected {expected}, found {made[name]!r:.60}")
  if "clean" in made:
    made["clean"] = cleaning.checked(made["clean"], f"{where}: {KEY}.clean")
  return made


def public_files(facts: Facts) -> dict[str, Any]:
  """tokenizer_config.json and special_tokens_map.json beside a tokenizer.json of these facts."""
  tokens = {name: value for name, value in (("bos_token", facts.start), ("eos_token", facts.end), ("pad_token", facts.pad)) if value}
  config = tokens | dict(tokenizer_class="PreTrainedTokenizerFast", padding_side=facts.side)
  config |= dict(model_max_length=facts.length) if facts.length else {}
  return {CONFIG: config | {KEY: facts.said()}, SPECIAL: tokens}


def _sentinels(config: Mapping[str, Any], kind: str) -> int:
  """How many "<extra_id_N>" follow the pieces of a SentencePiece model: T5's own habit, and the default of a model without any config."""
  said = config.get("extra_ids")
  return (SENTINELS if said is None else said) if kind in ("T5Tokenizer", "") else 0


def _token(value: Any) -> str | None:
  value = value.get("content") if isinstance(value, Mapping) else value
  return value if isinstance(value, str) and value else None


def _length(value: Any, where: Path) -> int | None:
  if value is None or isinstance(value, (int, float)) and not isinstance(value, bool) and value >= ENDLESS:
    return None
  if not isinstance(value, int) or isinstance(value, bool) or value < 2:
    raise DataError(f"{where}: model_max_length: expected at least 2 tokens, found {value!r:.40}")
  return value


def _json(file: Path) -> dict[str, Any]:
  if not file.is_file():
    return {}
  return read_object(file, infinities=True)
