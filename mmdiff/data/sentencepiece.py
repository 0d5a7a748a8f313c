"""SentencePiece models (`spiece.model`, https://github.com/google/sentencepiece) as tokenizers of the `tokenizers` library.

The file is a protocol buffer of pieces with scores, and of how text is normalised before it is cut. Of its kinds the unigram model
(Kudo 2018, https://arxiv.org/abs/1804.10959) is read, which T5 and its descendants have.
"""
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from mmdiff.core.errors import DataError

UNIGRAM, USER_DEFINED, CONTROL, UNKNOWN, BYTE = 1, 4, 3, 2, 6          # TrainerSpec.ModelType, and SentencePiece.Type
MAX_BYTES = 64 * 2**20
SPACE = "▁"


class Piece(NamedTuple):
  text: str
  score: float
  kind: int


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """(number, value) of a message: ints of varints, bytes of the rest. Raises ValueError for what is none."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      if at >= len(data) or shift > 63:
        raise ValueError("a number is cut off")
      byte = data[at]
      at += 1
      value |= (byte & 127) << shift
      if byte < 128:
        return value
      shift += 7
  while at < len(data):
    key = varint()
    number, wire = key >> 3, key & 7
    if wire == 0:
      yield number, varint()
      continue
    if wire not in (1, 2, 5):
      raise ValueError(f"wire type {wire}")
    size = {1: 8, 5: 4}.get(wire) or varint() if wire != 2 else varint()
    if at + size > len(data):
      raise ValueError("a field is cut off")
    yield number, data[at:at + size]
    at += size


def piece_of(data: bytes) -> Piece:
  text, score, kind = "", 0.0, 1
  for number, value in fields(data):
    if number == 1:
      text = value.decode("utf-8")
    elif number == 2:
      score, = struct.unpack("<f", value)
    elif number == 3:
      kind = value
  return Piece(text, score, kind)


def read(path: Path, *, extra: int = 0) -> Backend:
  """The tokenizer of a file; as T5's own, it puts "</s>" behind every text.

  extra: tokens "<extra_id_0>", …, counted backwards behind the pieces, as T5's sentinels are. Raises DataError.
  """
  try:
    if path.stat().st_size > MAX_BYTES:
      raise ValueError(f"more than {MAX_BYTES} bytes")
    pieces, trainer, normalizer = [], {}, {}
    for number, value in fields(path.read_bytes()):
      if number == 1:
        pieces.append(piece_of(value))
      elif number == 2:
        trainer = dict(fields(value))
      elif number == 3:
        normalizer = dict(fields(value))
    if trainer.get(3, UNIGRAM) != UNIGRAM:
      raise ValueError(f"a model of type {trainer[3]}, and only unigram models (type {UNIGRAM}) are read")
    unknown = [i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unknown) != 1:
      raise ValueError(f"{len(unknown)} pieces for the unknown, expected one")
  except (OSError, ValueError, TypeError, AttributeError, struct.error) as error:
    raise DataError(f"{path}: not a SentencePiece model: {error}") from None
  vocab = [(piece.text, piece.score) for piece in pieces] + [(f"<extra_id_{extra - 1 - i}>", 0.0) for i in range(extra)]
  backend = Backend(models.Unigram(vocab, unk_id=unknown[0], byte_fallback=any(piece.kind == BYTE for piece in pieces)))
  rules: list[normalizers.Normalizer] = []
  if normalizer.get(2):
    rules.append(normalizers.Precompiled(normalizer[2]))
  if normalizer.get(4, 1):                # remove_extra_whitespaces
    rules += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
  special = [piece.text for piece in pieces if piece.kind in (CONTROL, UNKNOWN)] + [f"<extra_id_{i}>" for i in range(extra)]
  # The library cuts text into any piece, those too that text may not become: a space breaks what looks like one.
  looks = "|".join(re.escape(text[1:]) for text in special if text.startswith("<"))
  backend.normalizer = normalizers.Sequence([*rules, *([normalizers.Replace(Regex(f"<(?={looks})"), "< ")] if looks else [])])
  prefix = "always" if normalizer.get(3, 1) else "never"
  backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=prefix)
  backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=prefix)
  backend.add_special_tokens(special)
  backend.add_tokens([piece.text for piece in pieces if piece.kind == USER_DEFINED])
  end = backend.token_to_id("</s>")
  if end is not None:
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)])
  return backend
