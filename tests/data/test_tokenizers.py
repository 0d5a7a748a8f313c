import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.core.errors import CannotWrite, ConfigError, DataError
from mmdiff.data import tokenizers
from tests.data.worlds import Holed, Listed, World, noise

TEXTS = [f"a {a} {b} on the {c}" for a in ("red", "green", "blue") for b in ("circle", "square") for c in ("table", "grass")] * 3
BPE = tokenizers.train(TEXTS, vocab=320)


def byte_letters():
  """GPT-2's printable letter for each byte, as CLIP's vocabulary begins with."""
  plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  return [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]


MERGES = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>"), ("'", "s</w>")]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clip")
  letters = byte_letters()
  vocab = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
  (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}), encoding="utf-8")
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, MERGES)) + "\n", encoding="utf-8")
  return folder


def reference_clip(text: str) -> list[str]:
  """openai/CLIP's simple_tokenizer.py on clean ASCII text, written out for the five merges above."""
  import re
  out = []
  for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()):
    parts = [*word[:-1], word[-1] + "</w>"]
    for pair in MERGES:
      i = 0
      while i < len(parts) - 1:
        if (parts[i], parts[i + 1]) == pair:
          parts[i:i + 2] = ["".join(pair)]
        i += 1
    out += parts
  return out


@pytest.mark.parametrize(
  "text", ["red cat", "Red CAT's 12 cats!!", "a  red\n\tcat", "...red,cat", "scared cat scatter", "it's 'quoted'", ""])
def test_clip_splits_and_merges_as_published(clip_folder, text):
  clip = tokenizers.clip(path=str(clip_folder))
  names = {i: token for token, i in json.loads((clip_folder / "vocab.json").read_text()).items()}
  assert [names[i] for i in clip.encode(text)] == ["<|startoftext|>", *reference_clip(text), "<|endoftext|>"]


def test_clip_cleans_pads_with_its_end_and_keeps_it_when_cut(clip_folder):
  clip = tokenizers.clip(path=str(clip_folder))
  assert (clip.start, clip.end, clip.pad, clip.vocab_size) == (517, 518, 518, 519)
  assert clip.encode("cat &amp;amp; red") == clip.encode("cat & red") and clip.decode(clip.encode("caf\u00c3\u00a9 日本")) == "café 日本"
  tokens, mask = clip.batch(["red cat", "red cat red cat red"], 5)
  assert tokens[0].tolist() == [517, *clip.encode("red cat")[1:-1], 518, 518] and mask.sum(1).tolist() == [4, 5]
  assert tokens[1, -1] == 518 and mask[1].all()
  assert 518 not in clip.encode("cat <|endoftext|> cat")[:-1]


def test_clip_pads_with_token_0_where_open_clip_does(clip_folder, tmp_path):
  zero = tokenizers.clip(path=str(clip_folder), pad="zero")
  assert zero.batch(["red"], 5)[0].tolist() == [[517, *zero.encode("red")[1:], 0, 0]] and zero.decode([517, 0, 256, 518]) == "!!"
  zero.save(tmp_path / "tokenizer.json")
  assert tokenizers.file(path=str(tmp_path)).facts == zero.facts


def test_clip_survives_as_one_file(clip_folder, tmp_path):
  clip = tokenizers.clip(path=str(clip_folder))
  clip.save(tmp_path / "tokenizer.json")
  one = str(tmp_path / "tokenizer.json")
  for again in (tokenizers.file(path=str(tmp_path)), tokenizers.clip(path=str(tmp_path)), tokenizers.clip(path=one)):
    assert again.fingerprint() == clip.fingerprint() and again.encode("Red CAT &amp; ünï") == clip.encode("Red CAT &amp; ünï")
    assert (again.start, again.end, again.pad) == (517, 518, 518)


def test_bpe_specials_and_padding():
  assert (BPE.pad, BPE.start, BPE.end) == (0, 1, 2) and tokenizers.SMALLEST < BPE.vocab_size <= 320
  tokens, mask = BPE.batch(["a red circle", "", "a red circle on the grass " * 9], 10)
  assert tokens.dtype == np.int32 and mask.dtype == bool and tokens.shape == mask.shape == (3, 10)
  assert (tokens[:, 0] == 1).all() and tokens[1].tolist() == [1, 2] + [0] * 8 and tokens[2, -1] == 2
  assert (mask == (tokens != 0)).all()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_bpe_gives_every_text_back_but_for_case_and_space(text):
  import re
  import unicodedata
  if text.encode("utf-8", "replace").decode() != text:
    return
  normal = lambda x: re.sub(r"\s+", "", unicodedata.normalize("NFC", unicodedata.normalize("NFC", x).lower()))
  ids = BPE.encode(text)
  assert ids[0] == 1 and ids[-1] == 2 and not set(ids[1:-1]) & {0, 1, 2} and max(ids) < BPE.vocab_size
  if "İ" not in text:                                  # Python and Rust lower it to other code points
    assert normal(BPE.decode(ids)) == normal(text)


def test_a_caption_can_not_name_special_tokens():
  ids = BPE.encode("<start> red <end> <pad>")
  assert not set(ids[1:-1]) & {0, 1, 2} and BPE.decode(ids) == "<start> red <end> <pad>"


def test_bpe_is_the_same_in_every_process():
  code = (f"from mmdiff.data import tokenizers; print(tokenizers.train({TEXTS!r}, vocab=320).fingerprint())")
  for seed in ("1", "2"):
    ran = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == BPE.fingerprint()


def test_a_tokenizer_that_cannot_be_written_leaves_nothing(tmp_path):
  (tmp_path / "taken").mkdir()
  with pytest.raises(CannotWrite, match="cannot write .*taken"):
    BPE.save(tmp_path / "taken")
  assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_bpe_reloads_exactly_and_pickles(tmp_path):
  BPE.save(tmp_path / "tokenizer.json")
  copies = [tokenizers.file(path=str(tmp_path)), tokenizers.bpe(path=str(tmp_path / "tokenizer.json")),
            pickle.loads(pickle.dumps(BPE))]           # noqa: S301 (our own object)
  for copy in copies:
    assert (copy.fingerprint(), copy.start, copy.end, copy.pad, copy.vocab_size) == (BPE.fingerprint(), 1, 2, 0, BPE.vocab_size)
    assert copy.encode("a <end> green circle é") == BPE.encode("a <end> green circle é")


def test_training_reads_all_kinds_and_passes_over_bad_records():
  spec = tokenizers.bpe(vocab=300, sample=30)
  assert tokenizers.ensure_trained(spec, Holed(40)).fingerprint() == tokenizers.ensure_trained(spec, Holed(40)).fingerprint()
  words = tokenizers.ensure_trained(spec, World(40, kinds=("zebra",)))
  assert len(words.encode("zebra")) < len(BPE.encode("zebra"))
  assert tokenizers.ensure_trained(BPE, World(40)) is BPE
  with pytest.raises(DataError, match="no captions to train"):
    tokenizers.ensure_trained(spec, Listed([{"key": "a", "image": noise(), "captions": {"original": [" "]}}]))


def test_wrong_files_and_values_are_named(tmp_path, clip_folder):
  BPE.save(tmp_path / "tokenizer.json")
  (tmp_path / "broken.json").write_text("{")
  for factory in (tokenizers.file, tokenizers.clip):
    for path in ("", str(tmp_path / "none"), str(tmp_path / "broken.json")):
      with pytest.raises(DataError):
        factory(path=path)
  with pytest.raises(DataError, match="no file"):
    tokenizers.bpe(path=str(tmp_path / "none.json"))
  with pytest.raises(DataError, match="no CLIP tokenizer; use tokenizer.name=file"):
    tokenizers.clip(path=str(tmp_path))
  with pytest.raises(ConfigError, match="data.tokenizer.vocab.*259.*found 100"):
    tokenizers.bpe(vocab=100)
  with pytest.raises(ConfigError, match="data.text_len"):
    BPE.batch(["x"], 1)
