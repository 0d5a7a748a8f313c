"""Our reading of a SentencePiece model beside the library's own."""
import random

import pytest

pytestmark = pytest.mark.peers
WORDS = "the quick brown fox jumps over a lazy dog while two small red circles stand left of the blue square near naïve café 12345 don't!"


@pytest.mark.parametrize("size", [45, 55])
def test_the_same_ids(tmp_path, size):
  import sentencepiece as library

  from mmdiff.data.sentencepiece import read
  rng = random.Random(0)
  lines = [" ".join(rng.choices(WORDS.split(), k=rng.randint(3, 20))) for _ in range(2000)]
  (tmp_path / "text.txt").write_text("\n".join(lines))
  library.SentencePieceTrainer.train(input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=size, pad_id=0,
                                     eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
  theirs, ours = library.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model")), read(tmp_path / "spiece.model")
  odd = ["  two   spaces  ", "ﬁ ligature ① ", "UPPER lower", "日本 unknown", "tab\there", "", " ", "e\u0301 accent"]
  for text in [*lines[:300], *odd]:
    assert ours.encode(text).ids == [*theirs.encode(text), 1], text
