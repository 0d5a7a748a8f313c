"""BERT's tokenizer from a vocab.txt."""
import json

import pytest

from mmdiff.core.errors import DataError
from mmdiff.data import tokenizers, wordpiece

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "##dish", "naive", "Red", "!", "東"]


def test_bert_from_its_vocabulary(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
  found = tokenizers.file(path=str(tmp_path))
  assert found.batch(["Red NAÏVE!", "reddish 東東"], 6)[0].tolist() == [[2, 4, 6, 8, 3, 0], [2, 4, 5, 9, 9, 3]]
  assert found.decode(found.encode("reddish")) == "reddish" and (found.start, found.end, found.pad) == (2, 3, 0)
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="BertTokenizer", do_lower_case=False)))
  cased = tokenizers.file(path=str(tmp_path))
  assert cased.encode("Red red") == [2, 7, 4, 3]
  cased.export(tmp_path)
  (tmp_path / "vocab.txt").unlink()
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="BertTokenizer", do_lower_case=True)))
  assert tokenizers.file(path=str(tmp_path)).encode("Red") == [2, 4, 3]       # the config's word goes over the tokenizer.json's
  (tmp_path / "bad.txt").write_text("a\nb\n")
  with pytest.raises(DataError, match=r"not a vocabulary of BERT: it lacks \[CLS\], \[SEP\], \[UNK\]"):
    wordpiece.read(tmp_path / "bad.txt")
