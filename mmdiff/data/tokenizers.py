"""Captions to tokens. Every tokenizer is, or becomes, one `tokenizer.json` of the `tokenizers` library."""
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from mmdiff.core.errors import ConfigError, DataError
from mmdiff.core.files import parse_json, write_text
from mmdiff.data import captions, cleaning, records, sentencepiece, token_facts, wordpiece
from mmdiff.data.quarantine import BadRecord
from mmdiff.data.token_facts import KEY, NOBODY, UNSAID, Facts, Like

# By these names a tokenizer.json is searched for its special tokens, in this order.
STARTS = ("<start>", "<|startoftext|>", "<s>", "[CLS]", "<bos>")
ENDS = ("<end>", "<|endoftext|>", "</s>", "[SEP]", "<eos>")
PADS = ("<pad>", "[PAD]")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SENTINELS = token_facts.SENTINELS
SPECIALS = ("<pad>", "<start>", "<end>")                 # ids 0, 1, 2 of a trained `bpe`
SMALLEST = len(SPECIALS) + 256                           # every byte has a token


class Tokenizer:
  """Text to ids and back, with the facts that belong to it. Text of a caption never becomes a special token, whatever it says."""

  def __init__(self, backend: Backend, *, where: str = "tokenizer", facts: Facts = UNSAID, notices: tuple[str, ...] = ()):
    padding = backend.padding or {}
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    self._backend, self.notices = backend, notices
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
      raise DataError(f"{where}: the tokenizer has no tokens")
    self.vocab_size = max(vocab.values()) + 1
    plain = _plain(backend)
    said_pad = facts.pad or (padding["pad_token"] if backend.token_to_id(padding.get("pad_token", "")) is not None else None)
    self.pad = _id(backend, said_pad, "pad", where) if said_pad else padding.get("pad_id", _id(backend, plain.pad, "pad", where) or 0)
    self.start, self.end = _id(backend, facts.start or plain.start, "start", where), _id(backend, facts.end or plain.end, "end", where)
    clean = plain.clean if facts.clean is None else facts.clean
    side = "left" if facts.side == "left" or padding.get("direction") == "left" else "right"
    name = lambda i: None if i is None else backend.id_to_token(i)
    self.facts = Facts(clean, name(self.pad), name(self.start), name(self.end), facts.length, side)
    # What needs no saying, since a tokenizer.json alone gives it.
    self._told = {} if self.facts._replace(length=None) == plain._replace(pad=plain.pad or name(0)) else self.facts.said()
    self._specials = {i for i in (self.start, self.end) if i is not None}
    self._specials |= {self.pad} & backend.get_added_tokens_decoder().keys()         # CLIP's token 0, with which open_clip pads, is a "!"

  def token(self, i: int) -> str | None:
    """The token of an id."""
    return self._backend.id_to_token(i)

  def encode(self, text: str) -> list[int]:
    """Ids with the special tokens that the tokenizer adds, neither cut nor padded."""
    return self._backend.encode(self._cleaned(text)).ids

  def _cleaned(self, text: str) -> str:
    return cleaning.clean(text, self.facts.clean or ())

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special tokens are dropped."""
    return self._backend.decode([int(i) for i in ids if int(i) not in self._specials], skip_special_tokens=True).strip()

  def batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (tokens int32 [n length], mask bool [n length], true where a token is real). What is cut keeps its end token."""
    if length < 2:
      raise ConfigError(f"data.text_len: expected at least 2, for a start and an end, found {length}")
    tokens = np.full((len(texts), length), self.pad, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, encoding in enumerate(self._backend.encode_batch_fast([self._cleaned(text) for text in texts])):
      ids = encoding.ids
      if len(ids) > length:
        ids = ids[:length - 1] + ids[-1:] if ids[-1] == self.end else ids[:length]
      own = slice(length - len(ids), length) if self.facts.side == "left" else slice(0, len(ids))
      tokens[row, own], mask[row, own] = ids, True
    return tokens, mask

  def chunks(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (tokens int32 [n k·length], mask bool), cut into the fewest chunks k that hold the longest, each with a start and an end.

    Chunks beyond a text's own have no token. Raises ConfigError without a start or an end token.
    """
    if self.start is None or self.end is None:
      raise ConfigError("chunks of a prompt begin with a start token and close with an end token, which this tokenizer lacks")
    inner = [[i for i in self.encode(text) if i not in (self.start, self.end)] for text in texts]
    count = max([1, *(-(-len(ids) // (length - 2)) for ids in inner)])
    tokens, mask = np.full((len(texts), count, length), self.pad, np.int32), np.zeros((len(texts), count, length), bool)
    for row, ids in enumerate(inner):
      for k in range(max(1, -(-len(ids) // (length - 2)))):
        own = [self.start, *ids[k * (length - 2):(k + 1) * (length - 2)], self.end]
        tokens[row, k, :len(own)], mask[row, k, :len(own)] = own, True
    return tokens.reshape(len(texts), -1), mask.reshape(len(texts), -1)

  def save(self, path: str | os.PathLike) -> None:
    """Writes a tokenizer.json that `file` reads back exactly; facts that the library has no place for are in it under a key of our own."""
    text = self._backend.to_str(pretty=True)
    write_text(Path(path), json.dumps({KEY: self._told, **parse_json(text)}, indent=2, ensure_ascii=False) if self._told else text)

  def export(self, folder: str | os.PathLike) -> list[str]:
    """Writes a tokenizer as public folders have it: tokenizer.json for any reader, and the files that say its facts. Their names.

    What the library can do of the cleaning is in the tokenizer.json too, so that others see nearly the same texts: all but ftfy's repairs.
    """
    made = json.loads(self._backend.to_str())
    rules = [rule for step in self.facts.clean or () for rule in NATIVE.get(step, ())]
    if rules:
      made["normalizer"] = dict(type="Sequence", normalizers=rules + ([made["normalizer"]] if made["normalizer"] else []))
    files: dict[str, Any] = {"tokenizer.json": made, **token_facts.public_files(self.facts)}
    for name, content in files.items():
      write_text(Path(folder) / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return list(files)

  def renumbered(self, a: int, b: int) -> "Tokenizer":
    """The same tokenizer with two ids exchanged."""
    other = {a: b, b: a}
    made = json.loads(self._backend.to_str())
    vocab = made["model"]["vocab"]
    if isinstance(vocab, dict):
      made["model"]["vocab"] = {token: other.get(i, i) for token, i in vocab.items()}
    else:                                  # of a unigram model, by position
      vocab[a], vocab[b] = vocab[b], vocab[a]
      made["model"]["unk_id"] = other.get(made["model"]["unk_id"], made["model"]["unk_id"])
    for token in made["added_tokens"]:
      token["id"] = other.get(token["id"], token["id"])
    made["added_tokens"].sort(key=lambda token: token["id"])
    for special in ((made["post_processor"] or {}).get("special_tokens") or {}).values():
      special["ids"] = [other.get(i, i) for i in special["ids"]]
    return _from_text(json.dumps(made), facts=self.facts)

  def fingerprint(self) -> str:
    told = json.dumps(self._told, sort_keys=True) if self._told else ""
    return hashlib.blake2b((self._backend.to_str() + told).encode(), digest_size=16).hexdigest()

  def __reduce__(self):
    return _from_text, (self._backend.to_str(), "tokenizer", self.facts)


# Steps of `cleaning` as normalisers of the library.
NATIVE: dict[str, tuple[dict[str, Any], ...]] = {
  "underscores": ({"type": "Replace", "pattern": {"String": "_"}, "content": " "},),
  "punctuation": ({"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-`{-~]"}, "content": ""},),
  "lower": ({"type": "Lowercase"},), "lower_ascii": ({"type": "Lowercase"},),
  "spaces": ({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
             {"type": "Strip", "strip_left": True, "strip_right": True}),
}
NATIVE["canonical_spaces"] = NATIVE["spaces"]


def _plain(backend: Backend) -> Facts:
  """The facts of a tokenizer about which nothing is said: CLIP's by its start token, else special tokens by the names that they have."""
  find = lambda names: next((name for name in names if backend.token_to_id(name) is not None), None)
  if backend.token_to_id(CLIP_START) is not None:
    return Facts(cleaning.OPENAI, CLIP_END, find(STARTS), CLIP_END)
  end = find(ENDS)
  return Facts((), find(PADS) or end, find(STARTS), end)


def _id(backend: Backend, token: str | None, what: str, where: str) -> int | None:
  if token is None:
    return None
  found = backend.token_to_id(token)
  if found is None:
    raise DataError(f"{where}: the {what} token is {token!r}, which the vocabulary lacks")
  return found


def _from_text(text: str, where: str = "tokenizer", facts: Facts = UNSAID, said: token_facts.Said | None = None) -> Tokenizer:
  """A tokenizer of the text of a tokenizer.json; facts in it win over those given."""
  try:
    if f'"{KEY}"' in text[:64]:
      made = parse_json(text)
      facts = facts._replace(**token_facts.own(made.pop(KEY), where))
      text = json.dumps(made)
    backend = Backend.from_str(text)
    return _with_facts(_adjusted(backend, said), where, facts, said) if said else Tokenizer(backend, where=where, facts=facts)
  except DataError:
    raise
  except Exception as error:           # the library raises bare Exception
    raise DataError(f"{where}: not a tokenizer.json: {error}") from None


def _with_facts(backend: Backend, where: str, facts: Facts, said: token_facts.Said) -> Tokenizer:
  """With the facts of a folder, less the special tokens that only its class has and this vocabulary lacks."""
  lacking = {name: None for name in said.assumed if (token := getattr(facts, name)) and backend.token_to_id(token) is None}
  return Tokenizer(backend, where=where, facts=facts._replace(**lacking), notices=said.notices)


def _adjusted(backend: Backend, said: token_facts.Said) -> Backend:
  """A tokenizer.json as the files beside it change it: BERT's normaliser, and whether start and end are added."""
  if isinstance(backend.normalizer, normalizers.BertNormalizer) and any(flag is not None for flag in said.bert):
    backend.normalizer = wordpiece.normalizer(*said.bert)
  facts = said.facts
  if any(isinstance(flag, bool) for flag in said.adds):
    put = [(token, bool(flag)) for token, flag in zip((facts.start, facts.end), said.adds)]
    start, end = (token if token and flag and backend.token_to_id(token) is not None else "" for token, flag in put)
    single = " ".join(filter(None, (start, "$A", end)))
    backend.post_processor = processors.TemplateProcessing(
      single=single, pair=f"{single} $B", special_tokens=[(token, backend.token_to_id(token)) for token in {start, end} if token])
  return backend


class Untrained(NamedTuple):
  """A `bpe` that has yet to see captions; `ensure_trained` makes the tokenizer."""
  vocab: int
  sample: int


def file(*, path: str) -> Tokenizer:
  """A tokenizer.json or SentencePiece model, or a folder with one, with vocab.json and merges.txt, or with BERT's vocab.txt.

  Its own normaliser and special tokens hold; the files beside it say its cleaning, padding and length (`token_facts`).
  """
  return of_folder(path)


def siglip(*, path: str) -> Tokenizer:
  """SigLIP's, from a folder or a spiece.model: unless the files beside it say something else, texts are in lower case without punctuation
  and padded with "</s>", as transformers' SiglipTokenizer has it."""
  return of_folder(path, Like("SiglipTokenizer"))


def clip(*, path: str, pad: Literal["end", "zero"] = "end") -> Tokenizer:
  """CLIP's byte-pair encoding from a folder with vocab.json and merges.txt, or tokenizer.json (openai/CLIP, simple_tokenizer.py).

  Text is cleaned and lower-cased, every word ends in "</w>", the specials are <|startoftext|> and <|endoftext|> (49406 and 49407 in the
  published vocabulary), and rows are padded with the end token: use the mask.

  pad: "zero" pads with token 0, as open_clip does; its CoCa sees the first of them.
  """
  found = _clip(path)
  return found if pad == "end" else Tokenizer(found._backend, facts=found.facts._replace(pad=found.token(0)))


def _clip(path: str) -> Tokenizer:
  folder = Path(path)
  if path and clip_pair(folder):
    return _pair(folder, UNSAID)
  if not (path and (folder.is_file() or (folder / "tokenizer.json").is_file())):
    raise DataError(f"data.tokenizer.path: {path!r} holds neither vocab.json and merges.txt nor tokenizer.json; "
                    "give the folder of a published CLIP model")
  found = of_folder(path, Like(clean=cleaning.OPENAI, only=True))
  if found._backend.token_to_id(CLIP_START) is None:
    raise DataError(f"data.tokenizer.path: {path} has no token {CLIP_START!r}, so it is no CLIP tokenizer; use tokenizer.name=file")
  return found


PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.model")
PLAIN_PIECES = ("", "SiglipTokenizer", "T5Tokenizer", "GemmaTokenizer", "Siglip2Tokenizer", "big_vision", "PreTrainedTokenizer")


def clip_pair(folder: Path) -> bool:
  return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def vocabulary(folder: Path) -> Path | None:
  """The file of a folder that its vocabulary is read from; of vocab.json and merges.txt the first. None without any."""
  found = [file for name in ("tokenizer.json", *PIECES, "vocab.txt") if (file := folder / name).is_file()]
  if clip_pair(folder) and not (found and found[0].name == "tokenizer.json" and (folder / token_facts.CONFIG).is_file()):
    return folder / "vocab.json"
  return found[0] if found else None


def of_folder(path: str | os.PathLike, like: Like = NOBODY) -> Tokenizer:
  """`_of_folder`, of which the model can tell where a text ends. Raises DataError."""
  made = _of_folder(path, like)
  if like.end not in (None, made.end):
    raise DataError(f"{path}: the model reads a text where token {like.end} is, and this tokenizer ends a text with {made.end}")
  return made if like.pad in (None, made.pad) else Tokenizer(made._backend, facts=made.facts._replace(pad=made.token(like.pad)),
                                                             notices=made.notices)


def _of_folder(path: str | os.PathLike, like: Like) -> Tokenizer:
  """The tokenizer of a folder or a vocabulary file, with the facts that the files beside it say. like: whose it is where they don't.

  A tokenizer.json goes first, but for transformers' SiglipTokenizer, which reads spiece.model, and for CLIP's pair of files without a
  tokenizer_config.json. Raises DataError.
  """
  folder = Path(path) if Path(path).is_dir() else Path(path).parent
  said = token_facts.read(folder, like) if path and folder.is_dir() else token_facts.Said(UNSAID, "")
  found = vocabulary(folder) if Path(path).is_dir() else Path(path)
  if Path(path).is_dir() and said.kind == "SiglipTokenizer":
    found = next((file for name in PIECES if (file := folder / name).is_file()), found)
  if not path or found is None or not found.is_file():
    raise DataError(f"data.tokenizer.path: no file {str(path)!r}; give the path of a tokenizer.json" if not path or found else
                    f"data.tokenizer.path: {path} holds no tokenizer: expected tokenizer.json, {', '.join(PIECES[:2])}, vocab.json with "
                    "merges.txt, or vocab.txt")
  facts = said.facts
  if found.name == "vocab.json":
    return _pair(folder, facts)
  if found.suffix == ".model" and said.kind not in PLAIN_PIECES:
    raise DataError(f"{found}: a {said.kind} numbers the pieces in its own way; put its tokenizer.json beside it")
  if found.suffix == ".model":
    return _with_facts(sentencepiece.read(found, extra=said.sentinels), str(found), facts, said)
  if found.name == "vocab.txt":
    return _with_facts(wordpiece.read(found, flags=said.bert), str(found), facts, said)
  if said.kind == "CLIPTokenizer" and facts.clean is None and (folder / token_facts.CONFIG).is_file():
    facts = facts._replace(clean=())                       # transformers' own file says it all in its normaliser
  return _from_text(found.read_text(encoding="utf-8"), str(found), facts, said)


def _pair(folder: Path, facts: Facts) -> Tokenizer:
  vocab, merges = folder / "vocab.json", folder / "merges.txt"
  try:
    model = models.BPE.from_file(str(vocab), str(merges), unk_token=CLIP_END, continuing_subword_prefix="", end_of_word_suffix="</w>")
  except Exception as error:           # the library raises bare Exception
    raise DataError(f"data.tokenizer.path: {folder}: {error}") from None
  backend = Backend(model)
  missing = [token for token in (CLIP_START, CLIP_END) if backend.token_to_id(token) is None]
  if missing:
    raise DataError(f"data.tokenizer.path: {vocab} lacks {', '.join(missing)}")
  backend.add_special_tokens([CLIP_START, CLIP_END])
  backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
  backend.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  backend.post_processor = _template(backend, CLIP_START, CLIP_END)
  backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
  return Tokenizer(backend, where=str(folder), facts=facts)


def bpe(*, vocab: int = 512, path: str = "", sample: int = 4000) -> Tokenizer | Untrained:
  """A byte-level BPE in lower case: read from `path`, or without one trained on the captions of `sample` records at the first start."""
  if path:
    return file(path=path)
  if vocab < SMALLEST:
    raise ConfigError(f"data.tokenizer.vocab: a byte-level vocabulary needs at least {SMALLEST} tokens, found {vocab}")
  if sample < 1:
    raise ConfigError(f"data.tokenizer.sample: expected at least 1 record, found {sample}")
  return Untrained(vocab, sample)


def ensure_trained(tokenizer: Tokenizer | Untrained, source) -> Tokenizer:
  """The tokenizer itself, or an `Untrained` one trained on the source's captions."""
  return train(_sampled(source, tokenizer.sample), vocab=tokenizer.vocab) if isinstance(tokenizer, Untrained) else tokenizer


def train(texts, *, vocab: int) -> Tokenizer:
  """Byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) on texts; the same tokenizer from the same texts.

  The vocabulary comes out smaller than `vocab` when the texts have too few pairs to merge, which a notice says. Raises DataError without
  any text.
  """
  backend = Backend(models.BPE())
  backend.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()])
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(SPECIALS), show_progress=False, min_frequency=2,
                                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
  seen = 0

  def counted() -> Iterator[str]:
    nonlocal seen
    for text in texts:
      seen += bool(text.strip())
      yield text
  backend.train_from_iterator(counted(), trainer)
  if not seen:
    raise DataError("no captions to train a tokenizer on; check data.source, or give data.tokenizer.path")
  backend.post_processor = _template(backend, "<start>", "<end>")
  size = backend.get_vocab_size()
  few = f"{size} tokens, where vocab asks for {vocab}: in the {seen:,} captions no pair of tokens comes twice any more; give more captions"
  return Tokenizer(backend, notices=(few,) if size < vocab else ())


def _template(backend: Backend, start: str, end: str) -> processors.TemplateProcessing:
  ids = [(token, backend.token_to_id(token)) for token in (start, end)]
  return processors.TemplateProcessing(single=f"{start} $A {end}", pair=f"{start} $A {end} $B {end}", special_tokens=ids)


def _sampled(source, sample: int) -> Iterator[str]:
  """Every valid caption of up to `sample` records, spread evenly over the source."""
  count = min(sample, len(source))
  for n in range(count):
    try:
      texts = records.without_image(source, n * len(source) // count)["captions"]
    except (BadRecord, KeyError, TypeError):
      continue
    for value in texts.values() if hasattr(texts, "values") else ():
      for item in value if isinstance(value, (list, tuple)) else (value,):
        try:
          yield captions.text_of(item, key="", allow_empty=True)
        except BadRecord:
          continue
