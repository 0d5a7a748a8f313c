"""SentencePiece models: a small one written here, and files that are none."""
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import DataError
from mmdiff.data import sentencepiece, tokenizers

PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -3.0, 1), ("▁red", -1.0, 1), ("▁circle", -1.5, 1), ("s", -2.0, 1),
          ("▁re", -2.0, 1), ("d", -2.5, 1), ("r", -4.0, 1), ("e", -4.0, 1)]


def varint(value):
  made = b""
  while value > 127:
    made, value = made + bytes([value & 127 | 128]), value >> 7
  return made + bytes([value])


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  if isinstance(value, float):
    return varint(number << 3 | 5) + struct.pack("<f", value)
  data = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(data)) + data


def model(pieces=PIECES, kind=1):
  body = b"".join(field(1, field(1, text) + field(2, score) + field(3, type_)) for text, score, type_ in pieces)
  return body + field(2, field(3, kind) + field(4, len(pieces))) + field(3, field(1, "identity") + field(3, 1) + field(4, 1))


def written(path, data):
  path.write_bytes(data)
  return path


def test_pieces_are_those_of_the_best_score(tmp_path):
  backend = sentencepiece.read(written(tmp_path / "spiece.model", model()))
  assert backend.encode("red circles").tokens == ["▁red", "▁circle", "s", "</s>"]
  assert backend.encode("  re   red ").tokens == ["▁re", "▁red", "</s>"]
  assert backend.encode("x").ids == [3, 2, 1] and backend.encode("").ids == [1]


def test_a_folder_with_a_model_is_a_tokenizer(tmp_path):
  written(tmp_path / "spiece.model", model())
  found = tokenizers.file(path=str(tmp_path))
  assert (found.pad, found.end, found.start) == (0, 1, None) and found.vocab_size == len(PIECES) + tokenizers.SENTINELS
  assert found.decode(found.encode("red circles")) == "red circles"
  tokens, mask = found.batch(["red circles", "red </s> red"], 4)
  assert tokens[0].tolist() == [4, 5, 6, 1] and mask[0].all()
  assert (tokens[1][:-1] != 1).all()                        # text never becomes a special token
  found.save(tmp_path / "tokenizer.json")
  assert tokenizers.file(path=str(tmp_path / "tokenizer.json")).encode("red circles") == found.encode("red circles")


def test_what_is_none_is_said(tmp_path):
  for data, message in ((b"\xff" * 30, "not a SentencePiece model"), (model()[:40], "cut off"), (model(kind=2), "only unigram models"),
                        (b"\n\x02\x12\x00", "requires a buffer of 4 bytes"),
                        (model(PIECES[:2]), "0 pieces for the unknown"), (b"", "0 pieces for the unknown")):
    with pytest.raises(DataError, match=message):
      sentencepiece.read(written(tmp_path / "x.model", data))


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_damaged_files_are_errors(tmp_path_factory, noise, at):
  whole = model()
  data = whole[:at % len(whole)] + noise + whole[at % len(whole) + len(noise):]
  path = written(tmp_path_factory.mktemp("x") / "x.model", data)
  try:
    sentencepiece.read(path)
  except DataError:
    pass
