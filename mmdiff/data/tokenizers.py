"""Captions to tokens. Every tokenizer is, or becomes, one `tokenizer.json` of the `tokenizers` library."""
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.data import captions, records, sentencepiece
from mmdiff.data.quarantine import BadRecord

# By these names a tokenizer.json is searched for its special tokens, in this order.
STARTS = ("<start>", "<|startoftext|>", "<s>", "[CLS]", "<bos>")
ENDS = ("<end>", "<|endoftext|>", "</s>", "[SEP]", "<eos>")
PADS = ("<pad>", "[PAD]")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SENTINELS = 100                                          # "<extra_id_0>" to "<extra_id_99>" of T5
SPECIALS = ("<pad>", "<start>", "<end>")                 # ids 0, 1, 2 of a trained `bpe`
SMALLEST = len(SPECIALS) + 256                           # every byte has a token


class Tokenizer:
  """Text to ids and back. Text of a caption never becomes a special token, whatever it says."""

  def __init__(self, backend: Backend, *, where: str = "tokenizer"):
    padding = backend.padding
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    self._backend = backend
    find = lambda names: next((i for name in names if (i := backend.token_to_id(name)) is not None), None)
    self.start, self.end = find(STARTS), find(ENDS)
    self.cleaned = backend.token_to_id(CLIP_START) is not None       # CLIP's own code cleans text before its tokenizer sees it
    if self.cleaned:
      self.end, self.pad = backend.token_to_id(CLIP_END), backend.token_to_id(CLIP_END)
    else:
      known_pad = find(PADS)
      self.pad = known_pad if known_pad is not None else padding["pad_id"] if padding else self.end if self.end is not None else 0
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
      raise DataError(f"{where}: the tokenizer has no tokens")
    self.vocab_size = max(vocab.values()) + 1
    self._specials = {i for i in (self.start, self.end, self.pad) if i is not None}

  def encode(self, text: str) -> list[int]:
    """Ids with the special tokens that the tokenizer adds, neither cut nor padded."""
    return self._backend.encode(captions.clean(text) if self.cleaned else text).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special tokens are dropped."""
    return self._backend.decode([int(i) for i in ids if int(i) not in self._specials], skip_special_tokens=True).strip()

  def batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> (tokens int32 [n length], mask bool [n length], true where a token is real). What is cut keeps its end token."""
    if length < 2:
      raise ConfigError(f"data.text_len: expected at least 2, for a start and an end, found {length}")
    texts = [captions.clean(text) for text in texts] if self.cleaned else list(texts)
    tokens = np.full((len(texts), length), self.pad, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, encoding in enumerate(self._backend.encode_batch_fast(texts)):
      ids = encoding.ids
      if len(ids) > length:
        ids = ids[:length - 1] + ids[-1:] if ids[-1] == self.end else ids[:length]
      tokens[row, :len(ids)] = ids
      mask[row, :len(ids)] = True
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
    """Writes a tokenizer.json that `file` reads back exactly."""
    part = Path(f"{path}.part")
    try:
      part.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
      part.replace(path)
    except OSError as error:
      raise CannotWrite(f"can't write the tokenizer to {path}: {error}") from error

  def fingerprint(self) -> str:
    return hashlib.blake2b(self._backend.to_str().encode(), digest_size=16).hexdigest()

  def __reduce__(self):
    return _from_text, (self._backend.to_str(),)


def _from_text(text: str, where: str = "tokenizer") -> Tokenizer:
  try:
    return Tokenizer(Backend.from_str(text), where=where)
  except DataError:
    raise
  except Exception as error:           # the library raises bare Exception
    raise DataError(f"{where}: not a tokenizer.json: {error}") from None


class Untrained(NamedTuple):
  """A `bpe` that has yet to see captions; `ensure_trained` makes the tokenizer."""
  vocab: int
  sample: int


def file(*, path: str) -> Tokenizer:
  """Any `tokenizer.json` or SentencePiece model, or a folder with one; its own normaliser and special tokens hold.

  A `spiece.model` gets the hundred sentinels that T5's tokenizer has behind its pieces.
  """
  found = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
  pieces = Path(path) / "spiece.model" if Path(path).is_dir() else Path(path)
  if path and pieces.suffix == ".model" and pieces.is_file() and (pieces == found or not found.is_file()):
    return Tokenizer(sentencepiece.read(pieces, extra=SENTINELS), where=str(pieces))
  if not path or not found.is_file():
    raise DataError(f"data.tokenizer.path: no file {str(found) if path else path!r}; give the path of a tokenizer.json")
  return _from_text(found.read_text(encoding="utf-8"), str(found))


def clip(*, path: str) -> Tokenizer:
  """CLIP's byte-pair encoding from a folder with vocab.json and merges.txt, or tokenizer.json (openai/CLIP, simple_tokenizer.py).

  Text is cleaned and lower-cased, every word ends in "</w>", the specials are <|startoftext|> and <|endoftext|> (49406 and 49407 in the
  published vocabulary), and rows are padded with the end token: use the mask.
  """
  folder = Path(path)
  vocab, merges = folder / "vocab.json", folder / "merges.txt"
  if not (path and vocab.is_file() and merges.is_file()):
    if path and (folder.is_file() or (folder / "tokenizer.json").is_file()):
      found = file(path=path)
      if not found.cleaned:
        raise DataError(f"data.tokenizer.path: {path} has no token {CLIP_START!r}, so it is no CLIP tokenizer; use tokenizer.name=file")
      return found
    raise DataError(f"data.tokenizer.path: {path!r} holds neither vocab.json and merges.txt nor tokenizer.json; "
                    "give the folder of a published CLIP model")
  try:
    model = models.BPE.from_file(str(vocab), str(merges), unk_token=CLIP_END, continuing_subword_prefix="", end_of_word_suffix="</w>")
  except Exception as error:           # the library raises bare Exception
    raise DataError(f"data.tokenizer.path: {path}: {error}") from None
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
  return Tokenizer(backend, where=path)


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

  The vocabulary may come out smaller than `vocab` when the texts have too few pairs to merge. Raises DataError without any text.
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
  return Tokenizer(backend)


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
